"""Networks of volumes beside MONAI's: python tools/benchmark.py volumes --size 96.

One window, without gradients, or one training step without the optimizer. Networks take turns, and
of each the least time over the rounds counts, because what else a machine does only adds to it.
Memory is the peak that a step adds to a process of its own.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import vimamba
from vimamba.benchmark.models import added_memory
from vimamba.benchmark.timing import describe_machine
from vimamba.console import say, show_table

CHANNELS, CLASSES = 4, 4
FIRST = "SwinUNETR, 48 features"
# of SwinUNETR, whose norms need more than one cell
SMALLEST = 64


def make_network(name: str, size: int) -> nn.Module:
    """One of ours by its registered name, or one of MONAI's."""
    from monai.networks.nets import SegResNet, SwinUNETR

    sizes = {"in_channels": CHANNELS, "out_channels": CLASSES}
    if name == FIRST:
        return SwinUNETR(**sizes, feature_size=48)
    if name.startswith("SegResNet"):
        return SegResNet(**sizes, init_filters=int(name.split()[1]))
    patch: dict[str, Any] = {} if name == "segmamba" else {"patch_size": (size,) * 3}
    return vimamba.create_network(name, in_chans=CHANNELS, num_classes=CLASSES, **patch)


NETWORKS = [
    FIRST,
    "segmamba",
    "umamba_bot_3d",
    "umamba_enc_3d",
    "SegResNet, 8 filters",
    "SegResNet, 32 filters",
    *(f"vss_unet_3d_{size}" for size in ("nano", "tiny", "small", "base")),
]


def make_step(name: str, size: int, train: bool) -> Callable[[], object]:
    """A window, or a training step on one patch."""
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


def peak_memory(name: str, size: int, train: bool) -> float:
    """Peak MiB that a step adds to a process of its own."""
    command = [sys.executable, __file__, json.dumps([name, size, train])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def print_peak_memory(name: str, size: int, train: bool) -> None:
    """The other process: what a small step has loaded and compiled does not count."""
    make_step(name, SMALLEST, train)()
    print(added_memory(make_step(name, size, train)))


def least_times(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of each, the least over rounds in which all take turns."""
    least = dict.fromkeys(steps, float("inf"))
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            # the first round compiles and fills caches
            if number:
                least[name] = min(least[name], time.perf_counter() - start)
    return least


def main(args: list[str]) -> int:
    """Measure and print a table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmark.py volumes", description=__doc__)
    parser.add_argument("names", nargs="*", default=NETWORKS, metavar="NAME", help="some of them")
    parser.add_argument("--size", type=int, default=96, help="voxels of a side, 64 or more")
    parser.add_argument("--train", action="store_true", help="forward and backward")
    parser.add_argument("--rounds", type=int, default=3, help="that the least is taken over")
    parser.add_argument("--threads", type=int, help="CPU threads; all by default")
    given = parser.parse_args(args)
    if given.threads:
        torch.set_num_threads(given.threads)
    say(describe_machine())
    steps = {name: make_step(name, given.size, given.train) for name in given.names}
    least = least_times(steps, given.rounds)
    first = least[given.names[0]]
    rows = []
    for name, seconds in least.items():
        with torch.device("meta"):
            count = sum(p.numel() for p in make_network(name, given.size).parameters())
        memory = peak_memory(name, given.size, given.train)
        times = f"{seconds:.2f}", f"{seconds / first:.2f}"
        rows.append([name, f"{count / 1e6:.1f}", *times, f"{memory:.0f}"])
    kind = "training step" if given.train else "window"
    title = f"{given.size}^3 {kind}, least of {given.rounds} rounds by turns"
    show_table(title, ["network", "M parameters", "s", "ratio", "peak MiB"], rows)
    return 0


if __name__ == "__main__":
    print_peak_memory(*json.loads(sys.argv[1]))
