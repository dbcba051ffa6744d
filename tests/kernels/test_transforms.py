"""Derivatives by torch.func and in forward mode, and vmap, through every operator and backend."""

import warnings

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from tests.kernels import conv_problems, mamba3_problems, problems, ssd_problems
from vimamba_kernels import causal_conv_along_paths, selective_scan, ssd

BACKENDS = {
    "selective_scan": ("cpu", "chunked", "reference"),
    "path_conv": ("cpu", "reference"),
    "ssd": ("cpu", "chunked", "reference"),
    "mamba3": ("chunked", "reference"),
}
CASES = [(name, backend) for name, backends in BACKENDS.items() for backend in backends]
every_case = pytest.mark.parametrize(("name", "backend"), CASES)


def make(name, backend):
    """An operator as a function of its input only, and that input, with a batch of 1."""
    dtype = torch.float32 if backend == "cpu" else torch.float64
    if name == "path_conv":
        problem = conv_problems.make_problem(batch=1, length=5, channels=2, dtype=dtype)
        x = problem.pop("x")
        return (lambda x: causal_conv_along_paths(x, **problem, backend=backend)), x
    if name == "ssd":
        sizes = {"batch": 1, "length": 5, "heads": 2, "width": 2, "groups": 1, "n": 3}
        problem = ssd_problems.make_problem(**sizes, dtype=dtype) | ssd_problems.STATELESS
        x = problem.pop("x")
        return (lambda x: ssd(x, **problem, backend=backend)), x
    if name == "mamba3":
        sizes = {"batch": 1, "k": 1, "length": 3, "heads": 1, "width": 2, "groups": 1, "n": 2}
        problem = mamba3_problems.make_problem(**sizes, pairs=1) | mamba3_problems.STATELESS
        # by the inputs of angles and weights
        x = problem.pop("dt")
        return (lambda x: mamba3_problems.scan({**problem, "dt": x}, backend=backend)[0]), x
    problem = problems.make_problem(batch=1, length=5, channels=2, n=3, dtype=dtype)
    # by the step sizes, in which the scan is not linear
    x = problem.pop("delta")
    return (lambda x: selective_scan(delta=x, **problem, backend=backend)), x


def close(found, expected):
    scale = expected.abs().max().item()
    rtol = 1e-4 if found.dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found, expected, rtol=0, atol=rtol * scale)
    assert scale > 0


def jacobian(function, x):
    """By the operator's own backward pass."""
    return torch.autograd.functional.jacobian(function, x)


@every_case
def test_gradients_by_torch_func_are_those_of_the_backward_pass(name, backend):
    function, x = make(name, backend)
    expected = jacobian(function, x)
    total = expected.sum(tuple(range(expected.dim() - x.dim())))
    close(grad(lambda x: function(x).sum())(x), total)
    close(vjp(function, x)[1](torch.ones_like(function(x)))[0], total)
    close(jacrev(function)(x), expected)
    # samples before the batch dimension
    both = vmap(grad(lambda x: function(x).sum()))(torch.stack([x, 2 * x]))
    close(both[0], total)
    close(both[1], grad(lambda x: function(x).sum())(2 * x))


@every_case
def test_forward_mode_agrees_with_the_backward_pass(name, backend):
    function, x = make(name, backend)
    expected = jacobian(function, x)
    direction = torch.randn_like(x)
    along = expected.flatten(-x.dim()) @ direction.flatten()
    close(jvp(function, (x,), (direction,))[1], along)
    close(jacfwd(function)(x), expected)
    with forward_ad.dual_level():
        y, tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, direction)))
        assert tangent is not None
        close(tangent, along)
        close(y, function(x))


@every_case
def test_second_derivatives_agree_in_every_mode(name, backend):
    function, x = make(name, backend)

    def loss(x):
        return function(x).square().sum()

    expected = torch.autograd.functional.hessian(loss, x)
    close(hessian(loss)(x), expected)
    close(jacrev(jacrev(loss))(x), expected)
    direction = torch.randn_like(x)
    along = expected.flatten(x.dim()) @ direction.flatten()
    close(jvp(grad(loss), (x,), (direction,))[1], along.view_as(x))


