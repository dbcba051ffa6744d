"""What a run writes while it trains, metrics.csv, lines and checkpoints, and when it stops."""

import io
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vimamba.console import say
from vimamba.errors import UsageError
from vimamba.files import write_rows, write_whole
from vimamba.lightning import (
    Callback,
    LightningModule,
    TorchCheckpointIO,
    Trainer,
    TrainerFn,
    callbacks,
)
from vimamba.runs import update_record
from vimamba.tasks.schedule import Schedule, count_steps

Row = dict[str, float]


class EpochBar(callbacks.RichProgressBar):
    """Lightning's bar, with epochs counted from 1, as everywhere else here."""

    def _get_train_description(self, current_epoch: int) -> str:
        text = f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        return text.ljust(len(self.validation_description))


class EpochLog(Callback):
    """One row per epoch in metrics.csv and one line on the screen.

    Each row belongs to one step: it has scores only if those weights were validated. A validation
    within an epoch has its own row, with a fractional epoch. The rows are part of the checkpoint,
    so a resumed run continues the file.

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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print how long training will be."""
        say(plan_line(trainer))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.start = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row of a validation."""
        if is_scored(trainer):
            self._add(trainer, validated=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the row of the epoch and print its line."""
        row = self._add(trainer, validated=False)
        if trainer.is_global_zero:
            scores = getattr(pl_module, "headline_scores", {})
            say(epoch_line(row, trainer.max_epochs, scores))

    def _add(self, trainer: Trainer, *, validated: bool) -> Row:
        """Put the metrics of the validation, or of the training, into the row of this step."""
        done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        epoch = trainer.current_epoch + min(done / trainer.num_training_batches, 1)
        row: Row = {"epoch": int(epoch) if epoch == int(epoch) else round(epoch, 4)}
        row |= {"step": trainer.global_step, "lr": highest_rate(trainer)}
        row["seconds"] = round(time.monotonic() - self.start, 3)
        for name, value in sorted(trainer.callback_metrics.items()):
            if "/" in name and name.startswith("val/") == validated:
                row[name] = float(value)
        if self.rows and self.rows[-1]["step"] == row["step"]:
            earlier = self.rows.pop()
            row = row | {name: value for name, value in earlier.items() if name not in row}
        self.rows.append(row)
        if trainer.is_global_zero:
            write_rows(self.path, self.rows)
        return row


def highest_rate(trainer: Trainer) -> float:
    """The highest learning rate of all parameter groups."""
    return float(max(group["lr"] for group in trainer.optimizers[0].param_groups))


def plan_line(trainer: Trainer) -> str:
    """A line with the number of training steps and the learning-rate schedule."""
    steps, an_epoch = count_steps(trainer)
    whole = "no end" if steps == math.inf else f"{steps:.0f} in all"
    parts = [f"{an_epoch:.0f} step{'s' * (an_epoch != 1)} an epoch, {whole}"]
    schedule = trainer.lr_scheduler_configs[0].scheduler if trainer.lr_scheduler_configs else None
    if isinstance(schedule, Schedule):
        optim, epochs = schedule.optim, schedule.warmup / an_epoch
        warmup = f"warm-up {epochs:.3g} epoch{'s' * (epochs != 1)} (steps: {schedule.warmup})"
        if optim.warmup_epochs * an_epoch > schedule.warmup + 1:
            warmup += f", cut to a third of the training, instead of {optim.warmup_epochs:g}"
        fall = {"cosine": "falls as a cosine", "poly": "falls as a power", "constant": "stays"}
        parts += [warmup, f"then the rate {fall[optim.schedule]}"]
        if optim.minutes is not None:
            parts[-1] += f" of time; the training ends after {optim.minutes:g} minutes"
        if trainer.global_step:
            before = schedule.steps_before
            planned = f" of {before:.0f} planned before" if before not in (None, steps) else ""
            rate = f"going on at {highest_rate(trainer):.3g}"
            parts.append(f"{trainer.global_step} steps{planned} are done, {rate}")
    return "; ".join(parts)


