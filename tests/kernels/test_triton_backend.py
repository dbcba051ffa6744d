"""The Triton backend of the selective scan on machines where it cannot run."""

import importlib
import re
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.problems import TENSORS, make_problem
from vimamba_kernels import backends, causal_conv_along_paths, gpu_tasks, selective_scan, ssd
from vimamba_kernels.selective_scan import fused
from vimamba_kernels.selective_scan.op import choose_backend
from vimamba_kernels.ssd import fused as fused_ssd

PROCESSORS = 132


def test_on_a_cpu_it_says_why_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    problem = make_problem(dtype=torch.float32)
    message = "backend='triton' cannot run: u is on cpu; it runs on a GPU only; use 'cpu' or"
    with pytest.raises(ValueError, match=message):
        selective_scan(**problem, backend="triton")


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backends, "_triton_version", lambda: None)
    with pytest.raises(ValueError, match="cannot run: triton is not installed"):
        choose_backend("triton", torch.zeros(1))


@pytest.mark.parametrize("found", ["3.2.0", "2.3.1+rocm6.2"])
def test_a_triton_that_is_too_old_is_named_and_passed_over(found, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backends, "_triton_version", lambda: found)
    message = (
        rf"triton {re.escape(found)} is too old; it takes 3.3 or later; use 'cpu' or 'chunked'"
    )
    with pytest.raises(ValueError, match=message):
        choose_backend("triton", torch.zeros(1))
    assert choose_backend("auto", torch.zeros(1)) == "cpu"
    with FakeTensorMode():
        on_gpu = torch.zeros(1, device="cuda:0")
    backends._warn_of_slowness.cache_clear()
    with pytest.warns(UserWarning, match="3.3 or later; 'chunked' runs on the GPU instead") as seen:
        assert choose_backend("auto", on_gpu) == choose_backend("auto", on_gpu) == "chunked"
    assert len(seen) == 1


@pytest.mark.parametrize("found", ["3.3.0", "3.10.1", "4.0.0+git1234", ""])
def test_later_tritons_are_taken(found, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backends, "_triton_version", lambda: found)
    assert choose_backend("triton", torch.zeros(1)) == "triton"


def test_the_version_is_what_triton_says_itself():
    assert backends._triton_version() == pytest.importorskip("triton").__version__


# launches


class Recorder:
    """Replaces a Triton kernel, and the context that makes a GPU current."""

    def __init__(self, monkeypatch):
        self.current, self.seen = 0, []
        monkeypatch.setattr(torch.cuda, "current_device", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "device", self.enter)

    @contextmanager
    def enter(self, device):
        self.current, before = device.index, self.current
        yield
        self.current = before

    def __getitem__(self, programs):
        return lambda **arguments: self.seen.append((self.current, programs))


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("launcher", ["selective_scan", "path_conv", "ssd"])
def test_a_kernel_runs_on_the_gpu_of_its_tensors(launcher, index, monkeypatch):
    """Triton itself launches on the current GPU, which need not be that of the tensors."""
    recorder = Recorder(monkeypatch)
    module = importlib.import_module(f"vimamba_kernels.{launcher}.fused")
    monkeypatch.setattr(gpu_tasks, "kernel", lambda name: recorder)
    with FakeTensorMode():
        x = torch.empty(3, device=f"cuda:{index}")
    module._launch("any", 7, z=None, K=2, x=x)
    module._launch("any", 0, x=x)
    assert recorder.seen == [(index, (7,))]
    assert recorder.current == 0


