"""Checks of the selective scan's arguments; every message names the argument and what would do."""

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# paths whose values were found good, by tensor: (version of its contents, number of tokens)
_good_paths = WeakIdKeyDictionary()


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
    _check_types(activations, parameters, paths)
    _check_shapes(activations, parameters, paths)


def _check_types(
    activations: dict[str, Tensor | None],
    parameters: dict[str, Tensor | None],
    paths: Tensor | None,
) -> None:
    u = activations["u"]
    for name, t in (activations | parameters | {"paths": paths}).items():
        if t is None and name in ("D", "z", "delta_bias", "paths"):
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} is {type(t).__name__}; expected a tensor")
        assert isinstance(u, Tensor)
        if name == "paths" and t.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"paths is {t.dtype}; expected torch.int32 or torch.int64")
        if name in parameters and not t.is_floating_point():
            raise TypeError(f"{name} is {t.dtype}; expected a floating dtype")
        if name == "u" and t.dtype not in _DTYPES:
            raise TypeError(f"u is {t.dtype}; expected one of {_DTYPES}")
        if name in activations and t.dtype != u.dtype:
            raise TypeError(f"{name} is {t.dtype}; expected {u.dtype}, as u is")
        if t.device != u.device:
            raise ValueError(f"{name} is on {t.device}; expected {u.device}, as u is")


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
    _expect("u", u, "(B, L, D) or (B, K, L, D)", merged, separate)
    _check_groups(activations, A.shape[2])
    _expect("z", activations["z"], "(B, L, D)", merged)
    for name in ("D", "delta_bias"):
        _expect(name, parameters[name], "(K, D)", (k, channels))
    if paths is not None and (paths.dim() != 2 or paths.shape[0] != k or paths.shape[1] < 1):
        raise ValueError(f"paths has shape {tuple(paths.shape)}; expected (K, T) = {(k, 'T')}")


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
    _expect("B", B, "(B, K, L, N) or (B, K, G, L, N)", plain, grouped)
    _expect("C", C, "the shape of B", tuple(B.shape))


def _expect(name: str, t: Tensor | None, symbols: str, *shapes: tuple[int, ...]) -> None:
    if t is not None and tuple(t.shape) not in shapes:
        sizes = " or ".join(map(str, shapes))
        raise ValueError(f"{name} has shape {tuple(t.shape)}; expected {symbols} = {sizes}")


def check_paths(paths: Tensor, length: int) -> None:
    """Check that the entries of `paths` (K, T) are in [-1, length) and no token is twice in a row.

    The values are read once for each tensor and again only after they were changed in place.

    Raises:
        ValueError: They are not.
    """
    if torch.compiler.is_compiling() or paths.device.type == "meta":
        return
    state = (0 if paths.is_inference() else paths._version, length)
    if _good_paths.get(paths) == state:
        return
    low, high = paths.min().item(), paths.max().item()
    if low < -1 or high >= length:
        raise ValueError(f"paths holds values from {low} to {high}; expected [-1, {length})")
    for k, path in enumerate(paths.sort(dim=1).values):
        repeated = path[1:][(path[1:] == path[:-1]) & (path[1:] >= 0)]
        if repeated.numel():
            raise ValueError(
                f"paths[{k}] visits token {int(repeated[0])} again; expected each at most once"
            )
    _good_paths[paths] = state
