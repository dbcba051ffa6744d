"""The numba backend of the selective scan: memory, threads, forks, caching."""

import os
import subprocess
import sys

import pytest
import torch

from tests.kernels.problems import (
    all_equal,
    computed,
    expected,
    make_problem,
    output_gradient,
)
from vimamba_kernels import selective_scan

SIZES = [
    {"length": 70, "n": 5, "channels": 100, "zero_tokens": 3, "steps": 66},
    {"length": 70, "n": 1, "channels": 100, "zero_tokens": 3, "steps": 66},
    {"length": 40, "n": 16, "channels": 200, "groups": 2, "u_per_path": True},
    {"length": 70, "n": 1, "channels": 100, "rank": 6},
]
sizes = pytest.mark.parametrize("size", SIZES, ids=["N5", "N1", "N16_groups", "N1_all_visited"])


@pytest.fixture
def threads():
    """Set the number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def solve(size, merge=True):
    problem = make_problem(**size, dtype=torch.float32)
    grad = output_gradient(problem, merge)
    return computed(selective_scan, problem, grad, merge=merge, backend="cpu")


def assert_equal(results, others):
    assert all_equal(results, others)


@sizes
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "separate"])
def test_memory_that_is_not_zero_at_first_changes_nothing(monkeypatch, size, merge):
    clean = solve(size, merge)
    empty = torch.empty

    def poisoned(*args, **kwargs):
        t = empty(*args, **kwargs)
        return t.fill_(torch.nan) if t.is_floating_point() else t

    monkeypatch.setattr(torch, "empty", poisoned)
    assert torch.empty(1).isnan()
    assert_equal(solve(size, merge), clean)


@sizes
def test_results_are_bit_equal_every_time_and_for_any_number_of_threads(threads, size):
    threads(1)
    first = solve(size)
    for count in (1, 2, 3, 2):
        threads(count)
        assert_equal(solve(size), first)


@sizes
@pytest.mark.parametrize("merge", [True, False], ids=["merged", "separate"])
@pytest.mark.parametrize("strided", [False, True], ids=["plain", "half_of_a_projection"])
def test_the_gate_in_the_kernel_is_the_one_outside(size, merge, strided):
    problem = make_problem(**size, dtype=torch.float32)
    if strided:
        problem["z"] = torch.cat([problem["z"]] * 2, dim=-1).chunk(2, dim=-1)[1]
        assert not problem["z"].is_contiguous()
    plain = selective_scan(**problem | {"z": None}, merge=False, backend="cpu")
    gate = torch.nn.functional.silu(problem["z"])
    gated = selective_scan(**problem, merge=merge, backend="cpu")
    expected = plain.sum(1) * gate if merge else plain * gate.unsqueeze(1)
    torch.testing.assert_close(gated, expected)


@pytest.mark.parametrize("inference", [False, True])
def test_a_table_changed_in_place_is_read_again(inference):
    problem = make_problem(length=9, dtype=torch.float32)
    with torch.inference_mode(inference):
        problem["paths"] = paths = problem["paths"].clone()
        first = selective_scan(**problem, backend="cpu")
        paths.copy_(paths.flip(1))
        turned = selective_scan(**problem, backend="cpu")
        expected = selective_scan(**problem | {"paths": paths.clone()}, backend="cpu")
        torch.testing.assert_close(turned, expected)
        assert not torch.allclose(turned, first)
        paths[0, 0] = 9
        with pytest.raises(ValueError, match="paths holds values from"):
            torch.ops.vimamba.selective_scan(*_in_order(problem), "cpu")


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("channels", [1, 15, 17, 97])
def test_channels_that_do_not_fill_a_vector_agree_with_the_definition(channels, n):
    sizes = {"channels": channels, "n": n, "length": 37, "zero_tokens": 2, "rank": 5}
    problem = make_problem(**sizes, dtype=torch.float32)
    grad = output_gradient(problem)
    ours = computed(selective_scan, problem, grad, backend="cpu")
    for result, right in zip(ours, expected(problem, grad), strict=True):
        # float32 sums of up to 97 channels and 37 steps
        assert (result - right).norm() <= 2e-6 * right.norm()


def test_an_infinite_input_spoils_only_its_own_channel():
    problem = make_problem(channels=17, length=9, dtype=torch.float32, zero_tokens=2)
    clean = selective_scan(**problem, backend="cpu")
    problem["u"][:, :, 16] = torch.inf
    spoiled = selective_scan(**problem, backend="cpu")
    assert torch.equal(spoiled[..., :16], clean[..., :16])
    assert not spoiled[..., 16].isfinite().any()


def test_denormal_numbers_are_flushed_in_kernels_only():
    denormal = torch.tensor(1e-39)
    problem = make_problem(channels=16, length=9, dtype=torch.float32)
    problem |= {"u": problem["u"] * denormal, "z": None}
    assert (selective_scan(**problem, backend="cpu") == 0).all()
    assert denormal * 2 > 0


def _in_order(problem):
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_weight", "delta_softplus")
    return (*(problem[name] for name in names), problem["paths"], True)


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's OpenMP is GNU's on Linux")
def test_the_kernels_run_in_the_threads_of_pytorch(threads):
    from vimamba_kernels import cpu_tasks

    assert cpu_tasks._find_openmp() is not None
    threads(2)
    solve(SIZES[0])
    assert cpu_tasks._pool is None


@sizes
def test_a_pool_of_threads_computes_the_same_where_there_is_no_openmp(monkeypatch, threads, size):
    from vimamba_kernels import cpu_tasks

    threads(3)
    first = solve(size)
    monkeypatch.setattr(cpu_tasks, "_find_openmp", lambda: None)
    monkeypatch.setattr(cpu_tasks, "_pool", None)
    assert_equal(solve(size), first)
    assert cpu_tasks._pool is not None


def python(code, **environment):
    """Run a script in a separate process; returns the output of both streams."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=root,
        env=os.environ | environment,
    )


