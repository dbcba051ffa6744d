"""The registry of scan orders: names, parameters, checks, cache, and the op that models call.

Sizes: H, W grid; L = H * W cells; K paths; T steps of a path, L unless padded or shared out.
"""

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

PathFunction = Callable[..., Tensor]
"""(height, width, **parameters) -> paths (K, T), any integer dtype, on the CPU."""


@dataclass(frozen=True)
class ScanOrder:
    """A registered scan order and what it promises.

    Attributes:
        name: What models are given.
        function: Makes the paths.
        parameters: Name and default of each parameter of `function` behind height and width.
        num_paths: K, or None if it depends on the parameters; then it is counted on a 1x1 grid.
        steps: (height, width, **parameters) -> T; None if T = H * W. Plain integer arithmetic,
            because it also gets symbolic sizes.
        adjacent: Consecutive steps of a path are horizontal or vertical neighbours.
    """

    name: str
    function: PathFunction
    parameters: Mapping[str, Any] = field(default_factory=dict)
    num_paths: int | None = None
    steps: Callable[..., int] | None = None
    adjacent: bool = False


_SCAN_ORDERS: dict[str, ScanOrder] = {}


def register_scan_order(
    function: PathFunction | None = None,
    *,
    name: str | None = None,
    num_paths: int | None = None,
    steps: Callable[..., int] | None = None,
    adjacent: bool = False,
    replace: bool = False,
) -> Callable[..., Any]:
    """Make an order available by name; a decorator, bare or with options, or a plain call.

    Args:
        function: (height, width, **parameters) -> (K, T) integer paths. Every parameter has a
            default. It should accept any grid; what it returns is checked.
        name: An identifier; the function's own name by default.
        num_paths: K; needed only if `function` cannot make paths for a 1x1 grid.
        steps: See `ScanOrder.steps`; needed only if T is not H * W.
        adjacent: See `ScanOrder.adjacent`.
        replace: Overwrite an order of the same name, as when a notebook cell runs again.

    Raises:
        ValueError: The name is taken or no identifier, or a parameter has no default.
    """
    if function is None:
        return lambda function: register_scan_order(
            function,
            name=name,
            num_paths=num_paths,
            steps=steps,
            adjacent=adjacent,
            replace=replace,
        )
    name = str(name or getattr(function, "__name__", ""))
    if not name.isidentifier():
        raise ValueError(f"name={name!r} of a scan order must be an identifier, as in 'my_order'")
    if name in _SCAN_ORDERS and not replace:
        raise ValueError(f"scan order {name!r} is already registered; replace=True overwrites it")
    signature = inspect.signature(function).parameters
    parameters = {key: value.default for key, value in list(signature.items())[2:]}
    for key, default in parameters.items():
        if default is inspect.Parameter.empty:
            raise ValueError(f"parameter {key!r} of scan order {name!r} needs a default")
    _SCAN_ORDERS[name] = ScanOrder(name, function, parameters, num_paths, steps, adjacent)
    _resolve.cache_clear()
    _table.cache_clear()
    visits_all_cells.cache_clear()
    return function


def register_scan_table(
    name: str,
    tables: Mapping[tuple[int, int], Tensor | Sequence[Sequence[int]]],
    *,
    replace: bool = False,
) -> None:
    """Make fixed paths available by name.

    Args:
        name: An identifier.
        tables: (height, width) -> (K, T) integer paths; the same K for all sizes.
        replace: Overwrite an order of the same name.

    Raises:
        ValueError: A table is not valid for its size, or the tables differ in K.
    """
    if not tables:
        raise ValueError(f"tables={tables!r} of scan order {name!r} must hold at least one size")
    checked = {}
    for size, paths in tables.items():
        if not isinstance(paths, Tensor):
            paths = torch.tensor(paths, dtype=None, device="cpu")
        checked[size] = _check_paths(name, paths.cpu(), *size)
    counts = {paths.shape[0] for paths in checked.values()}
    if len(counts) > 1:
        raise ValueError(f"tables of scan order {name!r} differ in the number of paths: {counts}")

    def look_up(height: int, width: int) -> Tensor:
        if (int(height), int(width)) not in checked:
            sizes = ", ".join(f"{h}x{w}" for h, w in sorted(checked))
            raise ValueError(f"scan order {name!r} has no table for {height}x{width}, only {sizes}")
        return checked[int(height), int(width)]

    plain = all(paths.shape[1] == h * w for (h, w), paths in checked.items())
    register_scan_order(
        look_up,
        name=name,
        num_paths=counts.pop(),
        steps=None if plain else lambda height, width: look_up(height, width).shape[1],
        replace=replace,
    )


def list_scan_orders() -> list[str]:
    """Names of all registered scan orders, sorted."""
    return sorted(_SCAN_ORDERS)


def get_scan_order(scan_order: str) -> ScanOrder:
    """What was registered under the name in `scan_order`.

    Raises:
        ValueError: The order or a parameter is unknown, or a value is not accepted.
    """
    return _parse(scan_order)[0]


