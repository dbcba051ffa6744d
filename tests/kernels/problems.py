"""Random selective-scan problems, and their solution by the definition in float64."""

from functools import cache

import torch

from vimamba_kernels.selective_scan.reference import selective_scan_reference

# arguments with a batch dimension
BY_SAMPLE = ("u", "delta", "B", "C", "z", "initial_state")
TENSORS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_weight")


def make_problem(
    *,
    batch=2,
    k=2,
    length=13,
    channels=6,
    n=3,
    groups=None,
    rank=None,
    steps=None,
    zero_tokens=0,
    paths_per_sample=False,
    u_per_path=False,
    dtype=torch.float64,
    without=(),
    delta_softplus=True,
    seed=0,
):
    """Keyword arguments of `selective_scan`; parameters are float32 unless `dtype` is float64."""
    g = torch.Generator().manual_seed(seed)
    parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    # float32 values in float64 too, so that both have the same expected results
    def normal(*shape, dtype=dtype):
        return torch.randn(shape, generator=g, dtype=torch.float32).to(dtype)

    by_group = (batch, k, length, n) if groups is None else (batch, k, groups, length, n)
    rates = torch.rand(k, channels, n, generator=g) + torch.arange(1, n + 1)
    delta = normal(batch, k, length, rank or channels)
    problem = {
        "u": normal(*((batch, k) if u_per_path else (batch,)), length, channels),
        "delta": delta if delta_softplus else delta.abs(),
        "A": -rates.to(parameter_dtype) / 2,
        "B": normal(*by_group),
        "C": normal(*by_group),
        "D": normal(k, channels, dtype=parameter_dtype),
        "z": normal(batch, length, channels),
        "delta_bias": normal(k, channels, dtype=parameter_dtype) - 1,
        "delta_softplus": delta_softplus,
        "paths": make_paths(k, length, steps, zero_tokens, g),
    }
    if paths_per_sample:
        tables = [make_paths(k, length, steps, zero_tokens, g) for _ in range(batch)]
        problem["paths"] = torch.stack(tables)
    weight = normal(k, channels, rank) / rank**0.5 if rank else None
    if weight is not None and not delta_softplus:
        weight = weight.abs()
    problem["delta_weight"] = weight
    if not delta_softplus:
        problem["delta_bias"] = problem["delta_bias"].abs()
    return problem | dict.fromkeys(without)


def make_paths(k, length, steps, zero_tokens, generator):
    """(K, T) int32: different tokens in random order, the last `zero_tokens` before the end -1."""
    rows = [torch.randperm(length, generator=generator)[:steps] for _ in range(k)]
    paths = torch.stack(rows).int()
    if zero_tokens:
        paths[:, -1 - zero_tokens : -1] = -1
    return paths


def expected(problem, grad, merge=True):
    """Output and gradients by autograd through the loop, in float64."""
    tensors = [problem[name] for name in TENSORS]
    leaves = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    y = _scan(leaves, problem["delta_softplus"], problem["paths"], merge)
    return [y, *_gradients(y, leaves, grad.double())]


def _scan(tensors, softplus, paths, merge):
    """By the definition, separately for each sample if samples have different paths."""
    if paths is None or paths.dim() == 2:
        return selective_scan_reference(*tensors, softplus, paths, merge)[0]
    outputs = []
    for b, table in enumerate(paths):
        named = zip(TENSORS, tensors, strict=True)
        one = [t[b : b + 1] if n in BY_SAMPLE and t is not None else t for n, t in named]
        outputs.append(selective_scan_reference(*one, softplus, table, merge)[0])
    return torch.cat(outputs)


def computed(scan, problem, grad, **options):
    """Output and gradients of `scan`; None for absent arguments."""
    leaves = {
        name: None if problem[name] is None else problem[name].detach().requires_grad_()
        for name in TENSORS
    }
    positional = [leaves.pop(name) for name in TENSORS[:6]]
    rest = {"delta_softplus": problem["delta_softplus"], "paths": problem["paths"]}
    y = scan(*positional, **leaves, **rest, **options)
    return [y, *_gradients(y, [*positional, *leaves.values()], grad)]


def _gradients(y, leaves, grad):
    present = [t for t in leaves if t is not None]
    grads = iter(torch.autograd.grad(y, present, grad))
    return [None if t is None else next(grads) for t in leaves]


def output_gradient(problem, merge=True):
    """A random gradient of the output."""
    u, (batch, k, length, _) = problem["u"], problem["delta"].shape
    channels = u.shape[-1]
    shape = (batch, length, channels) if merge else (batch, k, length, channels)
    g = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=g, dtype=torch.float32).to(u.dtype)


@cache
def _expected_of(size, merge):
    problem = make_problem(**dict(size))
    return expected(problem, output_gradient(problem, merge), merge)


def assert_matches_the_definition(scan, size, dtype, tolerance, merge=True, **options):
    """Output and gradients of `scan` for `make_problem(**size)` in float32 or float64."""
    problem = make_problem(**size, dtype=dtype)
    results = computed(scan, problem, output_gradient(problem, merge), merge=merge, **options)
    assert results[0].dtype == dtype
    assert_close(results, _expected_of(tuple(size.items()), merge), tolerance)


def all_equal(results, others):
    """Whether both are bitwise equal, or None, everywhere."""
    pairs = list(zip(results, others, strict=True))
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


def assert_close(results, references, tolerance):
    """Each result is within `tolerance` of its reference, by relative L2."""
    for name, result, reference in zip(("y", *TENSORS), results, references, strict=True):
        assert (result is None) == (reference is None), name
        if result is not None:
            error = (result.double() - reference).norm() / reference.norm().clamp(min=1e-30)
            assert error <= tolerance, f"{name}: {error:.1e}"
