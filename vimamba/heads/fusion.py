"""Fusion of the pyramids of two dates into one for any head.

difference     absolute change of each channel
concatenation  both dates concatenated, projected back to the channels of one
change_mamba   scans over both dates at once, arranged in three ways (arXiv:2404.03425)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vimamba.heads.blocks import ConvNormAct, ScanBlock
from vimamba.layers import ARRANGEMENTS, check_arrangement, join_dates, part_dates
from vimamba.names import check_free, expect_maker, unknown_name
from vimamba.timm_layers import ConvNormAct as ConvNorm

_FUSIONS: dict[str, type[Any]] = {}


def register_fusion(
    fusion: type[nn.Module] | None = None, *, name: str | None = None, replace: bool = False
) -> Any:
    """Make a fusion available by name; a decorator, bare or with options, or a plain call.

    Args:
        fusion: A class constructed with the channels of a pyramid, fine to coarse, that maps two
            pyramids, [(N, C_i, H_i, W_i), ...] each, to one with the same strides. Its attribute
            `channels` has the channels of the result.
        name: The class's own name by default.
        replace: Overwrite a fusion of the same name. One that comes with vimamba is always
            replaced, with a warning.

    Raises:
        TypeError: `fusion` is not a class.
        ValueError: The name is taken.
    """
    if fusion is None:
        return lambda fusion: register_fusion(fusion, name=name, replace=replace)
    expect_maker(fusion, "fusion")
    name = name or fusion.__name__
    check_free(name, _FUSIONS.get(name), kind="fusion", home="vimamba.heads", replace=replace)
    _FUSIONS[name] = fusion
    return fusion


def list_fusions() -> list[str]:
    """Names of the fusions for `vimamba.create_change_detector`."""
    return sorted(_FUSIONS)


def find_fusion(name: str) -> type[Any]:
    """The class of a fusion.

    Raises:
        ValueError: No fusion has this name.
    """
    if name not in _FUSIONS:
        raise ValueError(unknown_name("fusion", name, _FUSIONS))
    return _FUSIONS[name]


@register_fusion(name="difference")
class DifferenceFusion(nn.Module):
    """The absolute difference of the dates, at every level (Daudt et al. 2018, arXiv:1810.08462).

    Args:
        channels: Channels of the pyramid, fine to coarse.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = [*channels]

    def forward(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Tensor]:
        """[(N, C_i, H_i, W_i), ...] of each date to the same shapes."""
        return [(b - a).abs() for b, a in zip(before, after, strict=True)]


@register_fusion(name="concatenation")
class ConcatenationFusion(nn.Module):
    """Concatenate both dates along the channels and project to the channels of one.

    As in RSM-CD (Zhao et al. 2024, arXiv:2404.02668).

    Args:
        channels: Channels of the pyramid, fine to coarse.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = [*channels]
        self.convs = nn.ModuleList(ConvNormAct(2 * c, c, 1) for c in channels)

    def forward(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Tensor]:
        """[(N, C_i, H_i, W_i), ...] of each date to the same shapes."""
        levels = zip(self.convs, before, after, strict=True)
        return [conv(torch.cat([b, a], dim=1)) for conv, b, a in levels]


class ScanFusionLevel(nn.Module):
    """One block for each arrangement of two maps, and a projection of their outputs.

    Args:
        dim_in, dim: Channels of the maps and of the result.
        arrangements: See `vimamba.layers.join_dates`.
        **block: To `ScanBlock`.
    """

    def __init__(self, dim_in: int, dim: int, arrangements: Sequence[str], **block: Any) -> None:
        super().__init__()
        self.arrangements = tuple(arrangements)
        self.blocks = nn.ModuleList(
            ScanBlock(2 * dim_in if arrangement == "parallel" else dim_in, dim, **block)
            for arrangement in arrangements
        )
        maps = sum(1 if arrangement == "parallel" else 2 for arrangement in arrangements)
        self.fuse = ConvNorm(maps * dim, dim, 1, bias=True)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """(N, C_in, H, W) of each date to (N, C, H, W)."""
        maps: list[Tensor] = []
        for block, arrangement in zip(self.blocks, self.arrangements, strict=True):
            maps += part_dates(block(join_dates(before, after, arrangement)), arrangement)
        return self.fuse(torch.cat(maps, dim=1))


@register_fusion(name="change_mamba")
class ScanFusion(nn.Module):
    """Scans over both dates at once, at every level (ChangeMamba, arXiv:2404.03425).

    Args:
        channels: Channels of the pyramid, fine to coarse.
        dim: Channels of every level of the result.
        arrangements: Some of `vimamba.layers.ARRANGEMENTS`, each once.
        **block: `scan_order`, `d_state`, `expand` and other arguments of `SS2D`, `mlp_ratio`
            and `drop_path` of `VSSBlock`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        *,
        dim: int = 128,
        arrangements: Sequence[str] = ARRANGEMENTS,
        **block: Any,
    ) -> None:
        super().__init__()
        for arrangement in arrangements:
            check_arrangement(arrangement)
        if not arrangements or len({*arrangements}) < len(arrangements):
            raise ValueError(
                f"arrangements={tuple(arrangements)} must be one or more of {ARRANGEMENTS}, each "
                "once"
            )
        self.channels = [dim] * len(channels)
        block = {"expand": 2.0, **block}
        self.levels = nn.ModuleList(
            ScanFusionLevel(c, dim, arrangements, **block) for c in channels
        )

    def forward(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Tensor]:
        """[(N, C_i, H_i, W_i), ...] of each date to [(N, C, H_i, W_i), ...]."""
        levels = zip(self.levels, before, after, strict=True)
        return [level(b, a) for level, b, a in levels]
