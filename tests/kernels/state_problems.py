"""Random selective scans from an initial to a last state, and their solution by the definition."""

import torch

from tests.kernels.problems import BY_SAMPLE, TENSORS, make_problem
from vimamba_kernels import selective_scan
from vimamba_kernels.selective_scan.reference import selective_scan_reference


def with_state(**size):
    """A problem and an initial state."""
    problem = make_problem(**size)
    g = torch.Generator().manual_seed(2)
    dtype = problem["A"].dtype
    shape = (*problem["delta"].shape[:2], *problem["A"].shape[1:])
    return problem | {
        "initial_state": torch.randn(shape, generator=g, dtype=torch.float32).to(dtype)
    }


def gradients(outputs, leaves):
    g = torch.Generator().manual_seed(3)
    drawn = [torch.randn(y.shape, generator=g, dtype=torch.float32).to(y.dtype) for y in outputs]
    return torch.autograd.grad(outputs, [t for t in leaves if t is not None], drawn)


def computed(problem, **options):
    """The output, the last state, and gradients of all tensors."""
    names = (*TENSORS, "initial_state")
    leaves = {
        n: problem[n] if problem[n] is None else problem[n].detach().requires_grad_() for n in names
    }
    outputs = selective_scan(**problem | leaves, return_state=True, **options)
    return [*outputs, *gradients(outputs, leaves.values())]


def expected(problem, merge):
    """By autograd through the loop in float64, separately for samples with different paths."""
    names = (*TENSORS, "initial_state")
    tensors = [problem[n] for n in names]
    leaves = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    paths, softplus = problem["paths"], problem["delta_softplus"]
    by_sample = paths is not None and paths.dim() == 3
    outputs = []
    for b in range(len(paths) if by_sample else 1):
        one = list(leaves)
        for i, n in enumerate(names):
            if by_sample and n in BY_SAMPLE:
                one[i] = None if leaves[i] is None else leaves[i][b : b + 1]
        table = paths[b] if by_sample else paths
        outputs.append(selective_scan_reference(*one[:9], softplus, table, merge, one[9]))
    outputs = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
    return [*outputs, *gradients(outputs, leaves)]


def assert_close(results, references, tolerance):
    for i, (result, reference) in enumerate(zip(results, references, strict=True)):
        assert result.shape == reference.shape
        error = (result.double() - reference).norm() / reference.norm().clamp(min=1e-30)
        assert error <= tolerance, (i, error.item())
