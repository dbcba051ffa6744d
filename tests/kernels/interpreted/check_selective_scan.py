"""The Triton selective scan in Triton's interpreter against the definition in float64.

test_triton_interpreted.py runs this file in a separate process, because the mode is fixed when
Triton is imported. A step of a program takes milliseconds, so the sizes are small.
"""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from tests.closeness import assert_same
from tests.kernels import state_problems
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
from vimamba_kernels.selective_scan import fused

# float32 sums of up to 100 terms; measured 5e-8 to 4e-7
FLOAT32 = 2e-6
# one rounding of a result, which the interpreter does toward zero for bfloat16: at most 2**-7 and
# 2**-11, in relative L2 about half of that; more for the gradient of z, whose factor is rounded too
HALF = {torch.bfloat16: 7e-3, torch.float16: 5e-4}
SMALL = {"batch": 1, "length": 9}
SIZES = {
    "one_of_everything": {"length": 1, "n": 1, "k": 1, "channels": 1},
    "a_step_before_a_group_of_four": {"length": 3, "n": 4},
    "a_group_of_four": {"length": 4, "n": 2},
    "a_step_after_a_group_of_four": {"length": 5, "n": 2},
    "a_step_before_a_group_of_eight": {"length": 7, "n": 1},
    "a_group_of_eight": {"length": 8, "n": 1},
    "a_step_after_a_group_of_eight": {"length": 9, "n": 1},
    "sixteen_states": {"length": 5, "n": 16, "channels": 20, "batch": 1},
    "two_blocks": {"length": 5, "n": 3, "channels": 130, "batch": 2},
    "blocks_without_a_ragged_end": {"length": 8, "n": 1, "channels": 128, "k": 4, "batch": 1},
    "twenty_states": {"length": 3, "n": 20, "channels": 65, "k": 1, "batch": 1},
    "forty_states": {"length": 3, "n": 40, "channels": 33, "k": 1, "batch": 1},
}
OPTIONS = {
    "without_D_z_bias": {"without": ("D", "z", "delta_bias")},
    "without_paths": {"without": ("paths",)},
    "without_softplus": {"delta_softplus": False},
    "skipped_tokens": {"steps": 6},
    "zero_tokens": {"zero_tokens": 3},
    "zero_and_skipped_tokens_one_state": {"zero_tokens": 2, "steps": 7, "n": 1},
    "groups": {"groups": 3, "k": 1},
    "a_group_for_each_channel": {"groups": 2, "n": 1, "channels": 2, "u_per_path": True},
    "u_per_path": {"u_per_path": True, "zero_tokens": 2},
    "paths_per_sample": {"paths_per_sample": True, "batch": 2, "n": 1},
    "projected": {"rank": 2},
    "projected_one_state": {"rank": 6, "n": 1, "zero_tokens": 2, "steps": 7},
    "projected_groups_of_few_channels": {"rank": 8, "groups": 3},
    "projected_from_two_slices": {"rank": 17, "u_per_path": True, "zero_tokens": 2},
    "projected_without_D_z_bias_paths": {"rank": 3, "without": ("D", "z", "delta_bias", "paths")},
}
# whether each path has separate programs, and segments; a segment is a multiple of 16 steps
CUTS = {"split": (True, 1), "split_segments": (True, 2), "segments": (False, 3)}
LONG = {
    "a_step_before_a_border": {"length": 31, "n": 1},
    "up_to_a_border": {"length": 32, "n": 2, "without": ("z",)},
    "a_step_after_a_border": {"length": 33, "n": 2},
    "zero_and_skipped_tokens": {"length": 40, "steps": 35, "zero_tokens": 4, "n": 1},
}
# The slow tests include the others. The simulator runs the compiled kernels with paths of each
# sample, cuts and segments by default.
FIRST = {
    "one_of_everything", "a_step_after_a_group_of_eight", "sixteen_states", "without_D_z_bias",
    "zero_and_skipped_tokens_one_state", "groups", "u_per_path", "projected_one_state",
    "a_step_after_two_products",
}  # fmt: skip
SLOW = pytest.mark.slow
# a matrix product computes the step sizes of 16 steps, 32 channels and 16 ranks
PROJECTED = {
    "a_step_before_a_product": {"length": 15, "n": 1, "rank": 1},
    "a_product": {"length": 16, "n": 2, "rank": 16, "channels": 32},
    "a_step_after_a_product": {"length": 17, "n": 1, "rank": 17, "channels": 33},
    "a_step_after_two_products": {"length": 33, "n": 1, "rank": 6, "k": 1},
    "two_products_of_twenty_states": {"length": 33, "n": 20, "rank": 6, "k": 1},
    "a_path_without_some": {"length": 40, "steps": 34, "zero_tokens": 5, "n": 3, "rank": 6},
    "products_of_two_blocks": {"length": 18, "n": 1, "rank": 6, "channels": 130, "k": 1},
    "products_of_groups": {"length": 18, "n": 4, "rank": 6, "channels": 6, "groups": 2},
}


