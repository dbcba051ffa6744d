"""Every registered scan order keeps the contract; tables of small grids are written by hand."""

import random
import warnings
import weakref
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vimamba.scan_orders import (
    get_scan_order,
    list_scan_orders,
    num_paths,
    register_scan_order,
    register_scan_table,
    registry,
    scan_paths,
)

SPECS = [
    *list_scan_orders(),
    "local(window=1)",
    "local(window=2)",
    "local(window=3)",
    "atrous(step=1)",
    "atrous(step=3)",
    "random(seed=7)",
]
SIDES = st.integers(1, 21)


@pytest.fixture
def own_orders(monkeypatch):
    """Orders registered by a test are forgotten after it."""
    monkeypatch.setattr(registry, "_SCAN_ORDERS", dict(registry._SCAN_ORDERS))
    yield
    registry._resolve.cache_clear()
    registry._table.cache_clear()


# the contract of every order


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=20, deadline=None)
@given(height=SIDES, width=SIDES)
def test_paths_visit_every_cell_equally_often(spec, height, width):
    paths = scan_paths(spec, height, width)
    assert paths.dtype == torch.int64
    assert paths.is_contiguous()
    assert paths.shape[0] == num_paths(spec)
    visits = Counter(paths.flatten().tolist())
    visits.pop(-1, None)
    assert sorted(visits) == list(range(height * width))
    assert len(set(visits.values())) == 1
    for path in paths.tolist():
        assert max(Counter(cell for cell in path if cell >= 0).values(), default=1) == 1


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=10, deadline=None)
@given(height=SIDES, width=SIDES)
def test_scanning_and_merging_multiplies_by_the_visits(spec, height, width):
    paths = scan_paths(spec, height, width)
    image = torch.arange(1.0, height * width + 1)
    merged = torch.zeros(height * width)
    for path in paths:
        path = path[path >= 0]
        merged[path] += image[path]
    visits = int((paths >= 0).sum()) // (height * width)
    assert torch.equal(merged, visits * image)


@pytest.mark.parametrize("spec", [s for s in SPECS if get_scan_order(s).adjacent])
@settings(max_examples=150, deadline=None)
@given(height=st.integers(1, 33), width=st.integers(1, 33))
def test_promised_neighbours_are_neighbours(spec, height, width):
    paths = scan_paths(spec, height, width)
    rows, cols = paths // width, paths % width
    assert (rows.diff().abs() + cols.diff().abs() == 1).all()


def test_continuous_orders_promise_neighbours():
    promised = {name for name in list_scan_orders() if get_scan_order(name).adjacent}
    assert promised == {"serpentine", "serpentine_8", "hilbert", "spiral"}


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=10, deadline=None)
@given(height=SIDES, width=SIDES)
def test_op_predicts_its_shape(spec, height, width):
    real = torch.ops.vimamba.scan_paths(torch.empty(0), spec, height, width)
    meta = torch.ops.vimamba.scan_paths(torch.empty(0, device="meta"), spec, height, width)
    assert (real.shape, real.dtype) == (meta.shape, meta.dtype)


# hand-written tables; "+reversed" stands for the same paths backwards


def both_ways(*paths: list[int]) -> list[list[int]]:
    return [*paths, *(path[::-1] for path in paths)]


