"""Every backend of Mamba-3's scan against the recorded original and a loop in float64."""

import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from tests.closeness import assert_same_rounded
from tests.kernels.mamba3_problems import (
    INITIAL,
    STATELESS,
    TENSORS,
    assert_close,
    defined,
    make_problem,
    scan,
    with_gradients,
)
from tests.parity.official import HERE, fill, read_manifest
from vimamba_kernels import mamba3_scan, ssd
from vimamba_kernels.flops import FLOPS_PER_STATE
from vimamba_kernels.mamba3 import op
from vimamba_kernels.mamba3.by_token import mamba3_by_token
from vimamba_kernels.mamba3.checks import Inputs
from vimamba_kernels.ssd import chunked

mamba3_op = torch.ops.vimamba.mamba3_scan
ACTIVATIONS = ("x", "B", "C", "z")
# float32 sums over up to 200 steps; measured up to 1e-5, for the gradient of the first angle, which
# is a sum of all others; the rest is below 3e-6
FLOAT32, FLOAT64 = 3e-5, 1e-12
dtypes = pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, FLOAT64), (torch.float32, FLOAT32)],
    ids=["float64", "float32"],
)
both_backends = pytest.mark.parametrize("backend", ["reference", "chunked"])
RECORDED = [
    (kind, case)
    for kind in ("siso", "mimo")
    for case in read_manifest(f"op_mamba3_{kind}")["cases"]
]
# the original's name, ours, and the position of the path dimension
NAMES = [
    ("V", "x", None),
    ("DT", "dt", 1),
    ("ADT", "log_decay", 1),
    ("Trap", "trap", 1),
    ("K", "B", 1),
    ("Q", "C", 1),
    ("Angles", "angles", 1),
    ("D", "D", 0),
    ("Z", "z", None),
    ("K_bias", "B_bias", 0),
    ("Q_bias", "C_bias", 0),
    ("MIMO_V", "mimo_x", 0),
    ("MIMO_Z", "mimo_z", 0),
    ("MIMO_O", "mimo_o", 0),
    ("outproj_norm_weight", "norm_weight", 0),
]


@both_backends
@pytest.mark.parametrize(
    ("kind", "case"), RECORDED, ids=[f"{kind}-{c['case']}" for kind, c in RECORDED]
)
def test_recorded_outputs_and_gradients_are_reproduced(kind, case, backend):
    arrays = np.load(HERE / f"op_mamba3_{kind}.npz")

    def recorded(key):
        return torch.from_numpy(arrays[f"{case['case']}.{key}"]).double()

    inputs = {n: recorded(f"in.{n}").requires_grad_() for n in case["inputs"]}
    ours = {}
    for theirs, name, place in NAMES:
        if theirs in inputs:
            # the original has heads before tokens here
            t = inputs[theirs]
            t = t.transpose(1, 2) if theirs in ("DT", "ADT", "Trap") else t
            ours[name] = t if place is None else t.unsqueeze(place)
    assert len(ours) == len(inputs)
    y, states = mamba3_scan(**ours, return_states=True, backend=backend)
    cotangent = torch.from_numpy(fill.fill_input(tuple(y.shape), "cotangent"))
    grads = torch.autograd.grad(y, list(inputs.values()), cotangent)
    results = {"out": y}
    for name, t in zip(("ssm", "angle", "k", "v"), states, strict=True):
        results[f"final_{name}"] = t.squeeze(1)
    results |= {f"grad.{n}": g for n, g in zip(inputs, grads, strict=True)}
    for key, result in results.items():
        expected = recorded(key)
        if key == "final_angle":
            # the original does not reduce angles modulo 2 pi if there are ranks
            expected = expected % (2 * math.pi)
        # gradients are stored in float32
        tolerance = 1e-6 if key.startswith("grad.") else 1e-12
        assert_close([result], [expected], tolerance)


