"""The registry of scan orders: names, parameters, checks and the cache of their paths.

Sizes: grid, the cells along each of its axes; L their product; K paths; T steps of a path, L unless
    padded or divided among paths.
"""

import ast
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vimamba.names import check_free, expect_maker, near_names

ResultT = TypeVar("ResultT")
PathFunction = Callable[..., Tensor]
"""(*grid, **parameters) -> paths (K, T), any integer dtype, on the CPU."""
_WANTED = "expected a tensor of paths (K, T), shorter ones padded with -1"


@dataclass(frozen=True)
class ScanOrder:
    """A registered scan order and its declared properties.

    Attributes:
        name: Name for models.
        function: Computes the paths.
        axes: Names of the axes of its grids, as in `function`; None for any number of axes.
        parameters: Name and default of each other parameter of `function`.
        num_paths: K, or None if it depends on the parameters or the number of axes; then it is
            counted on a grid of one cell.
        steps: (*grid, **parameters) -> T; None if T = L. Plain integer arithmetic, because it also
            gets symbolic sizes.
        adjacent: Consecutive steps of a path are neighbors along one axis.
    """

    name: str
    function: PathFunction
    axes: tuple[str, ...] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    num_paths: int | None = None
    steps: Callable[..., int] | None = None
    adjacent: bool = False

    def fits(self, dims: int) -> bool:
        """Whether it has paths for grids with `dims` axes."""
        return self.axes is None or len(self.axes) == dims


class Term(NamedTuple):
    """One order of a sum such as "raster + local(window=2, reverse=True)"."""

    text: str
    order: ScanOrder
    parameters: dict[str, Any]
    reverse: bool


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
        function: (*grid, **parameters) -> (K, T) integer paths. Its parameters without a default
            are the axes of the grid, (height, width) of an image, (time, height, width) of a video;
            `*grid` takes any number of axes. Those with a default are options. It should accept any
            grid; its result is checked.
        name: An identifier; the function's own name by default.
        num_paths: K; needed only if `function` cannot make paths for a grid of one cell.
        steps: See `ScanOrder.steps`; needed only if T is not L.
        adjacent: See `ScanOrder.adjacent`.
        replace: Overwrite an order of the same name, for example when a notebook cell runs again.
            One that comes with vimamba gives way in any case, with a warning: names added to
            vimamba later must not break users' registrations.

    Raises:
        TypeError: `function` is not a function.
        ValueError: The name is taken or not an identifier, or the parameters are not as above.
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
    expect_maker(function, "scan order")
    name = str(name or getattr(function, "__name__", ""))
    if not name.isidentifier():
        raise ValueError(f"name={name!r} of a scan order must be an identifier, such as 'my_order'")
    there = getattr(_SCAN_ORDERS.get(name), "function", None)
    home = "vimamba.scan_orders.orders"
    check_free(name, there, kind="scan order", home=home, replace=replace)
    axes, parameters = _read_signature(name, function)
    _SCAN_ORDERS[name] = ScanOrder(name, function, axes, parameters, num_paths, steps, adjacent)
    forget_paths()
    return function


def _read_signature(
    name: str, function: PathFunction
) -> tuple[tuple[str, ...] | None, dict[str, Any]]:
    """The axes of a function's grids, None for `*grid`, and its other parameters."""
    signature = inspect.signature(function).parameters.values()
    parameters = {p.name: p.default for p in signature if p.default is not p.empty}
    if "reverse" in parameters:
        raise ValueError(
            f"parameter 'reverse' of scan order {name!r} must have another name: every order takes "
            "reverse=True"
        )
    required = [p for p in signature if p.default is p.empty]
    for p in required:
        if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD):
            raise ValueError(f"parameter {p.name!r} of scan order {name!r} needs a default")
    is_any = [p.kind == p.VAR_POSITIONAL for p in required]
    if not required or (any(is_any) and len(required) > 1):
        raise ValueError(
            f"scan order {name!r} takes {inspect.signature(function)}: its axes must be parameters "
            "without a default, as in (height, width), or *grid alone"
        )
    return None if any(is_any) else tuple(p.name for p in required), parameters


