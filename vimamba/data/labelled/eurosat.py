"""EuroSAT (RGB): 27,000 Sentinel-2 tiles of 64 x 64 pixels, 10 kinds of land use.

Helber et al. 2019, arXiv:1709.00029. There is no official split; a stratified one is drawn.
"""

from vimamba.data.errors import DataError
from vimamba.data.items import Catalogue
from vimamba.data.labelled.image_folder import ImageFolder


class EuroSAT(ImageFolder):
    """torchvision's EuroSAT in the folder torchvision keeps it in.

    Args:
        root: Folder that holds `eurosat/2750/<class>/*.jpg`.
        download: Fetch the data if it is not there.
        **kwargs: Arguments of `ClassificationData`.
    """

    def __init__(self, root: str, *, download: bool = False, **kwargs) -> None:  # noqa: ANN003
        super().__init__(root, **kwargs)
        self.download = download

    def read(self) -> Catalogue:
        """Fetch if asked to, then read the class folders."""
        from torchvision.datasets import EuroSAT as Archive

        try:
            Archive(str(self.root), download=self.download)
        except RuntimeError:
            raise DataError(
                f"root={str(self.root)!r} does not hold eurosat/2750; set download=true to fetch it"
            ) from None
        return self.read_folder(self.root / "eurosat" / "2750")