# around one and two chunks of 64 steps; a step of two ranks is two of these
SIZES = [
    {"length": 1, "heads": 1, "width": 1, "groups": 1, "n": 1, "pairs": 0, "k": 1},
    {"length": 1, "ranks": 1, "k": 1},
    {"length": 2, "heads": 6, "groups": 3, "n": 5, "ranks": 3},
    {"length": 32, "ranks": 2, "k": 1, "n": 2, "pairs": 1},
    {"length": 63, "groups": None, "pairs": 3},
    {"length": 64, "k": 1, "batch": 1, "norm": True},
    {"length": 197, "batch": 1, "k": 1, "heads": 2, "zero_tokens": 3},
]


@dtypes
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_output_and_gradients_match_the_definition_at_all_sizes(dtype, tolerance, size):
    problem = make_problem(**size, dtype=dtype)
    assert_close(with_gradients(problem, backend="chunked"), defined(problem), tolerance)


@dtypes
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "separate"])
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ({"x_per_path": True, "steps": 9}, {}),
        ({"zero_tokens": 4, "steps": 11}, {}),
        ({"zero_tokens": 4, "ranks": 2, "norm": True, "x_per_path": True}, {}),
        ({"zero_tokens": 2, "ranks": 2, "paths_per_sample": True, "batch": 3}, {}),
        ({"ranks": 2}, {"paths": None, "z": None, "mimo_z": None}),
        ({"norm": True}, {"D": None, "B_bias": None, "C_bias": None}),
        ({}, {"z": None, **STATELESS}),
    ],
    ids=str,
)
def test_every_option_matches_the_definition(dtype, tolerance, merge, size, changes):
    problem = make_problem(**size, dtype=dtype) | changes
    results = with_gradients(problem, merge=merge, backend="chunked")
    assert_close(results, defined(problem, merge=merge), tolerance)


@both_backends
def test_two_tokens_are_worked_out_by_hand(backend):
    def tokens(*numbers):
        return torch.tensor(numbers, dtype=torch.float64).view(1, 1, 2, 1)

    x, dt = tokens(2, 3).view(1, 2, 1, 1), tokens(1, 0.5)
    log_decay, trap = tokens(-0.1, -0.2), tokens(0.3, -0.4)
    # one pair of states
    B, C = (tokens(*t).expand(1, 1, 2, 2) for t in ((5, 7), (1, 10)))
    angles = torch.tensor([0.6, -0.2], dtype=torch.float64).view(1, 1, 2, 1, 1)
    y = mamba3_scan(x, dt, log_decay, trap, B, C, angles, backend=backend).flatten()
    first = math.pi * math.tanh(0.6)
    second = first - math.pi * math.tanh(0.2) * 0.5
    weight = [1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(0.4))]
    # (1, 1) times itself is 2, and 2 cos if rotated by the difference of the angles
    assert y[0].item() == pytest.approx(weight[0] * 2 * 5 * 1 * 2)
    before = math.exp(-0.2) * (weight[0] + (1 - weight[1]) * 0.5) * 2 * 5
    rotated = before * 10 * 2 * math.cos(second - first)
    assert y[1].item() == pytest.approx(rotated + weight[1] * 0.5 * 3 * 7 * 10 * 2)


def in_order(problem, path):
    """The problem of a single path, with its tokens in order and zeros for -1."""
    rows = path.clamp(min=0).long()

    def pick(t, dim):
        visited = (path >= 0).view(-1, *(1,) * (t.dim() - dim - 1))
        return t.index_select(dim, rows) * visited

    alone = {n: pick(problem[n], 1) for n in ("x", "z")}
    alone |= {n: pick(problem[n], 2) for n in ("dt", "log_decay", "trap", "B", "C", "angles")}
    return {**problem, **alone, "paths": None}