def _table_of(name: str, paths: Sequence[Sequence[int]], size: Sequence[int]) -> Tensor:
    try:
        return torch.tensor(paths, dtype=None, device="cpu")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"scan order {name!r} on a {_size(size)} grid: {_WANTED}, or as many lists of integers "
            f"({error})"
        ) from None


def forget_paths() -> None:
    """Clear the caches after a change of the registry."""
    _resolve.cache_clear()
    _table.cache_clear()
    visits_all_cells.cache_clear()


def register_scan_table(
    name: str,
    tables: Mapping[tuple[int, ...], Tensor | Sequence[Sequence[int]]],
    *,
    replace: bool = False,
) -> None:
    """Make fixed paths available by name.

    Args:
        name: An identifier.
        tables: (height, width), or another number of axes, -> (K, T) integer paths; the same K
            for all sizes.
        replace: Overwrite an order of the same name.

    Raises:
        ValueError: A table is not valid for its size, or the tables differ in K.
    """
    if not tables:
        raise ValueError(f"tables={tables!r} of scan order {name!r} must hold at least one size")
    checked = {}
    for size, paths in tables.items():
        if not isinstance(paths, Tensor):
            paths = _table_of(name, paths, size)
        checked[size] = _check_paths(name, paths.cpu(), size)
    counts = {paths.shape[0] for paths in checked.values()}
    if len(counts) > 1:
        raise ValueError(f"tables of scan order {name!r} differ in the number of paths: {counts}")

    def look_up(*grid: int) -> Tensor:
        size = tuple(int(side) for side in grid)
        if size not in checked:
            sizes = ", ".join(_size(known) for known in sorted(checked))
            raise ValueError(f"there are tables for {sizes} only")
        return checked[size]

    plain = all(paths.shape[1] == math.prod(size) for size, paths in checked.items())
    register_scan_order(
        look_up,
        name=name,
        num_paths=counts.pop(),
        steps=None if plain else lambda *grid: look_up(*grid).shape[1],
        replace=replace,
    )


def list_scan_orders(dims: int | None = None) -> list[str]:
    """Names of the registered scan orders, sorted: all, or those for grids of `dims` axes."""
    orders = _SCAN_ORDERS.values()
    return sorted(order.name for order in orders if dims is None or order.fits(dims))


def get_scan_order(scan_order: str) -> ScanOrder:
    """The registered order with the name in `scan_order`.

    Raises:
        ValueError: The order or a parameter is unknown, a value is not accepted, or it is a sum.
    """
    terms = _parse(scan_order)
    if len(terms) > 1:
        raise ValueError(f"scan_order={scan_order!r} is a sum of orders; give one of them")
    return terms[0].order


def order_of_block(scan_order: str | Sequence[str], block: int) -> str:
    """The scan order of one block of a model that takes one order or a list.

    Args:
        scan_order: An order for all blocks, or several that blocks take in turn.
        block: Number of the block, counted from the stem over all stages: it takes entry `block`
            modulo their number.

    Raises:
        ValueError: The list is empty or contains something other than strings.
    """
    if isinstance(scan_order, str):
        return scan_order
    if isinstance(scan_order, Tensor):
        raise ValueError(
            f"scan_order, a tensor of {tuple(scan_order.shape)}, must be the name of an order or a "
            "list of names; a mixer's call takes paths as a tensor"
        )
    is_list = isinstance(scan_order, Sequence) and len(scan_order) > 0
    if not is_list or not all(isinstance(order, str) for order in scan_order):
        raise ValueError(
            f"scan_order={scan_order!r} must be the name of an order or a list of names"
        )
    return scan_order[block % len(scan_order)]


def path_function(scan_order: str) -> PathFunction:
    """Function from (*grid) to the paths of a scan order, as registered: unchecked, uncached.

    Raises:
        ValueError: The order or a parameter is unknown, or a value is not accepted.
    """
    terms = _parse(scan_order)

    def make(*grid: int) -> Tensor:
        tables = [term.order.function(*grid, **term.parameters) for term in terms]
        return _stack(terms, tables)

    return make


