"""The Triton kernels on a GPU: real sizes, every way to split the work, reproducibility, races."""

import pytest
import torch

from tests.kernels.problems import TENSORS, all_equal, computed, make_problem, output_gradient
from vimamba_kernels import selective_scan
from vimamba_kernels.selective_scan import fused
from vimamba_kernels.selective_scan.op import choose_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
# relative L2: float32 sums of up to 3136 decaying terms with approximate exp2, and one rounding
TOLERANCES = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SIZES = {
    "vim": {"batch": 4, "k": 2, "length": 197, "channels": 768, "n": 16},
    "vim_tiny": {"batch": 2, "k": 2, "length": 197, "channels": 384, "n": 16, "steps": 190},
    "vmamba_1": {"batch": 4, "k": 4, "length": 3136, "channels": 96, "n": 1, "without": ("z",)},
    "vmamba_4": {"batch": 8, "k": 4, "length": 49, "channels": 768, "n": 1, "without": ("z",)},
    "ragged": {"batch": 3, "k": 3, "length": 101, "channels": 100, "n": 5, "zero_tokens": 7},
    "groups": {"batch": 2, "k": 4, "length": 64, "channels": 192, "n": 8, "groups": 4},
    "u_per_path": {"batch": 2, "k": 4, "length": 65, "channels": 64, "n": 1, "u_per_path": True},
    "many_states": {"batch": 2, "k": 1, "length": 100, "channels": 96, "n": 64},
    "projected_vim": {"batch": 4, "k": 2, "length": 197, "channels": 768, "n": 16, "rank": 24},
    "projected_vmamba_1": {
        "batch": 4,
        "k": 4,
        "length": 3136,
        "channels": 96,
        "n": 1,
        "rank": 6,
        "without": ("z",),
    },
    "projected_ragged": {
        "batch": 3,
        "k": 3,
        "length": 101,
        "channels": 100,
        "n": 5,
        "zero_tokens": 7,
        "rank": 17,
    },
}
CUTS = {"own": (False, 1), "split": (True, 1), "segments": (False, 4), "both": (True, 3)}
sizes = pytest.mark.parametrize("name", SIZES)


@pytest.fixture(params=CUTS)
def cut(request, monkeypatch):
    split, segments = CUTS[request.param]

    def choose(sizes, shape, programs, room):
        return fused.Plan(*shape, split=split, segments=segments)

    monkeypatch.setattr(fused, "choose_plan", choose)
    return request.param


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def on_gpu(problem):
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in problem.items()}


def assert_matches_float64(problem, merge, tolerance):
    grad = output_gradient(problem, merge).cuda()
    problem = on_gpu(problem)
    wide = {
        k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in problem.items()
    }
    results = computed(selective_scan, problem, grad, merge=merge, backend="triton")
    exact = computed(selective_scan, wide, grad.double(), merge=merge, backend="chunked")
    for name, result, reference in zip(("y", *TENSORS), results, exact, strict=True):
        if reference is not None:
            error = (result.double() - reference).norm() / reference.norm()
            assert error <= tolerance, f"{name}: {error:.1e}"


@sizes
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "separate"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda d: str(d).removeprefix("torch."))
def test_output_and_gradients_match_float64(name, dtype, merge):
    problem = make_problem(**SIZES[name], dtype=dtype)
    assert_matches_float64(problem, merge, TOLERANCES[dtype])


@sizes
def test_every_cut_matches_float64(name, cut):
    problem = make_problem(**SIZES[name], dtype=torch.float32)
    assert_matches_float64(problem, True, TOLERANCES[torch.float32])


@sizes
@pytest.mark.usefixtures("deterministic")
def test_every_cut_is_bit_equal_every_time(name, cut):
    problem = on_gpu(make_problem(**SIZES[name], dtype=torch.bfloat16))
    grad = output_gradient(problem).cuda()
    first = computed(selective_scan, problem, grad, backend="triton")
    for _ in range(20):
        again = computed(selective_scan, problem, grad, backend="triton")
        assert all_equal(first, again)


@sizes
def test_memory_that_is_not_zero_at_first_changes_nothing(name, cut):
    problem = on_gpu(make_problem(**SIZES[name], dtype=torch.float32))
    grad = output_gradient(problem).cuda()
    # deterministic algorithms fill new memory with NaN
    torch.use_deterministic_algorithms(True)
    try:
        results = computed(selective_scan, problem, grad, backend="triton")
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(r is None or r.isfinite().all() for r in results)


def test_it_is_the_first_choice_on_a_gpu():
    x = torch.zeros(1, device="cuda")
    assert choose_backend("auto", x) == "triton"
    assert choose_backend("auto", x.bfloat16()) == "triton"
    assert choose_backend("auto", x.double()) == "chunked"


def test_it_runs_inside_a_cuda_graph():
    problem = on_gpu(make_problem(**SIZES["vim"], dtype=torch.float32))
    expected = selective_scan(**problem, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = selective_scan(**problem, backend="triton")
    y.zero_()
    graph.replay()
    assert torch.equal(y, expected)


def test_a_compiled_function_gives_the_same():
    problem = on_gpu(make_problem(**SIZES["ragged"], dtype=torch.float32))
    grad = output_gradient(problem).cuda()
    compiled = torch.compile(selective_scan, fullgraph=True)
    results = computed(compiled, problem, grad, backend="triton")
    expected = computed(selective_scan, problem, grad, backend="triton")
    for result, reference in zip(results, expected, strict=True):
        torch.testing.assert_close(result, reference)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU only")
def test_it_runs_on_a_gpu_that_is_not_the_current_one():
    problem = make_problem(**SIZES["ragged"], dtype=torch.float32)
    expected = selective_scan(**on_gpu(problem), backend="triton").cpu()
    there = {k: v.to("cuda:1") if isinstance(v, torch.Tensor) else v for k, v in problem.items()}
    with torch.cuda.device(0):
        y = selective_scan(**there, backend="triton")
    assert y.device.index == 1
    torch.testing.assert_close(y.cpu(), expected)
