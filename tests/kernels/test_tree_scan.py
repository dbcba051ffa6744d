"""Trees that span grids, and sums along them, against loops in float64."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from vimamba_kernels import grid_tree, tree_sum

GRIDS = [(1, 1), (1, 2), (2, 1), (1, 7), (6, 1), (2, 2), (5, 8), (13, 9)]
BACKENDS = ["cpu", "reference"]
grids = pytest.mark.parametrize("grid", GRIDS, ids=str)
backends = pytest.mark.parametrize("backend", BACKENDS)


def make_edges(height, width, *, levels=None, batch=2):
    torch.manual_seed(height * width)
    edges = [torch.rand(batch, height - 1, width), torch.rand(batch, height, width - 1)]
    return [(e * levels).floor() if levels else e for e in edges]


def kruskal(down, right):
    """Parents of the cells of one grid; an edge's number is its index in the lists."""
    height, width = right.shape[0], down.shape[1]
    ends = [(r * width + c, (r + 1) * width + c) for r in range(height - 1) for c in range(width)]
    ends += [(r * width + c, r * width + c + 1) for r in range(height) for c in range(width - 1)]
    weights = [*down.flatten().tolist(), *right.flatten().tolist()]
    group = list(range(height * width))
    joined = [[] for _ in group]
    for _, (a, b) in sorted(zip(weights, ends, strict=True), key=lambda edge: edge[0]):
        if group[a] != group[b]:
            group = [group[a] if g == group[b] else g for g in group]
            joined[a].append(b)
            joined[b].append(a)
    parents, reached = [None] * len(group), [0]
    parents[0] = -1
    for cell in reached:
        for other in joined[cell]:
            if parents[other] is None:
                parents[other] = cell
                reached.append(other)
    return parents


@backends
@grids
@pytest.mark.parametrize("levels", [None, 3, 1], ids=["distinct", "ties", "equal"])
def test_the_tree_is_kruskals_of_edges_in_their_order(backend, grid, levels):
    down, right = make_edges(*grid, levels=levels)
    expected = [kruskal(*edges) for edges in zip(down, right, strict=True)]
    assert grid_tree(down, right, backend=backend).tolist() == expected


def make_problem(length, channels, dtype, batch=2):
    """Tokens on trees of any shape, one of them a chain; parents may come after their children."""
    torch.manual_seed(length + channels)
    parents = [-1, *(int(torch.randint(i, ())) for i in range(1, length))]
    chain = list(range(-1, length - 1))
    order = torch.randperm(length)
    tables = []
    for table in (parents, chain)[:batch]:
        shuffled = torch.empty(length, dtype=torch.int64)
        above = torch.tensor(table)
        shuffled[order] = torch.where(above >= 0, order[above.clamp(min=0)], -1)
        tables.append(shuffled)
    x = torch.randn(batch, length, channels, dtype=dtype, requires_grad=True)
    weight = torch.rand(batch, length, channels, dtype=dtype, requires_grad=True)
    return x, weight, torch.stack(tables)


def matrix(weight, parents, upward):
    """(B, D, L, L), the weight of each token in every sum, by powers of the edges' matrix."""
    batch, length, channels = weight.shape
    # depends on the weights even for a single token
    edges = 0 * weight.sum() + weight.new_zeros(batch, channels, length, length)
    for b in range(batch):
        for i, parent in enumerate(parents[b].tolist()):
            if parent >= 0:
                edges[b, :, i, parent] = weight[b, i]
    edges = edges.mT if upward else edges
    found = power = torch.eye(length, dtype=weight.dtype).expand_as(edges)
    for _ in range(length):
        power = power @ edges
        found = found + power
    return found


@pytest.mark.parametrize("upward", [True, False], ids=["upward", "downward"])
@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [
        ("reference", torch.float64, 1e-12),
        ("reference", torch.float32, 2e-6),
        ("cpu", torch.float32, 2e-6),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 17), (33, 100)], ids=str)
