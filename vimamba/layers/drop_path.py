"""Rates of stochastic depth (arXiv:1603.09382)."""

from collections.abc import Sequence


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that rise linearly from 0 in the first block to `last` in the last, by stage.

    In Python's own numbers: timm's function reads tensors, which fake ones have no values for.

    Args:
        last: Of the last block.
        depths: Blocks of each stage.
    """
    total = sum(depths)
    rates = iter([last * block / max(total - 1, 1) for block in range(total)])
    return [[next(rates) for _ in range(depth)] for depth in depths]
