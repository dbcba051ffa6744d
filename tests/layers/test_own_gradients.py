"""Products and norms with a gradient of their own: the same as autograd's."""

import pytest
import timm.layers
import torch

from vimamba.layers.own_gradients import RmsNorm, multiply_paths


def wide(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def norm(x, weight):
    module = RmsNorm(x.shape[-1], eps=1e-5, dtype=torch.float64)
    return torch.func.functional_call(module, {"weight": weight}, (x,))


CASES = [(multiply_paths, ((2, 3, 5, 4), (3, 6, 4))), (norm, ((2, 5, 4), (4,)))]


@pytest.mark.parametrize(("function", "shapes"), CASES)
def test_both_derivatives_are_right(function, shapes):
    torch.manual_seed(0)
    inputs = tuple(wide(*shape) for shape in shapes)
    assert function(*inputs).grad_fn.name().startswith(("_PathProduct", "_RmsNorm"))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize(("function", "shapes"), CASES)
def test_transforms_find_the_same_gradients(function, shapes):
    torch.manual_seed(0)
    inputs = tuple(wide(*shape) for shape in shapes)
    expected = torch.autograd.grad(function(*inputs).square().sum(), inputs)
    square = lambda *tensors: function(*tensors).square().sum()  # noqa: E731
    for got, want in zip(torch.func.grad(square, (0, 1))(*inputs), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_frozen_tokens_get_no_gradient():
    tokens, weights = wide(2, 3, 5, 4).detach(), wide(3, 6, 4)
    multiply_paths(tokens, weights).sum().backward()
    torch.testing.assert_close(weights.grad, tokens.sum((0, 2)).unsqueeze(1).expand_as(weights))


@pytest.mark.parametrize("train", [False, True])
def test_the_norm_is_timms(train):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    ours, timms = RmsNorm(8, eps=1e-5), timm.layers.RmsNorm(8, eps=1e-5)
    with torch.set_grad_enabled(train):
        # rounding of float32
        torch.testing.assert_close(ours(x), timms(x), rtol=1e-6, atol=1e-6)


def test_denormals_are_flushed_in_products_of_gradients_only():
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormals")
    tokens, weights = torch.ones(1, 1, 1, 1, requires_grad=True), torch.full((1, 1, 1), 2.0**-20)
    y = multiply_paths(tokens, weights.requires_grad_())
    (found,) = torch.autograd.grad(y, tokens, torch.full_like(y, 2.0**-120))
    assert found.item() == 0.0
    assert (torch.tensor(2.0**-120) * 2.0**-20).item() != 0.0
