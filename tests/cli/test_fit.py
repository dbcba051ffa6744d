import csv
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vimamba.cli import main


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_the_same_seed_gives_the_same_weights_and_another_one_does_not(run, recipe, tmp_path):
    # worker processes do not change anything either
    for seed, workers, equal in ((3, 2, True), (4, 0, False)):
        out = tmp_path / str(seed)
        args = ["fit", "-c", str(recipe), "--out", str(out), "--seed", str(seed)]
        assert main([*args, "--workers", str(workers)]) == 0
        last = Path("checkpoints") / "last.ckpt"
        assert same_weights(out / last, run / last) == equal


@pytest.mark.parametrize(
    ("moment", "workers"),
    [
        ("first epoch", 0),
        pytest.param("within an epoch", 0, marks=pytest.mark.slow),
        ("end of an epoch", 0),
        ("within an epoch", 2),
    ],
)
def test_ctrl_c_leaves_a_checkpoint_that_continues_bit_for_bit(
    moment, workers, run, recipe, tmp_path, monkeypatch
):
    import vimamba.tasks

    task, out = vimamba.tasks.Classification, tmp_path / "run"
    step, epoch_end = task.training_step, task.on_validation_epoch_end
    epoch = 0 if moment == "first epoch" else 2

    def interrupt(self):
        if self.current_epoch == epoch:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)

    def interrupted_step(self, batch, batch_idx):
        if batch_idx == 2:
            interrupt(self)
        return step(self, batch, batch_idx)

    def interrupted_end(self):
        epoch_end(self)
        interrupt(self)

    with monkeypatch.context() as patch:
        if moment == "end of an epoch":
            patch.setattr(task, "on_validation_epoch_end", interrupted_end)
        else:
            patch.setattr(task, "training_step", interrupted_step)
        args = ["-c", str(recipe), "--workers", str(workers), "--out", str(out)]
        assert main(["fit", *args]) == 130
    last = out / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] <= epoch
    assert not (out / "export").exists()
    args += ["--resume", "auto"]
    if moment == "end of an epoch":
        args = ["--resume", str(out)]  # the run folder stores its recipe
    assert main(["fit", *args]) == 0
    for name in ("last.ckpt", "best.ckpt"):
        assert same_weights(out / "checkpoints" / name, run / "checkpoints" / name)
    scores = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file.open())]
        for file in (out / "metrics.csv", run / "metrics.csv")
    ]
    assert scores[0] == scores[1]


def test_sigint_ends_a_real_process_with_a_checkpoint(start, recipe, tmp_path):
    out = tmp_path / "run"
    process = start("fit", "-c", recipe, "--out", out, "--epochs", 500)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch   2/500"):
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert f"vimamba fit --resume {out}" in rest
    assert "Traceback" not in errors
    assert (out / "checkpoints" / "last.ckpt").exists()
    text = "".join(lines) + rest
    # plain lines if not a terminal: no colors, no bars, no rewriting
    assert not set("\x1b\r│━") & set(text)
    assert "Seed set" not in text + errors


def test_resume_auto_starts_a_run_that_is_not_there(recipe, tmp_path):
    args = ["fit", "-c", str(recipe), "--out", str(tmp_path / "new"), "--resume", "auto"]
    assert main([*args, "--epochs", "1", "--limit", "8"]) == 0


def test_the_summary_names_classes_counts_and_sizes(run, recipe, tmp_path, capsys):
    main(["fit", "-c", str(recipe), "--out", str(tmp_path / "x"), "--epochs", "1"])
    out = capsys.readouterr().out
    assert "3 classes, one label per image" in out
    assert "image size 20x24; channel mean 0.4" in out
    assert f"next: vimamba predict {tmp_path / 'x'}" in out


def test_our_own_model_trains_the_same_way_twice(folder, tmp_path):
    args = ["--model", "test_vim", "--img-size", "32", "--epochs", "1", "--workers", "0"]
    args += ["--trainer.accelerator", "cpu"]  # GPUs sum in any order
    for name in "ab":
        assert main(["fit", "--data", str(folder), *args, "--out", str(tmp_path / name)]) == 0
    last = Path("checkpoints") / "last.ckpt"
    assert same_weights(tmp_path / "a" / last, tmp_path / "b" / last)


def test_multi_label_lists_go_all_the_way(folder, tmp_path):
    lines = ["path,label,group"]
    for number in range(16):
        lines += [f"{folder}/fine/{number}.png,fine;narrow,p{number // 2}"]
        lines += [f"{folder}/broad/{number}.png,{'' if number % 4 else 'broad'},q{number // 2}"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    out = tmp_path / "run"
    args = ["--model", "test_vit", "--img-size", "16", "--epochs", "2", "--workers", "0"]
    args += ["--model.model_kwargs", "{patch_size: 8, depth: 1}", "--out", str(out)]
    args += ["--batch-size", "8", "--model.objective.class_weights", "balanced"]
    assert main(["fit", "--data", str(tmp_path / "list.csv"), *args]) == 0
    report = json.loads((out / "metrics.json").read_text())["test"]
    assert {"exact_match", "auroc", "ece"} <= set(report)
    assert (
        main(["predict", str(out), str(folder / "fine" / "0.png"), "--out", str(out / "p.csv")])
        == 0
    )


def test_medmnist_files_are_recognized(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 24), ("val", 8), ("test", 8)):
        arrays[f"{split}_images"] = rng.integers(0, 255, (count, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2).reshape(-1, 1)
    np.savez(tmp_path / "mnist.npz", **arrays)
    out = tmp_path / "run"
    args = ["--model", "test_vim", "--img-size", "28", "--epochs", "1", "--workers", "0"]
    args += ["--data.in_chans", "1", "--out", str(out), "--batch-size", "8"]
    assert main(["fit", f"--data={tmp_path / 'mnist.npz'}", *args]) == 0
    assert not (out / "split.csv").exists()
    assert main(["test", str(out)]) == 0
