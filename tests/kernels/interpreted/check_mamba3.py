"""Mamba-3's scan by Triton kernels in Triton's interpreter against a loop in float64.

test_triton_interpreted.py runs this file in a separate process, because the mode is fixed when
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
from vimamba_kernels.mamba3.by_token import recurrence_by_token, rotate_by_token
from vimamba_kernels.ssd import fused as ssd_fused

# float32 sums over up to 40 steps; measured below 4e-6, for the gradient of a bias
FLOAT32 = 1e-5
# bfloat16 is rounded toward zero by the interpreter, several times over; measured up to 2.4e-2
HALF = {torch.bfloat16: 4e-2, torch.float16: 3e-3}
SMALL = {"batch": 1, "k": 1, "heads": 2}


@pytest.fixture(autouse=True)
def poison():
    """Deterministic algorithms, which also fill new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


# around chunks of 16 steps; a step of three ranks is three of these
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ({"length": 1, "heads": 1, "width": 1, "groups": 1, "n": 1, "pairs": 0}, {}),
        (
            {"length": 17, "width": 17, "n": 17, "pairs": 8, "heads": 1, "groups": 1},
            {"D": None, "z": None},
        ),
        ({"length": 6, "ranks": 3, "norm": True}, STATELESS),
        ({"length": 20, "steps": 18, "zero_tokens": 4, "groups": 1}, {}),
        ({"length": 3, "k": 2, "x_per_path": True}, {"paths": None, "B_bias": None}),
        ({"length": 5, "batch": 2, "k": 2, "zero_tokens": 1, "paths_per_sample": True}, {}),
    ],
    ids=str,
)
def test_output_and_gradients_match(size, changes):
    problem = make_problem(**SMALL | size, dtype=torch.float32) | changes
    assert_close(with_gradients(problem, backend="triton"), defined(problem), FLOAT32)


def test_paths_are_not_added_where_that_is_not_asked_for():
    problem = make_problem(**SMALL | {"k": 2}, length=4, dtype=torch.float32) | STATELESS
    results = with_gradients(problem, merge=False, backend="triton")
    assert_close(results, defined(problem, merge=False), FLOAT32)


def test_segments_match_at_their_borders(monkeypatch):
    monkeypatch.setattr(ssd_fused, "choose_segments", lambda programs, chunks, processors: 3)
    problem = make_problem(**SMALL | {"heads": 1}, groups=1, length=49, dtype=torch.float32)
    assert_close(with_gradients(problem, backend="triton"), defined(problem), FLOAT32)


def test_large_steps_cost_no_accuracy_and_a_decay_of_zero_passes_nothing():
    problem = make_problem(**SMALL | {"heads": 1}, groups=1, length=20, dtype=torch.float32)
    problem["log_decay"][:, :, 5:20:5] = -3e4
    assert_close(with_gradients(problem, backend="triton"), defined(problem), FLOAT32)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_loses_no_more_than_its_rounding(dtype):
    problem = make_problem(**SMALL, length=9, ranks=2, dtype=dtype)
    results = with_gradients(problem, backend="triton")
    expected = defined(problem)
    assert [r.dtype for r in results[:2]] == [dtype, torch.float32]
    assert_close(results, expected, HALF[dtype])


PATHS = torch.tensor([[3, 0, -1, 4]])


def make_tensors(*sizes):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=g) for size in sizes]


def make_recurrence():
    by_token = (1, 1, 5, 2)
    sizes = [(*by_token, 3), by_token, by_token, (*by_token, 4), (*by_token, 4), (1, 1, 2, 3, 4)]
    return make_tensors(*sizes)


def make_rotation():
    rows, bias = (1, 1, 5, 2, 1, 4), (1, 2, 2, 4)
    return make_tensors(rows, rows, bias, bias, (1, 1, 5, 1, 2), (1, 1, 5, 2), (1, 1, 2, 2))


def recur(*tensors):
    return torch.ops.vimamba.mamba3_forward(*tensors, PATHS, False, True)


def recur_without_state(*tensors):
    return torch.ops.vimamba.mamba3_forward(*tensors, None, True, False)[:1]


@pytest.mark.parametrize(
    ("operator", "composed", "make"),
    [
        (recur, lambda *t: recurrence_by_token(*t, PATHS, False), make_recurrence),
        (recur_without_state, lambda *t: recurrence_by_token(*t, None, True)[:1], make_recurrence),
        (
            lambda *t: torch.ops.vimamba.mamba3_rotate(*t, PATHS),
            lambda *t: rotate_by_token(*t, PATHS),
            make_rotation,
        ),
    ],
    ids=["recurrence", "without_state", "rotation"],
)
def test_second_derivatives_are_those_of_torchs_operators(operator, composed, make):
    def derivatives(function, dtype):
        tensors = [t.detach().to(dtype).requires_grad_() for t in make()]
        total = sum(y.square().sum() for y in function(*tensors))
        first = torch.autograd.grad(total, tensors, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), tensors)]

    # of a sum of squares of gradients of a sum of squares
    expected = derivatives(composed, torch.float64)
    assert_close(derivatives(operator, torch.float32), expected, 10 * FLOAT32)


def test_opcheck_passes():
    # the others trace operators that are tested separately
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    operators = torch.ops.vimamba
    for operator, arguments in (
        (operators.mamba3_forward, (*make_recurrence(), None, True, True)),
        (operators.mamba3_forward, (*make_recurrence()[:5], None, PATHS, False, False)),
        (operators.mamba3_rotate, (*make_rotation(), PATHS)),
    ):
        for t in arguments:
            if isinstance(t, torch.Tensor) and t.is_floating_point():
                t.requires_grad_()
        torch.library.opcheck(operator.default, arguments, test_utils=utils)


def test_torch_func_differentiates_through_the_chunked_form():
    problem = make_problem(**SMALL, length=5, dtype=torch.float32) | STATELESS

    def loss(x, backend):
        return scan(problem | {"x": x}, backend=backend)[0].square().sum()

    found, expected = (
        functional_grad(lambda x, b=b: loss(x, b))(problem["x"]) for b in ("triton", "chunked")
    )
    assert_same(found, expected)


def test_a_token_that_no_path_visits_gets_zero():
    problem = make_problem(**SMALL, steps=3, length=5, ranks=2, dtype=torch.float32)
    skipped = sorted(set(range(5)) - set(problem["paths"][0].tolist()))
    y, *_ = scan(problem, backend="triton")
    assert not y[:, skipped].any()
