"""The CPU kernels under any defaults of torch, and with non-finite numbers."""

import pickle

import numpy as np
import pytest
import torch

from tests.kernels import conv_problems, problems, ssd_problems
from vimamba_kernels import causal_conv_along_paths, selective_scan, ssd

OTHERS = [torch.float64, torch.bfloat16]


def scan(problem, backend):
    grad = problems.output_gradient(problem)
    return problems.computed(selective_scan, problem, grad, backend=backend)


def convolve(problem, backend):
    grad = conv_problems.output_gradient(problem)
    return conv_problems.with_gradients(
        lambda **kwargs: causal_conv_along_paths(**kwargs, backend=backend), problem, grad
    )


def scan_heads(problem, backend):
    return ssd_problems.with_gradients(lambda p: ssd(**p, backend=backend), problem)


CASES = {
    "selective_scan": (scan, lambda: problems.make_problem(dtype=torch.float32, without=("D",))),
    "projected": (scan, lambda: problems.make_problem(dtype=torch.float32, rank=3)),
    "path_conv": (convolve, lambda: conv_problems.make_problem(dtype=torch.float32)),
    "ssd": (
        scan_heads,
        lambda: ssd_problems.make_problem(dtype=torch.float32) | ssd_problems.STATELESS,
    ),
}


@pytest.mark.parametrize("default", OTHERS, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_the_default_dtype_changes_no_number(name, backend, default):
    if (name, backend) == ("path_conv", "chunked"):
        pytest.skip("the convolution has no such backend")
    run, make = CASES[name]
    problem = make()
    expected = run(problem, backend)
    try:
        torch.set_default_dtype(default)
        found = run(problem, backend)
    finally:
        torch.set_default_dtype(torch.float32)
    # the same numbers in the same process
    assert problems.all_equal(found, expected)


@pytest.mark.parametrize("tensor", ["u", "delta", "z", "grad"])
@pytest.mark.parametrize("n", [1, 3, 7, 16])
def test_a_nan_stays_in_its_channel(n, tensor):
    problem = problems.make_problem(n=n, dtype=torch.float32, length=40, zero_tokens=3)
    grad = problems.output_gradient(problem)
    bad = grad if tensor == "grad" else problem[tensor]
    bad[(0,) * (bad.dim() - 2) + (20, 2)] = torch.nan
    results = {
        backend: problems.computed(selective_scan, problem, grad, backend=backend)
        for backend in ("cpu", "chunked", "reference")
    }
    for backend in ("cpu", "chunked"):
        pairs = zip(results[backend], results["reference"], strict=True)
        for found, expected in pairs:
            if found is not None:
                assert torch.equal(found.isnan(), expected.isnan())


@pytest.mark.parametrize("taps", [2, 3, 4, 5])
def test_a_nan_stays_within_the_taps_of_the_convolution(taps):
    problem = conv_problems.make_problem(taps=taps, dtype=torch.float32, length=20)
    problem["x"][0, 10, 2] = torch.nan
    pairs = zip(convolve(problem, "cpu"), convolve(problem, "reference"), strict=True)
    for found, expected in pairs:
        assert torch.equal(found.isnan(), expected.isnan())


@pytest.mark.parametrize("backend", ["cpu", "chunked", "reference"])
def test_the_gate_has_a_gradient_wherever_the_output_is_finite_in_float16(backend):
    half = {"dtype": torch.float16}
    u, B = torch.full((1, 3, 16), 300.0, **half), torch.full((1, 1, 3, 1), 300.0, **half)
    delta, C = torch.ones(1, 1, 3, 16, **half), torch.ones(1, 1, 3, 1, **half)
    z = torch.full((1, 3, 16), -4.0, **half).requires_grad_()
    y = selective_scan(u, delta, -torch.ones(1, 16, 1), B, C, z=z, backend=backend)
    y.backward(torch.full_like(y, 1e-3))
    assert y.isfinite().all()
    # at the first step 300 * 300 is read, and silu'(-4) is -0.0527
    torch.testing.assert_close(z.grad[0, 0, 0].item(), -0.0527 * 90, rtol=5e-3, atol=0)
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("way", ["numpy", "data"])
@pytest.mark.parametrize("name", ["selective_scan", "path_conv", "ssd"])
def test_a_table_changed_behind_the_back_of_torch_is_read_again(name, way):
    run, make = CASES[name]
    problem = make()
    paths = problem["paths"]
    run(problem, "cpu")
    turned = paths.flip(1).clone()
    if way == "numpy":
        np.copyto(paths.numpy(), turned.numpy())
    else:
        paths.data[:] = turned
    expected = run(problem | {"paths": turned}, "cpu")
    assert problems.all_equal(run(problem, "cpu"), expected)
    paths.numpy()[0, 1] = paths.numpy()[0, 0]
    with pytest.raises(ValueError, match=r"paths\[0\] visits token \d+ again"):
        run(problem, "cpu")


@pytest.mark.parametrize(
    "damage",
    [b"", b"\x80", bytes(range(256)), pickle.dumps({"a": 1}), "half", "flipped", "folder"],
    ids=["empty", "short", "garbage", "foreign", "half", "flipped", "folder"],
)
@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_damaged_cache_is_dropped_and_nothing_else(tmp_path, monkeypatch, kind, damage):
    from numba.core import config

    from vimamba_kernels import cpu_math, cpu_tasks

    def nothing(frame):
        pass

    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    cpu_math.cached(cpu_math.kernel(nothing)).compile()
    (file,) = tmp_path.rglob(f"*.{kind}")
    bystander = file.with_name("other.1.nbc")
    bystander.write_bytes(b"other")
    content = file.read_bytes()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    elif damage == "half":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 255]) + content[-8:])
    else:
        file.write_bytes(damage)
    kernel = cpu_math.cached(cpu_math.kernel(nothing))
    assert not cpu_tasks._is_cached(kernel)
    assert bystander.exists()
    if damage == "folder":
        assert file.is_dir()
        return
    kernel.compile()
    assert kernel.address
    assert cpu_tasks._is_cached(cpu_math.cached(cpu_math.kernel(nothing)))