ROWS_3X3, COLUMNS_3X3 = [0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 3, 6, 1, 4, 7, 2, 5, 8]
DIAGONAL_3X3, ANTI_3X3 = [6, 3, 7, 0, 4, 8, 1, 5, 2], [0, 1, 3, 2, 4, 6, 5, 7, 8]
DIAGONAL_WRAP_3X3, ANTI_WRAP_3X3 = [0, 4, 8, 1, 5, 6, 2, 3, 7], [0, 5, 7, 1, 3, 8, 2, 4, 6]
MORTON_4X4 = [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
HILBERT_4X4 = [0, 1, 5, 4, 8, 12, 13, 9, 10, 14, 15, 11, 7, 6, 2, 3]
TABLES = [
    ("raster", (2, 3), [[0, 1, 2, 3, 4, 5]]),
    ("bidirectional", (2, 3), both_ways([0, 1, 2, 3, 4, 5])),
    ("cross", (2, 3), both_ways([0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5])),
    (
        "cross_rot90",
        (2, 3),
        [[0, 1, 2, 3, 4, 5], [2, 5, 1, 4, 0, 3], [5, 4, 3, 2, 1, 0], [3, 0, 4, 1, 5, 2]],
    ),
    (
        "serpentine",
        (3, 3),
        [*both_ways([0, 1, 2, 5, 4, 3, 6, 7, 8]), *both_ways([0, 3, 6, 7, 4, 1, 2, 5, 8])],
    ),
    (
        "serpentine_8",
        (2, 3),
        [
            [0, 1, 2, 5, 4, 3],
            [0, 3, 4, 1, 2, 5],
            [2, 1, 0, 3, 4, 5],
            [2, 5, 4, 1, 0, 3],
            [3, 4, 5, 2, 1, 0],
            [3, 0, 1, 4, 5, 2],
            [5, 4, 3, 0, 1, 2],
            [5, 2, 1, 4, 3, 0],
        ],
    ),
    ("zigzag", (3, 3), both_ways([0, 1, 3, 6, 4, 2, 5, 7, 8], [2, 1, 5, 8, 4, 0, 3, 7, 6])),
    ("local(window=2)", (4, 4), both_ways(MORTON_4X4)),
    (
        "local(window=2)",
        (3, 3),
        both_ways([0, 1, 3, 4, 2, -1, 5, -1, 6, 7, -1, -1, 8, -1, -1, -1]),
    ),
    ("atrous", (4, 4), [[0, 2, 8, 10], [4, 12, 6, 14], [1, 3, 9, 11], [5, 13, 7, 15]]),
    ("atrous", (3, 3), [[0, 2, 6, 8], [3, -1, 5, -1], [1, -1, 7, -1], [4, -1, -1, -1]]),
    ("diagonal", (3, 3), both_ways(DIAGONAL_3X3)),
    ("diagonal", (2, 3), both_ways([3, 0, 4, 1, 5, 2])),
    ("anti_diagonal", (3, 3), both_ways(ANTI_3X3)),
    ("diagonal_wrap", (3, 3), both_ways(DIAGONAL_WRAP_3X3)),
    ("diagonal_wrap", (3, 2), both_ways([0, 3, 4, 1, 2, 5])),
    ("anti_diagonal_wrap", (3, 3), both_ways(ANTI_WRAP_3X3)),
    ("anti_diagonal_wrap", (2, 3), both_ways([0, 5, 1, 3, 2, 4])),
    ("omni", (3, 3), both_ways(ROWS_3X3, COLUMNS_3X3) + both_ways(DIAGONAL_3X3, ANTI_3X3)),
    (
        "omni_wrap",
        (3, 3),
        both_ways(ROWS_3X3, COLUMNS_3X3) + both_ways(DIAGONAL_WRAP_3X3, ANTI_WRAP_3X3),
    ),
    ("hilbert", (4, 4), both_ways(HILBERT_4X4, [15 - cell for cell in HILBERT_4X4])),
    # three columns, an odd side, so the curve must join the corners of the left side
    ("hilbert", (2, 3), both_ways([0, 1, 2, 5, 4, 3], [5, 4, 3, 0, 1, 2])),
    (
        "morton",
        (4, 4),
        both_ways(MORTON_4X4, [0, 4, 1, 5, 8, 12, 9, 13, 2, 6, 3, 7, 10, 14, 11, 15]),
    ),
    ("morton", (2, 3), both_ways([0, 1, 3, 4, 2, 5], [0, 3, 1, 4, 2, 5])),
    ("spiral", (3, 4), both_ways([0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6])),
    # Python's Mersenne Twister, seed 0: 0.844, 0.758, 0.421, 0.259, 0.511, 0.405
    ("random", (2, 3), both_ways([3, 5, 2, 4, 1, 0])),
]


@pytest.mark.parametrize(("spec", "size", "expected"), TABLES, ids=lambda value: str(value)[:20])
def test_small_grids_match_the_hand_written_table(spec, size, expected):
    assert scan_paths(spec, *size).tolist() == expected


def test_every_order_has_a_hand_written_table():
    assert {spec.partition("(")[0] for spec, _, _ in TABLES} == set(list_scan_orders())


@pytest.mark.parametrize("spec", ["cross", "hilbert", "spiral", "omni_wrap", "random"])
def test_one_cell_is_visited_by_every_path(spec):
    assert scan_paths(spec, 1, 1).tolist() == [[0]] * num_paths(spec)


def test_random_depends_on_seed_alone():
    draw = random.Random(3).random
    keys = [draw() for _ in range(20)]
    expected = sorted(range(20), key=keys.__getitem__)
    assert scan_paths("random(seed=3)", 4, 5)[0].tolist() == expected
    assert not torch.equal(scan_paths("random(seed=3)", 4, 5), scan_paths("random", 4, 5))


# names and parameters


def test_bare_name_takes_the_defaults():
    assert torch.equal(scan_paths("local", 9, 8), scan_paths("local(window=7)", 9, 8))
    assert torch.equal(scan_paths("local()", 9, 8), scan_paths(" local( window = 7 ) ", 9, 8))


def test_number_of_paths_follows_the_parameters():
    assert [num_paths(s) for s in ("raster", "cross", "omni", "atrous(step=3)")] == [1, 4, 8, 9]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("squiggle", r"'squiggle' is unknown; choose from \[.*'cross'"),
        ("local(windows=3)", r"no parameter 'windows', only \['window'\]"),
        ("cross(window=3)", r"no parameter 'window', none"),
        ("local(window='a')", r"window='a' must be of type int"),
        ("local(window=2.0)", r"window=2.0 must be of type int"),
        ("local(window=True)", r"window=True must be of type int"),
        ("local(window=0)", r"window=0 of a scan order must be at least 1"),
        ("atrous(step=-1)", r"step=-1 of a scan order must be at least 1"),
        ("random(seed=-1)", r"seed=-1 of a scan order must be at least 0"),
        ("local(7)", r"must read like 'cross' or 'local\(window=7\)'"),
        ("local(window=", "cannot be read"),
        ("local(**{'window': 7})", "cannot be read"),
        ("local(window=__import__('os').getpid())", "cannot be read"),
        ("cross.local", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_wrong_specifications_are_named(spec, message):
    for function in (num_paths, lambda order: scan_paths(order, 3, 3)):
        with pytest.raises(ValueError, match=message):
            function(spec)


@pytest.mark.parametrize("size", [(0, 3), (3, -1), (2.0, 3), ("3", 3)])
def test_wrong_sizes_are_named(size):
    with pytest.raises(ValueError, match=r"(height|width)=.* must be an integer, at least 1"):
        scan_paths("cross", *size)


# the cache


def test_returned_paths_may_be_changed():
    for function in (
        scan_paths,
        lambda *order: torch.ops.vimamba.scan_paths(torch.empty(0), *order),
    ):
        function("cross", 2, 2).fill_(9)
        assert function("cross", 2, 2).max() == 3


def test_tables_made_under_a_mode_serve_outside_of_it(own_orders):
    register_scan_order(lambda height, width: torch.arange(height * width)[None], name="fresh")
    with FakeTensorMode():
        assert torch.ops.vimamba.scan_paths(torch.empty(0), "fresh", 2, 3).shape == (1, 6)
    with torch.device("meta"), torch.inference_mode():
        assert scan_paths("fresh", 2, 2).device.type == "cpu"
    paths = scan_paths("fresh", 2, 2)
    assert not paths.is_inference()
    assert paths.tolist() == [[0, 1, 2, 3]]


class Copies(TorchDispatchMode):
    """Names what is copied to another device under it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.seen.append(kwargs["device"])
        return func(*args, **kwargs or {})


def test_the_callers_modes_do_not_reach_the_copy_for_a_device(own_orders):
    """Where CUDA graphs are warmed up, the caller's memory is taken back afterwards."""
    register_scan_order(lambda height, width: torch.arange(height * width)[None], name="fresh")
    with Copies() as copies:
        paths = scan_paths("fresh", 2, 2, device="meta")
    assert paths.device.type == "meta"
    assert copies.seen == []


def test_a_table_that_a_cuda_graph_reads_is_kept(own_orders, monkeypatch):
    register_scan_order(lambda height, width: torch.arange(height * width)[None], name="fresh")
    monkeypatch.setattr(registry, "_captured_tables", {})
    scan_paths("fresh", 2, 2)
    kept = weakref.ref(registry.shared_paths("fresh", 2, 2))
    passing = weakref.ref(registry.shared_paths("fresh", 3, 3))
    with monkeypatch.context() as capture:
        capture.setattr(registry, "_is_captured", lambda device: True)
        scan_paths("fresh", 2, 2)
        scan_paths("fresh", 2, 2)
    registry._table.cache_clear()
    assert kept() is not None
    assert passing() is None
    assert len(registry._captured_tables) == 1


def test_a_table_cannot_be_made_within_a_cuda_graph(monkeypatch):
    monkeypatch.setattr(registry, "_is_captured", lambda device: True)
    with pytest.raises(
        RuntimeError, match=r"'cross' on a 19x23 grid .* run the model once at this"
    ):
        scan_paths("cross", 19, 23)


def test_a_gpu_without_a_number_is_the_current_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(registry, "_table", lambda order, h, w, device: torch.tensor(device.index))
    assert scan_paths("cross", 2, 2, device="cuda") == 3


# orders from outside


def test_own_function_works_in_every_form(own_orders):
    @register_scan_order
    def columns(height, width):
        return torch.arange(height * width).view(height, width).T.reshape(1, -1)

    @register_scan_order(name="rolled", adjacent=False)
    def _(height, width, by=1):
        return torch.arange(height * width, dtype=torch.int32).roll(-by)[None]

    register_scan_order(columns, name="also_columns")
    assert scan_paths("columns", 2, 3).tolist() == [[0, 3, 1, 4, 2, 5]]
    assert scan_paths("also_columns", 2, 3).tolist() == [[0, 3, 1, 4, 2, 5]]
    assert scan_paths("rolled(by=2)", 2, 2).tolist() == [[2, 3, 0, 1]]
    assert {"columns", "rolled", "also_columns"} <= set(list_scan_orders())


def test_own_function_of_few_sizes_declares_its_paths(own_orders):
    @register_scan_order(num_paths=1)
    def only_even(height, width):
        if height % 2:
            raise ValueError("even heights only")
        return torch.arange(height * width)[None]

    assert num_paths("only_even") == 1
    with pytest.raises(ValueError, match="even heights only"):
        scan_paths("only_even", 3, 3)


def test_names_are_taken_once(own_orders):
    def cross(height, width):
        return torch.arange(height * width)[None]

    with pytest.raises(ValueError, match="'cross' is already registered"):
        register_scan_order(cross)
    assert num_paths("cross") == 4
    register_scan_order(cross, replace=True)
    assert num_paths("cross") == 1
    assert scan_paths("cross", 2, 2).tolist() == [[0, 1, 2, 3]]


def test_registration_refuses_names_and_parameters_that_cannot_be_written(own_orders):
    with pytest.raises(ValueError, match=r"name='my-order' .* must be an identifier"):
        register_scan_order(lambda height, width: torch.zeros(1, 1), name="my-order")
    with pytest.raises(ValueError, match="parameter 'window' of scan order 'x' needs a default"):
        register_scan_order(lambda height, width, window: torch.zeros(1, 1), name="x")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (torch.tensor([[0, 1, 2, 4]]), r"paths lie in \[0, 4\], expected \[-1, 3\]"),
        (torch.tensor([[0, 1, 2, -2]]), r"paths lie in \[-2, 2\]"),
        (torch.tensor([[0, 1, 1, 2]]), "path 0 visits cell 1 more than once"),
        (torch.tensor([[0, 1, 2, -1]]), "cell 3 is visited 0 times, cell 0 1 times"),
        (torch.tensor([[0.0, 1, 2, 3]]), r"torch.float32, expected an integer dtype"),
        (torch.tensor([0, 1, 2, 3]), r"paths \(K, T\), received \(4,\)"),
        ([[0, 1, 2, 3]], r"paths \(K, T\), received list"),
        (torch.tensor([[0, 1, 2, 3, -1]]), "paths have 5 steps, expected 4; .*`steps=`"),
        (torch.tensor([[0, 1, 2, 3]] * 2), "has 1 paths, but 2 on a 2x2 grid"),
    ],
)
def test_what_a_function_returns_is_checked(own_orders, paths, message):
    register_scan_order(lambda height, width: paths, name="broken", num_paths=1)
    with pytest.raises(ValueError, match=message):
        scan_paths("broken", 2, 2)


