"""Random problems for Mamba-2's scan, and a loop over paths, heads and tokens that defines it."""

import torch

TENSORS = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state")
STATELESS = {"initial_state": None, "return_state": False}


def make_problem(
    *,
    batch=2,
    k=2,
    length=13,
    heads=4,
    width=3,
    groups=2,
    n=5,
    steps=None,
    zero_tokens=0,
    paths_per_sample=False,
    x_per_path=False,
    dtype=torch.float64,
):
    """Keyword arguments of `ssd`, states included; parameters at least float32."""
    g = torch.Generator().manual_seed(0)
    parameter_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    # float32 values in float64 too, so that both have the same expected results
    def normal(*shape, dtype=dtype):
        return torch.randn(shape, generator=g, dtype=torch.float32).to(dtype)

    rows = k * batch if paths_per_sample else k
    paths = torch.stack([torch.randperm(length, generator=g)[:steps] for _ in range(rows)]).int()
    for path in paths:
        path[torch.randperm(len(path), generator=g)[:zero_tokens]] = -1
    by_group = (batch, k, length, n) if groups is None else (batch, k, length, groups, n)
    return {
        "x": normal(*((batch, k) if x_per_path else (batch,)), length, heads, width),
        "dt": normal(batch, k, length, heads),
        "A": (-torch.rand(k, heads, generator=g) - 0.1).to(parameter_dtype),
        "B": normal(*by_group),
        "C": normal(*by_group),
        "D": normal(k, heads, width, dtype=parameter_dtype),
        "z": normal(batch, length, heads, width),
        "dt_bias": (normal(k, heads, dtype=torch.float32) - 1).to(parameter_dtype),
        "dt_softplus": True,
        "initial_state": normal(batch, k, heads, width, n, dtype=parameter_dtype),
        "paths": paths.unflatten(0, (batch, k)) if paths_per_sample else paths,
        "return_state": True,
    }


def scan_by_hand(problem, merge=True):
    """The definition, path by path and head by head, in float64."""
    if problem["paths"] is not None and problem["paths"].dim() == 3:
        ones = [_sample(problem, b) for b in range(len(problem["paths"]))]
        return tuple(map(torch.cat, zip(*(scan_by_hand(p, merge) for p in ones), strict=True)))
    p = {n: v.double() if n in TENSORS and v is not None else v for n, v in problem.items()}
    batch, k, length, heads = p["dt"].shape
    x, z, D = p["x"], p["z"], p["D"]
    B, C = (p[n] if p[n].dim() == 5 else p[n].unsqueeze(3) for n in "BC")
    outputs, states = [], []
    for i in range(k):
        path = range(length) if p["paths"] is None else p["paths"][i].tolist()
        tokens = x if x.dim() == 4 else x[:, i]
        rows, finals = {}, []
        for head in range(heads):
            group = head // (heads // B.shape[3])
            start = p["initial_state"]
            h = tokens.new_zeros(batch, tokens.shape[-1], B.shape[-1])
            h = h if start is None else start[:, i, head]
            for token in path:
                size = p["dt"][:, i, token, head] if token >= 0 else tokens.new_zeros(batch)
                size = size if p["dt_bias"] is None else size + p["dt_bias"][i, head]
                size = torch.nn.functional.softplus(size) if p["dt_softplus"] else size
                if p.get("dt_limit") is not None:
                    size = size.clamp(*p["dt_limit"])
                h = (size * p["A"][i, head]).exp()[:, None, None] * h
                if token < 0:
                    continue
                write = tokens[:, token, head, :, None] * B[:, i, token, group, None, :]
                h = h + size[:, None, None] * write
                y = (h * C[:, i, token, group, None, :]).sum(-1)
                rows[token, head] = y if D is None else y + D[i, head] * tokens[:, token, head]
            finals.append(h)
        none = tokens.new_zeros(batch, tokens.shape[-1])
        by_token = [[rows.get((t, h), none) for h in range(heads)] for t in range(length)]
        outputs.append(torch.stack([torch.stack(r, dim=1) for r in by_token], dim=1))
        states.append(torch.stack(finals, dim=1))
    y = sum(outputs) if merge else torch.stack(outputs, dim=1)
    if z is not None:
        gate = torch.nn.functional.silu(z)
        y = y * (gate if merge else gate.unsqueeze(1))
    return y, torch.stack(states, dim=1)


def _sample(problem, b):
    by_sample = ("x", "dt", "B", "C", "z", "initial_state")
    one = {n: problem[n][b : b + 1] for n in by_sample if problem[n] is not None}
    return problem | one | {"paths": problem["paths"][b]}


def with_gradients(function, problem):
    """Outputs and the gradients of all tensors, for fixed random gradients of the outputs."""
    leaves = {n: problem[n].detach().requires_grad_() for n in TENSORS if problem[n] is not None}
    outputs = function({**problem, **leaves})
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    outputs = outputs if problem["return_state"] else outputs[:1]
    g = torch.Generator().manual_seed(1)
    # in the dtype of the problem first, so that all dtypes have the same values
    drawn = [torch.randn(y.shape, generator=g, dtype=torch.float32) for y in outputs]
    grads = [t.to(problem["x"].dtype).to(y.dtype) for t, y in zip(drawn, outputs, strict=True)]
    return outputs + list(torch.autograd.grad(outputs, list(leaves.values()), grads))


def assert_close(results, references, tolerance):
    for result, reference in zip(results, references, strict=True):
        assert result.shape == reference.shape
        error = (result.double() - reference).norm()
        assert error <= tolerance * reference.norm(), f"{error / reference.norm():.1e}"
