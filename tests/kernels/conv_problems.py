"""Random problems for the convolution along paths, and a loop over tokens that defines it."""

import torch
import torch.nn.functional as F


def make_problem(
    *,
    batch=2,
    k=2,
    length=13,
    channels=6,
    taps=4,
    dtype=torch.float64,
    steps=None,
    zero_tokens=0,
    paths_per_sample=False,
):
    """Keyword arguments of `causal_conv_along_paths`; parameters at least float32."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float32)

    parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    rows = k * batch if paths_per_sample else k
    paths = torch.stack([torch.randperm(length, generator=g)[:steps] for _ in range(rows)]).int()
    for path in paths:
        path[torch.randperm(len(path), generator=g)[:zero_tokens]] = -1
    return {
        "x": normal(batch, length, channels).to(dtype),
        "weight": normal(k, channels, taps).to(parameter_dtype),
        "bias": normal(k, channels).to(parameter_dtype),
        "paths": paths.unflatten(0, (batch, k)) if paths_per_sample else paths,
        "activation": "silu",
    }


def convolve_by_loop(x, weight, bias, paths, activation):
    """The definition, token by token."""
    if paths is not None and paths.dim() == 3:
        pairs = zip(x.split(1), paths, strict=True)
        return torch.cat([convolve_by_loop(x, weight, bias, p, activation) for x, p in pairs])
    batch, length, channels = x.shape
    k, _, taps = weight.shape
    y = torch.zeros(batch, k, length, channels, dtype=x.dtype)
    table = range(length) if paths is None else None
    for p in range(k):
        path = list(table or paths[p].tolist())
        for t, token in enumerate(path):
            if token < 0:
                continue
            total = torch.zeros(channels, dtype=x.dtype) if bias is None else bias[p]
            total = total.expand(batch, -1)
            for lag in range(min(taps, t + 1)):
                if path[t - lag] >= 0:
                    total = total + weight[p, :, taps - 1 - lag] * x[:, path[t - lag]]
            y[:, p, token] = F.silu(total) if activation else total
    return y


def output_gradient(problem):
    x, k = problem["x"], problem["weight"].shape[0]
    g = torch.Generator().manual_seed(1)
    shape = (x.shape[0], k, *x.shape[1:])
    return torch.randn(shape, generator=g, dtype=torch.float32).to(x.dtype)


def with_gradients(function, problem, grad):
    """Output and gradients of x, weight and bias."""
    names = [n for n in ("x", "weight", "bias") if problem[n] is not None]
    leaves = {n: problem[n].detach().requires_grad_() for n in names}
    y = function(**{**problem, **leaves})
    return [y, *torch.autograd.grad(y, list(leaves.values()), grad)]


def expected(problem, grad):
    tensors = {n: problem[n] for n in ("x", "weight", "bias")}
    wide = {n: None if t is None else t.double() for n, t in tensors.items()}
    return with_gradients(convolve_by_loop, {**problem, **wide}, grad.double())


def assert_close(results, references, tolerance):
    for result, reference in zip(results, references, strict=True):
        assert result.shape == reference.shape
        error = (result.double() - reference).norm()
        assert error <= tolerance * reference.norm(), f"{error / reference.norm():.1e}"
