"""Syntax of orders: names, options, sums, cyclic lists, and errors."""

import pytest
import torch

from vimamba.scan_orders import (
    list_scan_orders,
    num_paths,
    order_of_block,
    scan_paths,
)


def test_bare_name_takes_the_defaults():
    assert torch.equal(scan_paths("local", 9, 8), scan_paths("local(window=7)", 9, 8))
    assert torch.equal(scan_paths("local()", 9, 8), scan_paths(" local( window = 7 ) ", 9, 8))


def test_number_of_paths_follows_parameters_and_axes():
    assert [num_paths(s) for s in ("raster", "cross", "omni", "atrous(step=3)")] == [1, 4, 8, 9]
    assert [num_paths(s, dims=3) for s in ("cross", "atrous", "raster + frames")] == [6, 8, 5]


def test_orders_are_listed_by_their_axes():
    assert {"spiral", "raster", "frames"} <= set(list_scan_orders())
    assert {"raster", "frames"} == {"spiral", "raster", "frames"} & set(list_scan_orders(dims=3))
    assert {"raster", "spiral"} == {"spiral", "raster", "frames"} & set(list_scan_orders(dims=2))


def test_blocks_take_the_orders_of_a_list_in_turn():
    assert [order_of_block(["raster", "cross"], block) for block in range(3)] == [
        "raster",
        "cross",
        "raster",
    ]
    assert order_of_block("omni", 5) == "omni"


def test_a_list_is_no_order_of_one_block():
    with pytest.raises(TypeError, match=r"\['cross'\] must be a string; a model takes a list"):
        num_paths(["cross"])


@pytest.mark.parametrize("orders", [[], ["cross", 2], None, 3, torch.arange(4)])
def test_a_wrong_list_of_orders_is_named(orders):
    with pytest.raises(ValueError, match="must be the name of an order or a list of names"):
        order_of_block(orders, 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("qqqq", r"'qqqq' is unknown; choose from \[.*'cross'.*--import FILE"),
        ("hilbrt", r"'hilbrt' is unknown; close names are hilbert;.*--import FILE"),
        ("cross + hilbrt", r"'cross \+ hilbrt': 'hilbrt' is unknown; close names are hilbert"),
        ("frames", r"frames is for grids of 3 axes \(time, height, width\), not 2; .*'spiral'"),
        ("cross - raster", "cannot be read"),
        ("local(window={[]: 1})", "cannot be read"),
        ("-" * 100_000, "cannot be read"),
        ("cross(reverse=1)", "reverse=1 must be of type bool"),
        ("windows(size=0)", r"size=0 must be at least 1"),
        ("local(windows=3)", r"no parameter 'windows', only \['reverse', 'window'\]"),
        ("cross(window=3)", r"no parameter 'window', only \['reverse'\]"),
        ("local(window='a')", r"window='a' must be of type int"),
        ("local(window=2.0)", r"window=2.0 must be of type int"),
        ("local(window=True)", r"window=True must be of type int"),
        ("local(window=0)", r"window=0 must be at least 1"),
        ("atrous(step=-1)", r"step=-1 must be at least 1"),
        ("random(seed=-1)", r"seed=-1 must be at least 0"),
        ("local(7)", r"must look like 'cross', 'local\(window=7\)' or"),
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


def test_interslice_takes_equal_pieces_only():
    with pytest.raises(ValueError, match="pieces=4 must divide the 6 cells"):
        scan_paths("interslice(pieces=4)", 2, 3)


@pytest.mark.parametrize("size", [(), (0, 3), (3, -1), (2.0, 3), ("3", 3)])
def test_wrong_sizes_are_named(size):
    with pytest.raises(ValueError, match=r"grid=\(.* must be integers, at least 1"):
        scan_paths("cross", *size)
