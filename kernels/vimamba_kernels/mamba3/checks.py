"""The Mamba-3 operator's tensors and checks; messages name the argument and what is expected."""

from typing import NamedTuple

from torch import Tensor

from vimamba_kernels.arguments import check_types, expect_paths_shape, expect_shape


class Inputs(NamedTuple):
    """Every tensor on which the scan depends differentiably; see `mamba3_scan` for each."""

    x: Tensor
    dt: Tensor
    log_decay: Tensor
    trap: Tensor
    B: Tensor
    C: Tensor
    angles: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    B_bias: Tensor | None = None
    C_bias: Tensor | None = None
    mimo_x: Tensor | None = None
    mimo_z: Tensor | None = None
    mimo_o: Tensor | None = None
    norm_weight: Tensor | None = None
    initial_state: Tensor | None = None
    initial_angle: Tensor | None = None
    initial_b: Tensor | None = None
    initial_x: Tensor | None = None


class Mamba3States(NamedTuple):
    """The state that one step passes to the next, to continue a scan where it ended.

    Attributes:
        state: (B, K, H, P, N).
        angle: Of the rotation, (B, K, H, S), in [0, 2 pi).
        b: B of the last step, biased and rotated: (B, K, H, N), or (B, K, H, R, N) with ranks.
        x: x of the last step, times `mimo_x`: (B, K, H, P), or (B, K, H, R, P) with ranks.
    """

    state: Tensor
    angle: Tensor
    b: Tensor
    x: Tensor


_ACTIVATIONS = ("x", "B", "C", "z")
_INITIAL = Inputs._fields[-4:]
# as errors call them
_NAMES = {f"initial_{field}": f"initial_states.{field}" for field in Mamba3States._fields}


def check_arguments(inputs: Inputs, paths: Tensor | None) -> None:
    """Check dtypes, devices, shapes, and which arguments come together.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: An argument has the wrong shape or device, is missing, or is not allowed.
    """
    named = {_NAMES.get(name, name): value for name, value in inputs._asdict().items()}
    activations = {name: named.pop(name) for name in _ACTIVATIONS}
    optional = (*Inputs._field_defaults, *_NAMES.values())
    check_types(activations, named, paths, optional=optional)
    x, dt, B = inputs.x, inputs.dt, inputs.B
    if dt.dim() != 4 or dt.shape[2] < 1:
        shape = tuple(dt.shape)
        raise ValueError(f"dt has shape {shape}; expected (B, K, L, H) with at least one token")
    batch, k, length, heads = dt.shape
    width = x.shape[-1] if x.dim() else 0
    merged, separate = (batch, length, heads, width), (batch, k, length, heads, width)
    expect_shape("x", x, "(B, L, H, P) or (B, K, L, H, P)", merged, separate)
    for name in ("log_decay", "trap"):
        expect_shape(name, getattr(inputs, name), "the shape of dt", tuple(dt.shape))
    _check_groups(B, inputs.C, dt)
    states = B.shape[-1]
    pairs = _check_angles(inputs.angles, dt, states)
    expect_shape("D", inputs.D, "(K, H)", (k, heads))
    expect_shape("z", inputs.z, "(B, L, H, P)", merged)
    expect_shape("norm_weight", inputs.norm_weight, "(K, H, P)", (k, heads, width))
    _check_ranks(inputs)
    by_rank = (B.shape[3],) if B.dim() == 6 else ()
    R = "R, " if by_rank else ""
    for name in ("B_bias", "C_bias"):
        expect_shape(name, getattr(inputs, name), f"(K, H, {R}N)", (k, heads, *by_rank, states))
    for name in ("mimo_x", "mimo_z", "mimo_o"):
        expect_shape(name, getattr(inputs, name), "(K, H, R, P)", (k, heads, *by_rank, width))
    _check_initial(inputs)
    for name, symbols, sizes in (
        ("initial_state", "P, N", (width, states)),
        ("initial_angle", "S", (pairs,)),
        ("initial_b", f"{R}N", (*by_rank, states)),
        ("initial_x", f"{R}P", (*by_rank, width)),
    ):
        shape = (batch, k, heads, *sizes)
        expect_shape(_NAMES[name], getattr(inputs, name), f"(B, K, H, {symbols})", shape)
    expect_paths_shape(paths, batch, k)


def _check_groups(B: Tensor, C: Tensor, dt: Tensor) -> None:
    batch, k, length, heads = dt.shape
    groups = B.shape[-2] if B.dim() > 4 else 1
    if groups < 1 or heads % groups:
        raise ValueError(f"B has {groups} groups; expected a divisor of H = {heads}")
    states = B.shape[-1] if B.dim() else 0
    ranks = B.shape[3] if B.dim() == 6 else 1
    shapes = [(states,), (groups, states), (max(1, ranks), groups, states)]
    expect_shape(
        "B",
        B,
        "(B, K, L, N), (B, K, L, G, N) or (B, K, L, R, G, N)",
        *((batch, k, length, *shape) for shape in shapes),
    )
    expect_shape("C", C, "the shape of B", tuple(B.shape))


def _check_angles(angles: Tensor, dt: Tensor, states: int) -> int:
    """Check that there are angles for at most N / 2 pairs; returns how many."""
    pairs = angles.shape[-1] if angles.dim() else 0
    if 2 * pairs > states:
        raise ValueError(f"angles has {pairs} pairs; expected at most half of N = {states}")
    batch, k, length, heads = dt.shape
    shapes = ((batch, k, length, n, pairs) for n in (heads, 1))
    expect_shape("angles", angles, "(B, K, L, H, S) or (B, K, L, 1, S)", *shapes)
    return pairs


def _check_ranks(inputs: Inputs) -> None:
    """Check that per-rank weights are given where they are used, and nowhere else."""
    ranked = inputs.B.dim() == 6
    for name, used in (("mimo_x", True), ("mimo_z", inputs.z is not None), ("mimo_o", True)):
        given = getattr(inputs, name) is not None
        if given and not (ranked and used):
            why = "z is None" if ranked else f"B has no ranks: {tuple(inputs.B.shape)}"
            raise ValueError(f"{name} is given, but {why}; expected None")
        if ranked and used and not given:
            raise ValueError(f"{name} is None; expected (K, H, R, P), since B has ranks")


def _check_initial(inputs: Inputs) -> None:
    """Check that all parts of an initial state are given or none is."""
    missing = [name for name in _INITIAL if getattr(inputs, name) is None]
    if missing and len(missing) < len(_INITIAL):
        names = ", ".join(_NAMES.values())
        raise ValueError(f"{_NAMES[missing[0]]} is None; expected all of {names} or none")
