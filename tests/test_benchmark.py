"""The benchmark compares what it claims to compare."""

import csv
from dataclasses import replace

import pytest
import torch

from tools import zoo_benchmark
from vimamba.benchmark import ops, take_turns, timing
from vimamba.benchmark.ops import CASES, make_inputs, scan, scan_with_copies
from vimamba.cli.benchmark import benchmark
from vimamba.errors import UsageError

pytestmark = pytest.mark.draws


def test_candidates_take_turns_and_ratios_refer_to_the_first(monkeypatch):
    calls, clock = [], [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def sleeper(name, seconds):
        def run():
            calls.append(name)
            clock[0] += seconds

        return run

    runs = {"short": sleeper("short", 0.002), "long": sleeper("long", 0.02)}
    short, long = take_turns("sleep", runs, seconds=0.2, least=5)
    assert calls[2:6] == ["short", "long", "short", "long"], "after one warm-up of each"
    assert short.ratio == 1
    assert long.ratio == pytest.approx(10)
    assert long.rounds == 10  # of 22 ms each
    assert long.milliseconds == pytest.approx(20)


@pytest.mark.parametrize("case", [c for c in CASES if c.height < 30], ids=lambda c: c.name)
def test_the_copying_form_computes_the_same(case):
    x = make_inputs(case, "cpu", torch.float32)
    torch.testing.assert_close(scan_with_copies(x, "cpu"), scan(x, "cpu"), rtol=1e-3, atol=1e-3)


def test_the_command_writes_figures_and_a_picture(tmp_path, monkeypatch, capsys):
    small = [replace(case, height=3, width=3, channels=8) for case in CASES]
    monkeypatch.setattr(ops, "CASES", small)
    args = ["ops", "--cases", "4", "--backward", "--seconds", "0.1"]
    files = ["--csv", str(tmp_path / "ops.csv"), "--png", str(tmp_path / "ops.png")]
    assert benchmark([*args, *files]) == 0
    out = capsys.readouterr().out
    assert "VMamba-T stage 4" in out
    assert "torch" in out.splitlines()[0]
    rows = list(csv.DictReader((tmp_path / "ops.csv").open()))
    assert {row["candidate"] for row in rows} >= {"vimamba cpu", "PyTorch loop"}
    assert (tmp_path / "ops.png").read_bytes()[:4] == b"\x89PNG"


def test_models_are_timed_with_their_memory(capsys):
    args = ["models", "test_vmamba", "--sizes", "96", "--seconds", "0.1", "--train"]
    assert benchmark(args) == 0
    out = capsys.readouterr().out
    assert "96 px, batch 1, training" in out
    assert "peak MiB" in out


def test_a_family_is_compared_with_models_of_its_kind_and_operations():
    entries = {entry.family: entry for entry in zoo_benchmark.list_entries()}
    assert entries["VMamba"].reference.names[0] == "swin_tiny_patch4_window7_224"
    assert entries["Vim"].model == "vim_tiny_patch16_224"
    assert entries["Vim"].reference.names == ("deit_tiny_patch16_224",)
    assert entries["TinyViM"].reference.names[0] == "mobilenetv4_conv_medium"
    with pytest.raises(UsageError, match=r"Swin is no family; choose from A2Mamba, "):
        zoo_benchmark.list_entries(["Swin"])


def test_families_alternate_with_their_references(tmp_path, capsys):
    file = tmp_path / "zoo.csv"
    args = ["Vim", "EfficientVMamba", "--sizes", "64", "--seconds", "0.1", "--csv", str(file)]
    assert zoo_benchmark.main(args) == 0
    assert "deit_tiny_patch16_224 " in capsys.readouterr().out
    rows = list(csv.DictReader(file.open()))
    assert [row["candidate"] for row in rows] == [
        "deit_tiny_patch16_224", "vim_tiny_patch16_224",
        "convnext_pico", "mambaout_femto", "efficientvmamba_tiny",
    ]  # fmt: skip
    assert {row["case"] for row in rows} == {
        "Vim, 64 px, batch 1", "EfficientVMamba, 64 px, batch 1",
    }  # fmt: skip
