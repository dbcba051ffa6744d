"""Path tables that are known to visit every token in every path."""

import copy
import sys

import pytest
import torch

import vimamba
from vimamba.scan_orders.op import scan_paths_known
from vimamba_kernels import selective_scan
from vimamba_kernels.arguments import known_complete, narrow_paths, remember_paths

LIKE = torch.empty(0)


@pytest.mark.parametrize("order", vimamba.list_scan_orders(dims=2))
def test_a_table_is_known_as_complete_exactly_when_it_is(order):
    paths = scan_paths_known(LIKE, order, [5, 6])
    assert torch.equal(paths, vimamba.scan_paths(order, 5, 6))
    visited = [set(path.tolist()) == set(range(30)) for path in paths]
    assert known_complete(paths, 30) == (all(visited) and paths.shape[1] == 30)


def test_some_orders_are_complete_and_some_are_not():
    known = {
        known_complete(scan_paths_known(LIKE, order, [5, 6]), 30)
        for order in vimamba.list_scan_orders(dims=2)
    }
    assert known == {True, False}


@pytest.mark.parametrize("inference", [False, True])
def test_a_change_in_place_is_noticed(inference):
    with torch.inference_mode(inference):
        paths = scan_paths_known(LIKE, "cross", [3, 4])
        assert known_complete(paths, 12)
        paths[0, 0] = -1
        assert not known_complete(paths, 12)
        # the next table is a new one
        assert known_complete(scan_paths_known(LIKE, "cross", [3, 4]), 12)


def test_nothing_is_known_of_copies_and_other_lengths():
    paths = scan_paths_known(LIKE, "cross", [3, 4])
    assert not known_complete(paths, 13)
    for other in (paths.clone(), paths.flip(1), paths[:2], copy.deepcopy(paths)):
        assert not known_complete(other, 12)


def test_the_table_in_32_bits_is_shared_until_a_change():
    """So no block converts its table, and a CUDA graph reads one outside of its pool."""
    paths, again = (scan_paths_known(LIKE, "serpentine", [3, 4]) for _ in range(2))
    narrow = narrow_paths(paths, 12)
    assert narrow.dtype == torch.int32
    assert torch.equal(narrow, paths)
    assert narrow_paths(again, 12) is narrow
    paths[0, 0] = -1
    changed = narrow_paths(paths, 12)
    assert changed.dtype == torch.int32
    assert torch.equal(changed, paths)
    assert torch.equal(narrow, again)


def test_an_order_that_was_replaced_is_looked_at_again():
    def forward(height, width):
        return torch.arange(height * width)[None]

    vimamba.register_scan_order(forward, name="changing")
    try:
        assert known_complete(scan_paths_known(LIKE, "changing", [2, 2]), 4)
        vimamba.register_scan_table(
            "changing", {(2, 2): [[0, 1, -1, -1], [2, 3, -1, -1]]}, replace=True
        )
        assert not known_complete(scan_paths_known(LIKE, "changing", [2, 2]), 4)
    finally:
        vimamba.scan_orders.registry._SCAN_ORDERS.pop("changing")
        vimamba.scan_orders.registry.forget_paths()


@pytest.mark.parametrize("compiled", [False, True])
def test_the_kernels_see_the_table_that_was_remembered(monkeypatch, compiled):
    """In both directions, although the tensor passes through the dispatcher and autograd."""
    seen = []
    op = sys.modules["vimamba_kernels.selective_scan.op"]
    check = op.check_arguments

    def spy(*arguments):
        seen.append(known_complete(arguments[9], 12))
        return check(*arguments)

    monkeypatch.setattr(op, "check_arguments", spy)
    u, delta = torch.randn(1, 12, 4, requires_grad=True), torch.randn(1, 4, 12, 4)
    A, B = -torch.ones(4, 4, 2), torch.randn(1, 4, 12, 2)
    paths = torch.ops.vimamba.scan_paths(u, "cross", [3, 4])
    remember_paths(paths, 12, complete=True)

    def scan(u, paths):
        return torch.ops.vimamba.selective_scan(u, delta, A, B, B, paths=paths)

    if compiled:
        scan = torch.compile(scan, fullgraph=True, backend="aot_eager")
    scan(u, paths).sum().backward()
    assert seen == [True, True]


def test_a_table_that_a_user_brings_is_known_once_it_was_checked():
    u, delta = torch.randn(1, 3, 4), torch.randn(1, 1, 3, 4)
    A, B = -torch.ones(1, 4, 2), torch.randn(1, 1, 3, 2)
    tables = [torch.tensor([[2, 0, 1]]), torch.tensor([[2, -1, 1]])]
    tables += [torch.stack([tables[0]] * 2), torch.stack(tables)]
    for paths in tables:
        assert not known_complete(paths, 3)
        samples = [
            t.expand(len(paths) if paths.dim() == 3 else 1, *t.shape[1:]) for t in (u, delta, B)
        ]
        selective_scan(*samples[:2], A, samples[2], samples[2], paths=paths)
    # per sample: complete only if the table of every sample is
    assert [known_complete(paths, 3) for paths in tables] == [True, False, True, False]
