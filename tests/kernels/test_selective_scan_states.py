"""The selective scan from an initial to a last state, with every backend; and step by step."""

import re

import pytest
import torch

from tests.kernels.problems import TENSORS
from tests.kernels.state_problems import assert_close, computed, expected, with_state
from vimamba_kernels import selective_scan, selective_scan_step

scan_op = torch.ops.vimamba.selective_scan_with_state
# float32 sums of up to 70 decaying terms; measured below 1e-6
FLOAT32, FLOAT64 = 5e-6, 1e-12
BACKENDS = [
    ("reference", torch.float64, FLOAT64),
    ("chunked", torch.float64, FLOAT64),
    ("cpu", torch.float32, FLOAT32),
]
backends = pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"), BACKENDS, ids=lambda v: str(v).removeprefix("torch.")
)
# around a chunk of the backends, with lengths that are not multiples of four or eight
CASES = {
    "one_step_one_state": {"length": 1, "n": 1},
    "one_state_zero_and_skipped_tokens": {"length": 63, "n": 1, "zero_tokens": 4, "steps": 57},
    "groups_projected_over_chunks": {"length": 70, "n": 5, "groups": 2, "rank": 3, "steps": 66},
    "paths_per_sample": {"length": 33, "n": 2, "paths_per_sample": True, "without": ("z",)},
    "in_order": {"length": 32, "n": 3, "without": ("paths", "D", "delta_bias")},
}


@backends
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "separate"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_states_and_gradients_match_the_definition(backend, dtype, tolerance, merge, case):
    problem = with_state(**CASES[case], dtype=dtype)
    results = computed(problem, merge=merge, backend=backend)
    assert results[1].dtype == dtype
    assert_close(results, expected(problem, merge), tolerance)


def cut(problem, start, end, state):
    """The steps of a problem without paths from `start` to `end`, from a state."""
    by_token = {n: problem[n][..., start:end, :] for n in ("u", "delta", "B", "C", "z")}
    return problem | by_token | {"initial_state": state}


@backends
@pytest.mark.parametrize("n", [1, 3])
def test_a_sequence_cut_anywhere_equals_the_whole(backend, dtype, tolerance, n):
    problem = with_state(length=41, n=n, k=1, rank=3, without=("paths",), dtype=dtype)
    whole, last = selective_scan(**problem, return_state=True, backend=backend)
    for place in range(1, 41):
        y, state = selective_scan(
            **cut(problem, 0, place, problem["initial_state"]), return_state=True, backend=backend
        )
        z, state = selective_scan(
            **cut(problem, place, 41, state), return_state=True, backend=backend
        )
        assert_close([torch.cat([y, z], dim=1), state], [whole.double(), last.double()], tolerance)


@backends
def test_a_gradient_of_one_output_alone_is_enough(backend, dtype, tolerance):
    problem = with_state(length=35, dtype=dtype)
    leaves = [problem[n].requires_grad_() for n in ("u", "initial_state")]
    y, state = selective_scan(**problem, return_state=True, backend=backend)
    of_state = torch.autograd.grad(state.sum(), leaves, retain_graph=True)
    of_output = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    of_both = torch.autograd.grad(y.sum() + state.sum(), leaves)
    sums = [a.double() + b.double() for a, b in zip(of_state, of_output, strict=True)]
    assert_close(of_both, sums, tolerance)
    without = selective_scan(**problem, backend=backend)
    torch.testing.assert_close(without, y)


def test_first_and_second_derivatives_agree_with_finite_differences():
    problem = with_state(length=5, n=2, zero_tokens=1, steps=4)
    tensors = [problem[n] for n in (*TENSORS, "initial_state")]
    tensors = [None if t is None else t.requires_grad_() for t in tensors]

    def scan(*tensors):
        return scan_op(*tensors[:9], True, problem["paths"], True, "auto", tensors[9])

    assert torch.autograd.gradcheck(scan, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(scan, tensors, fast_mode=True, check_undefined_grad=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck_passes(dtype):
    problem = with_state(length=5, n=2, dtype=dtype)
    tensors = [problem[n] for n in TENSORS]
    state = problem["initial_state"].requires_grad_()
    torch.library.opcheck(scan_op.default, (*tensors, True, problem["paths"], True, "auto", state))


def test_transforms_and_a_compiled_function_give_the_same():
    problem = with_state(length=9, n=2)
    state = problem.pop("initial_state")

    def loss(state):
        y, last = selective_scan(**problem, initial_state=state, return_state=True)
        return y.square().sum() + last.square().sum()

    leaf = state.clone().requires_grad_()
    (reference,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(state), reference)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(leaf), leaf)[0], reference)
    samples = torch.stack([state, 2 * state])
    torch.testing.assert_close(torch.func.vmap(loss)(samples)[1], loss(2 * state))