def test_in_the_interpreter_it_runs_on_a_cpu_but_not_in_float64(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose_backend("triton", torch.zeros(1)) == "triton"
    with pytest.raises(ValueError, match="u is float64; it computes in float32"):
        choose_backend("triton", torch.zeros(1, dtype=torch.float64))


def test_importing_the_package_imports_no_kernel():
    script = (
        "import sys, vimamba_kernels\n"
        "assert 'vimamba_kernels.selective_scan.fused' in sys.modules\n"
        "assert 'vimamba_kernels.selective_scan.fused_steps' not in sys.modules\n"
        "assert 'vimamba_kernels.path_conv.fused' in sys.modules\n"
        "assert 'vimamba_kernels.ssd.fused' in sys.modules\n"
        "assert 'vimamba_kernels.gpu_kernels' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# plans for the models' sizes on an H200: chains, then K in the grid, then also segments
@pytest.mark.parametrize(
    ("sizes", "blocks", "split", "segments"),
    [
        ((1024, 4, 784, 1), 3, False, 1),
        ((128, 4, 3136, 1), 3, True, 1),
        ((64, 2, 197, 16), 6, True, 1),
        ((8, 2, 197, 16), 6, True, 3),
        # 32 * 3 * 4 programs, of 2112 that fit
        ((32, 4, 3136, 1), 3, True, 5),
        ((1, 4, 65536, 1), 3, True, 176),
        ((1, 2, 6085, 16), 6, True, 88),
        ((1, 4, 49, 1), 12, True, 1),
        ((1, 1, 1, 1), 1, True, 1),
        ((0, 4, 49, 1), 12, True, 1),
    ],
)
def test_the_plan_follows_from_the_number_of_programs(sizes, blocks, split, segments):
    room = PROCESSORS * fused.programs_at_once(sizes[3], backward=False)
    plan = fused.choose_plan(sizes, (64, 8), sizes[0] * blocks, room)
    assert (plan.split, plan.segments) == (split, segments)


def test_fewer_programs_fit_backward():
    plan = fused.choose_plan((32, 4, 3136, 1), (64, 4), 32 * 2, PROCESSORS * 12)
    assert plan.segments == 6
    assert fused.programs_at_once(1, backward=True) == 12


def test_the_other_operators_say_why_they_cannot_run_on_a_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    message = "backend='triton' cannot run: x is on cpu; it runs on a GPU only; use 'cpu' or"
    with pytest.raises(ValueError, match=message):
        causal_conv_along_paths(torch.ones(1, 5, 2), torch.ones(1, 2, 4), backend="triton")
    x, weight, A = torch.ones(1, 5, 2, 3), torch.ones(1, 1, 5, 4), -torch.ones(1, 2)
    with pytest.raises(ValueError, match=message):
        ssd(x, torch.ones(1, 1, 5, 2), A, weight, weight, backend="triton")


def test_a_path_of_more_numbers_than_offsets_can_count_is_refused():
    with pytest.raises(ValueError, match=r"x has 4194304 rows of 512 numbers; expected below"):
        gpu_tasks.check_row_sizes("x", 2**22, 2**9)


# programs without segments, chunks, and the number of segments for them on an H200
@pytest.mark.parametrize(
    ("programs", "chunks", "segments"),
    [(1536, 49, 1), (264, 49, 1), (12, 1024, 22), (12, 49, 12), (96, 4, 1), (0, 4, 1)],
)
def test_few_chains_are_cut_into_segments(programs, chunks, segments):
    assert fused_ssd.choose_segments(programs, chunks, PROCESSORS) == segments


@pytest.mark.parametrize(("n", "rank"), [(1, 6), (16, 24)])
def test_few_operators_of_torch_surround_the_kernels(n, rank, monkeypatch):
    """Each takes some microseconds on the host, for which a small batch waits."""

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **kwargs or {})

    def count(function, *args, **kwargs):
        with torch.no_grad(), Counter() as counter:
            outputs = function(*args, **kwargs)
        return counter.count, outputs

    pytest.importorskip("triton")
    monkeypatch.setattr(gpu_tasks, "launch", lambda *args, **kwargs: None)
    # on a GPU the table's values are not read
    monkeypatch.setattr(fused, "_visits_all", lambda paths, length: True)
    problem = make_problem(dtype=torch.float32, n=n, rank=rank, k=4, channels=64)
    arguments = [problem[name] for name in TENSORS] + [True, problem["paths"], True]
    forward, (y, *saved) = count(fused.forward, *arguments, save=True)
    backward, _ = count(fused.backward, torch.ones_like(y), *arguments, *saved)
    assert forward <= 11
    assert backward <= 42
