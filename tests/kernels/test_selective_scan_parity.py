"""The selective scan against recorded outputs and gradients of the original implementation."""

import numpy as np
import pytest
import torch

from tests.parity.official import HERE, fill, read_manifest
from vimamba_kernels import selective_scan

MANIFEST = read_manifest("op_selective_scan")
ARRAYS = np.load(HERE / "op_selective_scan.npz")


def _in_our_layout(inputs):
    """Inputs as recorded, channels first and for one direction, as (B, K, L, ...)."""
    batch, channels, length = inputs["u"].shape
    static = any(inputs[name].dim() == 2 for name in "BC")
    ours = {}
    for name, t in inputs.items():
        if name in ("A", "D", "delta_bias"):
            ours[name] = t.unsqueeze(0)
        elif name in "BC" and t.dim() == 2:
            # constant over time, one row for each channel
            ours[name] = t[None, None, :, None].expand(batch, 1, -1, length, -1)
        elif name in "BC" and static:
            ours[name] = t.transpose(1, 2)[:, None, None].expand(-1, 1, channels, -1, -1)
        elif name in ("u", "z"):
            ours[name] = t.transpose(1, 2)
        else:
            ours[name] = t.transpose(-1, -2).unsqueeze(1)
    return ours


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
    ours = _in_our_layout(inputs)
    softplus = case["options"]["delta_softplus"]
    y = selective_scan(**ours, delta_softplus=softplus, backend=backend).transpose(1, 2)
    cotangent = torch.from_numpy(fill.fill_input(tuple(y.shape), "cotangent")).to(dtype)
    grads = torch.autograd.grad(y, list(inputs.values()), cotangent)
    results = {"out": y} | {f"grad.{n}": g for n, g in zip(inputs, grads, strict=True)}
    for key, result in results.items():
        reference = recorded(key)
        error = (result.double() - reference).norm()
        assert error <= tolerance * reference.norm(), f"{key}: {error:.1e}"
