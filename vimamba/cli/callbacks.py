"""What a run writes while it trains: metrics.csv, a line per epoch, best.ckpt and last.ckpt."""

import csv
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint, RichProgressBar

from vimamba.cli.tables import say

Row = dict[str, float]


class EpochBar(RichProgressBar):
    """Lightning's bar, with epochs counted as everywhere else here: from 1."""

    def _get_train_description(self, current_epoch: int) -> str:
        text = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        return text.ljust(len(self.validation_description))


class EpochLog(Callback):
    """One row per epoch in metrics.csv and one line on the screen.

    The rows are part of the checkpoint, so a resumed run continues the file.

    Args:
        path: The CSV file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Row] = []
        self.start = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """The rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of the run that is resumed."""
        self.rows = state_dict["rows"]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.start = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row and the line."""
        seconds = time.monotonic() - self.start
        rates = (group["lr"] for group in trainer.optimizers[0].param_groups)
        row: Row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        row.update({"lr": float(max(rates)), "seconds": round(seconds, 3)})
        scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
        row.update({name: value for name, value in sorted(scores.items()) if "/" in name})
        self.rows.append(row)
        if trainer.is_global_zero and not cast(Any, trainer).fast_dev_run:
            write_rows(self.path, self.rows)
            say(epoch_line(row, trainer.max_epochs or 0))


def epoch_line(row: Row, epochs: int) -> str:
    """A row as a line to read."""
    width = len(str(epochs))
    parts = [f"epoch {row['epoch']:>{width}.0f}/{epochs}", f"{row['seconds']:6.1f} s"]
    for key, name in (
        ("train/loss", "train loss"),
        ("val/loss", "val loss"),
        ("val/dice", "val Dice"),
        ("val/miou", "mIoU"),
        ("val/accuracy", "val accuracy"),
        ("val/macro_f1", "macro F1"),
        ("val/auroc", "AUROC"),
    ):
        if key in row:
            parts.append(f"{name} {row[key]:.4f}")
    return "  ".join(parts)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal or different columns as CSV; a half-written file never appears."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    part = path.with_suffix(".tmp")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(part, path)


class RunCheckpoints(Checkpoint):
    """Writes last.ckpt after every epoch and best.ckpt when the score is not beaten.

    Of equal epochs the later one is kept: its learning rate is lower.

    last.ckpt always stands for the end of an epoch: an interrupted epoch is run again from its
    beginning, with the same random numbers. Files appear whole or not at all.

    Args:
        folder: Where to write.
        monitor: Score to improve, higher is better.
    """

    def __init__(self, folder: Path, monitor: str) -> None:
        self.folder = folder
        self.monitor = monitor
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score of the run that is resumed."""
        self.best = state_dict["best"]

    def _save(self, trainer: Trainer, name: str) -> None:
        path, part = self.folder / f"{name}.ckpt", self.folder / f".{name}.part"
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            os.replace(part, path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave something to resume from even if the first epoch is interrupted."""
        if not (self.folder / "last.ckpt").exists():
            self._save(trainer, "last")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch that just ended."""
        score = trainer.callback_metrics.get(self.monitor)
        if score is not None and (self.best is None or float(score) >= self.best):
            self.best = float(score)
            self._save(trainer, "best")
        self._save(trainer, "last")
