"""VM-UNet (Ruan et al. 2024, arXiv:2402.02491): a U-Net of VSS blocks with additive skips.

The skips are the inputs of the encoder's stages except the first; each is added before the decoder
stage that upsamples it.

Official code: https://github.com/JCruan519/VM-UNet (Apache-2.0). It returns probabilities if there
is one class; here the output is always logits.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from vimamba.layers import (
    GATED_SS2D,
    SS2D,
    PatchExpand,
    VSSBlock,
    drop_path_rates,
    init_vss_,
)
from vimamba.networks.dense import EncodedNetwork
from vimamba.networks.registry import register_network
from vimamba.networks.segmentation.segmenter import Segmenter
from vimamba.networks.segmentation.vss_encoder import (
    Rules,
    block_rules,
    encoder_rules,
    load_vmamba,
    make_encoder,
)
from vimamba.scan_orders import order_of_block
from vimamba.sizes import ImageSize

_OFFICIAL_KEYS: Rules = {
    **encoder_rules(r"vmunet\.", r"layers\.(\d+)\.downsample"),
    **block_rules(r"vmunet\.layers_up\.(\d+)\.blocks\.(\d+)\.", r"decoder.\1.blocks.\2."),
    r"vmunet\.layers_up\.(\d+)\.upsample\.(.*)": r"decoder.\1.upsample.\2",
    r"vmunet\.final_up\.(.*)": r"expand.\1",
    r"vmunet\.final_conv\.(.*)": r"classifier.\1",
}


class UpStage(nn.Module):
    """Double the grid (except in the first stage), then run the blocks."""

    def __init__(
        self,
        upsample: nn.Module,
        dim: int,
        drop_path_rates: list[float],
        scan_orders: list[str],
    ) -> None:
        super().__init__()
        self.upsample = upsample
        self.blocks = nn.Sequential(
            *(
                VSSBlock(
                    dim, SS2D(dim, scan_order=order, **GATED_SS2D), mlp_ratio=0.0, drop_path=rate
                )
                for rate, order in zip(drop_path_rates, scan_orders, strict=True)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C_in) to (N, 2 H, 2 W, C)."""
        return self.blocks(self.upsample(x))


class VMUNet(EncodedNetwork, Segmenter):
    """VM-UNet.

    Args:
        num_classes: Channels of the logits.
        in_chans: Channels of the images. With three, single-channel images are repeated, as
            published.
        depths, decoder_depths: Blocks per stage, each in the order of computation.
        dims: Channels of the encoder's stages; the decoder's are the same in reverse.
        scan_order: One of `vimamba.list_scan_orders(dims=2)`, with parameters if it has any, or a
            sum; or a list of them, which the blocks of the encoder take in turn, and those of the
            decoder.
        drop_path_rate: Drop rate of the blocks next to the bottleneck, in encoder and decoder.
        pretrained: Start both from VMamba-S of the first generation.
        pretrained_cfg_overlay: Location of its weights, as for `timm.create_model`.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int = 3,
        *,
        depths: tuple[int, ...] = (2, 2, 2, 2),
        decoder_depths: tuple[int, ...] = (2, 2, 2, 1),
        dims: tuple[int, ...] = (96, 192, 384, 768),
        scan_order: str | Sequence[str] = "cross",
        drop_path_rate: float = 0.2,
        pretrained: bool = False,
        pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    ) -> None:
        if not len(depths) == len(decoder_depths) == len(dims):
            raise ValueError(
                f"depths={depths}, decoder_depths={decoder_depths} and dims={dims} must have "
                "one entry per stage"
            )
        if any(dim != 2 * before for before, dim in pairwise(dims)):
            raise ValueError(f"dims={dims} must double from stage to stage")
        cell = 4 * 2 ** (len(dims) - 1)
        super().__init__(
            (cell, cell),
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained_cfg={
                "architecture": "vm_unet",
                "input_size": (in_chans, 256, 256),
                "license": "apache-2.0",
                "origin_url": "https://github.com/JCruan519/VM-UNet",
                "paper_ids": "arXiv:2402.02491",
            },
        )
        self.encoder = make_encoder(
            in_chans, depths, dims=dims, scan_order=scan_order, drop_path_rate=drop_path_rate
        )
        (falling,) = drop_path_rates(drop_path_rate, [sum(decoder_depths)])
        rates = iter(falling[::-1])
        self.decoder = nn.ModuleList()
        for i, (dim, depth) in enumerate(zip(reversed(dims), decoder_depths, strict=True)):
            upsample = PatchExpand(2 * dim, dim) if i else nn.Identity()
            before = sum(decoder_depths[:i])
            orders = [order_of_block(scan_order, before + j) for j in range(depth)]
            stage_rates = [next(rates) for _ in range(depth)]
            self.decoder.append(UpStage(upsample, dim, stage_rates, orders))
        self.expand = PatchExpand(dims[0], dims[0] // 4, scale=4)
        self.classifier = nn.Conv2d(dims[0] // 4, num_classes, 1)
        init_vss_(self.decoder)
        init_vss_(self.expand)
        if pretrained:
            overlay = {"in_chans": in_chans, "pretrained_cfg_overlay": pretrained_cfg_overlay}
            source = load_vmamba(self.encoder, "vmamba_small_v0", **overlay)
            self.note_start(source)
            stages = reversed(list(source.stages))
            for ours, theirs in zip(self.decoder, stages, strict=True):
                for block, published in zip(ours.blocks, theirs.blocks, strict=False):  # type: ignore[arg-type]
                    block.load_state_dict(published.state_dict())

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits of the padded image; see `Segmenter.predict`."""
        if self.in_chans == 3 and x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        x = self.encoder.stem(x)
        skips: list[Tensor] = []
        for stage in self.encoder.stages:
            x = stage.downsample(x)  # type: ignore[operator]
            skips.append(x)
            x = stage.mix(x)  # type: ignore[operator]
        x = self.decoder[0](x)
        for stage in self.decoder[1:]:
            x = stage(x + skips.pop())
        return [self.classifier(self.expand(x).permute(0, 3, 1, 2))]

    @classmethod
    def official_rules(cls) -> Rules:
        """Rules for renaming an official file's parameters."""
        return _OFFICIAL_KEYS


@register_network(task="segmentation")
def vm_unet(*, aux: bool = False, img_size: ImageSize | None = None, **kwargs: Any) -> VMUNet:
    """VM-UNet in the published configurations: 27.4 M parameters, for images of any size."""
    if aux:
        raise ValueError("aux=True: vm_unet has no auxiliary outputs")
    return VMUNet(**kwargs)
