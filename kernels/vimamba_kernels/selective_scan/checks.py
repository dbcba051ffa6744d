"""Checks of the selective scan's arguments; messages name the argument and what is expected."""

from torch import Tensor

from vimamba_kernels.arguments import check_types, expect_paths_shape, expect_shape, sizes_text

_OPTIONAL = ("z", "D", "delta_bias", "delta_weight", "initial_state")


def check_arguments(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_weight: Tensor | None,
    paths: Tensor | None,
    initial_state: Tensor | None = None,
    *,
    state_name: str = "initial_state",
) -> None:
    """Check dtypes, devices and shapes; errors call the state before the first token `state_name`.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: An argument has the wrong shape or device.
    """
    activations = {"u": u, "delta": delta, "B": B, "C": C, "z": z, "delta_weight": delta_weight}
    parameters = {"A": A, "D": D, "delta_bias": delta_bias, state_name: initial_state}
    check_types(activations, parameters, paths, optional=_OPTIONAL)
    batch, k, channels, states = _check_shapes(activations, parameters)
    expect_shape(state_name, initial_state, "(B, K, D, N)", (batch, k, channels, states))
    expect_paths_shape(paths, batch, k)


def _check_shapes(
    activations: dict[str, Tensor | None],
    parameters: dict[str, Tensor | None],
) -> tuple[int, int, int, int]:
    """Check all but the state and the paths; returns B, K, D and N."""
    u, delta, A = activations["u"], activations["delta"], parameters["A"]
    assert u is not None
    assert delta is not None
    assert A is not None
    weight = activations["delta_weight"]
    last = "D" if weight is None else "R"
    if delta.dim() != 4:
        raise ValueError(f"delta has shape {tuple(delta.shape)}; expected (B, K, L, {last})")
    batch, k, length, channels = delta.shape
    if length < 1:
        raise ValueError(f"delta has shape {tuple(delta.shape)}; expected at least one token")
    if weight is not None:
        channels = _projected_channels(weight, k, delta.shape[3])
    if A.dim() != 3 or A.shape[:2] != (k, channels) or A.shape[2] < 1:
        expected = sizes_text(k, channels, "N >= 1")
        raise ValueError(f"A has shape {tuple(A.shape)}; expected (K, D, N) = {expected}")
    merged, separate = (batch, length, channels), (batch, k, length, channels)
    expect_shape("u", u, "(B, L, D) or (B, K, L, D)", merged, separate)
    _check_groups(activations, channels, A.shape[2])
    expect_shape("z", activations["z"], "(B, L, D)", merged)
    for name in ("D", "delta_bias"):
        expect_shape(name, parameters[name], "(K, D)", (k, channels))
    return batch, k, channels, A.shape[2]


def _projected_channels(weight: Tensor, k: int, rank: int) -> int:
    if weight.dim() != 3 or weight.shape[::2] != (k, rank) or rank < 1:
        shape, expected = tuple(weight.shape), sizes_text(k, "D", max(rank, 1))
        raise ValueError(f"delta_weight has shape {shape}; expected (K, D, R) = {expected}")
    return weight.shape[1]


def _check_groups(activations: dict[str, Tensor | None], channels: int, states: int) -> None:
    delta, B, C = activations["delta"], activations["B"], activations["C"]
    assert delta is not None
    assert B is not None
    assert C is not None
    batch, k, length = delta.shape[:3]
    groups = B.shape[2] if B.dim() == 5 else 1
    if groups < 1 or channels % groups:
        raise ValueError(f"B has {groups} groups; expected a divisor of D = {channels}")
    plain, grouped = (batch, k, length, states), (batch, k, groups, length, states)
    expect_shape("B", B, "(B, K, L, N) or (B, K, G, L, N)", plain, grouped)
    expect_shape("C", C, "the shape of B", tuple(B.shape))