PROBLEM = """
import os, sys, torch
from tests.kernels.problems import all_equal, computed, make_problem, output_gradient
from vimamba_kernels import selective_scan

def solve(n=16):
    problem = make_problem(length=40, n=n, channels=200, dtype=torch.float32)
    return computed(selective_scan, problem, output_gradient(problem), backend="cpu")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_forked_children_and_workers_of_a_data_loader_compute_the_same():
    code = """
torch.set_num_threads(2)
before = solve()
child = os.fork()
if child == 0:
    same = all_equal(before, solve())
    os._exit(0 if same else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert all_equal(before, solve())

class Scans(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return solve()[0].detach()

first = before[0].detach()
loader = torch.utils.data.DataLoader(
    Scans(), batch_size=1, num_workers=2, multiprocessing_context="fork"
)
assert all(torch.equal(batch[0], first) for batch in loader)
"""
    python(PROBLEM + code)


DIGEST = """
import hashlib
numbers = [t.detach().numpy().tobytes() for t in tensors]
print(hashlib.sha256(b"".join(numbers)).hexdigest())
"""
FORWARD = """
problems = [make_problem(length=40, n=1, channels=c, dtype=torch.float32) for c in (200, 8)]
tensors = [selective_scan(**problem, backend="cpu") for problem in problems]
"""
BACKWARD = "tensors = [t for n in (1, 8) for t in solve(n=n) if t is not None]"


def announced(run):
    """Kernels that were compiled, ignoring messages of other packages."""
    return [line for line in run.stderr.splitlines() if "compiling a CPU kernel" in line]


def test_compiling_is_announced_once_and_cached_on_disk(tmp_path):
    code = PROBLEM + FORWARD + DIGEST
    first, later = (python(code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    (line,) = announced(first)
    assert "(forward)" in line
    assert announced(later) == []
    # bitwise, as promised for resumed runs, which find the kernels compiled
    assert first.stdout == later.stdout


@pytest.mark.slow
def test_the_run_that_compiles_has_the_gradients_that_later_runs_have(tmp_path):
    code = PROBLEM + BACKWARD + DIGEST
    first, later = (python(code, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert announced(first)
    assert announced(later) == []
    assert first.stdout == later.stdout


def test_a_cache_that_cannot_be_written_does_no_harm(monkeypatch, capsys):
    from vimamba_kernels import cpu_math, cpu_tasks

    class Unwritable:
        def __init__(self, kernel):
            self.__wrapped__ = kernel.__wrapped__

        def compile(self):
            raise OSError("No space left on device")

    monkeypatch.setattr(cpu_math, "cached", Unwritable)
    monkeypatch.setattr(cpu_tasks, "_fill_cache", lambda module, name: None)
    module = "vimamba_kernels.selective_scan.cpu_forward"
    assert callable(cpu_tasks.compile_kernel(module, "forward"))
    assert "compiling" in capsys.readouterr().err


def test_a_missing_cache_directory_does_no_harm(monkeypatch):
    from vimamba_kernels import cpu_math

    def fail(kernel):
        raise RuntimeError("cannot cache function: no locator available")

    def nothing(frame):
        pass

    monkeypatch.setattr(cpu_math.CFunc, "enable_caching", fail)
    kernel = cpu_math.cached(cpu_math.kernel(nothing))
    kernel.compile()
    assert kernel.address
