"""Checks of the convolution's arguments; messages name the argument and what is expected."""

from torch import Tensor

from vimamba_kernels.arguments import check_types, expect_paths_shape, expect_shape, sizes_text

ACTIVATIONS = ("silu", None)


def check_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, paths: Tensor | None, activation: str | None
) -> None:
    """Check dtypes, devices, shapes and the activation.

    Raises:
        TypeError: An argument is not a tensor or has the wrong dtype.
        ValueError: An argument has the wrong shape or device, or the activation is unknown.
    """
    check_types({"x": x}, {"weight": weight, "bias": bias}, paths, optional=("bias",))
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is unknown; choose from {list(ACTIVATIONS)}")
    if x.dim() != 3 or x.shape[1] < 1:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; expected (B, L, D) with at least one token"
        )
    channels = x.shape[2]
    if weight.dim() != 3 or weight.shape[1] != channels or min(weight.shape[0::2]) < 1:
        shape, expected = tuple(weight.shape), sizes_text("K >= 1", channels, "W >= 1")
        raise ValueError(f"weight has shape {shape}; expected (K, D, W) = {expected}")
    expect_shape("bias", bias, "(K, D)", (weight.shape[0], channels))
    expect_paths_shape(paths, x.shape[0], weight.shape[0])