def test_fixed_tables_serve_their_sizes(own_orders):
    square = torch.tensor([[0, 2, 1, 3], [3, 1, 2, 0]])
    register_scan_table("mine", {(2, 2): square, (1, 2): [[1, 0], [0, 1]]})
    square.zero_()
    assert num_paths("mine") == 2
    assert scan_paths("mine", 2, 2).tolist() == [[0, 2, 1, 3], [3, 1, 2, 0]]
    assert scan_paths("mine", 1, 2).tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="'mine' has no table for 3x3, only 1x2, 2x2"):
        scan_paths("mine", 3, 3)


def test_fixed_tables_may_be_padded(own_orders):
    register_scan_table("padded", {(1, 3): [[0, 1], [2, -1]]})
    assert torch.ops.vimamba.scan_paths(torch.empty(0, device="meta"), "padded", 1, 3).shape == (
        2,
        2,
    )
    assert scan_paths("padded", 1, 3).tolist() == [[0, 1], [2, -1]]


def test_fixed_tables_are_checked_at_once(own_orders):
    with pytest.raises(
        ValueError, match="'bad' on a 1x2 grid: path 0 visits cell 0 more than once"
    ):
        register_scan_table("bad", {(1, 2): [[0, 0]]})
    with pytest.raises(ValueError, match="differ in the number of paths"):
        register_scan_table("bad", {(1, 2): [[0, 1]], (1, 1): [[0], [0]]})
    with pytest.raises(ValueError, match="at least one size"):
        register_scan_table("bad", {})


