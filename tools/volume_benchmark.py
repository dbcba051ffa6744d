"""Compares volume networks with MONAI's: python tools/benchmark.py volumes --size 96.

Times one window without gradients, or one training step without the optimizer. Every network runs
in a separate process after a small warm-up step, so that loading and compilation are not measured.
Its first full step measures the peak of added memory; then the networks alternate.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vimamba
from vimamba.benchmark.models import added_memory
from vimamba.benchmark.timing import as_rows, describe_machine, take_turns, write_csv
from vimamba.console import say, show_table
from vimamba.files import check_writable
from vimamba.progress import Progress

CHANNELS, CLASSES = 4, 4
FIRST, PLAIN = "SwinUNETR, 48 features", "DynUNet, nnU-Net's sizes"
# side of the warm-up input in voxels; norms need more than one cell of the coarsest map
SMALL, SMALL_OF_MONAI = 32, 64


def make_network(name: str, size: int) -> nn.Module:
    """One of our networks by its registered name, or one of MONAI's."""
    from monai.networks.nets import DynUNet, SegResNet, SwinUNETR

    sizes = {"in_channels": CHANNELS, "out_channels": CLASSES}
    if name == FIRST:
        return SwinUNETR(**sizes, feature_size=48)
    if name == PLAIN:
        strides = (1, 2, 2, 2, 2, 2)
        shape = {"kernel_size": [3] * 6, "strides": strides, "upsample_kernel_size": strides[1:]}
        return DynUNet(3, **sizes, **shape)
    if name.startswith("SegResNet"):
        return SegResNet(**sizes, init_filters=int(name.split()[1]))
    patch: dict[str, Any] = {} if name == "segmamba" else {"patch_size": (size,) * 3}
    return vimamba.create_network(name, in_chans=CHANNELS, num_classes=CLASSES, **patch)


NETWORKS = [
    FIRST,
    PLAIN,
    "SegResNet, 8 filters",
    "SegResNet, 32 filters",
    "segmamba",
    "umamba_bot_3d",
    "umamba_enc_3d",
    *(f"vss_unet_3d_{size}" for size in ("nano", "tiny", "small", "base")),
]


def make_step(name: str, size: int, train: bool) -> Callable[[], object]:
    """Inference on a window, or a training step on one patch."""
    torch.manual_seed(0)
    net = make_network(name, size).train(train)
    volume = torch.randn(1, CHANNELS, size, size, size)

    def step() -> object:
        with torch.set_grad_enabled(train):
            logits = net(volume)
        if train:
            net.zero_grad()
            logits.square().mean().backward()
        return None

    return step


def serve(name: str, size: int, train: bool, threads: int) -> None:
    """In the child process: one step per line read; the first line printed is its memory in MiB."""
    torch.set_num_threads(threads)
    make_step(name, SMALL_OF_MONAI if name in (FIRST, PLAIN) else SMALL, train)()
    step = make_step(name, size, train)
    for number, _ in enumerate(sys.stdin):
        line = step() if number else added_memory(step)
        print(line, flush=True)


class Candidate:
    """A network in a separate process.

    Args:
        name: Name of the network.
        size: Side of the input, voxels.
        train: Forward and backward.
        bar: Progress bar, advanced by every step.

    Attributes:
        memory: Memory added by the first step, MiB.
    """

    def __init__(self, name: str, size: int, train: bool, bar: Progress) -> None:
        arguments = json.dumps([name, size, train, torch.get_num_threads()])
        command = [sys.executable, __file__, arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.name, self.bar = name, bar
        self.memory: float | None = None

    def __call__(self) -> None:
        """Run a step."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self.process.wait()}")
        self.memory = float(line) if self.memory is None else self.memory
        self.bar.advance()

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def main(args: list[str]) -> int:
    """Measure and print a table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmark.py volumes", description=__doc__)
    parser.add_argument("names", nargs="*", default=NETWORKS, metavar="NAME", help="networks")
    parser.add_argument("--size", type=int, default=96, help="side in voxels, 64 or more")
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--rounds", type=int, default=2, help="rounds to take the median of")
    parser.add_argument("--threads", type=int, help="CPU threads; all by default")
    parser.add_argument("--csv", type=Path, help="also write the figures to this file")
    given = parser.parse_args(args)
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.csv:
        check_writable(given.csv.parent)
    machine = describe_machine()
    say(machine)
    bar = Progress(len(given.names) * (given.rounds + 1), "step")
    candidates: dict[str, Candidate] = {}
    for name in given.names:
        count = sum(p.numel() for p in make_network(name, given.size).parameters())
        label = f"{name}, {count / 1e6:.1f} M"
        candidates[label] = Candidate(name, given.size, given.train, bar)
    case = f"{given.size}^3 {'training step' if given.train else 'window'}"
    try:
        timed = take_turns(case, candidates, seconds=0, least=given.rounds, most=given.rounds)
    finally:
        for candidate in candidates.values():
            candidate.close()
    bar.close()
    results = [replace(r, memory=candidates[r.candidate].memory) for r in timed]
    heads, rows = as_rows(results)
    show_table(f"{case}, {given.rounds} rounds, alternating", heads[1:], [row[1:] for row in rows])
    if given.csv:
        write_csv(given.csv, results, machine)
        say(f"written to {given.csv}")
    return 0


if __name__ == "__main__":
    serve(*json.loads(sys.argv[1]))
