"""Checks of the SSD operator's arguments; every message names the argument and what is expected."""

from collections.abc import Sequence

from torch import Tensor

from vimamba_kernels.arguments import check_types, expect_paths_shape, expect_shape

_OPTIONAL = ("z", "D", "dt_bias", "initial_state")


def check_arguments(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_limit: Sequence[float] | None,
    initial_state: Tensor | None,
    paths: Tensor | None,
) -> None:
    """Check dtypes, devices, shapes and the limits.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: An argument has the wrong shape or device, or the limits are invalid.
    """
    activations = {"x": x, "dt": dt, "B": B, "C": C, "z": z}
    parameters = {"A": A, "D": D, "dt_bias": dt_bias, "initial_state": initial_state}
    check_types(activations, parameters, paths, optional=_OPTIONAL)
    if dt_limit is not None:
        _check_limit(dt_limit)
    if dt.dim() != 4 or dt.shape[2] < 1:
        shape = tuple(dt.shape)
        raise ValueError(f"dt has shape {shape}; expected (B, K, L, H) with at least one token")
    batch, k, length, heads = dt.shape
    width = x.shape[-1] if x.dim() else 0
    merged, separate = (batch, length, heads, width), (batch, k, length, heads, width)
    expect_shape("x", x, "(B, L, H, P) or (B, K, L, H, P)", merged, separate)
    expect_shape("A", A, "(K, H)", (k, heads))
    _check_groups(B, C, dt)
    expect_shape("z", z, "(B, L, H, P)", merged)
    expect_shape("D", D, "(K, H) or (K, H, P)", (k, heads), (k, heads, width))
    expect_shape("dt_bias", dt_bias, "(K, H)", (k, heads))
    state = (batch, k, heads, width, B.shape[-1])
    expect_shape("initial_state", initial_state, "(B, K, H, P, N)", state)
    expect_paths_shape(paths, batch, k)


def _check_limit(dt_limit: Sequence[float]) -> None:
    wanted = "must be a lowest step >= 0 and a highest one"
    if not isinstance(dt_limit, Sequence):
        raise TypeError(f"dt_limit={dt_limit!r} {wanted}")
    if len(dt_limit) != 2 or not 0 <= dt_limit[0] <= dt_limit[1]:
        raise ValueError(f"dt_limit={tuple(dt_limit)} {wanted}")


def _check_groups(B: Tensor, C: Tensor, dt: Tensor) -> None:
    batch, k, length, heads = dt.shape
    groups = B.shape[3] if B.dim() == 5 else 1
    if groups < 1 or heads % groups:
        raise ValueError(f"B has {groups} groups; expected a divisor of H = {heads}")
    states = B.shape[-1] if B.dim() else 0
    plain, grouped = (batch, k, length, states), (batch, k, length, groups, states)
    expect_shape("B", B, "(B, K, L, N) or (B, K, L, G, N)", plain, grouped)
    expect_shape("C", C, "the shape of B", tuple(B.shape))
