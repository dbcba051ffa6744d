"""Every backend of Mamba-2's scan against the recorded original and a loop in float64."""

from functools import cache, partial

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from tests.closeness import assert_same_rounded
from tests.kernels.ssd_problems import (
    STATELESS,
    TENSORS,
    assert_close,
    make_problem,
    scan_by_hand,
    with_gradients,
)
from tests.parity.official import HERE, fill, read_manifest
from vimamba_kernels import selective_scan, ssd
from vimamba_kernels.ssd import chunked, op

ssd_op = torch.ops.vimamba.ssd
MANIFEST = read_manifest("op_ssd")
ARRAYS = np.load(HERE / "op_ssd.npz")
ACTIVATIONS = ("x", "dt", "B", "C", "z")
# float32 sums over up to 200 steps; measured below 1e-6
FLOAT32, FLOAT64 = 1e-5, 1e-11
BACKENDS = [
    ("chunked", torch.float64, FLOAT64),
    ("chunked", torch.float32, FLOAT32),
    ("cpu", torch.float32, FLOAT32),
]
backends = pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"), BACKENDS, ids=lambda v: str(v).removeprefix("torch.")
)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@cache
def defined(size, changes, merge):
    """Outputs and gradients by the definition, in float64."""
    problem = make_problem(**dict(size)) | dict(changes)
    return with_gradients(partial(scan_by_hand, merge=merge), problem)


def assert_matches_the_definition(size, changes, backend, dtype, tolerance, merge=True):
    """Outputs and gradients for `make_problem(**size) | changes` in float32 or float64."""
    problem = make_problem(**size, dtype=dtype) | changes
    results = with_gradients(lambda p: ssd(**p, merge=merge, backend=backend), problem)
    assert_close(results, defined(tuple(size.items()), tuple(changes.items()), merge), tolerance)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("case", MANIFEST["cases"], ids=lambda c: c["case"])
def test_recorded_outputs_and_gradients_are_reproduced(case, backend):
    def recorded(key):
        return torch.from_numpy(ARRAYS[f"{case['case']}.{key}"]).double()

    def in_our_layout(name, t):
        return t.unsqueeze(1 if name in ("dt", "B", "C", "initial_states") else 0)

    inputs = {n: recorded(f"in.{n}").requires_grad_() for n in case["inputs"]}
    ours = {n: t if n in ("x", "z") else in_our_layout(n, t) for n, t in inputs.items()}
    ours["initial_state"] = ours.pop("initial_states", None)
    y, state = ssd(**ours, **case["options"], return_state=True, backend=backend)
    cotangent = torch.from_numpy(fill.fill_input(tuple(y.shape), "cotangent"))
    grads = torch.autograd.grad(y, list(inputs.values()), cotangent)
    results = {"out": y, "final_state": state.squeeze(1)}
    results |= {f"grad.{n}": g for n, g in zip(inputs, grads, strict=True)}
    names = {key.split(".", 1)[1] for key in ARRAYS.files if key.startswith(f"{case['case']}.")}
    for key in names - {f"in.{n}" for n in inputs}:
        # outputs are stored in float64, gradients in float32
        tolerance = 1e-6 if key.startswith("grad.") else 1e-12
        assert_close([results[key]], [recorded(key)], tolerance)


# around one and two chunks of 64, with ragged groups and paths
SIZES = [
    {"length": 1, "heads": 1, "width": 1, "groups": 1, "n": 1, "k": 1},
    {"length": 2, "heads": 6, "width": 1, "groups": 3, "n": 2},
    {"length": 63, "heads": 2, "width": 4, "groups": 1, "n": 3},
    {"length": 64, "heads": 2, "width": 2, "groups": 2, "n": 3, "k": 1},
    {"length": 65, "heads": 3, "width": 2, "groups": None, "n": 4},
    {"length": 128, "heads": 1, "width": 5, "groups": 1, "n": 2, "k": 1},
    {"length": 197, "heads": 2, "width": 3, "groups": 1, "n": 4, "batch": 1, "k": 3},
]


@backends
@pytest.mark.parametrize("size", SIZES, ids=lambda s: "L{length}_H{heads}_N{n}".format(**s))
def test_output_and_gradients_match_the_definition_at_all_sizes(backend, dtype, tolerance, size):
    assert_matches_the_definition(size, {}, backend, dtype, tolerance)


