"""RSM-SS (Zhao et al. 2024, arXiv:2404.02668): RS-Mamba for the segmentation of scenes."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vimamba.checkpoints import Rules, StateDict
from vimamba.networks import rs_mamba
from vimamba.networks.registry import register_network
from vimamba.networks.segmentation.segmenter import Segmenter


class RSMSS(Segmenter):
    """RSM-SS.

    Args:
        num_classes: Channels of the logits; published with one, for a binary mask.
        in_chans: Channels of the images.
        depths: Blocks per stage of the encoder.
        dims: Channels of the encoder's stages.
        d_state: States per channel of the scans.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks take in turn.
        drop_path_rate: Drop rate of the last block.
    """

    def __init__(
        self,
        num_classes: int = 1,
        in_chans: int = 3,
        *,
        depths: Sequence[int] = rs_mamba.DEPTHS,
        dims: Sequence[int] = rs_mamba.DIMS,
        d_state: int = 16,
        scan_order: str | Sequence[str] = "omni_wrap",
        drop_path_rate: float = 0.1,
    ) -> None:
        cell = 4 * 2 ** (len(dims) - 1)
        super().__init__(
            (cell, cell),
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained_cfg=rs_mamba.published("rsm_ss_tiny", in_chans),
        )
        self.encoder = rs_mamba.make_encoder(
            in_chans,
            depths,
            dims,
            d_state=d_state,
            scan_order=scan_order,
            drop_path_rate=drop_path_rate,
        )
        self.decoder = rs_mamba.Decoder(dims, num_classes)

    @property
    def body(self) -> nn.Module:
        """The encoder, a VMamba of eight paths."""
        return self.encoder

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits of the padded image; see `Segmenter.predict`."""
        features: Any = self.encoder.forward_intermediates(x, intermediates_only=True)
        return [self.decoder(features)]

    @classmethod
    def official_rules(cls) -> Rules:
        """Rules for renaming an official file's parameters."""
        return {**rs_mamba.RULES, r"conv_out_seg\.(.*)": r"decoder.classifier.\1"}

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename the parameters of an official file."""
        return rs_mamba.rename(state_dict, self.official_rules())


@register_network(task="segmentation")
def rsm_ss_tiny(
    *, aux: bool = False, img_size: int | None = None, pretrained: bool = False, **kwargs: Any
) -> RSMSS:
    """RSM-SS in the published configuration: 50.4 M parameters, for images of any size."""
    if aux:
        raise ValueError("aux=True: rsm_ss_tiny has no auxiliary outputs")
    if pretrained:
        raise ValueError("pretrained=True: there are no weights for rsm_ss_tiny to start from")
    return RSMSS(**kwargs)
