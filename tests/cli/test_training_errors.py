"""An error that ends or prevents training is one line and keeps valid files."""

import errno
import importlib
import json
import re
import threading

import pytest
import torch

from vimamba.cli import main
from vimamba.files import lock_folder
from vimamba.lightning import PACKAGE
from vimamba.tasks import Classification


@pytest.fixture
def fails(capsys):
    """Run a command that must end with exit code 2 and one line, no traceback; returns the line."""

    def fails(*args) -> str:
        capsys.readouterr()
        assert main(list(map(str, args))) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        _, error, line = said.strip().rpartition("error: ")
        assert error
        assert "\n" not in line
        return line

    return fails


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "fp16"], "--precision fp16: expected one of .*bf16-mixed.*32-true"),
        (["--lr", "fast"], "--lr fast: expected a number"),
        (["--epochs", "1.5"], "--epochs 1.5: expected a whole number"),
        (["--lr"], "--lr: a value is missing"),
        (["--epochs", "0"], "--epochs 0 must be at least 1"),
        (["--epochs", "-1"], "--epochs -1 needs an end .* --trainer.max_steps N"),
        (["--trainer.max_steps", "0"], "--trainer.max_steps 0 must be at least 1"),
        (["--workers", "-1"], "workers=-1 must be at least 0"),
        (["--model.optim.wd", "0.1"], "optim.wd is unknown; .*--model.optim.weight_decay"),
        (["--model.optim.opt", "adamx"], "optim.opt='adamx' is unknown; close names are .*adam"),
        (["--model.optim.schedule", "cosin"], "cosin: expected one of cosine, poly, constant"),
        (["--model.optim.ema", "1.0"], r"optim.ema=1.0 must lie in \[0, 1\)"),
        (["--model.objective.mixup", "-1"], "objective.mixup=-1.0 must be at least 0"),
        (["--data.agmentation.hflip", "0"], "--data.augmentation"),
        (["--trainer.devise", "2"], "--trainer.devise is unknown; .*--trainer.devices"),
        (["--ckpt_path", "x"], "--ckpt_path is unknown; here it is --resume RUN"),
        (["--trainer.callbacks+=EarlyStoping"], "choose from EarlyStopping"),
        (["--trainer.callbacks+=EarlyStopping"], "--trainer.callbacks.monitor must be given"),
        (["--trainer.logger=NoLogger"], "choose from .*CSVLogger"),
        (["--trainer.accelerator", "abacus"], "invalid accelerator name"),
        (["--trainer.max_time", "soon"], "not a valid duration"),
        (["--trainer.barebones", "true"], "--trainer.barebones: a run needs its metrics"),
        (["--trainer.default_root_dir", "x"], "--out RUN names the folder"),
        (["--trainer.use_distributed_sampler", "true"], "images are already distributed"),
        (["--trainer.accumulate_grad_batches", "0"], "must be at least 1"),
        (["--trainer.limit_train_batches", "0"], "leaves nothing to train on"),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss"],
            "EarlyStopping: monitor=val_loss is not one of train/loss, val/loss, val/accuracy",
        ),
        (["--out", "/proc/run"], "cannot be written"),
        (
            ["--data.split_csv", "x.csv", "--data.val_fraction", "0.2"],
            "--data.val_fraction: --data.split_csv already defines the split",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_named_in_one_line(options, message, recipe, fails, tmp_path):
    line = fails("fit", "-c", recipe, "--out", tmp_path / "run", *options)
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_a_logger_whose_package_is_missing_names_the_package(recipe, fails, tmp_path, monkeypatch):
    class Missing:
        def __bool__(self):
            return False

        def __str__(self):
            return "Requirement 'wandb' not met."

    wandb = importlib.import_module(f"{PACKAGE}.loggers.wandb")
    monkeypatch.setattr(wandb, "_WANDB_AVAILABLE", Missing())
    line = fails("fit", "-c", recipe, "--out", tmp_path / "r", "--trainer.logger=WandbLogger")
    assert line == "--trainer.logger WandbLogger: Requirement 'wandb' not met."


def test_a_training_that_breaks_down_keeps_what_was_good(recipe, fails, tmp_path, monkeypatch):
    out = tmp_path / "run"
    loss = Classification.loss

    def spoiled(self, *args, **kwargs):
        value = loss(self, *args, **kwargs)
        return value * torch.nan if self.training and self.global_step == 9 else value

    monkeypatch.setattr(Classification, "loss", spoiled)
    line = fails("fit", "-c", recipe, "--out", out)
    assert "training stops at step 10, epoch 3: the loss is not finite" in line
    assert "all layers' outputs are" in line
    assert "--lr" in line
    assert "vimamba doctor" in line
    assert "best.ckpt is the best epoch before it" in line
    assert not (out / "export").exists()
    rows = (out / "metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 2
    for name in ("best", "last"):
        content = torch.load(out / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert all(value.isfinite().all() for value in content["state_dict"].values())
    monkeypatch.undo()
    assert main(["fit", "--resume", str(out)]) == 0


def test_a_validation_that_is_not_finite_is_no_best_epoch(recipe, fails, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def forward(self, image):
        logits = self.scored_net(image)
        return logits * torch.inf if self.current_epoch == 1 and not self.training else logits

    monkeypatch.setattr(Classification, "forward", forward)
    line = fails("fit", "-c", recipe, "--out", out)
    assert line.startswith("val/loss is not finite after epoch 2; ")
    best = torch.load(out / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == 0


def test_one_run_at_a_time_writes_a_folder(recipe, fails, tmp_path):
    out = tmp_path / "run"
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with lock_folder(out):
            entered.set()
            leave.wait()

    other = threading.Thread(target=hold)
    other.start()
    entered.wait()
    try:
        assert "is written by" in fails("fit", "-c", recipe, "--out", out)
    finally:
        leave.set()
        other.join()
    assert not out.exists()


def test_a_full_disk_is_one_line_and_loses_nothing(run, recipe, fails, tmp_path, monkeypatch):
    import vimamba.cli.callbacks as callbacks

    write, out = callbacks.WholeCheckpointIO.save_checkpoint, tmp_path / "run"

    def fill(self, checkpoint, path, storage_options=None):
        if checkpoint["epoch"] == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(self, checkpoint, path, storage_options)

    with monkeypatch.context() as patch:
        patch.setattr(callbacks.WholeCheckpointIO, "save_checkpoint", fill)
        line = fails("fit", "-c", recipe, "--out", out)
    assert line.endswith("cannot be written: No space left on device")
    assert main(["fit", "--resume", str(out)]) == 0
    scores = [json.loads((folder / "metrics.json").read_text())["test"] for folder in (run, out)]
    assert scores[0]["accuracy"] == scores[1]["accuracy"]


def test_a_batch_of_one_is_refused_before_the_work(fails, tmp_path):
    import numpy as np
    from PIL import Image

    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number in range(6):
        mask = np.zeros((32, 32), np.uint8)
        mask[8:20, 4:20] = 1
        Image.fromarray(mask).save(tmp_path / f"data/masks/{number}.png")
        Image.fromarray(np.stack([mask * 90] * 3, -1)).save(tmp_path / f"data/images/{number}.png")
    args = ["fit", "--task", "segmentation", "--data", tmp_path / "data", "--model", "test_vmamba"]
    args += ["--img-size", 32, "--batch-size", 1, "--workers", 0, "--out", tmp_path / "run"]
    assert "a batch of 1 is too small" in fails(*args)
    assert not (tmp_path / "run").exists()
