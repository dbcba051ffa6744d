"""The Triton convolution along paths in Triton's interpreter against a loop in float64.

test_triton_interpreted.py runs this file in a separate process, because the mode is fixed when
Triton is imported.
"""

import pytest
import torch

from tests.closeness import assert_same
from tests.kernels.conv_problems import (
    assert_close,
    expected,
    make_problem,
    output_gradient,
    with_gradients,
)
from vimamba_kernels import causal_conv_along_paths
from vimamba_kernels.path_conv import fused

# float32 sums of up to 600 terms; measured below 2e-7
FLOAT32 = 2e-6
# One rounding of a result, which the interpreter does toward zero for bfloat16: at most 2**-7 and
# 2**-11, in relative L2 about half of that. The gradient of x sums terms that are also rounded.
HALF = {torch.bfloat16: (7e-3, 9e-3), torch.float16: (5e-4, 7e-4)}
# around the numbers of taps and of a tile's rows and channels
SIZES = {
    "one_of_everything": {"length": 1, "channels": 1, "k": 1, "taps": 1},
    "one_token": {"length": 1, "k": 3},
    "fewer_tokens_than_taps": {"length": 3, "taps": 8},
    "more_taps_than_rows_of_a_tile": {"length": 19, "k": 1, "batch": 1, "taps": 9},
    "a_step_before_a_tile": {"length": 15, "channels": 63},
    "a_tile": {"length": 16, "channels": 64},
    "a_step_after_a_tile": {"length": 17, "channels": 65},
    "a_step_before_two_tiles": {"length": 63, "taps": 3},
    "two_tiles": {"length": 64, "channels": 128, "taps": 5, "batch": 1},
    "a_step_after_two_tiles": {"length": 65, "k": 4, "batch": 3},
    "an_image_with_a_class_token": {"length": 197, "channels": 70, "k": 1, "batch": 1},
}
OPTIONS = {
    "without_bias": ({}, {"bias": None}),
    "without_paths": ({"length": 33}, {"paths": None}),
    "without_activation": ({}, {"activation": None}),
    "skipped_tokens": ({"steps": 9}, {}),
    "zero_tokens": ({"zero_tokens": 4}, {}),
    "paths_per_sample": ({"paths_per_sample": True, "batch": 2, "zero_tokens": 4}, {}),
    "only_one_token": ({"zero_tokens": 12}, {}),
    "zero_and_skipped_tokens": ({"zero_tokens": 5, "steps": 30, "length": 40, "taps": 3}, {}),
}
# the slow tests take the others, too
FIRST = {
    "one_of_everything", "fewer_tokens_than_taps", "more_taps_than_rows_of_a_tile",
    "a_step_after_a_tile", "two_tiles",
}  # fmt: skip


def convolve(**arguments):
    return causal_conv_along_paths(**arguments, backend="triton")