@both_backends
@pytest.mark.parametrize("size", [{}, {"ranks": 2, "norm": True}], ids=["siso", "mimo"])
def test_a_path_is_the_scan_of_its_tokens_in_its_order(backend, size):
    problem = make_problem(k=1, zero_tokens=3, steps=12, **size)
    path = problem["paths"][0]
    assert (path[:-1] == -1).any()
    y, *states = scan(problem, backend=backend)
    ordered, *expected = scan(in_order(problem, path), backend=backend)
    real = path >= 0
    assert_close([y[:, path[real].long()]], [ordered[:, real]], FLOAT64)
    assert_close(states, expected, FLOAT64)
    skipped = sorted(set(range(13)) - set(path.tolist()))
    assert not y[:, skipped].any()


@both_backends
def test_a_zero_token_keeps_the_state_and_leaves_nothing_before_the_next(backend):
    problem = make_problem(length=3, k=1) | {"D": None, "z": None}
    problem["paths"] = torch.tensor([[0, 2, -1]])
    _, state, angle, _, x = scan(problem, backend=backend)
    without = problem | {"paths": torch.tensor([[0, 2]])}
    _, *before = scan(without, backend=backend)
    assert_close([state, angle], before[:2], FLOAT64)
    assert not x.any()
    # as if the write before token 1 had no second half
    y, *_ = scan(problem | {"paths": torch.tensor([[0, 2, -1, 1]])}, backend=backend)
    start = dict(zip(INITIAL, (*before[:3], torch.zeros_like(x)), strict=True))
    alone, *_ = scan(problem | {"paths": torch.tensor([[1]])} | start, backend=backend)
    assert_close([y[:, 1]], [alone[:, 1]], FLOAT64)


@both_backends
@pytest.mark.parametrize("ranks", [None, 2])
def test_a_sequence_in_two_pieces_gives_the_same(backend, ranks):
    problem = make_problem(length=90, k=1, batch=1, ranks=ranks) | {"paths": None}

    def piece(start, end, states):
        cut = {n: problem[n][:, start:end] for n in ("x", "z")}
        names = ("dt", "log_decay", "trap", "B", "C", "angles")
        cut |= {n: problem[n][:, :, start:end] for n in names}
        initial = dict(zip(INITIAL, states, strict=True))
        return scan({**problem, **cut, **initial}, backend=backend)

    whole, *last = scan(problem, backend=backend)
    first, *between = piece(0, 41, [problem[n] for n in INITIAL])
    second, *states = piece(41, 90, between)
    assert_close([torch.cat([first, second], dim=1)], [whole], FLOAT64)
    assert_close(states, last, FLOAT64)


@both_backends
def test_one_rank_of_weight_one_is_no_rank(backend):
    problem = make_problem(zero_tokens=2)
    ones = torch.ones(2, 4, 1, 3, dtype=torch.float64)
    ranked = problem | dict.fromkeys(("mimo_x", "mimo_z", "mimo_o"), ones)
    ranked |= {n: problem[n].unsqueeze(3) for n in ("B", "C", "initial_b", "initial_x")}
    ranked |= {n: problem[n].unsqueeze(2) for n in ("B_bias", "C_bias")}
    y, state, angle, B, x = scan(ranked, backend=backend)
    assert_close([y, state, angle, B.squeeze(3), x.squeeze(3)], scan(problem), FLOAT64)


@both_backends
def test_angles_shared_by_the_heads_are_the_same_for_each(backend):
    problem = make_problem()
    problem["angles"] = problem["angles"][:, :, :, :1]
    apart = problem | {"angles": problem["angles"].expand(-1, -1, -1, 4, -1)}
    assert_close(scan(problem, backend=backend), scan(apart, backend=backend), FLOAT64)


@both_backends
def test_without_rotation_and_second_half_it_is_the_scan_of_mamba2(backend):
    p = make_problem(pairs=0, zero_tokens=2) | {"B_bias": None, "C_bias": None} | STATELESS
    A = torch.tensor([[-0.5, -1, -2, -3]] * 2, dtype=torch.float64)
    p |= {"log_decay": A[:, None] * p["dt"], "trap": torch.full_like(p["dt"], 50.0)}
    expected = ssd(p["x"], p["dt"], A, p["B"], p["C"], p["D"], z=p["z"], paths=p["paths"])
    assert_close(scan(p, backend=backend), [expected], FLOAT64)


