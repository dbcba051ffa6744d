"""How the selective scan's Triton kernels split the work, and what programs hold and save."""

from typing import NamedTuple

_SHORTEST_SEGMENT = 64
# The first pass costs about as much as two segments save.
_FEWEST_SEGMENTS = 3


class Plan(NamedTuple):
    """How one kernel's work is split."""

    # channels per program, and steps whose rows it loads together
    block: int
    unroll: int
    # whether every path has separate programs
    split: bool
    segments: int = 1


def choose_plan(
    sizes: tuple[int, int, int, int], shape: tuple[int, int], programs: int, room: int
) -> Plan:
    """The cheapest split that leaves little of the GPU idle.

    A warp mostly waits for its loads, so the time is that of one program as long as all programs
    run at once. This is a prediction by tools/compile_for_gpu.py, not a measurement.

    Args:
        sizes: B, K, T, N.
        shape: Channels per program and steps loaded together.
        programs: Number of blocks of channels in the batch.
        room: Number of programs that the GPU runs at once.
    """
    _, k, steps, _ = sizes
    if programs >= room:
        return Plan(*shape, split=False)
    segments = min(room // max(1, programs * k), steps // _SHORTEST_SEGMENT)
    return Plan(*shape, split=True, segments=segments if segments >= _FEWEST_SEGMENTS else 1)


def programs_at_once(states: int, *, backward: bool) -> int:
    """Number of one-warp programs whose registers fit in a multiprocessor."""
    if states > 1:
        return 8
    return 12 if backward else 16


def forward_block(states: int, width: int) -> tuple[int, int]:
    """Channels per program and steps loaded together, forward, for groups of `width` channels.

    With 128 channels a warp keeps all states of a channel in one lane. With 64, Triton spreads 16
    states over lanes, which costs shuffles at every step.
    """
    if states == 1:
        return (128, 4) if width % 128 == 0 else (64, 8) if width % 64 == 0 else (32, 8)
    if states <= 16:
        return 128, max(1, 8 // (1 << (states - 1).bit_length()))
    return (64, 1) if states <= 32 else (32, 1)


def backward_block(states: int, width: int) -> tuple[int, int]:
    """Channels per program and steps loaded together, backward, for groups of `width` channels.

    128 channels by 4 steps just fit in the registers if rows are aligned.
    """
    if states == 1:
        return (128 if width % 128 == 0 else 64), 4
    return (128 if width % 16 == 0 else 64), 4


def saves_states(states: int) -> bool:
    """Whether the forward pass saves states: a few of them are smaller than delta."""
    return states <= 2


def states_shape(batch: int, k: int, steps: int, states: int, channels: int) -> tuple[int, ...]:
    """Shape of the states that the backward kernel starts from; sizes may be symbolic."""
    spacing = backward_block(states, channels)[1]
    # flat: a number of chunks as a dimension would make torch.compile ask whether it is 1
    return (batch * k * ((steps + spacing - 1) // spacing) * states * channels,)
