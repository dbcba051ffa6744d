"""Mamba-2's Triton kernels in Triton's interpreter against a loop in float64.

test_triton_interpreted.py runs this file in a separate process, because the mode is fixed when
Triton is imported.
"""

import pytest
import torch

from tests.closeness import assert_same
from tests.kernels.ssd_problems import (
    STATELESS,
    TENSORS,
    assert_close,
    make_problem,
    scan_by_hand,
    with_gradients,
)
from vimamba_kernels import gpu_tasks, ssd
from vimamba_kernels.ssd import fused, op

# float32 sums over up to 70 steps; measured below 2e-6, for the gradients of steps' biases
FLOAT32 = 5e-6
# Factors are rounded to bfloat16, which the interpreter does toward zero: 2**-7 at most, in
# relative L2 about half of that, several times over; measured up to 2.3e-2. In float16 results are
# rounded only.
HALF = {torch.bfloat16: 3e-2, torch.float16: 5e-4}
SMALL = {"batch": 1, "k": 1, "heads": 2}
# around chunks of 16 steps, blocks of 16 channels and of 16 states
SIZES = {
    "one_of_everything": {"length": 1, "heads": 1, "width": 1, "groups": 1, "n": 1},
    "a_step_before_a_chunk": {"length": 15, "n": 16},
    "a_chunk": {"length": 16, "width": 16, "groups": 1},
    "a_step_after_a_chunk": {"length": 17, "width": 17, "groups": None},
    "a_step_before_two_chunks": {"length": 31, "n": 17, "batch": 2},
    "two_chunks": {"length": 32, "width": 33, "groups": 1},
    "a_step_after_two_chunks": {"length": 33, "heads": 6, "groups": 2, "k": 2},
    "more_heads_than_a_block": {"length": 5, "heads": 17, "groups": 1},
}
OPTIONS = {
    "x_per_path": ({"x_per_path": True, "k": 2}, {}),
    "skipped_tokens": ({"steps": 9}, {}),
    "zero_and_skipped_tokens": ({"zero_tokens": 4, "steps": 18, "length": 20, "k": 2}, {}),
    "paths_per_sample": (
        {"paths_per_sample": True, "batch": 2, "k": 2, "zero_tokens": 2, "steps": 18, "length": 20},
        {},
    ),
    "without_paths": ({"k": 2}, {"paths": None}),
    "without_D_z_bias": ({}, {"D": None, "z": None, "dt_bias": None}),
    "without_states": ({}, STATELESS),
    "with_limits": ({"zero_tokens": 2}, {"dt_limit": (0.1, 0.6)}),
}
# the slow tests include the others
FIRST = {
    "one_of_everything", "a_step_after_a_chunk", "more_heads_than_a_block",
    "x_per_path", "zero_and_skipped_tokens", "without_D_z_bias", "with_limits",
}  # fmt: skip


def first(names):
    """Names to parametrize with, those that are not in `FIRST` slow."""
    return [n if n in FIRST else pytest.param(n, marks=pytest.mark.slow) for n in names]


def scan(problem, merge=True):
    return ssd(**problem, merge=merge, backend="triton")