def path_function(scan_order: str) -> PathFunction:
    """(height, width) to the paths of a scan order, as it was registered: unchecked, uncached.

    Raises:
        ValueError: The order or a parameter is unknown, or a value is not accepted.
    """
    order, parameters = _parse(scan_order)
    return partial(order.function, **parameters)


def num_paths(scan_order: str) -> int:
    """K of a scan order, the same for all grids.

    Raises:
        ValueError: The order or a parameter is unknown, or a value is not accepted.
    """
    return _resolve(scan_order)[2]


def scan_paths(
    scan_order: str, height: int, width: int, device: torch.device | str | None = None
) -> Tensor:
    """Paths of a scan order on one grid.

    Made and checked once per order, grid and device; each call returns a copy, free to be changed.
    Models call the op `torch.ops.vimamba.scan_paths(x, scan_order)` instead: the same for the grid
    of a tensor x (N, H, W, ...) and on its device, and visible to TorchScript, FX, compile and
    export. It also takes a height and a width, and x of any shape then; but a traced model keeps
    such numbers as they were.

    Args:
        scan_order: Name, with or without parameters: "cross", "local(window=7)".
        height: Rows of the grid, at least 1.
        width: Columns of the grid, at least 1.
        device: Where the paths are put; the CPU by default.

    Returns:
        (K, T) int64 in [-1, H * W).

    Raises:
        ValueError: The order or a parameter is unknown, a value or a size is not accepted, or what
            a registered function returned is not a set of paths.
        RuntimeError: A CUDA graph is being captured, and the device has no such paths yet.
    """
    for name, size in (("height", height), ("width", width)):
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name}={size!r} of a scan order must be an integer, at least 1")
    return shared_paths(scan_order, height, width, device).clone()


