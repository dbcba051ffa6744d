"""Every backend of the convolution along paths against a loop in float64, and the operator."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from tests.closeness import assert_same_rounded
from tests.kernels.conv_problems import (
    assert_close,
    expected,
    make_problem,
    output_gradient,
    with_gradients,
)
from vimamba_kernels import causal_conv_along_paths
from vimamba_kernels.path_conv import op

conv_op = torch.ops.vimamba.causal_conv_along_paths
# sums of at most 8 products, and for weights over the steps; measured below 2e-7
BACKENDS = [
    ("reference", torch.float64, 1e-12),
    ("reference", torch.float32, 2e-6),
    ("cpu", torch.float32, 2e-6),
]
backends = pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"), BACKENDS, ids=lambda v: str(v).removeprefix("torch.")
)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
# lengths around the number of taps, taps around a power of two, ragged blocks of channels
SIZES = [
    {"length": 1, "channels": 1, "k": 1, "taps": 4},
    {"length": 1, "channels": 20, "k": 3, "taps": 1},
    {"length": 2, "channels": 6, "k": 2, "taps": 4},
    {"length": 3, "channels": 16, "k": 2, "taps": 4},
    {"length": 4, "channels": 33, "k": 1, "taps": 3},
    {"length": 5, "channels": 97, "k": 2, "taps": 4},
    {"length": 17, "channels": 100, "k": 2, "taps": 5},
    {"length": 40, "channels": 193, "k": 2, "taps": 8, "batch": 1},
    {"length": 197, "channels": 24, "k": 4, "taps": 4, "batch": 1},
]


def assert_matches_the_loop(problem, backend, tolerance):
    grad = output_gradient(problem)
    results = with_gradients(
        lambda **kwargs: causal_conv_along_paths(**kwargs, backend=backend), problem, grad
    )
    assert results[0].dtype == problem["x"].dtype
    assert_close(results, expected(problem, grad), tolerance)


@backends
@pytest.mark.parametrize("activation", ["silu", None], ids=["silu", "linear"])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: "L{length}_D{channels}_W{taps}".format(**s))
def test_output_and_gradients_match_the_loop_at_all_sizes(
    backend, dtype, tolerance, size, activation
):
    problem = make_problem(**size, dtype=dtype) | {"activation": activation}
    assert_matches_the_loop(problem, backend, tolerance)


@backends
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ({"steps": 9}, {}),
        ({"zero_tokens": 4}, {}),
        ({"zero_tokens": 12}, {}),
        ({"zero_tokens": 5, "steps": 11, "taps": 3}, {}),
        ({"steps": 2}, {}),
        ({"paths_per_sample": True, "batch": 3, "length": 63}, {}),
        ({"paths_per_sample": True, "zero_tokens": 3, "steps": 11}, {}),
        ({}, {"bias": None}),
        ({}, {"paths": None}),
        ({"zero_tokens": 3}, {"bias": None, "activation": None}),
    ],
    ids=str,
)
def test_every_option_matches_the_loop(backend, dtype, tolerance, size, changes):
    assert_matches_the_loop(make_problem(**size, dtype=dtype) | changes, backend, tolerance)


def test_more_zero_tokens_than_tokens_are_allowed():
    problem = make_problem(length=5, dtype=torch.float32)
    problem["paths"] = torch.tensor([[-1, 3, -1, 0, -1, -1, 1, 2, 4], [-1] * 7 + [4, -1]])
    assert_matches_the_loop(problem, "cpu", 2e-6)
    assert_matches_the_loop(problem, "reference", 2e-6)


def test_two_tokens_are_worked_out_by_hand():
    x = torch.tensor([[[2.0], [3.0]]])
    weight = torch.tensor([[[10.0, 1.0]], [[100.0, 5.0]]])
    paths = torch.tensor([[0, 1], [1, 0]])
    y = causal_conv_along_paths(x, weight, torch.tensor([[0.5], [0.0]]), paths=paths)
    assert y.flatten().tolist() == [2.5, 3.0 + 20.0 + 0.5, 10.0 + 300.0, 15.0]


@backends
def test_a_token_that_no_path_visits_gets_zero(backend, dtype, tolerance):
    problem = make_problem(steps=8, dtype=dtype)
    y = causal_conv_along_paths(**problem, backend=backend)
    for k, path in enumerate(problem["paths"]):
        skipped = sorted(set(range(13)) - set(path.tolist()))
        assert (y[:, k, skipped] == 0).all()
        assert (y[:, k, path.long()] != 0).all()


@backends
def test_nan_in_a_token_that_is_never_visited_goes_nowhere(backend, dtype, tolerance):
    problem = make_problem(dtype=dtype, k=1)
    problem["paths"][0, 4] = -1
    skipped = (set(range(13)) - set(problem["paths"][0].tolist())).pop()
    problem["x"][:, skipped] = float("nan")
    grad = output_gradient(problem)
    grad[:, :, skipped] = float("nan")
    results = with_gradients(
        lambda **kwargs: causal_conv_along_paths(**kwargs, backend=backend), problem, grad
    )
    assert all(r.isfinite().all() for r in results)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_half_precision_rounds_only_inputs_and_outputs(backend, dtype, tolerance):
    problem = make_problem(length=60, dtype=dtype)
    grad = output_gradient(problem)
    results = with_gradients(
        lambda **kwargs: causal_conv_along_paths(**kwargs, backend=backend), problem, grad
    )
    references = expected(problem, grad)
    assert [r.dtype for r in results] == [dtype, dtype, torch.float32, torch.float32]
    # outputs and the gradient of x are rounded once, the parameters' gradients never
    assert_close(results[:2], references[:2], tolerance)
    assert_close(results[2:], references[2:], 2e-6)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_parameters_may_be_half_precision_and_get_gradients_in_it(backend):
    problem = make_problem(dtype=torch.bfloat16)
    problem |= {n: problem[n].bfloat16() for n in ("weight", "bias")}
    results = with_gradients(
        lambda **kwargs: causal_conv_along_paths(**kwargs, backend=backend),
        problem,
        output_gradient(problem),
    )
    assert all(r.dtype == torch.bfloat16 for r in results)


@backends
def test_non_contiguous_inputs_give_the_same(backend, dtype, tolerance):
    problem = make_problem(dtype=dtype)
    grad = output_gradient(problem)

    def conv(**kwargs):
        return causal_conv_along_paths(**kwargs, backend=backend)

    strided = {
        "x": problem["x"].transpose(0, 2).contiguous().transpose(0, 2),
        "weight": problem["weight"].transpose(0, 2).contiguous().transpose(0, 2),
        "bias": problem["bias"].t().contiguous().t(),
        "paths": problem["paths"].t().contiguous().t().long(),
    }
    strided_grad = grad.transpose(0, 3).contiguous().transpose(0, 3)
    plain = with_gradients(conv, problem, grad)
    assert_close(with_gradients(conv, problem | strided, strided_grad), plain, tolerance)
    assert plain[0].is_contiguous()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_empty_batch_gives_empty_outputs_and_zero_gradients(backend):
    problem = make_problem(batch=0, dtype=torch.float32)
    y, grad_x, *parameters = with_gradients(
        lambda **kwargs: causal_conv_along_paths(**kwargs, backend=backend),
        problem,
        output_gradient(problem),
    )
    assert y.shape == (0, 2, 13, 6)
    assert grad_x.shape == (0, 13, 6)
    assert all((g == 0).all() for g in parameters)


@pytest.mark.parametrize("value", [-1e4, -89.0, -20.0, 20.0, 89.0, 1e4])
def test_silu_of_large_sums_is_right(value):
    problem = make_problem(k=1, taps=1, dtype=torch.float32)
    problem["x"].fill_(1)
    problem |= {"weight": torch.full((1, 6, 1), value), "bias": None}
    y = causal_conv_along_paths(**problem, backend="cpu")
    expected = F.silu(torch.tensor(value, dtype=torch.float64)).float().expand_as(y)
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-30)


def test_results_do_not_depend_on_the_number_of_threads():
    problem = make_problem(batch=3, length=50, channels=200, dtype=torch.float32)
    grad, threads = output_gradient(problem), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(with_gradients(causal_conv_along_paths, problem, grad))
    finally:
        torch.set_num_threads(threads)
    for first, *others in zip(*results, strict=True):
        assert all(torch.equal(first, other) for other in others)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_the_cpu_backend_works_in_a_forked_child():
    problem = make_problem(batch=4, channels=100, dtype=torch.float32)
    y = causal_conv_along_paths(**problem, backend="cpu")
    child = os.fork()
    if child == 0:
        torch.set_num_threads(2)
        same = torch.equal(causal_conv_along_paths(**problem, backend="cpu"), y)
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.ones(2, 13)}, ValueError, r"x has shape \(2, 13\); expected \(B, L, D\)"),
        ({"x": torch.ones(2, 0, 6)}, ValueError, "at least one token"),
        ({"x": [1.0]}, TypeError, "x is list; expected a tensor"),
        ({"x": torch.ones(2, 13, 6, dtype=torch.int32)}, TypeError, "x is torch.int32"),
        ({"weight": None}, TypeError, "weight is NoneType"),
        ({"weight": torch.ones(2, 5, 4)}, ValueError, r"weight has shape \(2, 5, 4\)"),
        ({"weight": torch.ones(2, 6, 0)}, ValueError, r"= \(K >= 1, 6, W >= 1\)"),
        ({"weight": torch.ones(2, 6, 4).int()}, TypeError, "weight is torch.int32"),
        ({"bias": torch.ones(6)}, ValueError, r"bias has shape \(6,\); expected \(K, D\)"),
        ({"bias": torch.ones(2, 6, device="meta")}, ValueError, "bias is on meta; expected cpu"),
        ({"paths": torch.zeros(1, 3).int()}, ValueError, r"paths has shape \(1, 3\)"),
        ({"paths": torch.zeros(2, 3)}, TypeError, "paths is torch.float32"),
        ({"paths": torch.tensor([[0, 13], [0, 1]])}, ValueError, r"expected \[-1, 13\)"),
        ({"paths": torch.tensor([[0, 1], [5, 5]])}, ValueError, r"paths\[1\] visits token 5 again"),
        ({"activation": "gelu"}, ValueError, "activation='gelu' is unknown; choose from"),
        ({"backend": "fast"}, ValueError, "backend='fast' is unknown; choose from"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_a_wrong_argument_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        causal_conv_along_paths(**(make_problem(dtype=torch.float32) | changes))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_operator_itself_refuses_what_would_lead_out_of_bounds(backend):
    x, weight, bias, *_ = make_problem(dtype=torch.float32).values()
    with pytest.raises(ValueError, match="weight has shape"):
        conv_op(x, weight[:, :5], bias, None, None, backend)
    if backend == "cpu":
        with pytest.raises(ValueError, match="paths holds values"):
            conv_op(x, weight, bias, torch.full((2, 13), 99), None, backend)


def test_the_backend_is_chosen_by_argument_environment_and_input(monkeypatch):
    x = torch.ones(1, 2, 3)
    monkeypatch.delenv("VIMAMBA_BACKEND", raising=False)
    assert op.choose_backend("auto", x) == "cpu"
    assert op.choose_backend("auto", x.double()) == "reference"
    assert op.choose_backend("auto", x.to("meta")) == "reference"
    monkeypatch.setenv("VIMAMBA_BACKEND", "reference")
    assert op.choose_backend("auto", x) == "reference"
    assert op.choose_backend("cpu", x) == "cpu"
    # a backend that only other operators have leaves this one at its fastest
    monkeypatch.setenv("VIMAMBA_BACKEND", "chunked")
    assert op.choose_backend("auto", x) == "cpu"
    monkeypatch.setenv("VIMAMBA_BACKEND", "fastest")
    with pytest.raises(ValueError, match="VIMAMBA_BACKEND='fastest' is unknown"):
        op.choose_backend("auto", x)
    with pytest.raises(ValueError, match=r"cannot run: x is float64; .* use 'reference'"):
        op.choose_backend("cpu", x.double())


@pytest.mark.parametrize("activation", ["silu", None], ids=["silu", "linear"])
def test_first_and_second_derivatives_agree_with_finite_differences(activation):
    problem = make_problem(length=5, channels=3, zero_tokens=1, steps=4)
    tensors = [problem[n].requires_grad_() for n in ("x", "weight", "bias")]

    def conv(*tensors):
        return conv_op(*tensors, problem["paths"], activation, "auto")

    assert gradcheck(conv, tensors, fast_mode=True)
    assert gradgradcheck(conv, tensors, fast_mode=True, check_undefined_grad=False)


def test_second_derivatives_work_with_the_cpu_backend():
    results = []
    for dtype in (torch.float32, torch.float64):
        problem = make_problem(dtype=dtype)
        leaves = [problem[n].requires_grad_() for n in ("x", "weight", "bias")]
        y = causal_conv_along_paths(**problem)
        (grad,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), leaves))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=1e-4, atol=1e-3)


@both_dtypes
@pytest.mark.parametrize("changes", [{}, {"bias": None, "paths": None}], ids=["all", "plain"])
def test_opcheck_passes(dtype, changes):
    problem = make_problem(length=5, zero_tokens=1, dtype=dtype) | changes
    for name in ("x", "weight", "bias"):
        if problem[name] is not None:
            problem[name].requires_grad_()
    args = (*problem.values(), "auto")
    torch.library.opcheck(conv_op.default, args)
    detached = [t.detach() if isinstance(t, torch.Tensor) else t for t in args]
    backward = torch.ops.vimamba.causal_conv_along_paths_backward.default
    torch.library.opcheck(backward, (output_gradient(problem), *detached))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_meta_tensors_get_shapes_in_both_directions(backend):
    problem = make_problem(dtype=torch.bfloat16)
    meta = {n: t.to("meta") for n, t in problem.items() if n != "activation"}
    leaves = [meta[n].requires_grad_() for n in ("x", "weight", "bias")]
    y = causal_conv_along_paths(**meta, backend=backend)
    assert y.is_meta
    assert y.shape == (2, 2, 13, 6)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(t.grad.shape == t.shape for t in leaves)


class Conv(torch.nn.Module):
    """Like a model: parameters inside, tokens from outside."""

    def __init__(self, problem):
        super().__init__()
        self.weight = torch.nn.Parameter(problem["weight"])
        self.bias = torch.nn.Parameter(problem["bias"])
        self.register_buffer("paths", problem["paths"])

    def forward(self, x):
        return torch.ops.vimamba.causal_conv_along_paths(
            x, self.weight, self.bias, self.paths, "silu", "auto"
        )


@both_dtypes
def test_a_compiled_module_gives_the_same_in_one_graph(dtype):
    problem = make_problem(dtype=dtype)
    module = Conv(problem)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    y, z = module(problem["x"]), compiled(problem["x"])
    torch.testing.assert_close(y, z)
    grads = [torch.autograd.grad(out.square().sum(), list(module.parameters())) for out in (y, z)]
    torch.testing.assert_close(*grads)


def test_a_compiled_public_function_gives_the_same_in_one_graph():
    problem = make_problem(dtype=torch.float32)
    compiled = torch.compile(causal_conv_along_paths, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**problem), causal_conv_along_paths(**problem))


def test_an_exported_program_with_dynamic_sizes_gives_the_same():
    problem = make_problem(dtype=torch.float32)
    module = Conv(problem | {"paths": None})
    sizes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2)}
    program = torch.export.export(module, (problem["x"],), dynamic_shapes=(sizes,))
    assert conv_op.default in [node.target for node in program.graph.nodes]
    other = make_problem(batch=3, length=21, dtype=torch.float32)["x"]
    torch.testing.assert_close(program.module()(other), module(other))


@pytest.mark.parametrize("transform", [torch.jit.script, torch.fx.symbolic_trace])
def test_a_scripted_or_traced_module_gives_the_same(transform):
    problem = make_problem(dtype=torch.float32)
    module = Conv(problem)
    torch.testing.assert_close(transform(module)(problem["x"]), module(problem["x"]))


def test_autocast_casts_the_tokens_but_keeps_the_parameters():
    problem = make_problem(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = causal_conv_along_paths(**problem)
        assert causal_conv_along_paths(**make_problem()).dtype == torch.float64
    rounded = causal_conv_along_paths(**problem | {"x": problem["x"].bfloat16()})
    assert y.dtype == torch.bfloat16
    assert_same_rounded(y, rounded)


def test_only_wanted_gradients_are_set():
    for wanted in ("x", "weight", "bias"):
        problem = make_problem(dtype=torch.float32)
        problem[wanted].requires_grad_()
        causal_conv_along_paths(**problem).sum().backward()
        assert problem[wanted].grad is not None
        assert all(problem[n].grad is None for n in ("x", "weight", "bias") if n != wanted)