def num_paths(scan_order: str, dims: int = 2) -> int:
    """K of a scan order, the same for all grids of `dims` axes.

    Raises:
        ValueError: The order or a parameter is unknown, a value is not accepted, or the order is
            for grids of another number of axes.
        TypeError: It is not a string.
    """
    if not isinstance(scan_order, str):
        raise TypeError(
            f"scan_order={scan_order!r} must be a string; a model takes a list, each of its blocks "
            "one of them (order_of_block)"
        )
    return sum(count for _, count in _resolve(scan_order, dims))


def num_steps(scan_order: str, *grid: int) -> int:
    """T of a scan order on one grid, whose sizes may be symbolic.

    Raises:
        ValueError: As `num_paths` does.
    """
    return _largest(_count_steps(term, grid) for term, _ in _resolve(scan_order, len(grid)))


def scan_paths(scan_order: str, *grid: int, device: torch.device | str | None = None) -> Tensor:
    """Paths of a scan order on one grid.

    Computed and checked once per order, grid and device; each call returns a copy that may be
    modified. Models call the op `torch.ops.vimamba.scan_paths(x, scan_order)` instead: the same for
    the grid of a tensor x (N, *grid, C) and on its device, and visible to TorchScript, FX, compile
    and export. It also takes a list of sizes, and then x of any shape; but a traced model keeps
    such sizes fixed.

    Args:
        scan_order: Name, with or without parameters, or a sum: "cross", "local(window=7)",
            "raster + raster(reverse=True)". In a sum, shorter paths are padded at their ends.
        *grid: Cells along each axis, at least 1: height and width of an image, (depth, height,
            width) of a volume.
        device: Device of the paths; the CPU by default.

    Returns:
        (K, T) int64 in [-1, L).

    Raises:
        ValueError: The order or a parameter is unknown, a value or a size is not accepted, the
            order is for grids of another number of axes, or a registered function failed or
            returned what is not a set of paths.
        RuntimeError: A CUDA graph is being captured, and the paths are not on the device yet.
    """
    if not grid or not all(isinstance(size, int) and size >= 1 for size in grid):
        raise ValueError(f"grid={grid} of a scan order must be integers, at least 1")
    shared = shared_paths(scan_order, *grid, device=device)
    # no `.to`, which a mode of the caller may treat as a copy to another device
    return torch.empty(shared.shape, dtype=torch.int64, device=shared.device).copy_(shared)


def shared_paths(scan_order: str, *grid: int, device: torch.device | str | None = None) -> Tensor:
    """The shared int32 table that `scan_paths` copies; must not be modified."""
    place = torch.device(device or "cpu")
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", torch.cuda.current_device())
    paths = _table(scan_order, grid, place)
    if _is_captured(place):
        # replays of the graph read this table
        _captured_tables[id(paths)] = paths
    return paths


@lru_cache(maxsize=256)
def visits_all_cells(scan_order: str, *grid: int) -> bool:
    """Whether every path of a scan order visits every cell of this grid, and no zero token.

    Raises:
        ValueError: As `scan_paths` does.
    """
    paths = shared_paths(scan_order, *grid)
    return paths.shape[1] == math.prod(grid) and int(paths.min()) >= 0


# exceptions of `ast` for text that is not an expression, or is too deeply nested
_UNREADABLE = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