# the op


class Gather(nn.Module):
    """A model that scans its input, the size of which it learns in `forward`."""

    def __init__(self, scan_order: str) -> None:
        super().__init__()
        self.scan_order = scan_order

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2], x.shape[3]
        paths = torch.ops.vimamba.scan_paths(x, self.scan_order, height, width)
        return x.flatten(2)[:, :, paths.clamp(min=0).flatten()]


DYNAMIC = ["cross", "local(window=3)", "atrous(step=2)", "hilbert"]


@pytest.mark.parametrize("order", DYNAMIC)
def test_op_compiles_with_dynamic_sizes(order):
    model = Gather(order)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((4, 5), (7, 6), (9, 11)):
        x = torch.randn(2, 3, *size, requires_grad=True)
        y = compiled(x)
        assert torch.equal(y, model(x))
        y.sum().backward()
        assert x.grad is not None


@pytest.mark.parametrize("order", DYNAMIC)
def test_op_exports_with_dynamic_sizes(order):
    model = Gather(order)
    auto = torch.export.Dim.AUTO
    shapes = {"x": {2: auto, 3: auto}}
    program = torch.export.export(model, (torch.randn(1, 2, 6, 7),), dynamic_shapes=shapes)
    for size in ((6, 7), (5, 5), (9, 4)):
        x = torch.randn(1, 2, *size)
        assert torch.equal(program.module()(x), model(x))


