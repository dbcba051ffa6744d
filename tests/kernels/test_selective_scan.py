"""Every backend of the selective scan against the definition in float64."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.problems import (
    TENSORS,
    assert_close,
    assert_matches_the_definition,
    computed,
    expected,
    make_problem,
    output_gradient,
)
from vimamba_kernels import selective_scan

# float32 sums of up to 1000 decaying terms; measured 1e-7 to 2e-6
FLOAT32, FLOAT64 = 1e-5, 1e-11
BACKENDS = [
    ("reference", torch.float64, FLOAT64),
    ("chunked", torch.float64, FLOAT64),
    ("chunked", torch.float32, FLOAT32),
    ("cpu", torch.float32, FLOAT32),
]
# every length, number of states and number of paths at least twice, with ragged channel blocks
SIZES = [
    {"length": 1, "n": 1, "k": 1, "channels": 1},
    {"length": 1, "n": 16, "k": 4, "channels": 20},
    {"length": 2, "n": 8, "k": 2, "channels": 6},
    {"length": 2, "n": 1, "k": 8, "channels": 33},
    {"length": 63, "n": 16, "k": 1, "channels": 100},
    {"length": 63, "n": 1, "k": 2, "channels": 130},
    {"length": 197, "n": 16, "k": 2, "channels": 24, "batch": 1},
    {"length": 197, "n": 8, "k": 4, "channels": 17},
    {"length": 197, "n": 1, "k": 8, "channels": 48},
    {"length": 1000, "n": 16, "k": 1, "channels": 8, "batch": 1},
    {"length": 1000, "n": 1, "k": 4, "channels": 16, "batch": 1},
    {"length": 1000, "n": 8, "k": 8, "channels": 4, "batch": 1},
]
CASES = {
    "without_D_z_bias": {"without": ("D", "z", "delta_bias")},
    "without_paths": {"without": ("paths",)},
    "without_softplus": {"delta_softplus": False},
    "skipped_tokens": {"steps": 9},
    "zero_tokens": {"zero_tokens": 4},
    "zero_and_skipped_tokens_one_state": {"zero_tokens": 4, "steps": 11, "n": 1},
    "groups": {"groups": 3},
    "groups_one_state": {"groups": 2, "n": 1, "u_per_path": True},
    "a_group_for_each_channel": {"groups": 6, "n": 4},
    "u_per_path": {"u_per_path": True, "zero_tokens": 2},
    "projected": {"rank": 2},
    "projected_one_state": {"rank": 5, "n": 1, "zero_tokens": 3, "steps": 10},
    "projected_without_softplus_from_rank_one": {"rank": 1, "delta_softplus": False},
    "projected_without_D_z_bias_paths": {
        "rank": 7,
        "without": ("D", "z", "delta_bias", "paths"),
    },
    "projected_groups": {"rank": 3, "groups": 3, "u_per_path": True},
    "paths_per_sample": {"paths_per_sample": True, "batch": 3, "length": 63},
    "paths_per_sample_one_state": {
        "paths_per_sample": True,
        "zero_tokens": 4,
        "steps": 11,
        "n": 1,
        "rank": 3,
    },
    "everything_over_many_chunks": {
        "length": 150,
        "steps": 131,
        "zero_tokens": 40,
        "groups": 2,
        "channels": 70,
        "n": 5,
        "u_per_path": True,
    },
    "everything_projected": {
        "length": 150,
        "steps": 131,
        "zero_tokens": 40,
        "groups": 2,
        "channels": 70,
        "n": 5,
        "rank": 9,
    },
}
backends = pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"), BACKENDS, ids=lambda v: str(v).removeprefix("torch.")
)


def backends_and_sizes():
    """All of both; the definition itself takes seconds for 1000 steps, so those are slow."""
    for (backend, dtype, tolerance), size in product(BACKENDS, SIZES):
        is_slow = backend == "reference" and size["length"] == 1000
        name = "L{length}_N{n}_K{k}".format(**size)
        yield pytest.param(
            *(backend, dtype, tolerance, size),
            marks=[pytest.mark.slow] if is_slow else [],
            id=f"{name}-{backend}-{str(dtype).removeprefix('torch.')}",
        )


@pytest.mark.parametrize(("backend", "dtype", "tolerance", "size"), backends_and_sizes())
def test_output_and_gradients_match_the_definition_at_all_sizes(backend, dtype, tolerance, size):
    assert_matches_the_definition(selective_scan, size, dtype, tolerance, backend=backend)


@backends
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "separate"])
@pytest.mark.parametrize("case", CASES)
def test_every_option_matches_the_definition(backend, dtype, tolerance, merge, case):
    assert_matches_the_definition(
        selective_scan, CASES[case], dtype, tolerance, merge, backend=backend
    )


def test_one_token_is_worked_out_by_hand():
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    u, A, skip = 2 * one[0], -one[0], 3 * one[0, 0]
    y = selective_scan(u, 0.5 * one, A, 4 * one, 5 * one, skip, z=0 * u + 1)
    # h = 0.5 * 4 * 2 = 4, y = 5 * 4 + 3 * 2 = 26
    torch.testing.assert_close(y, 26 * F.silu(torch.ones_like(y)))


def test_two_tokens_are_worked_out_by_hand():
    u = torch.tensor([[[1.0], [2.0]]], dtype=torch.float64)
    delta = torch.full((1, 1, 2, 1), 0.5, dtype=torch.float64)
    A, B = torch.full_like(delta[0, :, :1], -2.0), torch.ones_like(delta)
    y = selective_scan(u, delta, A, B, B, paths=torch.tensor([[1, 0]]))
    # token 1 comes first: h = 0.5 * 2; then h = exp(-1) * 1 + 0.5 * 1
    expected = torch.tensor([[[torch.e**-1 + 0.5], [1.0]]], dtype=torch.float64)
    torch.testing.assert_close(y, expected)


@backends
def test_a_projected_step_size_is_that_of_a_linear_layer(backend, dtype, tolerance):
    problem = make_problem(rank=4, dtype=dtype)
    weight = problem.pop("delta_weight")
    y = selective_scan(**problem, delta_weight=weight, backend=backend)
    layers = [F.linear(problem["delta"][:, k], weight[k]) for k in range(2)]
    problem["delta"] = torch.stack(layers, dim=1)
    torch.testing.assert_close(y, selective_scan(**problem, backend=backend))


@pytest.mark.parametrize("backend", ["reference", "chunked", "cpu"])
def test_a_token_that_no_path_visits_gets_zero(backend):
    problem = make_problem(dtype=torch.float32)
    problem["paths"] = problem["paths"][:, :5].clone()
    visited = set(problem["paths"].flatten().tolist())
    y = selective_scan(**problem, backend=backend)
    for token in range(13):
        assert (y[:, token] != 0).all() == (token in visited)


@pytest.mark.parametrize("backend", ["reference", "chunked", "cpu"])
def test_nan_in_a_token_that_is_never_visited_goes_nowhere(backend):
    problem = make_problem(dtype=torch.float32)
    paths = problem["paths"]
    paths[paths == 0] = -1
    for name in ("u", "delta", "B", "C"):
        problem[name][..., 0, :] = torch.nan
    grad = output_gradient(problem)
    problem["z"] = None
    results = computed(selective_scan, problem, grad, backend=backend)
    assert all(r is None or r.isfinite().all() for r in results)


@pytest.mark.parametrize("backend", ["reference", "chunked", "cpu"])
def test_nan_in_a_visited_token_is_not_hidden(backend):
    problem = make_problem(dtype=torch.float32)
    problem["delta"][0, 0, problem["paths"][0, 3], 2] = torch.nan
    y = selective_scan(**problem, backend=backend)
    assert y[0, problem["paths"][0, 3:].long(), 2].isnan().all()


@backends
def test_non_contiguous_inputs_give_the_same(backend, dtype, tolerance):
    problem = make_problem(dtype=dtype, groups=2)
    strided = {
        name: t.transpose(-1, -2).contiguous().transpose(-1, -2)
        if isinstance(t, torch.Tensor)
        else t
        for name, t in problem.items()
    }
    assert not strided["u"].is_contiguous()
    grad = output_gradient(problem)
    results = computed(selective_scan, strided, grad, backend=backend)
    assert_close(results, expected(problem, grad), tolerance)


@backends
def test_an_expanded_output_gradient_is_accepted(backend, dtype, tolerance):
    problem = make_problem(dtype=dtype)
    grad = torch.ones((), dtype=dtype).expand(2, 13, 6)
    results = computed(selective_scan, problem, grad, backend=backend)
    assert_close(results, expected(problem, grad), tolerance)


@backends
@pytest.mark.parametrize("n", [1, 4])
def test_an_empty_batch_gives_empty_outputs_and_zero_gradients(backend, dtype, tolerance, n):
    problem = make_problem(batch=0, n=n, dtype=dtype)
    y, *grads = computed(selective_scan, problem, output_gradient(problem), backend=backend)
    assert y.shape == (0, 13, 6)
    for name, g in zip(TENSORS, grads, strict=True):
        assert g is None or (g.shape == problem[name].shape and not g.any())


@pytest.mark.parametrize("backend", ["reference", "chunked", "cpu"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # half a unit in the last place is 2**-9 and 2**-12; z's gradient meets it three times
    [(torch.bfloat16, 6e-3), (torch.float16, 1e-3)],
    ids=["bfloat16", "float16"],
)
@pytest.mark.parametrize("rank", [None, 4])
def test_half_precision_rounds_only_inputs_and_outputs(backend, dtype, tolerance, rank):
    problem = make_problem(length=197, n=16, rank=rank, dtype=dtype)
    grad = output_gradient(problem)
    results = computed(selective_scan, problem, grad, backend=backend)
    dtypes = [None if r is None else r.dtype for r in results]
    half, full = dtype, torch.float32
    weight = half if rank else None
    assert dtypes == [half, half, half, full, half, half, full, half, full, weight]
    assert_close(results, expected(problem, grad), tolerance)


@pytest.mark.parametrize("backend", ["reference", "chunked", "cpu"])
def test_parameters_may_be_half_precision_and_get_gradients_in_it(backend):
    problem = make_problem(dtype=torch.bfloat16)
    for name in ("A", "D", "delta_bias"):
        problem[name] = problem[name].bfloat16()
    grad = output_gradient(problem)
    results = computed(selective_scan, problem, grad, backend=backend)
    assert all(r is None or r.dtype == torch.bfloat16 for r in results)
    assert_close(results, expected(problem, grad), 6e-3)


@pytest.mark.parametrize("backend", ["reference", "chunked", "cpu"])
@pytest.mark.parametrize(
    # float16 ends at 65504
    ("dtype", "largest"),
    [(torch.bfloat16, 1e6), (torch.float16, 5e4)],
    ids=["bfloat16", "float16"],
)
def test_large_outputs_stay_finite_in_half_precision(backend, dtype, largest):
    """The magnitudes of state-spaces/mamba#72."""
    problem = make_problem(length=197, n=16, dtype=dtype, without=("z",))
    problem["delta_bias"] += 5
    peak = selective_scan(**problem, backend="reference").abs().max().float()
    problem["u"] = (problem["u"].float() * (largest / peak)).to(dtype)
    grad = output_gradient(problem) / 64
    y, *grads = computed(selective_scan, problem, grad, backend=backend)
    assert y.abs().max() > 1e4
    assert all(t is None or t.isfinite().all() for t in (y, *grads))


@pytest.mark.parametrize("backend", ["chunked", "cpu"])
def test_decays_that_underflow_stay_finite(backend):
    problem = make_problem(length=100, n=16, dtype=torch.float32)
    problem["A"] *= 1000
    grad = output_gradient(problem)
    results = computed(selective_scan, problem, grad, backend=backend)
    assert all(r is None or r.isfinite().all() for r in results)


@pytest.mark.parametrize("delta", [-200.0, -30.0, 0.0, 19.9, 20.1, 200.0])
def test_the_cpu_softplus_is_accurate_everywhere(delta):
    problem = make_problem(length=1, k=1, n=1, dtype=torch.float32, without=("delta_bias", "z"))
    problem["delta"].fill_(delta)
    problem["D"].zero_()
    y = selective_scan(**problem, backend="cpu")
    reference = selective_scan(**_in_float64(problem), backend="reference")
    # a float32 exponent of 43 is known to 2e-6
    torch.testing.assert_close(y.double(), reference, rtol=1e-5, atol=1e-30)


def _in_float64(problem):
    return {
        name: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for name, v in problem.items()
    }