def test_angles_keep_their_accuracy_over_thousands_of_turns():
    sizes = {"batch": 1, "k": 1, "length": 3000, "heads": 1, "groups": 1, "n": 4}
    problem = make_problem(**sizes, dtype=torch.float32) | STATELESS
    problem |= {"angles": problem["angles"].abs() + 2, "dt": problem["dt"] + 1}
    wide = {n: t.double() for n in TENSORS if (t := problem[n]) is not None}
    (found,) = scan(problem | {"paths": None}, backend="chunked")
    # rounding errors of the steps sum to at most 3000 * 2 ** -24, times pi * dt
    assert_close([found], scan(problem | wide | {"paths": None}, backend="chunked"), 1e-4)


@both_backends
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 6e-3), (torch.float16, 7e-4)])
def test_half_precision_rounds_only_inputs_and_outputs(backend, dtype, tolerance):
    problem = make_problem(dtype=dtype, ranks=2, zero_tokens=2)
    results = with_gradients(problem, backend=backend)
    leaves = [dtype if n in ACTIVATIONS else torch.float32 for n in TENSORS if n in given(problem)]
    assert [r.dtype for r in results] == [dtype, *(torch.float32,) * 4, *leaves]
    assert_close(results, defined(problem), tolerance)


def given(problem):
    return [name for name in TENSORS if problem[name] is not None]


def test_a_token_that_no_path_visits_gets_zero_and_its_nan_goes_nowhere():
    problem = make_problem(k=1, steps=8, norm=True)
    skipped = sorted(set(range(13)) - set(problem["paths"][0].tolist()))
    clean = with_gradients(problem)
    for name in ("x", "z"):
        problem[name][:, skipped] = torch.nan
    for name in ("dt", "log_decay", "trap", "B", "C", "angles"):
        problem[name][:, :, skipped] = torch.nan
    results = with_gradients(problem)
    assert not results[0][:, skipped].any()
    assert all(torch.equal(a, b) for a, b in zip(results, clean, strict=True))


