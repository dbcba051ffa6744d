"""Mamba-3's scan by Triton kernels in Triton's interpreter against a loop in float64.

test_triton_interpreted.py runs this file in a process of its own, because the mode is fixed when
Triton is imported.
"""

import pytest
import torch
from torch.func import grad as functional_grad

from tests.closeness import assert_same
from tests.kernels.mamba3_problems import (
    STATELESS,
    assert_close,
    defined,
    make_problem,
    scan,
    with_gradients,
)
from vimamba_kernels.mamba3.chunked import recurrence_chunked
from vimamba_kernels.ssd import fused as ssd_fused

# float32 sums over up to 40 steps; measured below 1e-6
FLOAT32 = 5e-6
# bfloat16 is rounded towards zero by the interpreter, several times over; measured up to 2.4e-2
HALF = {torch.bfloat16: 4e-2, torch.float16: 3e-3}
SMALL = {"batch": 1, "k": 1, "heads": 2}


@pytest.fixture(autouse=True)
def poison():
    """Deterministic algorithms, which also fill new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


# around chunks of 16 steps, of which a step of three ranks is three
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ({"length": 1, "heads": 1, "width": 1, "groups": 1, "n": 1, "pairs": 0}, {}),
        ({"length": 17, "width": 17, "n": 17, "pairs": 8}, {"D": None, "z": None}),
        ({"length": 11, "ranks": 3, "norm": True}, STATELESS),
        ({"length": 20, "steps": 18, "zero_tokens": 4, "k": 2}, {}),
    ],
    ids=str,
)
def test_output_and_gradients_match(size, changes):
    problem = make_problem(**SMALL | size, dtype=torch.float32) | changes
    assert_close(with_gradients(problem, backend="triton"), defined(problem), FLOAT32)


def test_segments_match_at_their_borders(monkeypatch):
    monkeypatch.setattr(ssd_fused, "choose_segments", lambda programs, chunks, processors: 3)
    problem = make_problem(**SMALL, length=49, dtype=torch.float32)
    assert_close(with_gradients(problem, backend="triton"), defined(problem), FLOAT32)


def test_large_steps_cost_no_accuracy_and_a_decay_of_zero_passes_nothing():
    problem = make_problem(**SMALL, length=24, dtype=torch.float32)
    problem["log_decay"][:, :, 5:20:5] = -3e4
    assert_close(with_gradients(problem, backend="triton"), defined(problem), FLOAT32)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_loses_no_more_than_its_rounding(dtype):
    problem = make_problem(**SMALL, ranks=2, dtype=dtype)
    results = with_gradients(problem, backend="triton")
    expected = defined(problem)
    assert [r.dtype for r in results[:2]] == [dtype, torch.float32]
    assert_close(results, expected, HALF[dtype])


def recurrence(x, weight, log_decay, B, C, first):
    return torch.ops.vimamba.mamba3_forward(x, weight, log_decay, B, C, first, True)


def make_recurrence():
    g = torch.Generator().manual_seed(0)
    by_step = (1, 1, 5, 2)
    sizes = [(*by_step, 3), by_step, by_step, (*by_step, 4), (*by_step, 4), (1, 1, 2, 3, 4)]
    return [torch.randn(size, generator=g).requires_grad_() for size in sizes]


def test_opcheck_passes():
    tensors = make_recurrence()
    # a static shape is enough for a kernel without any of its own
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(recurrence_op(), (*tensors, True), test_utils=utils)
    torch.library.opcheck(recurrence_op(), (*tensors[:5], None, False), test_utils=utils)


def recurrence_op():
    return torch.ops.vimamba.mamba3_forward.default


def test_second_derivatives_of_the_recurrence_are_those_of_the_chunked_form():
    def second(function):
        tensors = make_recurrence()
        outputs = function(*tensors)
        total = sum(y.square().sum() for y in outputs)
        first = torch.autograd.grad(total, tensors, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), tensors)]

    expected = second(recurrence_chunked)
    assert_close(second(recurrence), [t.double() for t in expected], FLOAT32)


def test_torch_func_differentiates_through_the_chunked_form():
    problem = make_problem(**SMALL, length=5, dtype=torch.float32) | STATELESS

    def loss(x, backend):
        return scan(problem | {"x": x}, backend=backend)[0].square().sum()

    found, expected = (
        functional_grad(lambda x, b=b: loss(x, b))(problem["x"]) for b in ("triton", "chunked")
    )
    assert_same(found, expected)
