"""RSM-SS (Zhao et al. 2024, arXiv:2404.02668): RS-Mamba for the segmentation of scenes."""

from typing import Any

from torch import Tensor

from vimamba.networks.registry import register_network
from vimamba.networks.rs_mamba import RSMambaNetwork
from vimamba.networks.segmentation.segmenter import Segmenter


class RSMSS(RSMambaNetwork, Segmenter):
    """RSM-SS; see `RSMambaNetwork` for its arguments."""

    published_name = "rsm_ss_tiny"
    official_classifier = "conv_out_seg"

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits of whole cells; see `Segmenter.predict`."""
        return [self.decoder(self.encode(x))]


@register_network(task="segmentation")
def rsm_ss_tiny(
    *, aux: bool = False, img_size: int | None = None, pretrained: bool = False, **kwargs: Any
) -> RSMSS:
    """RSM-SS in the published configuration: 50.4 M parameters, for images of any size."""
    if aux:
        raise ValueError("aux=True: rsm_ss_tiny has no auxiliary outputs")
    if pretrained:
        raise ValueError("pretrained=True: there are no weights for rsm_ss_tiny to start from")
    return RSMSS(**{"drop_path_rate": 0.1, **kwargs})
