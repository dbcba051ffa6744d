"""What every task trains with: optimiser, schedule, seeds and a running average of the weights."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

import numpy as np
import timm.optim
import timm.scheduler
import torch
from pytorch_lightning import LightningModule
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torchmetrics import MeanMetric

from vimamba.tasks.errors import TaskError
from vimamba.tasks.sharding import shard

# axes to mirror for each view of an image, by the name of the choice
FLIPS: dict[str, list[tuple[int, ...]]] = {
    "none": [()],
    "hflip": [(), (3,)],
    "flips": [(), (3,), (2,), (2, 3)],
}


@dataclass(frozen=True)
class Optimisation:
    """Optimiser and learning-rate schedule, set at every step after a linear warm-up.

    Attributes:
        opt: timm optimiser name.
        lr: Highest learning rate.
        weight_decay: Weight decay, for the parameters that the model does not exempt.
        layer_decay: Factor of the learning rate from one layer to the layer below it.
        schedule: How the rate falls after the warm-up: as a cosine, as a power of what is left
            of the training ("poly"), or not at all.
        power: That power.
        warmup_epochs: Length of the warm-up, at most a third of all epochs.
        warmup_lr: Learning rate that the warm-up starts from.
        min_lr: Learning rate that the schedule ends at.
        ema: Decay of a running average of the weights, which is then what is scored and exported.
        freeze_epochs: First epochs, in which only the classifier or the decoder is trained, not
            what can be pretrained.
    """

    opt: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    layer_decay: float | None = None
    schedule: Literal["cosine", "poly", "constant"] = "cosine"
    power: float = 1.0
    warmup_epochs: float = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    ema: float | None = None
    freeze_epochs: int = 0


DEFAULT_OPTIMISATION = Optimisation()


class Task(LightningModule):
    """Base of the tasks: trains `net`, scores and exports `scored_net`.

    Random numbers of training (drop path, mixing) start anew at every step from the seed, the epoch
    and the step's number, so a resumed run continues bit for bit.

    A subclass calls `save_hyperparameters` and `prepare` in its constructor, and defines
    `training_step`, `score_batch`, `compute_scores`, `monitor` and `body_parameters`.
    """

    net: nn.Module
    average: ModelEmaV3 | None
    tta: str
    report: dict[str, Any]

    def prepare(
        self,
        net: nn.Module,
        optim: Optimisation | dict[str, Any],
        *,
        seed: int,
        grad_checkpointing: bool,
        compile: bool,
    ) -> None:
        """Take the network and the optimiser's settings.

        Args:
            net: To train.
            optim: Optimiser and schedule; plain after loading a checkpoint.
            seed: Start of all random streams.
            grad_checkpointing: Spend time to save memory.
            compile: Compile the network.
        """
        # a checkpoint holds settings as plain dicts, so that it loads without running its code
        self.optim = Optimisation(**optim) if isinstance(optim, dict) else optim
        self.hparams["optim"] = asdict(self.optim)
        self.seed = seed
        self.tta = "none"
        self.report = {}
        self.net = net
        # a NaN stays one; "disable", which says the same, also disables the weights
        self.mean_loss = MeanMetric(nan_strategy=float("nan"))
        decay = self.optim.ema
        self.average = None if decay is None else ModelEmaV3(net, decay, use_warmup=True)
        if self.average is not None:
            self.average.requires_grad_(False)  # DDP would wait for the gradients
        if grad_checkpointing:
            cast(Any, net).set_grad_checkpointing()
        if compile:
            net.compile()

    @property
    def monitor(self) -> str:
        """The score, higher is better, that decides which checkpoint is best."""
        raise NotImplementedError

    def body_parameters(self) -> list[nn.Parameter]:
        """What can be pretrained: all of the network but its classifier or decoder."""
        raise NotImplementedError

    @property
    def scored_net(self) -> nn.Module:
        """The network to score and export: the average if there is one."""
        return self.net if self.average is None else self.average.module

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) to logits."""
        return self.scored_net(image)

    def score_batch(self, batch: Any, stage: str) -> None:
        """Add one batch of "val" or "test" to the scores and log its loss."""
        raise NotImplementedError

    def compute_scores(self, stage: str) -> dict[str, Any]:
        """The full report of an evaluation; also start afresh."""
        raise NotImplementedError

    def configure_model(self) -> None:
        """Shard the weights where the strategy brings a mesh for it: `ModelParallelStrategy`."""
        if self.device_mesh is not None:
            for net in (self.net, self.scored_net):
                shard(net, self.device_mesh["data_parallel"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Number the optimiser's parameters in the task's order, not in that of their groups.

        Reading a checkpoint in shards, Lightning takes this order for granted; torch's own reading
        goes by the groups and does not mind.
        """
        if self.device_mesh is not None:
            return  # Lightning has done it
        place = {id(parameter): index for index, parameter in enumerate(self.parameters())}
        states = checkpoint.get("optimizer_states", ())
        for optimizer, state in zip(self.trainer.optimizers, states, strict=bool(states)):
            number = {}
            for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
                new = [place[id(parameter)] for parameter in group["params"]]
                number.update(zip(saved["params"], new, strict=True))
                saved["params"] = new
            state["state"] = {number[old]: content for old, content in state["state"].items()}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Restart every generator from (seed, epoch, step, rank)."""
        key = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        state = np.random.SeedSequence(key).generate_state(2)
        torch.manual_seed(int(state[0]))
        np.random.seed(int(state[1]))

    def log_training(self, loss: Tensor, batch_size: int) -> None:
        """Log a training loss: every step on the bar, the mean of the epoch in the list."""
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=False, logger=False)
        self.log(
            "train/loss", loss, on_step=False, on_epoch=True, batch_size=batch_size, sync_dist=True
        )

    def log_scoring(self, stage: str, loss: Tensor, batch_size: int) -> None:
        """Log the loss of a scored batch; all processes' images count alike."""
        # Lightning's own mean over processes rounds the number of images down
        self.mean_loss.update(loss, batch_size)
        self.log(f"{stage}/loss", self.mean_loss)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave out what is frozen; the optimiser neither moves nor decays what has no gradient."""
        if self.current_epoch < self.optim.freeze_epochs:
            for parameter in self.body_parameters():
                parameter.grad = None

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the average follow the weights."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.net, step=self.global_step)

    def _apply(self, fn: Any, recurse: bool = True) -> "Task":
        """Convert the weights, but not the mean loss: half precision counts to 256 or 2048."""
        super()._apply(fn, recurse)
        self.mean_loss.set_dtype(torch.float32)
        return self

    def train(self, mode: bool = True) -> "Task":
        """Set the mode of the network; the average is always evaluated."""
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self

    def _finish_evaluation(self, stage: str) -> None:
        """Log the scores and keep the full report."""
        self.report = self.compute_scores(stage)
        scores = {name: value for name, value in self.report.items() if isinstance(value, float)}
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items()})

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Score one batch."""
        self.score_batch(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the validation scores."""
        self._finish_evaluation("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Score one batch."""
        self.score_batch(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the test scores."""
        self._finish_evaluation("test")

    def configure_optimizers(self) -> Any:
        """Optimiser of timm, with the model's own rules on decay, and the schedule."""
        optim, epochs = self.optim, self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise TaskError(f"max_epochs={epochs} must be at least 1")
        dtypes = {parameter.dtype for parameter in self.net.parameters()}
        if optim.ema is not None and dtypes & {torch.bfloat16, torch.float16}:
            raise TaskError(
                f"optim.ema={optim.ema} needs weights in float32, in half precision the average "
                "would not follow them; use precision='bf16-mixed' or no ema"
            )
        optimizer = timm.optim.create_optimizer_v2(
            self.net,
            opt=optim.opt,
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            layer_decay=optim.layer_decay,
        )
        if torch.float16 in dtypes:
            for group in optimizer.param_groups:
                # the usual 1e-8 would be zero, as squares of small gradients are
                least = torch.finfo(torch.float16).tiny
                group.update({"eps": max(group["eps"], least)} if "eps" in group else {})
        updates = max(1, int(self.trainer.estimated_stepping_batches) // epochs)
        scheduler, _ = timm.scheduler.create_scheduler_v2(
            optimizer,
            sched=optim.schedule,
            num_epochs=epochs,
            warmup_epochs=min(optim.warmup_epochs, epochs / 3),  # type: ignore[arg-type]
            warmup_lr=optim.warmup_lr,
            min_lr=optim.min_lr,
            decay_rate=optim.power,  # of the polynomial
            step_on_epochs=False,
            updates_per_epoch=updates,
        )
        schedule = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the learning rate for the next step."""
        scheduler.step_update(self.global_step)


def balanced_weights(counts: Sequence[int]) -> Tensor:
    """Inverse frequencies, whose mean over all counted is 1, as in scikit-learn."""
    found = torch.tensor(counts, dtype=torch.float32, device=None).clamp(min=1)
    return found.sum() / (len(found) * found)
