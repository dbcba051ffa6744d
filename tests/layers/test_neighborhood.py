"""Attention in groups of cells equals attention of each cell to its own neighbors."""

import math

import pytest
import torch

from vimamba.layers import neighborhood
from vimamba.layers.neighborhood import NeighborWeights, average_neighbors, turn


def steps_between(length, window, dilated):
    """Steps from every cell of an axis to every neighbor of it, (n, n); None for other cells."""
    step = min(max(length // window, 1), window) if dilated else 1
    steps = [[None] * length for _ in range(length)]
    for cell in range(length):
        alike = list(range(cell % step, length, step))
        place = alike.index(cell)
        first = min(max(place - window // 2, 0), max(len(alike) - window, 0))
        for neighbor in alike[first : first + window]:
            steps[cell][neighbor] = (neighbor - cell) // step
    return steps


def explicit_bias(table, size, window, dilated):
    """The biases between all L = H * W cells, (h, L, L), minus infinity but for neighbors."""
    found = []
    for length in size:
        steps = steps_between(length, window, dilated)
        found.append(torch.tensor([[window if s is None else s for s in row] for row in steps]))
    down, across = found[0][:, None, :, None], found[1][None, :, None, :]
    far = (down == window) | (across == window)
    down, across = (t.masked_fill(t == window, 0) + window - 1 for t in (down, across))
    return table[:, down, across].masked_fill(far, -math.inf).flatten(3).flatten(1, 2)


# groups for sizes as numbers, and for symbolic ones
@pytest.mark.parametrize("find", ["group_cells", "_find_simple_groups"])
@pytest.mark.parametrize("dilated", [False, True])
@pytest.mark.parametrize("window", [3, 7])
@pytest.mark.parametrize("size", [(1, 1), (3, 20), (14, 14), (23, 50)], ids=str)
def test_grouped_attention_equals_masked_attention_of_all_cells(
    size, window, dilated, find, monkeypatch
):
    monkeypatch.setattr(neighborhood, "group_cells", getattr(neighborhood, find))
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, *size, 4, dtype=torch.float64) for _ in range(3))
    table = torch.randn(2, 2 * window - 1, 2 * window - 1, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (q, k, v, table)]
    weights = NeighborWeights(window, dilated=dilated)(q, k, table)
    y = average_neighbors(v, weights)
    scores = q.flatten(2, 3) @ k.flatten(2, 3).mT + explicit_bias(table, size, window, dilated)
    expected = (scores.softmax(-1) @ v.flatten(2, 3)).unflatten(2, size)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(y)
    for ours, theirs in zip(
        torch.autograd.grad((y * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_tables_are_kept_for_every_size_and_serve_training_after_inference():
    torch.manual_seed(0)
    attend, table = NeighborWeights(3, dilated=True), torch.zeros(1, 5, 5, requires_grad=True)
    q = torch.randn(2, 1, 6, 9, 4)
    with torch.inference_mode():
        _, rows, columns = attend(q, q, table)
    weights, same_rows, _ = attend(q, q, table)
    assert all(a is b for a, b in zip(rows, same_rows, strict=True))
    assert rows[3].shape == (6,)
    assert columns[3].shape == (9,)
    average_neighbors(turn(q), (weights, rows, columns)).square().sum().backward()
    assert table.grad.abs().max() > 0