RANKED = make_problem(ranks=2, dtype=torch.float32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.ones(2, 13, 12)}, ValueError, r"x has shape \(2, 13, 12\); expected \(B, L"),
        ({"x": torch.ones(2, 13, 4, 3).int()}, TypeError, "x is torch.int32; expected one of"),
        ({"dt": torch.ones(2, 13, 4)}, ValueError, r"dt has shape \(2, 13, 4\); expected \(B, K"),
        ({"dt": None}, TypeError, "dt is NoneType; expected a tensor"),
        ({"trap": torch.ones(2, 2, 13, 1)}, ValueError, "trap has shape .* the shape of dt"),
        ({"log_decay": torch.ones(1).long()}, TypeError, "log_decay is torch.int64; expected a"),
        ({"B": torch.ones(2, 2, 13, 3, 6)}, ValueError, "B has 3 groups; expected a divisor of H"),
        ({"B": torch.ones(2, 2, 6)}, ValueError, r"B has shape .* or \(B, K, L, R, G, N\)"),
        ({"C": torch.ones(2, 2, 13, 2, 5)}, ValueError, "C has shape .* the shape of B"),
        ({"C": torch.ones(1).half()}, TypeError, "C is torch.float16; expected torch.float32, as"),
        ({"angles": torch.ones(2, 2, 13, 4, 4)}, ValueError, "4 pairs; expected at most half of"),
        ({"angles": torch.ones(2, 2, 13, 2, 2)}, ValueError, r"angles has shape .*\(B, K, L, 1, S"),
        ({"D": torch.ones(4)}, ValueError, r"D has shape \(4,\); expected \(K, H\) = \(2, 4\)"),
        ({"B_bias": torch.ones(2, 4, 1, 6)}, ValueError, r"B_bias .* expected \(K, H, N\)"),
        ({"mimo_o": RANKED["mimo_o"]}, ValueError, "mimo_o is given, but B has no ranks"),
        (RANKED | {"mimo_x": None}, ValueError, "mimo_x is None; expected .* since B has ranks"),
        (RANKED | {"z": None}, ValueError, "mimo_z is given, but z is None; expected None"),
        (RANKED | {"mimo_x": torch.ones(2, 4, 3)}, ValueError, r"mimo_x has .*\(K, H, R, P\)"),
        (RANKED | {"C_bias": torch.ones(2, 4, 6)}, ValueError, r"C_bias .* \(K, H, R, N\)"),
        ({"norm_weight": torch.ones(2, 4)}, ValueError, "norm_weight has shape"),
        (
            {"initial_x": None},
            ValueError,
            r"initial_states\.x is None; expected all of initial_states\.state, ",
        ),
        ({"initial_b": torch.ones(2, 2, 6)}, ValueError, r"initial_states\.b .*\(B, K, H, N\)"),
        ({"paths": torch.zeros(3, 13).int()}, ValueError, r"paths has shape \(3, 13\)"),
        ({"paths": torch.tensor([[0, 1], [1, 1]])}, ValueError, r"paths\[1\] visits token 1 again"),
        ({"backend": "cpu"}, ValueError, "backend='cpu' is unknown; choose from"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        scan(make_problem(dtype=torch.float32) | changes)


def test_states_that_are_no_four_tensors_are_refused():
    problem = make_problem() | STATELESS
    for name in INITIAL:
        del problem[name]
    with pytest.raises(ValueError, match="initial_states has 1 tensors; expected 4"):
        mamba3_scan(**problem, initial_states=[problem["x"]])
    with pytest.raises(TypeError, match="initial_states is Tensor; expected four tensors"):
        mamba3_scan(**problem, initial_states=torch.zeros(4, 2))


def test_the_backend_is_chosen_by_argument_environment_and_input(monkeypatch):
    x = torch.ones(1, 2, 3, 4)
    monkeypatch.delenv("VIMAMBA_BACKEND", raising=False)
    assert op.choose_backend("auto", x, 4) == "chunked"
    monkeypatch.setenv("VIMAMBA_BACKEND", "cpu")
    assert op.choose_backend("auto", x, 4) == "chunked"
    monkeypatch.setenv("VIMAMBA_BACKEND", "reference")
    assert op.choose_backend("auto", x, 4) == "reference"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match=r"B has 65 states; .* at most 64; use 'chunked'"):
        op.choose_backend("triton", x, 65)