def shared_paths(
    scan_order: str,
    height: int,
    width: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    """What `scan_paths` copies, in a dtype of one's choice: for all who ask, not to be changed."""
    place = torch.device(device or "cpu")
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", torch.cuda.current_device())
    paths = _table(scan_order, height, width, place, dtype)
    if _is_captured(place):
        # a replay of the graph reads this table again
        _captured_tables[id(paths)] = paths
    return paths


@lru_cache(maxsize=256)
def visits_all_cells(scan_order: str, height: int, width: int) -> bool:
    """Whether every path of a scan order visits every cell of this grid, and no zero token.

    Raises:
        ValueError: As `scan_paths` does.
    """
    paths = scan_paths(scan_order, height, width)
    return paths.shape[1] == height * width and int(paths.min()) >= 0


_library = torch.library.Library("vimamba", "FRAGMENT")
_library.define(
    "scan_paths(Tensor like, str order, SymInt? height=None, SymInt? width=None) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# integers have no derivative; an autograd function in its place would keep torch.func out
_library.impl("scan_paths", torch.library.fallthrough_kernel, "Autograd")


@torch.library.impl(_library, "scan_paths", "CompositeExplicitAutograd")
def _scan_paths_op(
    like: Tensor, order: str, height: int | None = None, width: int | None = None
) -> Tensor:
    return scan_paths(order, *grid_of(like, height, width), like.device)


@torch.library.register_fake("vimamba::scan_paths", lib=_library)
def _scan_paths_fake(
    like: Tensor, order: str, height: int | None = None, width: int | None = None
) -> Tensor:
    definition, parameters, count = _resolve(order)
    steps = _count_steps(definition, parameters, *grid_of(like, height, width))
    return torch.empty((count, steps), dtype=torch.int64, device=like.device)


def _scan_paths_of_all(
    info: Any,
    dims: tuple[Any, ...],
    like: Tensor,
    order: str,
    height: int | None = None,
    width: int | None = None,
) -> tuple[Tensor, None]:
    """All samples share the table."""
    one = like if dims[0] is None else like.select(dims[0], 0)
    return torch.ops.vimamba.scan_paths(one, order, height, width), None


torch.library.register_vmap("vimamba::scan_paths", _scan_paths_of_all, lib=_library)


def grid_of(like: Tensor, height: int | None, width: int | None) -> tuple[int, int]:
    """Height and width that the op `scan_paths` is for: those given, or those of a grid.

    Raises:
        ValueError: One is given without the other, or none and `like` is no grid (N, H, W, C).
    """
    if height is not None and width is not None:
        return height, width
    if (height, width) != (None, None) or like.dim() != 4:
        raise ValueError(
            f"height={height} and width={width} must both be given for a tensor of shape "
            f"{tuple(like.shape)}, or none for a grid (N, H, W, C)"
        )
    return like.shape[1], like.shape[2]


def _parse(scan_order: str) -> tuple[ScanOrder, dict[str, Any]]:
    """Split "name(parameter=value)" into the order and its parameters; never evaluates code."""
    example = "it must read like 'cross' or 'local(window=7)'"
    try:
        node = ast.parse(scan_order.strip(), mode="eval").body
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        values = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
    except (AttributeError, SyntaxError, ValueError):
        raise ValueError(f"scan_order={scan_order!r} cannot be read; {example}") from None
    if not isinstance(call.func, ast.Name) or call.args or "None" in values:
        raise ValueError(f"scan_order={scan_order!r} cannot be read; {example}")
    if call.func.id not in _SCAN_ORDERS:
        raise ValueError(f"scan_order={scan_order!r} is unknown; choose from {list_scan_orders()}")
    order = _SCAN_ORDERS[call.func.id]
    for key, value in values.items():
        if key not in order.parameters:
            known = f"only {sorted(order.parameters)}" if order.parameters else "none"
            raise ValueError(f"scan_order={scan_order!r}: no parameter {key!r}, {known}")
        default = order.parameters[key]
        if default is not None and type(value) is not type(default):
            kind = type(default).__name__
            raise ValueError(f"scan_order={scan_order!r}: {key}={value!r} must be of type {kind}")
    return order, {**order.parameters, **values}


@lru_cache(maxsize=256)
def _resolve(scan_order: str) -> tuple[ScanOrder, dict[str, Any], int]:
    """The order, its parameters and K."""
    order, parameters = _parse(scan_order)
    count = order.num_paths or _make_paths(scan_order, order, parameters, 1, 1).shape[0]
    return order, parameters, count


# 128 entries: four stages of some ten sizes, on a GPU in two dtypes; a 128x128 table of K = 4 takes
# 0.5 MB
@lru_cache(maxsize=128)
def _table(
    scan_order: str, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The checked paths; not to be changed."""
    if _is_captured(device):
        raise RuntimeError(
            f"the paths of scan_order={scan_order!r} on a {height}x{width} grid are not on {device}"
            " yet, and cannot be put there while a CUDA graph is captured; run the model once at "
            "this image size before"
        )
    order, parameters, count = _resolve(scan_order)
    paths = _make_paths(scan_order, order, parameters, height, width, device, dtype)
    if paths.shape[0] != count:
        raise ValueError(
            f"scan order {scan_order!r} has {count} paths, but {paths.shape[0]} on a "
            f"{height}x{width} grid; the number must not depend on the size"
        )
    return paths


# those that CUDA graphs read, by identity: kept as long as the process, for a graph does not tell
# when it is gone
_captured_tables: dict[int, Tensor] = {}


def _is_captured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _make_paths(
    scan_order: str,
    order: ScanOrder,
    parameters: Mapping[str, Any],
    height: int,
    width: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.int64,
) -> Tensor:
    def make() -> Tensor:
        paths = order.function(height, width, **parameters)
        return _check_paths(scan_order, paths, height, width).to(dtype).to(device)

    # torch keeps its modes (default device, inference, fake tensors, the memory pool of a CUDA
    # graph) per thread; a fresh thread keeps whatever the first caller is in out of a table that
    # outlives the call
    with ThreadPoolExecutor(max_workers=1) as pool:
        paths = pool.submit(make).result()
    steps = _count_steps(order, parameters, height, width)
    if paths.shape[1] != steps:
        raise ValueError(
            f"scan order {scan_order!r} on a {height}x{width} grid: paths have {paths.shape[1]} "
            f"steps, expected {steps}; another length is declared by `steps=` in registration"
        )
    return paths


def _count_steps(order: ScanOrder, parameters: Mapping[str, Any], height: int, width: int) -> int:
    return order.steps(height, width, **parameters) if order.steps else height * width


def _check_paths(name: str, paths: Tensor, height: int, width: int) -> Tensor:
    """A copy of `paths` as int64, if they are paths on this grid."""
    where = f"scan order {name!r} on a {height}x{width} grid"
    if not isinstance(paths, Tensor) or paths.ndim != 2 or paths.numel() == 0:
        found = tuple(paths.shape) if isinstance(paths, Tensor) else type(paths).__name__
        raise ValueError(f"{where}: expected a tensor of paths (K, T), received {found}")
    if paths.dtype == torch.bool or paths.is_floating_point() or paths.is_complex():
        raise ValueError(f"{where}: paths are {paths.dtype}, expected an integer dtype")
    paths, cells = paths.long(), height * width
    low, high = int(paths.min()), int(paths.max())
    if low < -1 or high >= cells:
        raise ValueError(f"{where}: paths lie in [{low}, {high}], expected [-1, {cells - 1}]")
    visits = torch.zeros(paths.shape[0], cells + 1, dtype=torch.int64, device="cpu")
    visits = visits.scatter_add_(1, paths + 1, torch.ones_like(paths))[:, 1:]
    if int(visits.max()) > 1:
        path, cell = divmod(int(visits.argmax()), cells)
        raise ValueError(f"{where}: path {path} visits cell {cell} more than once")
    total = visits.sum(0)
    if int(total.min()) != int(total.max()):
        raise ValueError(
            f"{where}: cell {int(total.argmin())} is visited {int(total.min())} times, cell "
            f"{int(total.argmax())} {int(total.max())} times; all must be visited equally often"
        )
    return paths.clone(memory_format=torch.contiguous_format)
