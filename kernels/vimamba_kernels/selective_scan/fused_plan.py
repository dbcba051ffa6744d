"""How the work of the selective scan's Triton kernels is cut, and what programs hold and save."""

from typing import NamedTuple

_SHORTEST_SEGMENT = 64
# The first pass costs about what two segments save.
_FEWEST_SEGMENTS = 3


class Plan(NamedTuple):
    """How one kernel's work is cut."""

    # channels of a program, and steps whose rows it loads together
    block: int
    unroll: int
    # whether every path has programs of its own
    split: bool
    segments: int = 1


def choose_plan(
    sizes: tuple[int, int, int, int], shape: tuple[int, int], programs: int, room: int
) -> Plan:
    """The least costly cut that leaves little of the GPU's room empty.

    A warp mostly waits for its loads, so the time is that of one program for as long as all run at
    once: so predicts tools/compile_for_gpu.py; it was not measured.

    Args:
        sizes: B, K, T, N.
        shape: Channels of a program and steps loaded together.
        programs: How many blocks of channels there are in the batch.
        room: Programs that the GPU runs at once.
    """
    _, k, steps, _ = sizes
    if programs >= room:
        return Plan(*shape, split=False)
    segments = min(room // max(1, programs * k), steps // _SHORTEST_SEGMENT)
    return Plan(*shape, split=True, segments=segments if segments >= _FEWEST_SEGMENTS else 1)


def programs_at_once(states: int, *, backward: bool) -> int:
    """Programs, of one warp, whose registers fit into a multiprocessor together."""
    if states > 1:
        return 8
    return 12 if backward else 16


def forward_block(states: int, width: int) -> tuple[int, int]:
    """Channels of a program and steps loaded together, forward, for groups of `width` channels.

    With 128 channels a warp keeps all states of a channel in one lane. With 64 Triton spreads 16
    states over lanes and pays for shuffles at every step.
    """
    if states == 1:
        return (128, 4) if width % 128 == 0 else (64, 8) if width % 64 == 0 else (32, 8)
    if states <= 16:
        return 128, max(1, 8 // (1 << (states - 1).bit_length()))
    return (64, 1) if states <= 32 else (32, 1)


def backward_block(states: int, width: int) -> tuple[int, int]:
    """Channels of a program and steps loaded together, backward, for groups of `width` channels.

    128 channels by 4 steps just fit into the registers, where rows are aligned.
    """
    if states == 1:
        return (128 if width % 128 == 0 else 64), 4
    return (128 if width % 16 == 0 else 64), 4


def saves_states(states: int) -> bool:
    """Whether the forward pass saves states: with few of them they are smaller than delta."""
    return states <= 2


def states_shape(batch: int, k: int, steps: int, states: int, channels: int) -> tuple[int, ...]:
    """Shape of the states that the backward kernel starts from; sizes may be symbolic."""
    spacing = backward_block(states, channels)[1]
    # flat: a number of chunks as a dimension would make torch.compile ask whether it is 1
    return (batch * k * ((steps + spacing - 1) // spacing) * states * channels,)
