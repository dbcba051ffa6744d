"""Rates of stochastic depth (arXiv:1603.09382)."""

from collections.abc import Sequence


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that rise linearly from 0 in the first block to `last` in the last, by stage.

    Computed with Python floats: timm's function reads tensors, which fails with fake tensors.

    Args:
        last: Rate of the last block.
        depths: Blocks of each stage.
    """
    total = sum(depths)
    rates = iter([last * block / max(total - 1, 1) for block in range(total)])
    return [[next(rates) for _ in range(depth)] for depth in depths]