def test_sums_and_gradients_are_those_of_all_ways(backend, dtype, tolerance, upward, size):
    x, weight, parents = make_problem(*size, dtype)
    grad = torch.randn_like(x)
    found = tree_sum(x, weight, parents, upward=upward, backend=backend)
    assert found.dtype == dtype
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    ways = matrix(exact[1], parents, upward)
    expected = torch.einsum("bdij,bjd->bid", ways, exact[0])
    results = [found, *torch.autograd.grad(found, (x, weight), grad)]
    exact = [expected, *torch.autograd.grad(expected, exact, grad.double())]
    for ours, theirs in zip(results, exact, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize("upward", [True, False], ids=["upward", "downward"])
def test_second_derivatives_are_right(upward):
    x, weight, parents = make_problem(5, 2, torch.float64)

    def add_up(x, weight):
        return tree_sum(x, weight, parents, upward=upward)

    assert gradcheck(add_up, (x, weight), check_forward_ad=True)
    assert gradgradcheck(add_up, (x, weight))


def test_half_precision_is_added_up_in_float32():
    x, weight, parents = make_problem(33, 16, torch.float32)
    x, weight = x.detach().bfloat16(), weight.detach()
    for backend in BACKENDS:
        found = tree_sum(x, weight, parents, upward=True, backend=backend)
        expected = tree_sum(x.double(), weight, parents, upward=True)
        torch.testing.assert_close(found, expected.bfloat16(), rtol=1e-2, atol=1e-2)


def test_a_compiled_caller_is_right():
    x, weight, _ = make_problem(9, 16, torch.float32)
    down, right = make_edges(3, 3)

    def run(x, weight, down, right):
        tree = torch.ops.vimamba.grid_tree(down, right)
        return torch.ops.vimamba.tree_sum(x, weight, tree, False)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = [f(x, weight, down, right) for f in (run, compiled)]
    torch.testing.assert_close(*results)
    grads = [torch.autograd.grad(y.square().sum(), (x, weight)) for y in results]
    torch.testing.assert_close(*grads)


def test_torch_func_and_vmap_see_the_operators():
    x, weight, parents = make_problem(9, 4, torch.float64)

    def loss(x, weight, parents):
        return tree_sum(x[None], weight[None], parents[None], upward=True).square().sum()

    each = torch.vmap(torch.func.grad(loss))(x.detach(), weight.detach(), parents)
    whole = tree_sum(x, weight, parents, upward=True).square().sum()
    torch.testing.assert_close(each, torch.autograd.grad(whole, x)[0])
    down, right = make_edges(3, 4)
    found = torch.vmap(lambda d, r: grid_tree(d[None], r[None])[0])(down, right)
    assert torch.equal(found, grid_tree(down, right))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"parents": torch.tensor([[0, -1]])}, ValueError, r"parents\[0\] lead from token 0"),
        ({"parents": torch.tensor([[1, 0]])}, ValueError, "to no root; expected trees"),
        ({"parents": torch.tensor([[2, -1]])}, ValueError, "values from -1 to 2"),
        ({"parents": torch.tensor([[-1, 0, 1]])}, ValueError, r"expected \(B, L\) = \(1, 2\)"),
        ({"parents": torch.zeros(1, 2)}, TypeError, "parents is torch.float32"),
        ({"weight": torch.ones(1, 2, 4)}, ValueError, r"expected \(B, L, D\) = \(1, 2, 3\)"),
        ({"weight": torch.ones(1, 2, 3, dtype=torch.int64)}, TypeError, "weight is torch.int64"),
        ({"x": torch.ones(2, 3)}, ValueError, r"x has shape \(2, 3\)"),
        ({"backend": "triton"}, ValueError, "backend='triton' is unknown"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(changes, error, message):
    arguments = {"x": torch.ones(1, 2, 3), "weight": torch.ones(1, 2, 3)}
    arguments |= {"parents": torch.tensor([[-1, 0]]), "upward": True}
    with pytest.raises(error, match=message):
        tree_sum(**{**arguments, **changes})


def test_edges_must_be_of_one_grid():
    with pytest.raises(ValueError, match=r"down has shape \(1, 3, 4\); expected \(B, H - 1, W\)"):
        grid_tree(torch.ones(1, 3, 4), torch.ones(1, 3, 3))
