"""Mamba-2's Triton kernels on a GPU: real sizes, every way to split the work, reproducibility."""

import pytest
import torch

from tests.kernels.ssd_problems import (
    STATELESS,
    TENSORS,
    assert_close,
    make_problem,
    with_gradients,
)
from vimamba_kernels import ssd
from vimamba_kernels.ssd import fused
from vimamba_kernels.ssd.op import choose_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
# relative L2: float32 sums of up to 3136 decaying terms; factors rounded to 11 or 8 bits
TOLERANCES = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
SIZES = {
    "vmamba_1": {"batch": 2, "k": 4, "length": 3136, "heads": 6, "width": 16, "n": 64},
    "vmamba_4": {"batch": 8, "k": 4, "length": 49, "heads": 48, "width": 16, "n": 64},
    "wide_heads": {"batch": 2, "k": 1, "length": 300, "heads": 4, "width": 64, "n": 64},
    "ragged": {"batch": 3, "k": 3, "length": 101, "heads": 6, "width": 20, "n": 24},
    "zero_tokens": {"batch": 2, "k": 2, "length": 197, "heads": 4, "n": 16, "zero_tokens": 7},
    "skipped_tokens": {"batch": 2, "k": 2, "length": 200, "steps": 190, "x_per_path": True},
    "one_token": {"batch": 2, "k": 4, "length": 1, "heads": 2, "width": 16, "n": 16},
}
GROUPS = {"vmamba_1": 1, "vmamba_4": 1}
CUTS = {"whole": (1, 1), "segments": (3, 1), "parts": (1, 2), "both": (3, 2)}
sizes = pytest.mark.parametrize("name", SIZES)


def problem_of(name, dtype):
    problem = make_problem(**SIZES[name], groups=GROUPS.get(name, 2), dtype=dtype)
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in problem.items()}


def results_of(problem, backend, merge=True):
    # the gradients of the outputs are random numbers from the CPU
    def scan(arguments):
        y, state = ssd(**{**arguments, "return_state": True}, merge=merge, backend=backend)
        return y.cpu(), state.cpu()

    return with_gradients(scan, problem | {"return_state": True})


def assert_matches_float64(name, dtype, merge=True):
    problem = problem_of(name, dtype)
    wide = {n: problem[n].double() for n in TENSORS}
    exact = results_of(problem | wide, "chunked", merge)
    assert_close(results_of(problem, "triton", merge), exact, TOLERANCES[dtype])


@pytest.fixture(params=CUTS)
def cut(request, monkeypatch):
    segments, parts = CUTS[request.param]
    monkeypatch.setattr(fused, "choose_segments", lambda *_: segments)
    monkeypatch.setattr(
        fused, "_choose_parts", lambda owners, heads, _: parts if heads % parts == 0 else 1
    )
    return request.param


@pytest.fixture
def deterministic():
    """Deterministic algorithms, which also fill new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@sizes
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "separate"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda d: str(d).removeprefix("torch."))
def test_outputs_and_gradients_match_float64(name, dtype, merge):
    assert_matches_float64(name, dtype, merge)


def test_many_states_match_float64():
    problem = make_problem(length=300, n=128, width=32, dtype=torch.bfloat16)
    problem = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in problem.items()}
    wide = {n: problem[n].double() for n in TENSORS}
    exact = results_of(problem | wide, "chunked")
    assert_close(results_of(problem, "triton"), exact, TOLERANCES[torch.bfloat16])


@sizes
@pytest.mark.usefixtures("cut")
def test_every_cut_matches_float64(name):
    assert_matches_float64(name, torch.float32)


@sizes
@pytest.mark.usefixtures("deterministic", "cut")
def test_every_cut_is_bit_equal_every_time(name):
    problem = problem_of(name, torch.bfloat16)
    first = results_of(problem, "triton")
    assert all(r.isfinite().all() for r in first)
    for _ in range(20):
        again = results_of(problem, "triton")
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_it_is_the_first_choice_on_a_gpu():
    x = torch.zeros(1, device="cuda")
    assert choose_backend("auto", x, states=64) == "triton"
    assert choose_backend("auto", x.bfloat16(), states=128) == "triton"
    assert choose_backend("auto", x, states=128) == "chunked"
    assert choose_backend("auto", x.double()) == "chunked"


def test_it_runs_inside_a_cuda_graph():
    problem = problem_of("zero_tokens", torch.float32) | STATELESS
    expected = ssd(**problem, backend="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = ssd(**problem, backend="triton")
    y.zero_()
    graph.replay()
    assert torch.equal(y, expected)


def test_a_compiled_function_gives_the_same():
    problem = problem_of("ragged", torch.float32) | STATELESS
    y = torch.compile(ssd, fullgraph=True)(**problem, backend="triton")
    torch.testing.assert_close(y, ssd(**problem, backend="triton"))
