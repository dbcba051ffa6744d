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


RECURRENCE = torch.ops.vimamba.mamba3_forward
TURN = torch.ops.vimamba.mamba3_turn
PATHS = torch.tensor([[3, 0, -1, 4]])


def make_tensors(*sizes):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=g).requires_grad_() for size in sizes]


def make_recurrence():
    by_token = (1, 1, 5, 2)
    sizes = [(*by_token, 3), by_token, by_token, (*by_token, 4), (*by_token, 4), (1, 1, 2, 3, 4)]
    return make_tensors(*sizes)


def make_turn():
    rows, bias = (1, 1, 5, 2, 1, 4), (1, 2, 2, 4)
    return make_tensors(rows, rows, bias, bias, (1, 1, 5, 1, 2), (1, 1, 5, 2), (1, 1, 2, 2))


def without_state(*arguments):
    return RECURRENCE(*arguments, False)[:1]


def second(function, tensors, *options):
    outputs = function(*tensors, *options)
    total = sum(y.square().sum() for y in outputs)
    first = torch.autograd.grad(total, tensors, create_graph=True)
    return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), tensors)]


@pytest.mark.parametrize(
    ("operator", "composed", "make", "options"),
    [
        (partial(RECURRENCE), recurrence_by_token, make_recurrence, (PATHS, False)),
        (without_state, recurrence_by_token, make_recurrence, (None, True)),
        (TURN, turn_by_token, make_turn, (PATHS,)),
    ],
    ids=["recurrence", "without_state", "turn"],
)
def test_derivatives_are_those_of_the_form_in_operators_of_torch(
    operator, composed, make, options
):
    if operator is without_state:
        expected = second(lambda *a: composed(*a)[:1], make(), *options)
    else:
        expected = second(composed, make(), *options)
    more = (True,) if composed is recurrence_by_token and operator is not without_state else ()
    found = second(operator, make(), *options, *more)
    assert_close(found, [t.double() for t in expected], FLOAT32)