@every_case
def test_a_tangent_that_comes_with_the_gradient_is_not_lost(name, backend):
    function, x = make(name, backend)
    x = x.clone().requires_grad_()
    y = function(x)
    weight, direction = torch.randn_like(y), torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, direction, retain_graph=True)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(weight, direction)
        (found,) = torch.autograd.grad(y, x, dual, retain_graph=True)
        tangent = forward_ad.unpack_dual(found).tangent
        assert tangent is not None
        close(tangent, expected)


@every_case
def test_gradients_for_many_outputs_at_once_are_those_one_by_one(name, backend):
    function, x = make(name, backend)
    expected = jacobian(function, x)
    for strategy in ("reverse-mode", "forward-mode"):
        found = torch.autograd.functional.jacobian(function, x, vectorize=True, strategy=strategy)
        close(found, expected)


@every_case
def test_vmap_calls_the_operator_for_all_samples(name, backend):
    function, x = make(name, backend)
    samples = torch.stack([x, 2 * x, -x])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = vmap(function, in_dims=1, out_dims=1)(samples.movedim(0, 1))
    for i in range(3):
        close(found[:, i], function(samples[i]))


def test_vmap_over_parameters_takes_one_sample_after_the_other():
    problem = problems.make_problem(dtype=torch.float32)
    rates = torch.stack([problem["A"], 2 * problem["A"]])
    found = vmap(lambda A: selective_scan(**problem | {"A": A}))(rates)
    for i in range(2):
        close(found[i], selective_scan(**problem | {"A": rates[i]}))


def test_per_sample_gradients_of_states_are_those_of_each_sample():
    problem = ssd_problems.make_problem(dtype=torch.float64)
    names = [n for n in ssd_problems.TENSORS if problem[n] is not None]
    by_batch = [n for n in ("x", "dt", "B", "C", "z", "initial_state") if problem[n] is not None]

    def loss(sample, A):
        arguments = problem | {n: t.unsqueeze(0) for n, t in sample.items()} | {"A": A}
        return sum(t.square().sum() for t in ssd(**arguments))

    assert set(by_batch) < set(names)
    samples = {n: problem[n] for n in by_batch}
    found = vmap(grad(loss, argnums=1), in_dims=(0, None))(samples, problem["A"])
    A = problem["A"].clone().requires_grad_()
    one = {n: t[1] for n, t in samples.items()}
    (expected,) = torch.autograd.grad(loss(one, A), A)
    close(found[1], expected)


def test_paths_given_to_a_transform_are_walked():
    problem = problems.make_problem(dtype=torch.float64)
    u, paths = problem.pop("u"), problem.pop("paths")

    def loss(u, paths):
        return selective_scan(u, **problem, paths=paths).square().sum()

    found = grad(loss)(u, paths)
    leaf = u.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, paths), leaf)
    close(found, expected)


@pytest.mark.parametrize("mapped", ["both", "paths", "neither"])
def test_vmap_hands_every_sample_its_own_paths(mapped):
    """Tables by sample and batch element, by sample only, or by batch element only."""
    problem = problems.make_problem(batch=2, paths_per_sample=True)
    u = torch.randn(3, *problem["u"].shape, dtype=torch.float64)
    paths = torch.stack([torch.randperm(13) for _ in range(12)]).view(3, 2, 2, 13)
    paths = paths[:, 0] if mapped == "paths" else paths if mapped == "both" else paths[0]
    dims = (0, None if mapped == "neither" else 0)
    found = vmap(lambda u, p: selective_scan(**problem | {"u": u, "paths": p}), in_dims=dims)
    for i, y in enumerate(found(u, paths)):
        own = paths if mapped == "neither" else paths[i]
        close(y, selective_scan(**problem | {"u": u[i], "paths": own}))


def test_a_wrong_argument_is_named_inside_a_transform_too():
    problem = problems.make_problem(dtype=torch.float64)
    u = problem.pop("u")
    with pytest.raises(ValueError, match=r"u has shape \(2, 5, 6\)"):
        grad(lambda u: selective_scan(u, **problem).sum())(u[:, :5])
    with pytest.raises(ValueError, match="backend='cpu' cannot run: u is float64"):
        grad(lambda u: selective_scan(u, **problem, backend="cpu").sum())(u)
