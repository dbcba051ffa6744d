"""The Triton convolution along paths on a GPU: real sizes, reproducibility, races."""

import pytest
import torch

from tests.kernels.conv_problems import (
    assert_close,
    make_problem,
    output_gradient,
    with_gradients,
)
from vimamba_kernels import causal_conv_along_paths
from vimamba_kernels.path_conv.op import choose_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
# relative L2: float32 sums, and one rounding; the gradient of x adds up rounded terms
TOLERANCES = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
SIZES = {
    "vim": {"batch": 8, "k": 2, "length": 197, "channels": 768},
    "vim_tiny": {"batch": 64, "k": 2, "length": 197, "channels": 384, "steps": 190},
    "large_image": {"batch": 1, "k": 2, "length": 6085, "channels": 384},
    "ragged": {"batch": 3, "k": 3, "length": 101, "channels": 100, "taps": 5, "zero_tokens": 7},
    "one_token": {"batch": 2, "k": 4, "length": 1, "channels": 64},
    "many_taps": {"batch": 2, "k": 1, "length": 63, "channels": 33, "taps": 8},
}
sizes = pytest.mark.parametrize("name", SIZES)


def on_gpu(problem):
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in problem.items()}


def convolve(**arguments):
    return causal_conv_along_paths(**arguments, backend="triton")


@pytest.fixture
def deterministic():
    """Deterministic algorithms, which also fill new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@sizes
@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda d: str(d).removeprefix("torch."))
def test_output_and_gradients_match_float64(name, dtype):
    problem = make_problem(**SIZES[name], dtype=dtype)
    grad = output_gradient(problem).cuda()
    problem = on_gpu(problem)
    wide = {n: problem[n].double() for n in ("x", "weight", "bias")}
    exact = with_gradients(
        lambda **kwargs: causal_conv_along_paths(**kwargs, backend="reference"),
        problem | wide,
        grad.double(),
    )
    results = with_gradients(convolve, problem, grad)
    assert_close(results[:2], exact[:2], TOLERANCES[dtype])
    # sums over up to 12 000 steps that are never rounded to half precision
    assert_close(results[2:], exact[2:], 1e-5)


@sizes
@pytest.mark.usefixtures("deterministic")
def test_results_are_bit_equal_every_time(name):
    problem = make_problem(**SIZES[name], dtype=torch.bfloat16)
    grad = output_gradient(problem).cuda()
    problem = on_gpu(problem)
    first = with_gradients(convolve, problem, grad)
    assert all(r.isfinite().all() for r in first)
    for _ in range(20):
        again = with_gradients(convolve, problem, grad)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_it_is_the_first_choice_on_a_gpu():
    x = torch.zeros(1, device="cuda")
    assert choose_backend("auto", x) == "triton"
    assert choose_backend("auto", x.double()) == "reference"


def test_it_runs_inside_a_cuda_graph():
    problem = on_gpu(make_problem(**SIZES["vim"], dtype=torch.float32))
    expected = convolve(**problem)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = convolve(**problem)
    y.zero_()
    graph.replay()
    assert torch.equal(y, expected)


def test_a_compiled_function_gives_the_same():
    problem = on_gpu(make_problem(**SIZES["ragged"], dtype=torch.float32))
    grad = output_gradient(problem)
    results = with_gradients(torch.compile(convolve, fullgraph=True), problem, grad)
    torch.testing.assert_close(results, with_gradients(convolve, problem, grad))
