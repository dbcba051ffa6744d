"""RSM-CD (Zhao et al. 2024, arXiv:2404.02668): RS-Mamba for change detection."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vimamba.checkpoints import Rules, StateDict
from vimamba.heads import ConcatenationFusion
from vimamba.networks import rs_mamba
from vimamba.networks.change.detector import ChangeDetector, encode_dates
from vimamba.networks.registry import register_network


class RSMCD(ChangeDetector):
    """RSM-CD.

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
        drop_path_rate: float = 0.2,
    ) -> None:
        cell = 4 * 2 ** (len(dims) - 1)
        super().__init__(
            (cell, cell),
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained_cfg=rs_mamba.published("rsm_cd_tiny", in_chans),
        )
        self.encoder = rs_mamba.make_encoder(
            in_chans,
            depths,
            dims,
            d_state=d_state,
            scan_order=scan_order,
            drop_path_rate=drop_path_rate,
        )
        self.fusion = ConcatenationFusion(dims)
        self.decoder = rs_mamba.Decoder(dims, num_classes)

    @property
    def body(self) -> nn.Module:
        """The encoder, a VMamba of eight paths."""
        return self.encoder

    def encode(self, x: Tensor) -> Any:
        """Images (N, C_in, H, W) to the maps of all stages, fine to coarse."""
        return self.encoder.forward_intermediates(x, intermediates_only=True)

    def predict(self, before: Tensor, after: Tensor) -> list[Tensor]:
        """Logits of the padded images; see `ChangeDetector.predict`."""
        return [self.decoder(self.fusion(*encode_dates(self.encode, before, after)))]

    @classmethod
    def official_rules(cls) -> Rules:
        """Rules for renaming an official file's parameters."""
        return {
            **rs_mamba.RULES,
            **rs_mamba.FUSION_RULES,
            r"conv_out_change\.(.*)": r"decoder.classifier.\1",
        }

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename the parameters of an official file."""
        return rs_mamba.rename(state_dict, self.official_rules())


@register_network(task="change")
def rsm_cd_tiny(*, img_size: int | None = None, pretrained: bool = False, **kwargs: Any) -> RSMCD:
    """RSM-CD in the published configuration: 51.9 M parameters, for images of any size."""
    if pretrained:
        raise ValueError("pretrained=True: there are no weights for rsm_cd_tiny to start from")
    return RSMCD(**kwargs)