@pytest.fixture(autouse=True)
def poison():
    """Deterministic algorithms, which also fill new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def assert_matches(problem, merge=True, tolerance=FLOAT32):
    results = with_gradients(lambda p: scan(p, merge), problem)
    assert_close(results, with_gradients(lambda p: scan_by_hand(p, merge), problem), tolerance)


@pytest.mark.parametrize("name", first(SIZES))
def test_output_and_gradients_match_at_all_sizes(name):
    assert_matches(make_problem(**SMALL | SIZES[name], dtype=torch.float32))


@pytest.mark.parametrize(
    "merge", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["merged", "separate"]
)
@pytest.mark.parametrize("name", first(OPTIONS))
def test_every_option_matches(name, merge):
    size, changes = OPTIONS[name]
    assert_matches(make_problem(**SMALL | size, dtype=torch.float32) | changes, merge)


def test_long_chunks_and_blocks_of_heads_match(monkeypatch):
    monkeypatch.setattr(fused, "_FULL", fused.Shape(64, 32, 64))
    assert_matches(make_problem(**SMALL | {"heads": 4}, length=65, dtype=torch.float32))


@pytest.mark.parametrize("length", [49])
def test_segments_match_at_their_borders(length, monkeypatch):
    monkeypatch.setattr(fused, "choose_segments", lambda programs, chunks, processors: 3)
    assert_matches(make_problem(**SMALL, length=length, zero_tokens=2, dtype=torch.float32))


@pytest.mark.slow
def test_few_chains_are_cut_into_segments_and_groups_into_parts(monkeypatch):
    monkeypatch.setattr(gpu_tasks, "processors", lambda device: 1000)
    problem = make_problem(**SMALL, length=129, groups=1, dtype=torch.float32)
    assert fused.choose_segments(2, 9, 1000) == 2
    assert_matches(problem)


def test_large_steps_before_small_ones_cost_no_accuracy(monkeypatch):
    monkeypatch.setattr(fused, "_FULL", fused.Shape(64, 32, 64))
    problem = make_problem(**SMALL, length=64, dtype=torch.float32) | {"paths": None}
    problem["dt"][:, :, 5:30:5] = 3e4
    assert_matches(problem)


def test_states_that_grow_are_right():
    problem = make_problem(**SMALL, length=20, dtype=torch.float32)
    assert_matches(problem | {"A": -problem["A"]})


@pytest.mark.parametrize("length", [65])
def test_bfloat16_loses_no_more_than_its_rounding(length):
    problem = make_problem(**SMALL, length=length, dtype=torch.bfloat16)
    assert_matches(problem, tolerance=HALF[torch.bfloat16])


def test_float16_loses_no_more_than_its_rounding():
    problem = make_problem(**SMALL, dtype=torch.float16)
    results = with_gradients(scan, problem)
    types = [torch.float16, torch.float32, *(problem[name].dtype for name in TENSORS)]
    assert [r.dtype for r in results] == types
    assert_close(results, with_gradients(scan_by_hand, problem), HALF[torch.float16])


def test_parameters_may_have_another_dtype_and_the_skip_one_weight_a_head():
    problem = make_problem(**SMALL, dtype=torch.float32)
    problem["A"], problem["dt_bias"] = problem["A"].bfloat16(), problem["dt_bias"].double()
    every_channel = problem | {"D": problem["D"][..., :1].expand(-1, -1, 3)}
    problem["D"] = problem["D"][..., 0]
    y, state, *grads = with_gradients(scan, problem)
    expected = with_gradients(scan_by_hand, every_channel)
    assert [g.dtype for g in grads] == [problem[name].dtype for name in TENSORS]
    expected[2 + TENSORS.index("D")] = expected[2 + TENSORS.index("D")].sum(-1)
    # the gradient of A is rounded to bfloat16
    assert_close([y, state, *grads], expected, 7e-3)


def test_int64_paths_shared_by_all_give_the_same():
    problem = make_problem(**SMALL | {"k": 2}, dtype=torch.float32)
    problem["paths"] = problem["paths"][:1].expand(2, -1)
    first = with_gradients(scan, problem)
    second = with_gradients(scan, problem | {"paths": problem["paths"].long().contiguous()})
    assert_same(first, second)


def test_a_token_that_no_path_visits_gets_zero_and_its_nan_goes_nowhere():
    problem = make_problem(**SMALL, steps=8, dtype=torch.float32)
    skipped = sorted(set(range(13)) - set(problem["paths"][0].tolist()))
    problem["x"][:, skipped] = float("nan")
    y, _, grad_x, *rest = with_gradients(scan, problem)
    assert (y[:, skipped] == 0).all()
    assert (grad_x[:, skipped] == 0).all()
    assert all(t.isfinite().all() for t in (y, grad_x, *rest))


@pytest.mark.parametrize("wanted", ["y", "state"])
def test_one_of_two_outputs_can_be_differentiated_alone(wanted):
    problem = make_problem(**SMALL, dtype=torch.float32) | {"z": None}
    names = ("x", "dt", "A", "B", "initial_state")
    results = []
    for function in (scan, scan_by_hand):
        leaves = {name: problem[name].clone().requires_grad_() for name in names}
        y, state = function(problem | leaves)
        loss = (y if wanted == "y" else state).square().sum()
        results.append(torch.autograd.grad(loss, list(leaves.values())))
    assert_close(*results, FLOAT32)


def test_an_empty_batch_gives_empty_outputs_and_zero_gradients():
    problem = make_problem(**SMALL | {"batch": 0}, dtype=torch.float32)
    y, state, *grads = with_gradients(scan, problem)
    assert (y.shape, state.shape) == ((0, 13, 2, 3), (0, 1, 2, 3, 5))
    assert not grads[TENSORS.index("A")].any()


def test_second_derivatives_go_through_the_chunked_form():
    problem = make_problem(**SMALL, length=5, dtype=torch.float32)
    results = []
    for backend in ("triton", "chunked"):
        leaves = [problem[name].detach().requires_grad_() for name in TENSORS]
        arguments = problem | dict(zip(TENSORS, leaves, strict=True))
        y, state = ssd(**arguments, backend=backend)
        loss = y.square().sum() + state.square().sum()
        first = torch.autograd.grad(loss, leaves[:5], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        results.append(second)
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "utils",
    [
        ("test_schema", "test_autograd_registration", "test_faketensor"),
        # traces operators that are tested separately
        pytest.param(("test_aot_dispatch_dynamic",), marks=pytest.mark.slow),
    ],
    ids=["declared", "traced"],
)
def test_opcheck_passes(utils):
    problem = make_problem(**SMALL, length=5, dtype=torch.float32)
    tensors = [problem[name].requires_grad_() for name in TENSORS]
    options = (True, [0.0, 2.0], problem["paths"], True)
    forward, backward = torch.ops.vimamba.ssd_forward, torch.ops.vimamba.ssd_backward
    torch.library.opcheck(forward.default, (*tensors, *options, True), test_utils=utils)
    grads = [torch.ones_like(t) for t in forward(*tensors, *options, True)]
    arguments = (*grads, *(t.detach() for t in tensors), *options)
    torch.library.opcheck(backward.default, arguments, test_utils=utils)
    assert forward(*tensors, *options, False)[1].shape == (0,)


def test_more_states_than_fit_are_left_to_another_backend():
    x = torch.zeros(1)
    assert op.choose_backend("auto", x, states=64) == "triton"
    assert op.choose_backend("auto", x, states=65, limited=True) == "chunked"
    assert op.choose_backend("auto", x.bfloat16(), states=128) == "triton"
    with pytest.raises(ValueError, match=r"B has 65 states; for torch.float32 it takes at most 64"):
        op.choose_backend("triton", x, states=65)


def test_a_path_out_of_bounds_is_refused():
    problem = make_problem(**SMALL, dtype=torch.float32)
    tensors = [problem[name] for name in TENSORS]
    with pytest.raises(ValueError, match="paths holds values"):
        torch.ops.vimamba.ssd_forward(*tensors, True, None, torch.full((1, 9), 13), True, False)