@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"), [("reference", torch.float64, FLOAT64), *BACKENDS], ids=str
)
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "separate"])
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ({"x_per_path": True}, {}),
        ({"steps": 9}, {}),
        ({"zero_tokens": 4, "steps": 11}, {}),
        ({"length": 70, "zero_tokens": 9, "x_per_path": True, "k": 1}, {}),
        ({"length": 63, "zero_tokens": 9, "paths_per_sample": True, "batch": 3}, {}),
        ({}, {"paths": None}),
        ({}, {"D": None, "z": None, "dt_bias": None}),
        ({}, {"initial_state": None}),
    ],
    ids=str,
)
def test_every_option_matches_the_definition(backend, dtype, tolerance, merge, size, changes):
    assert_matches_the_definition(size, changes, backend, dtype, tolerance, merge)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_limits_and_plain_steps_match_the_definition(backend):
    limited = {"dt_limit": (0.1, 0.6)}
    assert_matches_the_definition({"zero_tokens": 2}, limited, backend, torch.float64, FLOAT64)
    plain = make_problem() | {"dt_softplus": False, "dt_bias": None}
    plain["dt"] = plain["dt"].abs()
    plain["D"] = plain["D"][..., 0]
    unlimited = ssd(**plain | {"D": plain["D"].unsqueeze(-1).expand(-1, -1, 3)}, backend=backend)
    torch.testing.assert_close(ssd(**plain, backend=backend), unlimited)
    assert_close(unlimited, scan_by_hand(plain | {"D": plain["D"].unsqueeze(-1)}), FLOAT64)


