"""The runs of a bench: their folders, orders with equal numbers of paths, plans that grow."""

from pathlib import Path

import pytest
import torch

from tests.bench_worker import PLAN
from vimamba.errors import UsageError
from vimamba.scan_orders import list_scan_orders, num_paths, scan_paths
from vimamba.scanbench.plan import (
    Plan,
    check_names,
    equalize,
    find_order,
    label,
    read_plan,
    reverse_order,
)


def test_runs_lie_by_model_order_and_seed_in_whole_pairs():
    folders = [str(trial.folder(Path("out"))) for trial in PLAN.trials()]
    assert folders == [
        "out/test_vim/cross/seed-0",
        "out/test_vim/local_window=7/seed-0",
        "out/test_vim/cross/seed-1",
        "out/test_vim/local_window=7/seed-1",
    ]


def test_folds_lie_below_the_seeds():
    plan = Plan(**{**vars(PLAN), "folds": 2, "orders": ("raster + raster(reverse=True)",)})
    folders = [str(trial.folder(Path("o"))) for trial in plan.trials()]
    assert folders[:2] == [
        "o/test_vim/raster_raster_reverse=True/seed-0/fold-0",
        "o/test_vim/raster_raster_reverse=True/seed-0/fold-1",
    ]


def test_two_orders_do_not_share_a_folder():
    with pytest.raises(UsageError, match="local"):
        check_names("--orders", ["local(window=7)", "local( window=7 )"])


def test_a_plan_is_kept_and_grows(tmp_path):
    assert read_plan(tmp_path) is None
    PLAN.write(tmp_path)
    assert read_plan(tmp_path) == PLAN
    more = Plan(**{**vars(PLAN), "orders": ("spiral",), "seeds": (1, 2), "baseline": "spiral"})
    grown = PLAN.grown(more)
    assert grown.orders == ("cross", "local(window=7)", "spiral")
    assert grown.seeds == (0, 1, 2)
    assert grown.baseline == "spiral"
    (tmp_path / "scanbench.json").write_text('{"task": "classification"}')
    with pytest.raises(UsageError, match="no record"):
        read_plan(tmp_path)


@pytest.mark.parametrize("order", list_scan_orders(dims=2))
def test_a_reversed_order_follows_every_path_backward(order):
    paths = scan_paths(order, 5, 6)
    torch.testing.assert_close(scan_paths(reverse_order(order), 5, 6), paths.flip(1))


def test_a_sum_is_reversed_term_by_term():
    order = "local(window=2) + raster(reverse=True)"
    assert reverse_order(order) == "local(window=2, reverse=True) + raster"
    assert reverse_order(reverse_order(order)) == order


def test_orders_get_equal_numbers_of_paths():
    made, left = equalize(["raster", "local(window=2)", "cross", "omni"], 4, 2)
    assert left == ["omni"]
    assert {num_paths(order) for order in made.values()} == {4}
    assert made["cross"] == "cross"
    assert made["raster"] == " + ".join(["raster", "raster(reverse=True)"] * 2)
    assert label(made["raster"]) == "raster x 4"
    assert label("raster + columns") == "raster + columns"
    assert find_order("raster", list(made.values())) == made["raster"]
    assert find_order("hilbert", list(made.values())) is None
