"""A small U-Net for volumes with VSS blocks at its coarser stages, as a baseline.

Our own design, not published: nnU-Net's residual U-Net (arXiv:2404.09556), whose coarser stages mix
their cells along the paths of any three-dimensional scan order after the convolutions. On fine
maps, convolutions suffice and scans would take most of the time.

Sizes: N batch, C channels, *grid the three axes of a map.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vimamba.layers import SS2D, VSSBlock, drop_path_rates
from vimamba.networks.registry import register_network
from vimamba.networks.segmentation.segmenter import Segmenter
from vimamba.networks.segmentation.umamba import UpStage, plan_stages, residual_blocks
from vimamba.scan_orders import order_of_block

_AXES = 3


class Stage(nn.Module):
    """Strided convolutions, then mixing of cells along paths."""

    def __init__(self, convs: nn.Module, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.convs = convs
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *grid) to (N, C, *smaller)."""
        x = self.convs(x)
        if len(self.blocks) == 0:
            return x
        return self.blocks(x.movedim(1, -1)).movedim(-1, 1).contiguous()


class VSSUNet3d(Segmenter):
    """A residual U-Net for volumes with VSS blocks at its coarser stages.

    Args:
        num_classes: Channels of the logits.
        in_chans: Channels of the volumes.
        dims: Channels of the stages; the first has the volume's own resolution.
        depths: VSS blocks of each stage, 0 for none.
        strides: From each stage to the next along each axis, (1, 1, 1) first; 2 if None.
        kernel_sizes: Kernel sizes of each stage; 3 if None.
        scan_order: One of `vimamba.list_scan_orders(dims=3)`, with parameters if it has any, or a
            sum; or a list of them, which the VSS blocks take in turn.
        d_state: States of each channel.
        mlp_ratio: Hidden channels of the blocks' MLP divided by channels.
        drop_path_rate: Drop rate of the last VSS block.
        deep_supervision: Auxiliary outputs of every stage of the decoder.
    """

    fewest_cells = 2
    checkpoints_parts = True

    def __init__(
        self,
        num_classes: int,
        in_chans: int = 1,
        *,
        dims: Sequence[int] = (16, 32, 64, 128),
        depths: Sequence[int] = (0, 0, 1, 2),
        strides: Sequence[Sequence[int]] | None = None,
        kernel_sizes: Sequence[Sequence[int]] | None = None,
        scan_order: str | Sequence[str] = "cross",
        d_state: int = 1,
        mlp_ratio: float = 2.0,
        drop_path_rate: float = 0.1,
        deep_supervision: bool = False,
    ) -> None:
        n = len(dims)
        still = [1] * _AXES
        steps = strides or [still, *[[2] * _AXES] * (n - 1)]
        kernels = kernel_sizes or [[3] * _AXES] * n
        if not len(depths) == len(steps) == len(kernels) == n or n < 2:
            raise ValueError(
                f"dims={dims}, depths={depths}, strides={strides} and kernel_sizes={kernel_sizes} "
                "must have one entry per stage, at least two"
            )
        if any(len(sizes) != _AXES for sizes in (*steps, *kernels)):
            raise ValueError(
                f"strides={strides} and kernel_sizes={kernel_sizes} must have three axes per stage"
            )
        cell = tuple(math.prod(axis) for axis in zip(*steps, strict=True))
        super().__init__(
            cell,
            num_classes=num_classes,
            in_chans=in_chans,
            pretrained_cfg={
                "architecture": "vss_unet_3d",
                "input_size": (in_chans, *(max(c, 4) * 8 for c in cell)),
            },
        )
        rates = drop_path_rates(drop_path_rate, list(depths))
        kind: dict[str, Any] = {"d_state": d_state, "dims": _AXES}
        self.stem = residual_blocks(in_chans, dims[0], 1, kernels[0], still)
        self.stages = nn.ModuleList()
        made = 0
        for s, (dim, stage_rates) in enumerate(zip(dims, rates, strict=True)):
            convs = residual_blocks(dims[max(s - 1, 0)], dim, 1, kernels[s], steps[s])
            orders = [order_of_block(scan_order, made + i) for i in range(depths[s])]
            blocks = [
                VSSBlock(
                    dim,
                    SS2D(dim, scan_order=order, **kind),
                    mlp_ratio=mlp_ratio,
                    drop_path=rate,
                )
                for order, rate in zip(orders, stage_rates, strict=True)
            ]
            made += depths[s]
            self.stages.append(Stage(convs, blocks))
        self.decoder = nn.ModuleList(
            UpStage(dims[s + 1], dims[s], 1, kernels[s], steps[s + 1], skip=True)
            for s in reversed(range(n - 1))
        )
        self.classifier = nn.Conv3d(dims[0], num_classes, 1)
        supervised = reversed(dims[1:-1]) if deep_supervision else ()
        self.aux_classifiers = nn.ModuleList(nn.Conv3d(d, num_classes, 1) for d in supervised)

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits of the padded image; see `Segmenter.predict`."""
        x = self.run(self.stem, x)
        skips: list[Tensor] = []
        for stage in self.stages:
            x = self.run(stage, x)
            skips.append(x)
        skips.pop()
        levels: list[Tensor] = []
        for up in self.decoder:
            x = self.run(up, x, skips.pop())
            if auxiliary:
                levels.append(x)
        outputs = [self.classifier(x)]
        coarse = list(zip(self.aux_classifiers, levels[:-1], strict=False))
        return outputs + [classifier(level) for classifier, level in reversed(coarse)]

    def body_parameters(self) -> list[nn.Parameter]:
        """Parameters of the encoder."""
        return [p for part in (self.stem, self.stages) for p in part.parameters()]

    def group_matcher(self, coarse: bool = False) -> Any:
        """The encoder's stages for layer-wise learning rates; the decoder is the last one."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}