def test_a_state_of_another_shape_is_named():
    problem = with_state(dtype=torch.float32)
    problem["initial_state"] = problem["initial_state"].transpose(2, 3)
    with pytest.raises(
        ValueError, match=r"initial_state has shape \(2, 2, 3, 6\); expected \(B, K"
    ):
        selective_scan(**problem)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"state": None}, TypeError, "state is NoneType; expected a tensor"),
        ({"u": [1.0]}, TypeError, "u is list; expected a tensor"),
        ({"state": torch.zeros(2, 6, 3)}, ValueError, "state has shape (2, 6, 3); expected (B, K"),
        (
            {"B": torch.zeros(2, 2, 2)},
            ValueError,
            "B has shape (2, 2, 1, 2); expected (B, K, L, N)",
        ),
    ],
    ids=str,
)
def test_a_wrong_argument_of_a_step_is_named(changes, error, message):
    step = {"state": torch.zeros(2, 2, 6, 3), "u": torch.ones(2, 6), "delta": torch.ones(2, 2, 6)}
    step |= {"A": -torch.ones(2, 6, 3), "B": torch.ones(2, 2, 3), "C": torch.ones(2, 2, 3)}
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        selective_scan_step(**(step | changes))


STEPS = {
    "sixteen_states": {"n": 16, "channels": 100},
    "one_state": {"n": 1, "channels": 130},
    "groups_projected": {"n": 5, "groups": 3, "rank": 2, "u_per_path": True},
    "bare": {"n": 2, "without": ("D", "z", "delta_bias"), "delta_softplus": False},
}


def step_by_step(problem, merge):
    """The problem's tokens in order, one call each."""
    state, outputs = problem["initial_state"], []
    by_token = [n for n in ("u", "delta", "B", "C", "z") if problem[n] is not None]
    rest = {n: v for n, v in problem.items() if n not in ("paths", "initial_state")}
    for t in range(problem["u"].shape[-2]):
        token = {n: problem[n][..., t, :] for n in by_token}
        y, state = selective_scan_step(state, **rest | token, merge=merge)
        outputs.append(y)
    return torch.stack(outputs, dim=-2), state


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, FLOAT32), (torch.float64, FLOAT64)], ids=str
)
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "separate"])
@pytest.mark.parametrize("case", STEPS)
def test_steps_one_after_the_other_equal_the_scan(case, merge, dtype, tolerance):
    size = {"length": 6, **STEPS[case]}
    problem = with_state(**size, dtype=dtype) | {"paths": None}
    reference = with_state(**size) | {"paths": None}
    expected = selective_scan(**reference, merge=merge, return_state=True, backend="reference")
    results = step_by_step(problem, merge)
    assert results[1].dtype == dtype
    assert_close(results, expected, tolerance)
    # the given state is unchanged
    assert torch.equal(problem["initial_state"].double(), reference["initial_state"])


def test_gradients_flow_through_steps():
    problem = with_state(length=3, n=2, rank=2) | {"paths": None}
    leaves = [problem[n].requires_grad_() for n in ("u", "A", "delta_weight", "initial_state")]
    totals = []
    for y, state in (step_by_step(problem, True), selective_scan(**problem, return_state=True)):
        totals.append(torch.autograd.grad(y.square().sum() + state.square().sum(), leaves))
    assert_close(*totals, FLOAT64)


def test_a_compiled_step_gives_the_same():
    problem = with_state(length=1, dtype=torch.float32) | {"paths": None}
    compiled = torch.compile(step_by_step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(problem, True), step_by_step(problem, True))