def _parse(scan_order: str) -> list[Term]:
    """Split "raster + local(window=2, reverse=True)" into its terms; never evaluates code."""
    unreadable = ValueError(
        f"scan_order={scan_order!r} cannot be read; it must look like 'cross', 'local(window=7)' "
        "or 'raster + raster(reverse=True)'"
    )
    try:
        first = ast.parse(scan_order.strip(), mode="eval").body
    except _UNREADABLE:
        raise unreadable from None
    others = []
    while isinstance(first, ast.BinOp) and isinstance(first.op, ast.Add):
        others.append(first.right)
        first = first.left
    terms = []
    for node in [first, *reversed(others)]:
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        try:
            values = {str(item.arg): ast.literal_eval(item.value) for item in call.keywords}
        except _UNREADABLE:
            raise unreadable from None
        if not isinstance(call.func, ast.Name) or call.args or "None" in values:
            raise unreadable
        if call.func.id not in _SCAN_ORDERS:
            raise ValueError(_explain_unknown(scan_order, call.func.id))
        order = _SCAN_ORDERS[call.func.id]
        defaults = {**order.parameters, "reverse": False}
        for key, value in values.items():
            if key not in defaults:
                raise ValueError(
                    f"scan_order={scan_order!r}: no parameter {key!r}, only {sorted(defaults)}"
                )
            default = defaults[key]
            if default is not None and type(value) is not type(default):
                kind = type(default).__name__
                raise ValueError(
                    f"scan_order={scan_order!r}: {key}={value!r} must be of type {kind}"
                )
        parameters = {**defaults, **values}
        reverse = parameters.pop("reverse")
        terms.append(Term(ast.unparse(node), order, parameters, reverse))
    return terms


def _explain_unknown(scan_order: str, name: str) -> str:
    hint = near_names(name, _SCAN_ORDERS) or f"choose from {list_scan_orders()}"
    subject = f"scan_order={scan_order!r}"
    subject += f": {name!r}" if name != scan_order else ""
    return f"{subject} is unknown; {hint}; register your own with --import FILE in commands"


def _terms(scan_order: str, dims: int) -> list[Term]:
    """The terms of an order for grids with `dims` axes."""
    terms = _parse(scan_order)
    for term in terms:
        order = term.order
        if not order.fits(dims):
            axes = order.axes or ()
            number = f"{len(axes)} {'axis' if len(axes) == 1 else 'axes'}"
            raise ValueError(
                f"scan_order={scan_order!r}: {order.name} is for grids of {number} "
                f"({', '.join(axes)}), not {dims}; choose from {list_scan_orders(dims)}"
            )
    return terms


@lru_cache(maxsize=256)
def _resolve(scan_order: str, dims: int) -> list[tuple[Term, int]]:
    """The terms of an order for grids with `dims` axes, each with its number of paths."""
    return [(term, _count_paths(term, dims)) for term in _terms(scan_order, dims)]


def _count_paths(term: Term, dims: int) -> int:
    if term.order.num_paths is not None:
        return term.order.num_paths
    try:
        return without_modes(partial(_make_checked, term, (1,) * dims)).shape[0]
    except ValueError as error:
        raise ValueError(
            f"{error}; paths are counted on this grid unless num_paths= is given at registration"
        ) from error


# 128 entries: four orders, stages and about ten sizes; a 128x128 table of K = 4 takes 0.25 MB, a
# 128x128x128 one of K = 3 25 MB
@lru_cache(maxsize=128)
def _table(scan_order: str, grid: tuple[int, ...], device: torch.device) -> Tensor:
    """The checked paths; must not be modified."""
    if _is_captured(device):
        raise RuntimeError(
            f"the paths of scan_order={scan_order!r} on a {_size(grid)} grid are not on {device}"
            " yet, and cannot be copied there during CUDA graph capture; first run the model once "
            "at this image size"
        )
    terms = _terms(scan_order, len(grid))

    def make() -> Tensor:
        # before the paths are counted, so that errors are about this grid
        tables = [_make_checked(term, grid) for term in terms]
        for (term, count), paths in zip(_resolve(scan_order, len(grid)), tables, strict=True):
            if paths.shape[0] != count:
                raise ValueError(
                    f"scan order {term.text!r} has {count} paths, but {paths.shape[0]} on a "
                    f"{_size(grid)} grid; the number must not depend on the size"
                )
        return _stack(terms, tables).to(device)

    return without_modes(make)


# tables read by CUDA graphs, by identity: kept for the life of the process, because a graph does
# not signal when it is freed
_captured_tables: dict[int, Tensor] = {}


