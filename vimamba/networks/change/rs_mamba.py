"""RSM-CD (Zhao et al. 2024, arXiv:2404.02668): RS-Mamba for change detection."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vimamba.heads import ConcatenationFusion
from vimamba.networks.change.detector import ChangeDetector, encode_dates
from vimamba.networks.registry import register_network
from vimamba.networks.rs_mamba import DIMS, RSMambaNetwork


class RSMCD(RSMambaNetwork, ChangeDetector):
    """RSM-CD; see `RSMambaNetwork` for its arguments."""

    published_name = "rsm_cd_tiny"
    official_classifier = "conv_out_change"

    def __init__(
        self,
        num_classes: int = 1,
        in_chans: int = 3,
        *,
        dims: Sequence[int] = DIMS,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, in_chans, dims=dims, **kwargs)
        self.fusion = ConcatenationFusion(dims)

    def predict(self, before: Tensor, after: Tensor) -> list[Tensor]:
        """Logits of the padded images; see `ChangeDetector.predict`."""
        return [self.decoder(self.fusion(*encode_dates(self.encode, before, after)))]


@register_network(task="change")
def rsm_cd_tiny(*, img_size: int | None = None, pretrained: bool = False, **kwargs: Any) -> RSMCD:
    """RSM-CD in the published configuration: 51.9 M parameters, for images of any size."""
    if pretrained:
        raise ValueError("pretrained=True: there are no weights for rsm_cd_tiny to start from")
    return RSMCD(**{"drop_path_rate": 0.2, **kwargs})
