"""Runs in every process of `test_distributed.py`: a list of trainings, one after another.

torchrun --nproc-per-node 2 tests/distributed_worker.py jobs.json
"""

import json
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vimamba.data import ImageFolder
from vimamba.lightning import Callback, Trainer, strategies
from vimamba.tasks import Classification, Optimization

GLOBAL_BATCH = 8
PROCESSES = 2


@dataclass
class Job:
    """One training.

    Attributes:
        model: timm name.
        images: A folder of class folders.
        out: Checkpoint to write; the curve is saved next to it, as JSON.
        strategy: "single", "ddp", "fsdp2" or "fsdp2_one_file".
        epochs: Number of epochs to train, of the three in the schedule.
        start: Checkpoint to resume from.
        ema: Decay of the weights' average.
    """

    model: str
    images: str
    out: str
    strategy: str = "single"
    epochs: int = 2
    start: str | None = None
    ema: float | None = None


class Curve(Callback):
    """Records the loss of every step over the whole batch, and the scores of every epoch."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.scores: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        """Add a loss."""
        loss = outputs["loss"].detach().clone()
        self.losses.append(float(trainer.strategy.reduce(loss, reduce_op="mean")))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Add the scores."""
        scores = trainer.callback_metrics.items()
        self.scores.append({key: float(value) for key, value in scores if "/" in key})


class Stop(Callback):
    """Ends the training before the end of the schedule."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Stop after a number of epochs."""
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def strategy_options(name: str) -> dict[str, Any]:
    """Arguments of the trainer."""
    if name == "single":
        return {"devices": 1}
    if name == "ddp":
        return {"devices": PROCESSES, "strategy": strategies.DDPStrategy()}
    strategy = strategies.ModelParallelStrategy(
        data_parallel_size=PROCESSES,
        tensor_parallel_size=1,
        save_distributed_checkpoint=name == "fsdp2",
    )
    return {"devices": PROCESSES, "strategy": strategy}


def train(job: Job) -> dict[str, Any]:
    """Train with the order of the images as the only randomness, which processes share."""
    torch.manual_seed(0)
    processes = 1 if job.strategy == "single" else PROCESSES
    data = ImageFolder(
        job.images,
        img_size=32,
        batch_size=GLOBAL_BATCH // processes,
        workers=0,
        val_fraction=0.3,
        test_fraction=0.0,
    )
    task = Classification(
        job.model,
        img_size=32,
        num_classes=data.num_classes,
        class_names=data.class_names,
        optim=Optimization(lr=1e-3, weight_decay=0.1, layer_decay=0.9, ema=job.ema),
    )
    curve = Curve()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        callbacks=[curve, Stop(job.epochs)],
        default_root_dir=Path(job.out).parent,
        **strategy_options(job.strategy),
    )
    trainer.fit(task, data, ckpt_path=job.start, weights_only=True)
    trainer.save_checkpoint(job.out)
    result = {"losses": curve.losses, "scores": curve.scores, "report": task.report}
    if trainer.is_global_zero:
        Path(job.out).with_suffix(".json").write_text(json.dumps(result))
    return result


def write_jobs(path: Path, jobs: list[Job]) -> None:
    """Write the jobs of the processes."""
    path.write_text(json.dumps([asdict(job) for job in jobs]))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    for job in json.loads(Path(sys.argv[1]).read_text()):
        train(Job(**job))