# both compose torch's operators; the gradients of ranks are compared with the definition's above
@pytest.mark.parametrize(
    "size",
    [{}, pytest.param({"ranks": 2, "norm": True}, marks=pytest.mark.slow)],
    ids=["siso", "mimo"],
)
def test_first_and_second_derivatives_agree_with_finite_differences(size, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", 2)
    problem = make_problem(length=4, steps=4, zero_tokens=1, batch=1, heads=2, groups=1, **size)
    names = given(problem)
    tensors = [problem[n].requires_grad_() for n in names]

    def run(*tensors):
        return scan({**problem, **dict(zip(names, tensors, strict=True))}, backend="chunked")

    assert gradcheck(run, tensors, fast_mode=True)
    assert gradgradcheck(run, tensors, fast_mode=True)


def test_opcheck_passes():
    p = make_problem(length=5, ranks=2)
    for name in given(p):
        p[name].requires_grad_()
    arguments = (*(p[n] for n in TENSORS), 1e-5, p["paths"], False, True)
    # the others trace torch's own operators
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(mamba3_op.default, arguments, test_utils=utils)


@pytest.mark.parametrize("size", [{}, {"ranks": 2}], ids=["siso", "mimo"])
def test_what_runs_on_a_gpu_has_shapes_and_costs_in_both_directions(size):
    problem = make_problem(dtype=torch.bfloat16, **size)
    tensors = [None if t is None else t.to("meta") for t in (problem[n] for n in TENSORS)]
    inputs = Inputs(*(None if t is None else t.requires_grad_() for t in tensors))
    options = (1e-5, problem["paths"].to("meta"), True, True)
    with FlopCounterMode(display=False) as counter:
        outputs = mamba3_by_token(inputs, *options)
        sum(t.sum() for t in outputs).backward()
    for found, real in zip(outputs, scan(problem), strict=True):
        assert (found.shape, found.dtype) == (real.shape, real.dtype)
    assert all(t.grad.shape == t.shape for t in inputs if t is not None)
    counts = {str(k): v for k, v in counter.get_flop_counts()["Global"].items()}
    once = FLOPS_PER_STATE * problem["dt"].numel() * size.get("ranks", 1) * 3 * 6
    assert counts["vimamba.mamba3_forward"] == once
    assert counts["vimamba.mamba3_backward"] == 2 * once


def test_meta_tensors_get_shapes_in_both_directions():
    problem = make_problem(dtype=torch.bfloat16, ranks=2)
    meta = {
        n: v.to("meta").requires_grad_(n in TENSORS) if isinstance(v, torch.Tensor) else v
        for n, v in problem.items()
    }
    results, expected = scan(meta), scan(problem)
    for found, real in zip(results, expected, strict=True):
        assert (found.shape, found.dtype) == (real.shape, real.dtype)
    sum(t.sum() for t in results).backward()
    assert all(meta[n].grad.shape == problem[n].shape for n in given(problem))


class Scan(torch.nn.Module):
    """Like a model: parameters inside, activations from outside."""

    def __init__(self, problem):
        super().__init__()
        self.B_bias = torch.nn.Parameter(problem["B_bias"])
        self.C_bias = torch.nn.Parameter(problem["C_bias"])
        self.D = torch.nn.Parameter(problem["D"])

    def forward(self, x, dt, log_decay, trap, B, C, angles, z):
        return torch.ops.vimamba.mamba3_scan(
            x, dt, log_decay, trap, B, C, angles, self.D, z, self.B_bias, self.C_bias
        )[0]


def activations(problem):
    return tuple(problem[name] for name in (*TENSORS[:7], "z"))


def test_a_compiled_module_gives_the_same_in_one_graph():
    problem = make_problem(dtype=torch.float32)
    module = Scan(problem)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    y, z = module(*activations(problem)), compiled(*activations(problem))
    torch.testing.assert_close(y, z)
    grads = [torch.autograd.grad(out.square().sum(), list(module.parameters())) for out in (y, z)]
    torch.testing.assert_close(*grads)


def test_a_compiled_public_function_gives_the_same_in_one_graph():
    problem = make_problem(ranks=2, norm=True, zero_tokens=1)
    compiled = torch.compile(scan, fullgraph=True, backend="eager")
    assert_close(compiled(problem), scan(problem), FLOAT64)


def test_an_exported_program_gives_the_same():
    problem = make_problem()
    module = Scan(problem)
    program = torch.export.export(module, activations(problem))
    decomposed = program.run_decompositions().module()
    expected = module(*activations(problem))
    torch.testing.assert_close(program.module()(*activations(problem)), expected)
    torch.testing.assert_close(decomposed(*activations(problem)), expected)


def test_a_scripted_module_gives_the_same():
    problem = make_problem(dtype=torch.float32)
    module = Scan(problem)
    scripted = torch.jit.script(module)
    torch.testing.assert_close(scripted(*activations(problem)), module(*activations(problem)))


def test_autocast_casts_activations_but_neither_steps_nor_parameters():
    problem = make_problem(dtype=torch.float32) | STATELESS
    with torch.autocast("cpu", torch.bfloat16):
        (y,) = scan(problem)
        assert scan(make_problem() | STATELESS)[0].dtype == torch.float64
    rounded = {n: v.bfloat16() if n in ACTIVATIONS else v for n, v in problem.items()}
    assert y.dtype == torch.bfloat16
    assert_same_rounded(y, scan(rounded)[0])
