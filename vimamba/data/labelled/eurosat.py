"""EuroSAT (RGB): 27,000 Sentinel-2 tiles of 64 x 64 pixels, 10 kinds of land use.

Helber et al. 2019, arXiv:1709.00029. There is no official split; a stratified one is made.
"""

from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue
from vimamba.data.labelled.image_folder import ImageFolder


class EuroSAT(ImageFolder):
    """torchvision's EuroSAT, in the folder where torchvision stores it.

    Args:
        root: Folder that contains `eurosat/2750/<class>/*.jpg`.
        download: Download the data if missing.
        **kwargs: Arguments of `ClassificationData`.
    """

    def __init__(self, root: str, *, download: bool = False, **kwargs) -> None:  # noqa: ANN003
        super().__init__(root, **kwargs)
        self.download = download

    def read(self) -> Catalogue:
        """Download if requested, then read the class folders."""
        from torchvision.datasets import EuroSAT as Archive

        try:
            Archive(str(self.root), download=self.download)
        except RuntimeError:
            raise DataError(
                f"root={str(self.root)!r} has no eurosat/2750; set download=true to download it"
            ) from None
        return self.read_folder(self.root / "eurosat" / "2750")