def test_op_scripts_and_traces():
    model, x = Gather("local(window=2)"), torch.randn(1, 2, 5, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        scripted = torch.jit.script(model)
    assert torch.equal(scripted(x), model(x))
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@pytest.mark.parametrize("order", ["cross", "local(window=3)"])
def test_op_passes_opcheck(order):
    x = torch.randn(2, 3, requires_grad=True)
    torch.library.opcheck(torch.ops.vimamba.scan_paths.default, (x, order, 4, 5))


def test_op_gives_no_gradient():
    x = torch.randn(2, 3, requires_grad=True)
    assert not torch.ops.vimamba.scan_paths(x, "cross", 2, 2).requires_grad


@pytest.mark.parametrize("order", ["cross", "local(window=3)"])
def test_op_reads_the_size_of_a_grid(order):
    x = torch.randn(2, 4, 5, 3)
    expected = scan_paths(order, 4, 5)
    assert torch.equal(torch.ops.vimamba.scan_paths(x, order), expected)
    assert torch.ops.vimamba.scan_paths(x.to("meta"), order).shape == expected.shape
    torch.library.opcheck(torch.ops.vimamba.scan_paths.default, (x, order))


@pytest.mark.parametrize("arguments", [(torch.empty(2, 6, 3),), (torch.empty(2, 2, 3, 3), 2)])
def test_op_asks_for_a_grid_or_both_sizes(arguments):
    like, *sizes = arguments
    with pytest.raises(ValueError, match=r"must both be given .* or none for a grid"):
        torch.ops.vimamba.scan_paths(like, "cross", *sizes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_op_follows_the_device():
    x = torch.empty(1, device="cuda")
    paths = torch.ops.vimamba.scan_paths(x, "cross", 3, 4)
    assert paths.device == x.device
    assert torch.equal(paths.cpu(), scan_paths("cross", 3, 4))