def _is_captured(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def without_modes(make: Callable[[], ResultT]) -> ResultT:
    """The result of `make`, unaffected by the caller's torch modes.

    These (default device, inference, fake tensors, the memory pool of a CUDA graph) are per thread;
    a new thread keeps them out of a table that outlives the call.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(make).result()


def _make_checked(term: Term, grid: Sequence[int]) -> Tensor:
    """The checked paths of a term before it is reversed."""
    try:
        made = term.order.function(*grid, **term.parameters)
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        where = f"scan order {term.text!r} on a {_size(grid)} grid"
        raise ValueError(f"{where}: {kind}{error}") from error
    paths = _check_paths(term.text, made, grid)
    steps = _count_steps(term, grid)
    if paths.shape[1] != steps:
        raise ValueError(
            f"scan order {term.text!r} on a {_size(grid)} grid: paths have {paths.shape[1]} "
            f"steps, expected {steps}; declare another length with `steps=` at registration"
        )
    return paths


def _stack(terms: Sequence[Term], tables: Sequence[Tensor]) -> Tensor:
    """The paths of all terms, the shorter ones padded at their ends; sizes may be symbolic."""
    tables = [t.flip(1) if term.reverse else t for term, t in zip(terms, tables, strict=True)]
    if len(tables) == 1:
        return tables[0]
    steps = _largest(paths.shape[1] for paths in tables)
    return torch.cat([F.pad(paths, (0, steps - paths.shape[1]), value=-1) for paths in tables])


def _largest(sizes: Iterable[int]) -> int:
    return functools.reduce(torch.sym_max, sizes)  # type: ignore[return-value]


def _count_steps(term: Term, grid: Sequence[int]) -> int:
    steps = term.order.steps
    return steps(*grid, **term.parameters) if steps else math.prod(grid)


def _size(grid: Sequence[int]) -> str:
    return "x".join(map(str, grid))


def _check_paths(name: str, paths: Tensor, grid: Sequence[int]) -> Tensor:
    """A copy of `paths` as int32, if they are paths on this grid."""
    where = f"scan order {name!r} on a {_size(grid)} grid"
    if not isinstance(paths, Tensor) or paths.ndim != 2 or paths.numel() == 0:
        found = tuple(paths.shape) if isinstance(paths, Tensor) else type(paths).__name__
        raise ValueError(f"{where}: {_WANTED}, received {found}")
    if paths.dtype == torch.bool or paths.is_floating_point() or paths.is_complex():
        raise ValueError(f"{where}: paths are {paths.dtype}, expected an integer dtype")
    cells = math.prod(grid)
    low, high = (int(extreme) for extreme in torch.aminmax(paths))
    if low < -1 or high >= cells:
        raise ValueError(f"{where}: paths lie in [{low}, {high}], expected [-1, {cells - 1}]")
    if cells >= 2**31:
        raise ValueError(f"{where}: {cells} cells, expected fewer than 2 ** 31")
    _check_visits(where, paths, cells, padded=low < 0)
    return paths.to(torch.int32, copy=True).contiguous()


def _check_visits(where: str, paths: Tensor, cells: int, *, padded: bool) -> None:
    """Fail on paths that visit a cell twice, or some cells more often than others."""
    total, complete = torch.zeros(cells, dtype=torch.int32, device="cpu"), 0
    for number, path in enumerate(paths):
        path = (path[path >= 0] if padded else path).long()
        # marking a million cells takes a fraction of the time of counting them
        seen = torch.zeros(cells, dtype=torch.uint8, device="cpu").scatter_(0, path, 1)
        if int(seen.sum()) < len(path):
            cell = int(path.bincount(minlength=cells).argmax())
            raise ValueError(f"{where}: path {number} visits cell {cell} more than once")
        if len(path) < cells:
            total += seen
        complete += len(path) == cells
    least, most = (complete + int(extreme) for extreme in torch.aminmax(total))
    if least < most:
        raise ValueError(
            f"{where}: cell {int(total.argmin())} is visited {least} times, cell "
            f"{int(total.argmax())} {most} times; all must be visited equally often"
        )
