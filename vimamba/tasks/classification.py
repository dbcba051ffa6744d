"""Image classification, single-label or multi-label, with any timm model."""

from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import timm.data
import timm.optim
import timm.scheduler
import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from vimamba.tasks.backbone import build_backbone
from vimamba.tasks.errors import TaskError
from vimamba.tasks.metrics import classification_metrics, compute_report

# axes to mirror for each view of an image, by the name of the choice
FLIPS: dict[str, list[tuple[int, ...]]] = {
    "none": [()],
    "hflip": [(), (3,)],
    "flips": [(), (3,), (2,), (2, 3)],
}


@dataclass(frozen=True)
class Optimisation:
    """Optimiser and learning-rate schedule: cosine after a linear warm-up, set at every step.

    Attributes:
        opt: timm optimiser name.
        lr: Highest learning rate.
        weight_decay: Weight decay, for the parameters that the model does not exempt.
        layer_decay: Factor of the learning rate from one layer to the layer below it.
        warmup_epochs: Length of the warm-up, at most a third of all epochs.
        warmup_lr: Learning rate that the warm-up starts from.
        min_lr: Learning rate that the schedule ends at.
        ema: Decay of a running average of the weights, which is then what is scored and exported.
    """

    opt: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    layer_decay: float | None = None
    warmup_epochs: float = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    ema: float | None = None


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Attributes:
        label_smoothing: Part of the target spread over all classes.
        mixup: Alpha of mixup, 0 for none.
        cutmix: Alpha of CutMix, 0 for none.
        mix_prob: Probability that a batch is mixed.
        class_weights: "balanced" (inverse frequency), one weight per class, or None.
    """

    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    class_weights: str | list[float] | None = None


DEFAULT_OPTIMISATION = Optimisation()
DEFAULT_OBJECTIVE = Objective()


class Classification(LightningModule):
    """Trains and scores a timm model.

    Random numbers of training (drop path, mixing) start anew at every step from the seed, the epoch
    and the step's number, so a resumed run continues bit for bit.

    Args:
        model: timm model name, or `local-dir:` / `hf-hub:` and a place.
        model_kwargs: Further arguments of the model's constructor.
        pretrained: Start from the published weights.
        drop_path_rate: Stochastic depth; the model's own default if None.
        in_chans: Input channels.
        num_classes: Classes; the data module knows.
        class_names: In the order of the labels; numbers by default.
        class_counts: Training images of each class, needed for class_weights="balanced".
        multi_label: Any number of classes per image, trained with binary cross-entropy.
        img_size: Side of the images, pixels; handed to models with a fixed grid.
        optim: Optimiser and schedule.
        objective: Loss and mixing.
        grad_checkpointing: Spend time to save memory.
        compile: Compile the network.
        seed: Start of all random streams.
    """

    def __init__(
        self,
        model: str = "vim_tiny_patch16_224",
        *,
        model_kwargs: dict[str, Any] | None = None,
        pretrained: bool = False,
        drop_path_rate: float | None = None,
        in_chans: int = 3,
        num_classes: int = 1000,
        class_names: list[str] | None = None,
        class_counts: list[int] | None = None,
        multi_label: bool = False,
        img_size: int | None = None,
        optim: Optimisation = DEFAULT_OPTIMISATION,
        objective: Objective = DEFAULT_OBJECTIVE,
        grad_checkpointing: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_classes < 2 and not multi_label:
            raise TaskError(f"there is one class only, {class_names}; at least two are needed")
        self.save_hyperparameters()
        # a checkpoint holds them as plain dicts, so that it loads without running its code
        self.optim = Optimisation(**optim) if isinstance(optim, dict) else optim
        self.objective = Objective(**objective) if isinstance(objective, dict) else objective
        self.hparams.update(optim=asdict(self.optim), objective=asdict(self.objective))
        self.class_names = class_names or [str(index) for index in range(num_classes)]
        self.multi_label = multi_label
        self.seed = seed
        self.tta = "none"
        self.report: dict[str, Any] = {}
        self.net = build_backbone(
            model,
            pretrained=pretrained,
            img_size=img_size,
            model_kwargs=model_kwargs,
            num_classes=num_classes,
            in_chans=in_chans,
            drop_path_rate=drop_path_rate,
        )
        decay = self.optim.ema
        self.average = None if decay is None else ModelEmaV3(self.net, decay, use_warmup=True)
        if grad_checkpointing:
            cast(Any, self.net).set_grad_checkpointing()
        if compile:
            self.net.compile()
        weights = loss_weights(self.objective.class_weights, class_counts, num_classes, multi_label)
        self.register_buffer("loss_weight", weights, persistent=False)
        self.mix = make_mix(self.objective, num_classes, multi_label)
        self.metrics = classification_metrics(num_classes, multi_label)

    @property
    def monitor(self) -> str:
        """The score, higher is better, that decides which checkpoint is best."""
        return "val/auroc" if self.multi_label else "val/accuracy"

    @property
    def scored_net(self) -> nn.Module:
        """The network to score and export: the average if there is one."""
        return self.net if self.average is None else self.average.module

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) to logits (N, num_classes)."""
        return self.scored_net(image)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits to probabilities, in float32."""
        logits = logits.float()
        return logits.sigmoid() if self.multi_label else logits.softmax(-1)

    def loss(self, logits: Tensor, target: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy with class indices or probabilities, or binary for multi-label."""
        weight = cast(Tensor | None, self.loss_weight)
        logits = logits.float()
        if self.multi_label:
            target = target.float() * (1 - smoothing) + 0.5 * smoothing
            return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
        return F.cross_entropy(logits, target, weight, label_smoothing=smoothing)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Restart every generator from (seed, epoch, step, rank)."""
        key = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        state = np.random.SeedSequence(key).generate_state(2)
        torch.manual_seed(int(state[0]))
        np.random.seed(int(state[1]))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch, mixed if asked for."""
        image, target = batch
        smoothing = self.objective.label_smoothing
        # a last odd batch cannot be mixed in pairs
        if self.mix is not None and len(image) % 2 == 0:
            image, target = self.mix(image, target)
            smoothing = 0.0  # the mixed target is smoothed already
        loss = self.loss(self.net(image), target, smoothing=smoothing)
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=False, logger=False)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(image))
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the average follow the weights."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.net, step=self.global_step)

    def train(self, mode: bool = True) -> "Classification":
        """Set the mode of the network; the average is always evaluated."""
        super().train(mode)
        if self.average is not None:
            self.average.eval()
        return self

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        """Add one batch to the scores."""
        image, target = batch
        views = [self(image.flip(axes) if axes else image) for axes in FLIPS[self.tta]]
        self.log(f"{stage}/loss", self.loss(views[0], target), batch_size=len(image))
        mean = torch.stack([self.probabilities(view) for view in views]).mean(0)
        self.metrics.update(mean, target.long())

    def _finish_evaluation(self, stage: str) -> None:
        """Log the scores, keep the full report and start afresh."""
        self.report = compute_report(self.metrics, self.class_names)
        self.metrics.reset()
        scores = {name: value for name, value in self.report.items() if isinstance(value, float)}
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items()})

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Score one batch."""
        self._evaluate(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log the validation scores."""
        self._finish_evaluation("val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Score one batch."""
        self._evaluate(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log the test scores."""
        self._finish_evaluation("test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """(N, num_classes) probabilities, averaged over the views of `tta`."""
        image = batch[0]
        views = [self(image.flip(axes) if axes else image) for axes in FLIPS[self.tta]]
        return torch.stack([self.probabilities(view) for view in views]).mean(0)

    def configure_optimizers(self) -> Any:
        """Optimiser of timm, with the model's own rules on decay, and a cosine schedule."""
        optim, epochs = self.optim, self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise TaskError(f"max_epochs={epochs} must be at least 1")
        optimizer = timm.optim.create_optimizer_v2(
            self.net,
            opt=optim.opt,
            lr=optim.lr,
            weight_decay=optim.weight_decay,
            layer_decay=optim.layer_decay,
        )
        updates = max(1, int(self.trainer.estimated_stepping_batches) // epochs)
        scheduler, _ = timm.scheduler.create_scheduler_v2(
            optimizer,
            num_epochs=epochs,
            warmup_epochs=min(optim.warmup_epochs, epochs / 3),  # type: ignore[arg-type]
            warmup_lr=optim.warmup_lr,
            min_lr=optim.min_lr,
            step_on_epochs=False,
            updates_per_epoch=updates,
        )
        schedule = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the learning rate for the next step."""
        scheduler.step_update(self.global_step)


def loss_weights(
    wish: str | list[float] | None, counts: list[int] | None, num_classes: int, multi_label: bool
) -> Tensor | None:
    """Weight of each class in the loss; for multi-label data, weight of its positives.

    Args:
        wish: "balanced", one weight per class, or None.
        counts: Training images of each class.
        num_classes: Number of classes.
        multi_label: Any number of classes per image.

    Raises:
        TaskError: Another word, another number of weights, or no counts to balance.
    """
    if wish is None:
        return None
    if isinstance(wish, str):
        if wish != "balanced":
            raise TaskError(f"class_weights={wish!r} must be 'balanced' or a list of numbers")
        if counts is None:
            raise TaskError("class_weights='balanced' needs class_counts")
        found = torch.tensor(counts, dtype=torch.float32).clamp(min=1)
        # the mean weight over the images is 1, as in scikit-learn
        return found.max() / found if multi_label else found.sum() / (num_classes * found)
    if len(wish) != num_classes:
        raise TaskError(f"class_weights has {len(wish)} values for {num_classes} classes")
    return torch.tensor(wish, dtype=torch.float32)


def make_mix(objective: Objective, num_classes: int, multi_label: bool) -> timm.data.Mixup | None:
    """Mixup and CutMix as asked for, or None."""
    if objective.mixup <= 0 and objective.cutmix <= 0:
        return None
    return timm.data.Mixup(
        mixup_alpha=objective.mixup,
        cutmix_alpha=objective.cutmix,
        prob=objective.mix_prob,
        label_smoothing=objective.label_smoothing,
        num_classes=num_classes,
        multi_label=multi_label,
    )
