"""Times whole models and the usual alternatives at several image sizes."""

import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import vimamba  # noqa: F401  registers the models
from vimamba.benchmark.timing import Result, Run, take_turns
from vimamba.sizes import ImageSize, by_sides, height_and_width, read_size

MODELS = (
    "vmamba_tiny_s1l8",
    "vim_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
    "mambaout_tiny",
)


def make_model(name: str, size: ImageSize) -> nn.Module:
    """A model for images of one size, on the GPU if there is one."""
    cfg: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
    sized = cfg is not None and cfg.fixed_input_size
    extra: dict[str, Any] = {"img_size": read_size(size)} if sized else {}
    model = timm.create_model(name, **extra)
    return model.cuda() if torch.cuda.is_available() else model


def make_run(name: str, size: ImageSize, batch: int, train: bool) -> Run:
    """A step of inference, or of training without the optimizer."""
    model = make_model(name, size).train(train)
    weight = next(model.parameters())
    sides = height_and_width(size)
    image = torch.randn(batch, 3, *sides, dtype=weight.dtype, device=weight.device)
    precision = torch.autocast("cuda", torch.bfloat16, enabled=image.is_cuda)

    def run() -> object:
        with torch.set_grad_enabled(train), precision:
            logits = model(image)
        if train:
            model.zero_grad()
            logits.float().square().mean().backward()
        return logits

    return run


def peak_memory(name: str, size: ImageSize, batch: int, train: bool) -> float | None:
    """Peak MiB that a step adds in a separate process; None if it cannot be measured.

    The process first runs a step with a small image, so code that is loaded once, such as compiled
    kernels, does not count.
    """
    if not torch.cuda.is_available() and not Path("/proc/self/statm").exists():
        return None
    arguments = json.dumps([name, size, batch, train])
    command = [sys.executable, "-m", "vimamba.benchmark.models", arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def _print_peak_memory(name: str, size: ImageSize, batch: int, train: bool) -> None:
    make_run(name, 96, 1, train)()
    print(added_memory(make_run(name, size, batch, train)))


def count_operations(run: Run) -> float:
    """Operations of a call, as papers count them: a multiplication and an addition are one.

    torch counts them as two; what vimamba's own operators count stays as it is.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return sum(
        count if "vimamba" in str(operator) else count / 2
        for operator, count in counter.get_flop_counts()["Global"].items()
    )


def added_memory(run: Run) -> float:
    """Peak MiB of a call, on the GPU or (Linux) of this process beyond its current memory."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 2**20
    give_back()
    before = _resident()
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak.append(max(peak.pop(), _resident()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return (peak[0] - before) / 2**20


def give_back() -> None:
    """Return to the system what was freed and would be taken again unseen (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _resident() -> int:
    """Resident bytes of this process (Linux)."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def benchmark_models(
    names: Sequence[str], sizes: Sequence[ImageSize], *, batch: int, train: bool, seconds: float
) -> Iterator[list[Result]]:
    """Time the models at every size, yielding the results of each size when available.

    Args:
        names: timm names; ratios refer to the first.
        sizes: Image sizes, pixels.
        batch: Images per step.
        train: Forward and backward instead of forward.
        seconds: About how long per size.
    """
    for size in sizes:
        runs = {name: make_run(name, size, batch, train) for name in names}
        case = f"{by_sides(size)} px, batch {batch}, {'training' if train else 'inference'}"
        results = take_turns(case, runs, seconds=seconds, least=3)
        del runs
        yield [replace(r, memory=peak_memory(r.candidate, size, batch, train)) for r in results]


if __name__ == "__main__":
    _print_peak_memory(*json.loads(sys.argv[1]))
