"""Custom orders and tables."""

import math

import pytest
import torch

from vimamba.scan_orders import (
    list_scan_orders,
    num_paths,
    register_scan_order,
    register_scan_table,
    scan_paths,
)


def test_own_function_works_in_every_form(own_orders):
    @register_scan_order
    def downwards(height, width):
        return torch.arange(height * width).view(height, width).T.reshape(1, -1)

    @register_scan_order(name="rolled", adjacent=False)
    def _(height, width, by=1):
        return torch.arange(height * width, dtype=torch.int32).roll(-by)[None]

    register_scan_order(downwards, name="also_downwards")
    assert scan_paths("downwards", 2, 3).tolist() == [[0, 3, 1, 4, 2, 5]]
    assert scan_paths("also_downwards", 2, 3).tolist() == [[0, 3, 1, 4, 2, 5]]
    assert scan_paths("rolled(by=2)", 2, 2).tolist() == [[2, 3, 0, 1]]
    assert {"downwards", "rolled", "also_downwards"} <= set(list_scan_orders())


def test_own_function_names_the_axes_of_its_grids(own_orders):
    @register_scan_order
    def backwards(time, height, width, by=1):
        return torch.arange(time * height * width).flip(0)[None]

    @register_scan_order
    def any_grid(*grid, by=1):
        return torch.arange(math.prod(grid)).roll(by)[None]

    assert scan_paths("backwards", 1, 2, 2).tolist() == [[3, 2, 1, 0]]
    with pytest.raises(ValueError, match=r"3 axes \(time, height, width\), not 2"):
        scan_paths("backwards", 2, 2)
    assert scan_paths("any_grid", 3).tolist() == [[2, 0, 1]]
    assert scan_paths("any_grid(by=2, reverse=True)", 2, 1, 2).tolist() == [[1, 0, 3, 2]]


def test_own_function_of_few_sizes_declares_its_paths(own_orders):
    @register_scan_order(num_paths=1)
    def only_even(height, width):
        if height % 2:
            raise ValueError("even heights only")
        return torch.arange(height * width)[None]

    assert num_paths("only_even") == 1
    with pytest.raises(ValueError, match="'only_even' on a 3x3 grid: even heights only"):
        scan_paths("only_even", 3, 3)


def test_what_an_own_function_raises_names_the_order_and_the_grid(own_orders):
    @register_scan_order
    def broken(height, width):
        if width > 1:
            return torch.arange(height * width)[None, [height * width]]
        raise KeyError("corner")

    with pytest.raises(ValueError, match="'broken' on a 3x4 grid: IndexError: index 12") as raised:
        scan_paths("broken", 3, 4)
    assert isinstance(raised.value.__cause__, IndexError)
    with pytest.raises(ValueError, match=r"on a 1x1 grid: KeyError: 'corner'; paths are counted"):
        num_paths("broken")


def test_names_are_taken_once(own_orders):
    def cross(height, width):
        return torch.arange(height * width)[None]

    register_scan_order(cross, name="own")
    with pytest.raises(ValueError, match="'own' is already registered"):
        register_scan_order(cross, name="own")
    register_scan_order(cross, name="own", replace=True)


def test_an_order_that_comes_along_gives_way_to_ones_own(own_orders):
    """So a new name here does not break code that already uses it."""

    def columns(height, width):
        return torch.arange(height * width)[None]

    with pytest.warns(UserWarning, match="'columns' replaces vimamba's own"):
        register_scan_order(columns)
    assert scan_paths("columns", 2, 2).tolist() == [[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="'columns' is already registered"):
        register_scan_order(columns)


def test_registration_refuses_names_and_parameters_that_cannot_be_written(own_orders):
    with pytest.raises(ValueError, match=r"name='my-order' .* must be an identifier"):
        register_scan_order(lambda height, width: torch.zeros(1, 1), name="my-order")
    paths = torch.zeros(1, 1)
    for function, message in (
        (
            lambda height, width, *, window: paths,
            "parameter 'window' of scan order 'x' needs a def",
        ),
        (lambda height, width, **options: paths, "parameter 'options' of scan order 'x' needs"),
        (lambda height, width, reverse=False: paths, "every order takes reverse=True"),
        (lambda time, *grid: paths, r"its axes must be parameters without a default"),
        (lambda window=2: paths, r"its axes must be parameters without a default"),
    ):
        with pytest.raises(ValueError, match=message):
            register_scan_order(function, name="x")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (torch.tensor([[0, 1, 2, 4]]), r"paths lie in \[0, 4\], expected \[-1, 3\]"),
        (torch.tensor([[0, 1, 2, -2]]), r"paths lie in \[-2, 2\]"),
        (torch.tensor([[0, 1, 1, 2]]), "path 0 visits cell 1 more than once"),
        (torch.tensor([[0, 1, 2, -1]]), "cell 3 is visited 0 times, cell 0 1 times"),
        (torch.tensor([[0.0, 1, 2, 3]]), r"torch.float32, expected an integer dtype"),
        (
            torch.tensor([0, 1, 2, 3]),
            r"paths \(K, T\), shorter ones padded with -1, received \(4,\)",
        ),
        ([[0, 1, 2, 3]], r"paths \(K, T\), shorter ones padded with -1, received list"),
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
    with pytest.raises(
        ValueError, match="'mine' on a 3x3 grid: there are tables for 1x2, 2x2 only"
    ):
        scan_paths("mine", 3, 3)


def test_fixed_tables_may_be_padded(own_orders):
    register_scan_table("padded", {(1, 3): [[0, 1], [2, -1]]})
    assert torch.ops.vimamba.scan_paths(torch.empty(0, device="meta"), "padded", [1, 3]).shape == (
        2,
        2,
    )
    assert scan_paths("padded", 1, 3).tolist() == [[0, 1], [2, -1]]


def test_fixed_tables_are_checked_at_once(own_orders):
    with pytest.raises(
        ValueError, match="'bad' on a 1x2 grid: path 0 visits cell 0 more than once"
    ):
        register_scan_table("bad", {(1, 2): [[0, 0]]})
    with pytest.raises(
        ValueError, match=r"'bad' on a 1x3 grid: .* shorter ones padded with -1, or"
    ):
        register_scan_table("bad", {(1, 3): [[0, 1], [2]]})
    with pytest.raises(ValueError, match="differ in the number of paths"):
        register_scan_table("bad", {(1, 2): [[0, 1]], (1, 1): [[0], [0]]})
    register_scan_table("volumes", {(2, 1, 2): [[3, 0, 1, 2]]})
    assert scan_paths("volumes", 2, 1, 2).tolist() == [[3, 0, 1, 2]]
    with pytest.raises(ValueError, match="at least one size"):
        register_scan_table("bad", {})
