"""The selective scan as a torch operator: derivatives, tracing, scripting, autocast."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from tests.closeness import assert_same, assert_same_rounded
from tests.kernels.problems import (
    TENSORS,
    assert_close,
    computed,
    expected,
    make_problem,
    output_gradient,
)
from vimamba_kernels import selective_scan

scan_op = torch.ops.vimamba.selective_scan
SMALL = {"length": 5, "n": 2, "zero_tokens": 1, "steps": 4}
RANKS = pytest.mark.parametrize("rank", [None, 3], ids=["delta", "projected"])
CPU_AND_CHUNKED = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def arguments(problem, *rest):
    """The operator's positional arguments."""
    return (*(problem[n] for n in TENSORS), problem["delta_softplus"], problem["paths"], *rest)


class Scan(torch.nn.Module):
    """Like a model: parameters inside, activations from outside."""

    def __init__(self, problem):
        super().__init__()
        self.delta_weight = problem["delta_weight"]
        if self.delta_weight is not None:
            self.delta_weight = torch.nn.Parameter(self.delta_weight)
        self.A = torch.nn.Parameter(problem["A"])
        self.D = torch.nn.Parameter(problem["D"])
        self.delta_bias = torch.nn.Parameter(problem["delta_bias"])
        self.register_buffer("paths", problem["paths"])

    def forward(self, u, delta, B, C, z):
        return torch.ops.vimamba.selective_scan(
            u,
            delta,
            self.A,
            B,
            C,
            self.D,
            z,
            self.delta_bias,
            self.delta_weight,
            True,
            self.paths,
            True,
            "auto",
        )


def require_gradients(problem):
    for name in TENSORS:
        if problem[name] is not None:
            problem[name].requires_grad_()


def activations(problem):
    return tuple(problem[name] for name in ("u", "delta", "B", "C", "z"))


@RANKS
@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "separate"])
def test_first_and_second_derivatives_agree_with_finite_differences(backend, merge, rank):
    problem = make_problem(**SMALL, groups=2, u_per_path=not merge, rank=rank)
    require_gradients(problem)
    tensors = [problem[name] for name in TENSORS]

    def scan(*tensors):
        return scan_op(*tensors, True, problem["paths"], merge, backend)

    assert gradcheck(scan, tensors, fast_mode=True)
    assert gradgradcheck(scan, tensors, fast_mode=True, check_undefined_grad=False)


@RANKS
def test_second_derivatives_work_with_the_cpu_backend(rank):
    def gradient_norm(dtype, backend):
        problem = make_problem(dtype=dtype, rank=rank)
        u = problem["u"].requires_grad_()
        A = problem["A"].requires_grad_()
        (grad,) = torch.autograd.grad(
            selective_scan(**problem, backend=backend).square().sum(), u, create_graph=True
        )
        return torch.autograd.grad(grad.square().sum(), [u, A])

    for result, reference in zip(
        gradient_norm(torch.float32, "cpu"), gradient_norm(torch.float64, "chunked"), strict=True
    ):
        torch.testing.assert_close(result.double(), reference, rtol=1e-4, atol=1e-3)


def test_third_derivatives_work():
    problem = make_problem(**SMALL)
    u = problem["delta"].requires_grad_()
    y = selective_scan(**problem).sum()
    (first,) = torch.autograd.grad(y, u, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), u, create_graph=True)
    (third,) = torch.autograd.grad(second.sum(), u)
    assert third.abs().sum() > 0


@RANKS
@CPU_AND_CHUNKED
@pytest.mark.parametrize("op", ["selective_scan", "selective_scan_forward"])
def test_opcheck_passes(op, dtype, rank):
    problem = make_problem(**SMALL, dtype=dtype, rank=rank)
    require_gradients(problem)
    save = (True,) if op == "selective_scan_forward" else ()
    args = arguments(problem, True, "auto", *save)
    torch.library.opcheck(getattr(torch.ops.vimamba, op).default, args)


@RANKS
@CPU_AND_CHUNKED
def test_opcheck_of_the_backward_operator_passes(dtype, rank):
    problem = make_problem(**SMALL, dtype=dtype, rank=rank)
    saved = torch.ops.vimamba.selective_scan_forward(*arguments(problem, True, "auto", True))[1:3]
    args = (output_gradient(problem), *arguments(problem, True, "auto"), *saved)
    torch.library.opcheck(torch.ops.vimamba.selective_scan_backward.default, args)


def test_the_backward_operator_recomputes_states_that_were_not_saved():
    problem = make_problem(length=40, dtype=torch.float32)
    grad = output_gradient(problem)
    forward = torch.ops.vimamba.selective_scan_forward
    results = []
    for save in (True, False):
        saved = forward(*arguments(problem, True, "cpu", save))[1:3]
        results.append(
            torch.ops.vimamba.selective_scan_backward(
                grad, *arguments(problem, True, "cpu"), *saved
            )
        )
    assert_same(*results)


@RANKS
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("backend", ["auto", "reference", "chunked", "cpu"])
def test_meta_tensors_get_shapes_in_both_directions(backend, merge, rank):
    problem = make_problem(dtype=torch.bfloat16, rank=rank)
    meta = {
        n: v.to("meta").requires_grad_(n in TENSORS) if isinstance(v, torch.Tensor) else v
        for n, v in problem.items()
    }
    y = selective_scan(**meta, merge=merge, backend=backend)
    assert y.is_meta
    assert y.dtype == torch.bfloat16
    assert y.shape == ((2, 13, 6) if merge else (2, 2, 13, 6))
    y.sum().backward()
    present = [n for n in TENSORS if problem[n] is not None]
    assert all(meta[n].grad.shape == problem[n].shape for n in present)