@pytest.fixture(autouse=True)
def poison():
    """Deterministic algorithms, which also fill new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def assert_matches(problem):
    grad = output_gradient(problem)
    results = with_gradients(convolve, problem, grad)
    assert_close(results, expected(problem, grad), FLOAT32)


@pytest.mark.parametrize(
    "name", [n if n in FIRST else pytest.param(n, marks=pytest.mark.slow) for n in SIZES]
)
def test_output_and_gradients_match_at_all_sizes(name):
    assert_matches(make_problem(**SIZES[name], dtype=torch.float32))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_matches(name):
    size, changes = OPTIONS[name]
    assert_matches(make_problem(**size, dtype=torch.float32) | changes)


def test_more_steps_than_tokens_match():
    problem = make_problem(length=5, dtype=torch.float32)
    problem["paths"] = torch.tensor([[-1, 3, -1, 0, -1, -1, 1, 2, 4], [-1] * 7 + [4, -1]])
    assert_matches(problem)


def test_one_table_for_all_paths_matches():
    problem = make_problem(k=3, dtype=torch.float32)
    problem["paths"] = problem["paths"][:1].expand(3, -1)
    assert_matches(problem)


def test_a_program_with_several_tiles_gives_the_same(monkeypatch):
    problem = make_problem(length=35, k=1, dtype=torch.float32)
    for occupancy in (1, 2, 100):
        monkeypatch.setattr(fused, "_OCCUPANCY", occupancy)
        monkeypatch.setattr(fused, "_SLOPES_OCCUPANCY", occupancy)
        assert_matches(problem)


@pytest.mark.parametrize("dtype", HALF, ids=lambda d: str(d).removeprefix("torch."))
def test_half_precision_loses_no_more_than_its_rounding(dtype):
    problem = make_problem(length=60, dtype=dtype)
    grad = output_gradient(problem)
    results = with_gradients(convolve, problem, grad)
    references = expected(problem, grad)
    assert [r.dtype for r in results] == [dtype, dtype, torch.float32, torch.float32]
    assert_close(results[:1], references[:1], HALF[dtype][0])
    assert_close(results[1:2], references[1:2], HALF[dtype][1])
    assert_close(results[2:], references[2:], FLOAT32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parameters_may_have_another_dtype_and_get_gradients_in_it(dtype):
    problem = make_problem(dtype=torch.float32)
    problem |= {name: problem[name].to(dtype) for name in ("weight", "bias")}
    grad = output_gradient(problem)
    results = with_gradients(convolve, problem, grad)
    assert all(r.dtype == dtype for r in results[2:])
    assert_close(results, expected(problem, grad), 7e-3 if dtype == torch.bfloat16 else FLOAT32)


def test_non_contiguous_inputs_and_int64_paths_give_the_same():
    problem = make_problem(dtype=torch.float32)
    grad = output_gradient(problem)
    strided = {
        "x": problem["x"].transpose(0, 2).contiguous().transpose(0, 2),
        "weight": problem["weight"].transpose(0, 2).contiguous().transpose(0, 2),
        "bias": problem["bias"].t().contiguous().t(),
        "paths": problem["paths"].t().contiguous().t().long(),
    }
    first = with_gradients(convolve, problem, grad)
    second = with_gradients(
        convolve, problem | strided, grad.transpose(0, 3).clone().transpose(0, 3)
    )
    assert_same(first, second)


def test_nan_in_a_token_that_is_never_visited_goes_nowhere():
    problem = make_problem(k=1, dtype=torch.float32)
    problem["paths"][0, 4] = -1
    skipped = (set(range(13)) - set(problem["paths"][0].tolist())).pop()
    problem["x"][:, skipped] = float("nan")
    grad = output_gradient(problem)
    grad[:, :, skipped] = float("nan")
    y, dx, *rest = with_gradients(convolve, problem, grad)
    assert (y[:, :, skipped] == 0).all()
    assert (dx[:, skipped] == 0).all()
    assert all(r.isfinite().all() for r in (y, dx, *rest))


@pytest.mark.parametrize("value", [-1e4, -80.0, 80.0, 1e4])
def test_silu_of_large_sums_is_right(value):
    problem = make_problem(k=1, taps=1, dtype=torch.float32)
    problem["x"].fill_(1)
    problem |= {"weight": torch.full((1, 6, 1), value), "bias": None}
    grad = output_gradient(problem)
    results = with_gradients(convolve, problem, grad)
    for result, reference in zip(results, expected(problem, grad), strict=True):
        torch.testing.assert_close(result.double(), reference, rtol=1e-5, atol=1e-30)


def test_an_empty_batch_gives_empty_outputs_and_zero_gradients():
    problem = make_problem(batch=0, dtype=torch.float32)
    y, dx, *parameters = with_gradients(convolve, problem, output_gradient(problem))
    assert (y.shape, dx.shape) == ((0, 2, 13, 6), (0, 13, 6))
    assert all((g == 0).all() for g in parameters)


def test_second_derivatives_go_through_the_reference():
    problem = make_problem(dtype=torch.float32)
    leaves = [problem[name].requires_grad_() for name in ("x", "weight", "bias")]
    results = []
    for backend in ("triton", "reference"):
        y = causal_conv_along_paths(**problem, backend=backend)
        (grad,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), leaves))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)


def test_a_path_out_of_bounds_is_refused():
    x, weight, bias, *_ = make_problem(dtype=torch.float32).values()
    with pytest.raises(ValueError, match="paths holds values"):
        torch.ops.vimamba.causal_conv_along_paths(
            x, weight, bias, torch.full((2, 13), 99), None, "triton"
        )
