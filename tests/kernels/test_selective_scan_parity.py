"""The selective scan against recorded outputs and gradients of the original implementation."""

import numpy as np
import pytest
import torch
from tests.parity.official import HERE, fill, read_manifest

MANIFEST = read_manifest("op_selective_scan")
ARRAYS = np.load(HERE / "op_selective_scan.npz")


def _ours(name, t, batch, length):
    """An input as recorded, channels first and for one direction, in our layout."""
    if name in ("A", "D", "delta_bias"):
        return t.unsqueeze(0)
    if name in ("B", "C") and t.dim() == 2:
        # constant over time, one row for each channel
        return t[None, None, :, None].expand(batch, 1, -1, length, -1)
    t = t.transpose(-1, -2)
    return t if name in ("u", "z") else t.unsqueeze(1)


@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    # the arrays are stored as float32
    [
        ("reference", torch.float64, 1e-6),
        ("chunked", torch.float64, 1e-6),
        ("cpu", torch.float32, 1e-5),
    ],
    ids=["reference", "chunked", "cpu"],
)
@pytest.mark.parametrize("case", MANIFEST["cases"], ids=lambda c: c["case"])
def test_recorded_outputs_and_gradients_are_reproduced(case, backend, dtype, tolerance):
    def recorded(key):
        return torch.from_numpy(ARRAYS[f"{case['case']}.{key}"]).double()

    inputs = {n: recorded(f"in.{n}").to(dtype).requires_grad_() for n in case["inputs"]}
    batch, _, length = inputs["u"].shape
    ours = {name: _ours(name, t, batch, length) for name, t in inputs.items()}
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    y = torch.ops.vimamba.selective_scan(
        *(ours.get(name) for name in names),
        case["options"]["delta_softplus"],
        backend=backend,
    ).transpose(1, 2)
    cotangent = torch.from_numpy(fill.fill_input(tuple(y.shape), "cotangent")).to(dtype)
    grads = torch.autograd.grad(y, list(inputs.values()), cotangent)
    results = {"out": y} | {f"grad.{n}": g for n, g in zip(inputs, grads, strict=True)}
    for key, result in results.items():
        reference = recorded(key)
        error = (result.double() - reference).norm() / reference.norm()
        assert error <= tolerance, f"{key}: {error:.1e}"