@RANKS
@CPU_AND_CHUNKED
def test_a_compiled_module_gives_the_same_in_one_graph(dtype, rank):
    problem = make_problem(dtype=dtype, rank=rank)
    module = Scan(problem)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    y, z = module(*activations(problem)), compiled(*activations(problem))
    torch.testing.assert_close(y, z)
    grads = [torch.autograd.grad(out.square().sum(), list(module.parameters())) for out in (y, z)]
    torch.testing.assert_close(*grads)


def test_a_compiled_public_function_gives_the_same_in_one_graph():
    problem = make_problem(dtype=torch.float32)
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**problem), selective_scan(**problem))


def test_one_compilation_serves_all_sizes():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(scan_op, fullgraph=True, backend=count, dynamic=True)
    # first with different sizes, because equal ones are assumed to stay equal
    for batch, length in ((5, 13), (3, 20), (4, 31)):
        problem = make_problem(batch=batch, length=length, dtype=torch.float32)
        args = arguments(problem, True, "auto")
        torch.testing.assert_close(compiled(*args), scan_op(*args))
    assert len(graphs) == 1


@RANKS
@CPU_AND_CHUNKED
def test_an_exported_program_with_dynamic_sizes_gives_the_same(dtype, rank):
    problem = make_problem(dtype=dtype, without=("paths",), rank=rank)
    module = Scan(problem)
    batch, length = torch.export.Dim("batch", min=1), torch.export.Dim("length", min=2)
    by_token, by_path = {0: batch, 1: length}, {0: batch, 2: length}
    program = torch.export.export(
        module,
        activations(problem),
        dynamic_shapes=(by_token, by_path, by_path, by_path, by_token),
    )
    targets = [node.target for node in program.graph.nodes]
    assert scan_op.default in targets
    other = activations(
        make_problem(batch=3, length=21, dtype=dtype, without=("paths",), rank=rank)
    )
    torch.testing.assert_close(program.module()(*other), module(*other))
    decomposed = program.run_decompositions().module()
    torch.testing.assert_close(decomposed(*other), module(*other))


@RANKS
def test_a_scripted_module_gives_the_same(rank):
    problem = make_problem(dtype=torch.float32, rank=rank)
    module = Scan(problem)
    scripted = torch.jit.script(module)
    torch.testing.assert_close(scripted(*activations(problem)), module(*activations(problem)))


@RANKS
def test_a_symbolically_traced_module_gives_the_same(rank):
    problem = make_problem(dtype=torch.float32, rank=rank)
    module = Scan(problem)
    traced = torch.fx.symbolic_trace(module)
    torch.testing.assert_close(traced(*activations(problem)), module(*activations(problem)))


@RANKS
def test_autocast_casts_activations_but_keeps_the_parameters(rank):
    problem = make_problem(length=50, dtype=torch.float32, rank=rank)
    grad = output_gradient(problem).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        results = computed(selective_scan, problem, grad)
    assert results[0].dtype == torch.bfloat16
    assert all(r is None or r.dtype == torch.float32 for r in results[1:])
    cast = ("u", "delta", "B", "C", "z", "delta_weight")
    rounded = {n: v.bfloat16() if n in cast and v is not None else v for n, v in problem.items()}
    # if A were rounded too, its gradient and y would differ by more
    assert_close(results, expected(rounded, grad), 6e-3)
    assert_same_rounded(results[0], selective_scan(**rounded))


@RANKS
@pytest.mark.parametrize("backend", ["cpu", "chunked"])
def test_a_backward_pass_inside_autocast_is_as_exact_as_outside(backend, rank):
    problem = make_problem(length=50, dtype=torch.float32, rank=rank)
    require_gradients(problem)
    tensors = [problem[name] for name in TENSORS if problem[name] is not None]
    with torch.autocast("cpu", torch.bfloat16):
        y = selective_scan(**problem, backend=backend).float().sum()
        inside = torch.autograd.grad(y, tensors, retain_graph=True)
    outside = torch.autograd.grad(y, tensors)
    assert_same(inside, outside)


def test_autocast_leaves_float64_alone():
    problem = make_problem()
    with torch.autocast("cpu", torch.bfloat16):
        assert selective_scan(**problem).dtype == torch.float64


def test_nothing_is_saved_without_gradients():
    problem = make_problem(dtype=torch.float32)
    problem["u"].requires_grad_()
    with torch.no_grad():
        assert selective_scan(**problem).grad_fn is None
    with torch.inference_mode():
        assert selective_scan(**problem).is_inference()


def test_only_wanted_gradients_are_set():
    problem = make_problem(dtype=torch.float32)
    problem["A"].requires_grad_()
    selective_scan(**problem).sum().backward()
    assert problem["A"].grad is not None
    assert problem["u"].grad is None


class Watch(TorchDispatchMode):
    """Records the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(operator.name())
        return operator(*args, **(kwargs or {}))


def test_modes_see_the_scan_that_needs_no_dispatch():
    problem = make_problem(**SMALL)
    with torch.no_grad():
        alone = scan_op(*arguments(problem))
        with Watch() as watch:
            watched = scan_op(*arguments(problem))
    assert "vimamba::selective_scan_forward" in watch.names
    assert_same(watched, alone)
