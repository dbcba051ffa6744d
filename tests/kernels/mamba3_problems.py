"""Random problems for Mamba-3's scan, and its outputs with all gradients."""

import torch

from vimamba_kernels import mamba3_scan
from vimamba_kernels.mamba3.checks import Inputs

TENSORS = Inputs._fields
INITIAL = TENSORS[-4:]
STATELESS = dict.fromkeys(INITIAL) | {"return_states": False}


def make_problem(
    *,
    batch=2,
    k=2,
    length=13,
    heads=4,
    width=3,
    groups=2,
    n=6,
    pairs=2,
    ranks=None,
    norm=False,
    steps=None,
    zero_tokens=0,
    paths_per_sample=False,
    x_per_path=False,
    dtype=torch.float64,
):
    """Keyword arguments of `scan`, states included; only x, B, C and z in half precision."""
    g = torch.Generator().manual_seed(0)
    precise = torch.float64 if dtype == torch.float64 else torch.float32

    def normal(*shape, dtype=precise):
        return torch.randn(shape, generator=g, dtype=torch.float32).to(dtype)

    rows = k * batch if paths_per_sample else k
    paths = torch.stack([torch.randperm(length, generator=g)[:steps] for _ in range(rows)]).int()
    for path in paths:
        path[torch.randperm(len(path), generator=g)[:zero_tokens]] = -1
    by_token = (batch, k, length, heads)
    by_rank = () if ranks is None else (ranks,)
    by_group = (batch, k, length, *by_rank, *(() if groups is None else (groups,)), n)
    weights = (k, heads, *by_rank, width)
    start = (batch, k, heads)
    return {
        "x": normal(*((batch, k) if x_per_path else (batch,)), length, heads, width, dtype=dtype),
        "dt": torch.nn.functional.softplus(normal(*by_token) - 1),
        "log_decay": -normal(*by_token).abs() / 4,
        "trap": normal(*by_token),
        "B": normal(*by_group, dtype=dtype),
        "C": normal(*by_group, dtype=dtype),
        "angles": normal(*by_token, pairs),
        "D": normal(k, heads),
        "z": normal(batch, length, heads, width, dtype=dtype),
        "B_bias": normal(k, heads, *by_rank, n) + 1,
        "C_bias": normal(k, heads, *by_rank, n) + 1,
        "mimo_x": None if ranks is None else normal(*weights),
        "mimo_z": None if ranks is None else normal(*weights),
        "mimo_o": None if ranks is None else normal(*weights),
        "norm_weight": normal(k, heads, width) if norm else None,
        "initial_state": normal(*start, width, n),
        "initial_angle": normal(*start, pairs).abs(),
        "initial_b": normal(*start, *by_rank, n),
        "initial_x": normal(*start, *by_rank, width),
        "paths": paths.unflatten(0, (batch, k)) if paths_per_sample else paths,
        "return_states": True,
    }


def scan(problem, **options):
    """`mamba3_scan` of a problem: its output and, if requested, the four states."""
    arguments = {**problem, **options}
    initial = [arguments.pop(name) for name in INITIAL]
    given = None if all(t is None for t in initial) else initial
    found = mamba3_scan(**arguments, initial_states=given)
    return (found[0], *found[1]) if arguments["return_states"] else (found,)


def with_gradients(problem, **options):
    """Outputs and the gradients of all tensors, for fixed random gradients of the outputs."""
    leaves = {n: problem[n].detach().requires_grad_() for n in TENSORS if problem[n] is not None}
    outputs = scan({**problem, **leaves}, **options)
    g = torch.Generator().manual_seed(1)
    # in the dtype of the problem first, so that all dtypes have the same values
    drawn = [torch.randn(y.shape, generator=g, dtype=torch.float32) for y in outputs]
    grads = [t.to(problem["x"].dtype).to(y.dtype) for t, y in zip(drawn, outputs, strict=True)]
    found = torch.autograd.grad(outputs, list(leaves.values()), grads)
    return [*outputs, *found]


def defined(problem, **options):
    """The expected result of `with_gradients`: the loop in float64."""
    wide = {n: t.double() for n in TENSORS if (t := problem[n]) is not None}
    return with_gradients(problem | wide, **options, backend="reference")


def assert_close(results, references, tolerance):
    for i, (result, reference) in enumerate(zip(results, references, strict=True)):
        assert result.shape == reference.shape
        error = (result.double() - reference).norm()
        assert error <= tolerance * reference.norm(), f"{i}: {error / reference.norm():.1e}"