def _make(
    dims: Sequence[int],
    depths: Sequence[int],
    /,
    *,
    num_classes: int,
    in_chans: int = 1,
    pretrained: bool = False,
    img_size: int | None = None,
    aux: bool = False,
    patch_size: Sequence[int] | None = None,
    spacing: Sequence[float] | None = None,
    **kwargs: Any,
) -> VSSUNet3d:
    """A network with as many stages as the patch size allows.

    Strides and kernels are those of `plan_stages` for `patch_size`, or `img_size` along each axis;
    without either, all stages halve all axes. `kwargs` are additional arguments of `VSSUNet3d`.
    """
    if pretrained:
        raise ValueError("pretrained=True: there are no published weights of vss_unet_3d")
    patch = patch_size or ([img_size] * _AXES if img_size else None)
    if patch is not None and len(patch) != _AXES:
        raise ValueError(f"patch_size={patch_size} of vss_unet_3d must be three sides")
    if spacing is not None and patch is None:
        raise ValueError(f"spacing={spacing} needs a patch_size")
    dims, depths = kwargs.pop("dims", dims), kwargs.pop("depths", depths)
    sizes: dict[str, Any] = {"dims": dims, "depths": depths}
    if patch is not None and "strides" not in kwargs:
        plan = plan_stages(patch, spacing)
        n = max(min(len(dims), len(plan["strides"])), 2)
        # a patch too small for two stages is padded
        strides = [*plan["strides"], [2] * _AXES][:n]
        kernels = [*plan["kernel_sizes"], [3] * _AXES][:n]
        # the coarsest stages have the VSS blocks
        sizes = {"dims": dims[:n], "depths": depths[len(depths) - n :]}
        sizes |= {"strides": strides, "kernel_sizes": kernels}
    return VSSUNet3d(num_classes, in_chans, deep_supervision=aux, **{**sizes, **kwargs})


@register_network(task="segmentation")
def vss_unet_3d_nano(**kwargs: Any) -> VSSUNet3d:
    """Four stages of 8 to 64 channels, 0.4 M parameters: for CPUs and for trying things out."""
    return _make((8, 16, 32, 64), (0, 0, 1, 2), **kwargs)


@register_network(task="segmentation")
def vss_unet_3d_tiny(**kwargs: Any) -> VSSUNet3d:
    """Four stages of 16 to 128 channels, 1.6 M parameters."""
    return _make((16, 32, 64, 128), (0, 0, 1, 2), **kwargs)


@register_network(task="segmentation")
def vss_unet_3d_small(**kwargs: Any) -> VSSUNet3d:
    """Five stages of 16 to 256 channels, 6.6 M parameters."""
    return _make((16, 32, 64, 128, 256), (0, 0, 1, 2, 2), **kwargs)


@register_network(task="segmentation")
def vss_unet_3d_base(**kwargs: Any) -> VSSUNet3d:
    """Five stages of 32 to 512 channels, 29.8 M parameters."""
    return _make((32, 64, 128, 256, 512), (0, 0, 2, 2, 4), **kwargs)