def first(names):
    """Names to parametrize with, those that are not in `FIRST` slow."""
    return [n if n in FIRST else pytest.param(n, marks=SLOW) for n in names]


@pytest.fixture
def deterministic(request):
    """Deterministic algorithms, which also fill new memory with NaN."""
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch):
    """The interpreter stores bfloat16 as its bits, which a matrix product would multiply."""
    dot = InterpreterBuilder.create_dot

    def widened(t):
        if t.dtype != tl.bfloat16:
            return t
        return TensorHandle((t.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture
def poison():
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def cut_as(monkeypatch, split, segments):
    def choose(sizes, shape, programs, room):
        return fused.Plan(*shape, split=split, segments=segments)

    monkeypatch.setattr(fused, "choose_plan", choose)


def assert_matches(size, merge=True):
    options = {"merge": merge, "backend": "triton"}
    assert_matches_the_definition(selective_scan, size, torch.float32, FLOAT32, **options)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("name", first(SIZES))
def test_output_and_gradients_match_at_all_sizes(name, monkeypatch):
    cut_as(monkeypatch, False, 1)
    assert_matches(SIZES[name])


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(
    "merge", [True, pytest.param(False, marks=SLOW)], ids=["merged", "separate"]
)
@pytest.mark.parametrize("name", first(OPTIONS))
def test_every_option_matches(name, merge, monkeypatch):
    cut_as(monkeypatch, False, 1)
    assert_matches(SMALL | OPTIONS[name], merge)


@pytest.mark.parametrize(
    ("cut", "deterministic"),
    [("split", True)]
    + [pytest.param(cut, True, marks=SLOW) for cut in CUTS if cut != "split"]
    + [pytest.param(cut, False, marks=SLOW) for cut in CUTS],
    indirect=["deterministic"],
)
@pytest.mark.parametrize("rank", [pytest.param(None, marks=SLOW), 5], ids=["delta", "projected"])
@pytest.mark.usefixtures("deterministic")
def test_every_cut_matches(cut, rank, monkeypatch):
    cut_as(monkeypatch, *CUTS[cut])
    assert_matches({"batch": 1, "length": 21, "n": 2, "channels": 5, "rank": rank})


@pytest.mark.slow
@pytest.mark.parametrize(("split", "segments"), [(True, 1), (False, 2)])
def test_cuts_match_where_samples_have_paths_of_their_own(split, segments, monkeypatch):
    cut_as(monkeypatch, split, segments)
    assert_matches({"paths_per_sample": True, "length": 19, "n": 1, "zero_tokens": 2, "rank": 3})


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize(
    ("size", "segments", "merge"),
    [
        ({"length": 7, "n": 1, "zero_tokens": 1, "steps": 6}, 1, True),
        ({"length": 8, "n": 3, "rank": 3}, 1, False),
        ({"length": 21, "n": 2, "steps": 19, "without": ("z",)}, 2, True),
    ],
)
def test_states_go_in_and_out(size, segments, merge, monkeypatch):
    cut_as(monkeypatch, False, segments)
    problem = state_problems.with_state(batch=1, **size, dtype=torch.float32)
    results = state_problems.computed(problem, merge=merge, backend="triton")
    state_problems.assert_close(results, state_problems.expected(problem, merge), FLOAT32)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("name", first(PROJECTED))
def test_a_projection_matches_at_the_borders_of_its_products(name, monkeypatch):
    cut_as(monkeypatch, False, 2 if PROJECTED[name]["length"] > 32 else 1)
    assert_matches({"batch": 1} | PROJECTED[name])


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("name", first(LONG))
def test_segments_match_at_their_borders(name, monkeypatch):
    cut_as(monkeypatch, False, 3)
    assert_matches({"batch": 1} | LONG[name])


@pytest.mark.parametrize(
    ("dtype", "n", "rank"),
    [
        (torch.bfloat16, 1, 5),
        pytest.param(torch.float16, 3, None, marks=SLOW),
        pytest.param(torch.bfloat16, 3, None, marks=SLOW),
        pytest.param(torch.float16, 1, 5, marks=SLOW),
    ],
    ids=str,
)
def test_half_precision_loses_no_more_than_its_rounding(dtype, n, rank):
    problem = make_problem(**SMALL, dtype=dtype, n=n, rank=rank)
    grad = output_gradient(problem)
    results = computed(selective_scan, problem, grad, backend="triton")
    inputs = [problem[name] for name in ("u", *TENSORS)]
    dtypes = [[t if t is None else t.dtype for t in tensors] for tensors in (results, inputs)]
    assert dtypes[0] == dtypes[1]
    assert_close(results, expected(problem, grad), HALF[dtype])


def test_large_and_small_steps_stay_finite_and_exact():
    problem = make_problem(batch=1, k=1, length=6, channels=4, n=2, dtype=torch.float32)
    problem["delta"] = (
        torch.tensor([-100.0, -30, -10, 19.9, 20.1, 60]).view(1, 1, 6, 1).repeat(1, 1, 1, 4)
    )
    problem["delta_bias"] = torch.zeros(1, 4)
    grad = output_gradient(problem)
    results = computed(selective_scan, problem, grad, backend="triton")
    assert_close(results, expected(problem, grad), FLOAT32)


def test_paths_may_be_int64():
    problem = make_problem(**SMALL, n=1, dtype=torch.float32)
    grad = output_gradient(problem)
    first = computed(selective_scan, problem, grad, backend="triton")
    problem["paths"] = problem["paths"].long()
    second = computed(selective_scan, problem, grad, backend="triton")
    assert_same(first, second)


@pytest.mark.parametrize("rank", [pytest.param(None, marks=SLOW), 5], ids=["delta", "projected"])
def test_the_backward_pass_can_do_without_what_the_forward_pass_saved(rank):
    problem = make_problem(**SMALL, dtype=torch.float32, n=1, rank=rank)
    grad = output_gradient(problem)
    arguments = [problem[name] for name in TENSORS]
    arguments += [problem["delta_softplus"], problem["paths"], True]
    _, *saved = fused.forward(*arguments, save=True)
    nothing = [grad.new_empty(0)] * 2
    with_saved = fused.backward(grad, *arguments, *saved)
    without = fused.backward(grad, *arguments, *nothing)
    assert_same(with_saved, without)


@pytest.mark.parametrize("rank", [None, 5], ids=["delta", "projected"])
def test_an_empty_batch_gives_empty_results(rank):
    problem = make_problem(**{**SMALL, "batch": 0}, dtype=torch.float32, rank=rank)
    results = computed(selective_scan, problem, output_gradient(problem), backend="triton")
    assert results[0].shape == (0, 9, 6)
    assert not results[3].any()