def test_two_tokens_are_worked_out_by_hand():
    x = torch.tensor([2.0, 3.0], dtype=torch.float64).view(1, 2, 1, 1)
    dt = torch.tensor([1.0, 0.5], dtype=torch.float64).view(1, 1, 2, 1)
    A = torch.tensor([[-2.0]], dtype=torch.float64)
    B = torch.tensor([5.0, 7.0], dtype=torch.float64).view(1, 1, 2, 1)
    C = torch.tensor([1.0, 10.0], dtype=torch.float64).view(1, 1, 2, 1)
    y, state = ssd(x, dt, A, B, C, return_state=True)
    h0 = 1.0 * 2.0 * 5.0
    h1 = np.exp(-1.0) * h0 + 0.5 * 3.0 * 7.0
    torch.testing.assert_close(y.flatten(), torch.tensor([h0, 10 * h1], dtype=torch.float64))
    assert state.item() == pytest.approx(h1)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("reference", torch.float64), ("chunked", torch.float64), ("cpu", torch.float32)],
    ids=str,
)
def test_a_sequence_in_two_pieces_gives_the_same(backend, dtype):
    problem = make_problem(length=150, k=1, dtype=dtype) | {"paths": None}

    def piece(start, end, state):
        cut = {n: problem[n][:, start:end] for n in ("x", "z")}
        cut |= {n: problem[n][:, :, start:end] for n in ("dt", "B", "C")}
        return ssd(**{**problem, **cut, "initial_state": state}, backend=backend)

    whole, last = ssd(**problem, backend=backend)
    first, state = piece(0, 70, problem["initial_state"])
    second, state = piece(70, 150, state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(state, last)


def test_it_is_the_selective_scan_with_one_decay_per_head():
    p = make_problem(length=20, zero_tokens=3) | STATELESS
    y = selective_scan(
        p["x"].flatten(2),
        p["dt"].repeat_interleave(3, dim=3),
        p["A"].repeat_interleave(3, dim=1).unsqueeze(-1).expand(-1, -1, 5),
        p["B"].transpose(2, 3),
        p["C"].transpose(2, 3),
        p["D"].flatten(1),
        z=p["z"].flatten(2),
        delta_bias=p["dt_bias"].repeat_interleave(3, dim=1),
        delta_softplus=True,
        paths=p["paths"],
    )
    torch.testing.assert_close(ssd(**p), y.unflatten(-1, (4, 3)))


def test_the_size_of_the_chunks_does_not_matter(monkeypatch):
    problem = make_problem(length=50, zero_tokens=2)
    whole = with_gradients(lambda p: ssd(**p), problem)
    for size in (1, 7, 16, 50):
        monkeypatch.setattr(chunked, "CHUNK", size)
        assert_close(with_gradients(lambda p: ssd(**p), problem), whole, FLOAT64)


def test_large_steps_before_small_ones_cost_no_accuracy():
    problem = make_problem(length=64, k=1, dtype=torch.float32) | {"paths": None}
    problem["dt"][:, :, 5:30:5] = 3e4
    results = with_gradients(lambda p: ssd(**p, backend="chunked"), problem)
    assert_close(results, with_gradients(scan_by_hand, problem), FLOAT32)


@pytest.mark.parametrize("backend", ["reference", "chunked", "cpu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_half_precision_rounds_only_inputs_and_outputs(backend, dtype, tolerance):
    problem = make_problem(length=70, dtype=dtype)
    results = with_gradients(lambda p: ssd(**p, backend=backend), problem)
    references = with_gradients(scan_by_hand, problem)
    assert results[0].dtype == dtype
    # each path's contribution to x's gradient is rounded if x is cast per path
    assert_close(results, references, tolerance)


@pytest.mark.parametrize("backend", ["reference", "chunked", "cpu"])
def test_a_token_that_no_path_visits_gets_zero_and_its_nan_goes_nowhere(backend):
    problem = make_problem(steps=8, k=1, dtype=torch.float32) | STATELESS
    skipped = sorted(set(range(13)) - set(problem["paths"][0].tolist()))
    problem["x"][:, skipped] = float("nan")
    y, grad_x, *rest = with_gradients(lambda p: ssd(**p, backend=backend), problem)
    assert (y[:, skipped] == 0).all()
    assert (grad_x[:, skipped] == 0).all()
    assert all(t.isfinite().all() for t in (y, *rest))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.ones(2, 13, 4)}, ValueError, r"x has shape \(2, 13, 4\)"),
        ({"x": "tokens"}, TypeError, "x is str; expected a tensor"),
        ({"x": torch.ones(2, 13, 4, 3).int()}, TypeError, "x is torch.int32"),
        ({"dt": torch.ones(2, 13, 4)}, ValueError, r"expected \(B, K, L, H\)"),
        ({"dt": torch.ones(2, 2, 0, 4)}, ValueError, "at least one token"),
        ({"dt": torch.ones(2, 2, 13, 4).half()}, TypeError, "dt is torch.float16; expected"),
        ({"A": torch.ones(4)}, ValueError, r"A has shape \(4,\); expected \(K, H\)"),
        ({"B": torch.ones(2, 2, 13, 3, 5)}, ValueError, "B has 3 groups; expected a divisor"),
        ({"B": torch.ones(2, 2, 13)}, ValueError, r"B has shape \(2, 2, 13\)"),
        ({"C": torch.ones(2, 2, 13, 2, 4)}, ValueError, "C has shape .*the shape of B"),
        ({"D": torch.ones(2, 4, 2)}, ValueError, r"D has shape \(2, 4, 2\)"),
        ({"z": torch.ones(2, 13, 12)}, ValueError, r"z has shape \(2, 13, 12\)"),
        ({"dt_bias": torch.ones(4)}, ValueError, r"dt_bias has shape \(4,\)"),
        ({"dt_bias": torch.ones(2, 4).int()}, TypeError, "dt_bias is torch.int32"),
        ({"dt_limit": 0.5}, TypeError, "dt_limit=0.5 must be a lowest step"),
        ({"dt_limit": (0.5, 0.1)}, ValueError, r"dt_limit=\(0.5, 0.1\) must be"),
        ({"initial_state": torch.ones(2, 4, 3, 5)}, ValueError, "initial_state has shape"),
        ({"initial_state": torch.ones(1, device="meta")}, ValueError, "initial_state is on meta"),
        ({"paths": torch.zeros(3, 13).int()}, ValueError, r"paths has shape \(3, 13\)"),
        ({"paths": torch.tensor([[0, 99], [0, 1]])}, ValueError, r"expected \[-1, 13\)"),
        ({"paths": torch.tensor([[0, 1], [1, 1]])}, ValueError, r"paths\[1\] visits token 1 again"),
        ({"backend": "fast"}, ValueError, "backend='fast' is unknown; choose from"),
        (
            {"backend": "cpu", "dt_limit": (0.1, 0.5)},
            ValueError,
            "it knows no dt_limit; use 'chunked' or",
        ),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_a_wrong_argument_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        ssd(**(make_problem(dtype=torch.float32) | changes))


def test_the_backend_is_chosen_by_argument_environment_and_input(monkeypatch):
    x = torch.ones(1, 2, 3, 4)
    monkeypatch.delenv("VIMAMBA_BACKEND", raising=False)
    assert op.choose_backend("auto", x) == "cpu"
    assert op.choose_backend("auto", x, limited=True) == "chunked"
    assert op.choose_backend("auto", x.double()) == "chunked"
    assert op.choose_backend("auto", x.to("meta")) == "chunked"
    monkeypatch.setenv("VIMAMBA_BACKEND", "reference")
    assert op.choose_backend("auto", x) == "reference"


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_first_and_second_derivatives_agree_with_finite_differences(backend, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK", 2)
    problem = make_problem(length=5, steps=4, zero_tokens=1, batch=1)
    tensors = [problem[n].requires_grad_() for n in TENSORS]

    def scan(*tensors):
        arguments = dict(zip(TENSORS, tensors, strict=True))
        return ssd(**{**problem, **arguments}, backend=backend)

    assert gradcheck(scan, tensors, fast_mode=True)
    assert gradgradcheck(scan, tensors, fast_mode=True)


@pytest.mark.parametrize(
    # another backend, in float64
    "dtype",
    [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)],
)
def test_opcheck_passes(dtype):
    p = make_problem(length=5, dtype=dtype) | STATELESS
    for name in TENSORS[:-1]:
        p[name].requires_grad_()
    args = (*(p[n] for n in TENSORS[:-1]), True, None, None, p["paths"])
    torch.library.opcheck(ssd_op.default, args)


@pytest.mark.parametrize("merge", [True, False])
def test_meta_tensors_get_shapes_in_both_directions(merge):
    problem = make_problem(dtype=torch.bfloat16)
    meta = {
        n: v.to("meta").requires_grad_(n in TENSORS) if isinstance(v, torch.Tensor) else v
        for n, v in problem.items()
    }
    y, state = ssd(**meta, merge=merge)
    assert y.shape == ((2, 13, 4, 3) if merge else (2, 2, 13, 4, 3))
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert state.shape == (2, 2, 4, 3, 5)
    (y.sum() + state.sum()).backward()
    assert all(meta[n].grad.shape == problem[n].shape for n in TENSORS)


class Scan(torch.nn.Module):
    """Like a model: parameters inside, activations from outside."""

    def __init__(self, problem):
        super().__init__()
        self.A = torch.nn.Parameter(problem["A"])
        self.D = torch.nn.Parameter(problem["D"])
        self.dt_bias = torch.nn.Parameter(problem["dt_bias"])
        self.register_buffer("paths", problem["paths"])

    def forward(self, x, dt, B, C, z):
        return torch.ops.vimamba.ssd(
            x, dt, self.A, B, C, self.D, z, self.dt_bias, True, None, None, self.paths
        )[0]


def activations(problem):
    return tuple(problem[name] for name in ACTIVATIONS)


@both_dtypes
def test_a_compiled_module_gives_the_same_in_one_graph(dtype):
    problem = make_problem(dtype=dtype)
    module = Scan(problem)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    y, z = module(*activations(problem)), compiled(*activations(problem))
    torch.testing.assert_close(y, z)
    grads = [torch.autograd.grad(out.square().sum(), list(module.parameters())) for out in (y, z)]
    torch.testing.assert_close(*grads)


def test_a_compiled_public_function_gives_the_same_in_one_graph():
    problem = make_problem(dtype=torch.float32)
    compiled = torch.compile(ssd, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**problem), ssd(**problem))


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [(torch.float64, [13]), (torch.float32, [3, 64, 150])],
    ids=["chunked", "cpu"],
)
def test_an_exported_program_gives_the_same_at_other_sizes(dtype, sizes):
    problem = make_problem(dtype=dtype) | {"paths": None}
    module = Scan(problem)
    # the number of chunks is fixed if there are any
    length = torch.export.Dim("length", min=2) if len(sizes) > 1 else None
    batch = torch.export.Dim("batch", min=1, max=64)
    by_token, by_path = {0: batch, 1: length}, {0: batch, 2: length}
    shapes = (by_token, by_path, by_path, by_path, by_token)
    program = torch.export.export(module, activations(problem), dynamic_shapes=shapes)
    decomposed = program.run_decompositions().module()
    for size in sizes:
        other = activations(make_problem(batch=3, length=size, dtype=dtype))
        torch.testing.assert_close(program.module()(*other), module(*other))
        torch.testing.assert_close(decomposed(*other), module(*other))


@pytest.mark.parametrize("transform", [torch.jit.script, torch.fx.symbolic_trace])
def test_a_scripted_or_traced_module_gives_the_same(transform):
    problem = make_problem(dtype=torch.float32)
    module = Scan(problem)
    traced = transform(module)
    torch.testing.assert_close(traced(*activations(problem)), module(*activations(problem)))


@pytest.mark.parametrize("backend", ["chunked", "cpu"])
def test_autocast_casts_activations_but_keeps_the_parameters(backend):
    problem = make_problem(dtype=torch.float32) | STATELESS
    with torch.autocast("cpu", torch.bfloat16):
        y = ssd(**problem, backend=backend)
        assert ssd(**make_problem() | STATELESS).dtype == torch.float64
    rounded = {n: v.bfloat16() if n in ACTIVATIONS else v for n, v in problem.items()}
    assert y.dtype == torch.bfloat16
    assert_same_rounded(y, ssd(**rounded, backend=backend))


def test_results_are_the_same_every_time():
    problem = make_problem(length=100, dtype=torch.float32)
    first, *others = [with_gradients(lambda p: ssd(**p), problem) for _ in range(3)]
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))