def is_scored(trainer: Trainer) -> bool:
    """Whether the validation that just ended is part of training and used its current weights."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def epoch_line(row: Row, epochs: int | None, scores: Mapping[str, str]) -> str:
    """A row as a line of text.

    Args:
        row: Row of the epoch.
        epochs: Total number of epochs, if known.
        scores: Scores to show, with their names.
    """
    of = f"/{epochs}" if epochs and epochs > 0 else ""
    width = max(len(of) - 1, 1)
    parts = [f"epoch {row['epoch']:>{width}.5g}{of}", f"{row['seconds']:6.1f} s"]
    names = {"train/loss": "train loss", "val/loss": "val loss"}
    for place, (score, name) in enumerate(scores.items()):
        names[f"val/{score}"] = name if place else f"val {name}"
    parts += [f"{name} {row[key]:.4f}" for key, name in names.items() if key in row]
    return "  ".join(parts)


class Patience(callbacks.EarlyStopping):
    """Ends a training after a number of validations in a row that have not raised the best score.

    A resumed training continues to wait, with the patience requested now.

    Args:
        monitor: Score that decides which checkpoint is best, higher is better.
        patience: Number of validations.
        new_split: The resumed run is scored on other images than before, so earlier scores are
            discarded.
    """

    def __init__(self, monitor: str, patience: int, *, new_split: bool = False) -> None:
        super().__init__(monitor, patience=patience, mode="max", check_on_train_epoch_end=False)
        self.new_split = new_split

    @property
    def is_over(self) -> bool:
        """Whether it has waited long enough."""
        return self.wait_count >= self.patience

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what was waited so far."""
        if not self.new_split:
            super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further epoch of a run that had stopped and is to wait no longer than then."""
        trainer.should_stop = trainer.should_stop or self.is_over

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the score.

        Raises:
            UsageError: There is none.
        """
        if is_scored(trainer) and self.monitor not in trainer.callback_metrics:
            raise UsageError(
                f"--patience {self.patience} waits for {self.monitor}, which the val images do "
                "not give; --trainer.callbacks+=EarlyStopping waits for any other metric"
            )
        super().on_validation_end(trainer, pl_module)


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints completely or not at all, without a copy in the system's /tmp."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write one file; called only in the process that writes."""
        # through memory, because torch's own writer raises no OSError for a full disk
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with write_whole(path) as part:
            part.write_bytes(content.getbuffer())


class RunCheckpoints(callbacks.Checkpoint):
    """Writes last.ckpt after every epoch and best.ckpt after every validation that is the best yet.

    In a tie the later validation is kept: its learning rate is lower. If the score is undefined,
    because the val split has no image of any class that it averages over, the validation with the
    lowest loss is best; if nothing is validated, the last epoch is.

    last.ckpt always holds the end of an epoch: an interrupted epoch is repeated from its beginning,
    with the same random numbers. Files are written completely or not at all.

    Args:
        folder: Where to write.
        monitor: Score to improve, higher is better.
        new_split: The resumed run is scored on other images than before, so earlier scores are
            discarded.
    """

    def __init__(self, folder: Path, monitor: str, *, new_split: bool = False) -> None:
        self.folder = folder
        self.monitor = monitor
        self.new_split = new_split
        self.best: float | None = None
        self.by = monitor
        # whether last.ckpt is still the untrained network of a new run
        self.untrained = False

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, and its metric."""
        return {"best": self.best, "by": self.by}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best score of the run that is resumed."""
        if not self.new_split:
            self.best, self.by = state_dict["best"], state_dict.get("by", self.monitor)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write a checkpoint to resume from even if the first epoch is interrupted."""
        if not (self.folder / "last.ckpt").exists():
            self._save(trainer, "last")
            self.untrained = True

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Free the folder of a new run that fails before it has anything worth keeping.

        A run that is interrupted or preempted (not an `Exception`) can be resumed.
        """
        failed = isinstance(exception, Exception) and trainer.is_global_zero
        if failed and self.untrained and self.best is None:
            (self.folder / "last.ckpt").unlink(missing_ok=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the weights that were just scored, if they are the best so far."""
        if is_scored(trainer):
            self.keep_better(trainer)

    def keep_better(self, trainer: Trainer) -> bool:
        """Write best.ckpt if the last scores are the best so far; returns whether they are."""
        scores = trainer.callback_metrics
        if self.monitor in scores:
            by, score = self.monitor, float(scores[self.monitor])
        else:
            by, score = "val/loss", -float(scores["val/loss"])
            if self.by != by and trainer.is_global_zero:
                say(f"note: {self.monitor} is undefined here: the lowest val/loss decides")
        # any score is better than none
        if by == self.by and self.best is not None and score < self.best:
            return False
        if by != self.by and self.best is not None and self.by == self.monitor:
            return False
        self.best, self.by = score, by
        self._save(trainer, "best")
        if trainer.is_global_zero:
            best = {"step": trainer.global_step, "metric": by, "value": float(scores[by])}
            update_record(self.folder.parent, best=best)
        return True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the epoch that just ended."""
        self._save(trainer, "last")
        self.untrained = False

    def _save(self, trainer: Trainer, name: str) -> None:
        trainer.save_checkpoint(self.folder / f"{name}.ckpt")
