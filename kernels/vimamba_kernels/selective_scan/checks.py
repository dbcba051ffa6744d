"""Checks of the selective scan's arguments; every message names the argument and what would do."""

from torch import Tensor

from vimamba_kernels.arguments import check_types, expect_paths_shape, expect_shape

_OPTIONAL = ("z", "D", "delta_bias")


def check_arguments(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    paths: Tensor | None,
) -> None:
    """Check dtypes, devices and shapes.

    Raises:
        TypeError: An argument is no tensor or has the wrong dtype.
        ValueError: An argument has the wrong shape or device.
    """
    activations = {"u": u, "delta": delta, "B": B, "C": C, "z": z}
    parameters = {"A": A, "D": D, "delta_bias": delta_bias}
    check_types(activations, parameters, paths, optional=_OPTIONAL)
    _check_shapes(activations, parameters, paths)


def _check_shapes(
    activations: dict[str, Tensor | None],
    parameters: dict[str, Tensor | None],
    paths: Tensor | None,
) -> None:
    u, delta, A = activations["u"], activations["delta"], parameters["A"]
    assert u is not None
    assert delta is not None
    assert A is not None
    if delta.dim() != 4:
        raise ValueError(f"delta has shape {tuple(delta.shape)}; expected (B, K, L, D)")
    batch, k, length, channels = delta.shape
    if length < 1:
        raise ValueError(f"delta has shape {tuple(delta.shape)}; expected at least one token")
    if A.dim() != 3 or A.shape[:2] != (k, channels) or A.shape[2] < 1:
        raise ValueError(f"A has shape {tuple(A.shape)}; expected (K, D, N) = {(k, channels, 'N')}")
    merged, separate = (batch, length, channels), (batch, k, length, channels)
    expect_shape("u", u, "(B, L, D) or (B, K, L, D)", merged, separate)
    _check_groups(activations, A.shape[2])
    expect_shape("z", activations["z"], "(B, L, D)", merged)
    for name in ("D", "delta_bias"):
        expect_shape(name, parameters[name], "(K, D)", (k, channels))
    expect_paths_shape(paths, k)


def _check_groups(activations: dict[str, Tensor | None], states: int) -> None:
    delta, B, C = activations["delta"], activations["B"], activations["C"]
    assert delta is not None
    assert B is not None
    assert C is not None
    batch, k, length, channels = delta.shape
    groups = B.shape[2] if B.dim() == 5 else 1
    if groups < 1 or channels % groups:
        raise ValueError(f"B has {groups} groups; expected a divisor of D = {channels}")
    plain, grouped = (batch, k, length, states), (batch, k, groups, length, states)
    expect_shape("B", B, "(B, K, L, N) or (B, K, G, L, N)", plain, grouped)
    expect_shape("C", C, "the shape of B", tuple(B.shape))
