"""Image classification, single-label or multi-label, with any timm model."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import timm.data
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimamba.data.lists import LIST_SUFFIXES
from vimamba.sizes import ImageSize, read_size
from vimamba.tasks.backbone import build_backbone, self_contained
from vimamba.tasks.classification.metrics import classification_metrics, compute_report
from vimamba.tasks.errors import TaskError
from vimamba.tasks.optim import DEFAULT_OPTIMIZATION, Optimization
from vimamba.tasks.registry import register_task
from vimamba.tasks.task import FLIPS, Task, balanced_weights


@dataclass(frozen=True)
class Objective:
    """What is minimized.

    Attributes:
        label_smoothing: Fraction of the target spread over all classes.
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


DEFAULT_OBJECTIVE = Objective()


@register_task("classification")
class Classification(Task):
    """Trains and scores a timm model.

    Args:
        model: timm model name, or `local-dir:` / `hf-hub:` and a path.
        model_kwargs: Additional arguments of the model's constructor.
        pretrained: Start from the published weights.
        drop_path_rate: Stochastic depth; the model's own default if None.
        in_chans: Input channels.
        num_classes: Classes; set by the data module.
        class_names: In the order of the labels; numbers by default.
        class_counts: Training images of each class, needed for class_weights="balanced".
        multi_label: Any number of classes per image, trained with binary cross-entropy.
        img_size: Side of the images, or height and width, pixels; passed to models with a fixed
            grid.
        optim: Optimizer and schedule.
        objective: Loss and mixing.
        grad_checkpointing: Recompute activations to save memory.
        compile: Compile the network.
        seed: Seed of all random streams.
    """

    tools = "vimamba.tasks.classification.report"
    headline_scores: ClassVar = {"accuracy": "accuracy", "macro_f1": "macro F1", "auroc": "AUROC"}
    lower_is_better = ("loss", "ece")

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
        img_size: ImageSize | None = None,
        optim: Optimization = DEFAULT_OPTIMIZATION,
        objective: Objective = DEFAULT_OBJECTIVE,
        grad_checkpointing: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_classes < 2 and not multi_label:
            raise TaskError(f"there is only one class, {class_names}; at least two are needed")
        img_size = None if img_size is None else read_size(img_size)
        self.save_hyperparameters()
        self.hparams["img_size"] = img_size
        self.objective = Objective(**objective) if isinstance(objective, dict) else objective
        check_objective(self.objective)
        self.hparams["objective"] = asdict(self.objective)
        name, arguments = self_contained(model, model_kwargs)
        self.hparams["model"], self.hparams["model_kwargs"] = name, arguments
        self.class_names = class_names or [str(index) for index in range(num_classes)]
        self.multi_label = multi_label
        net = build_backbone(
            model,
            pretrained=pretrained,
            img_size=img_size,
            model_kwargs=model_kwargs,
            num_classes=num_classes,
            in_chans=in_chans,
            drop_path_rate=drop_path_rate,
        )
        self.prepare(net, optim, seed=seed, grad_checkpointing=grad_checkpointing, compile=compile)
        weights = loss_weights(self.objective.class_weights, class_counts, num_classes, multi_label)
        self.register_buffer("loss_weight", weights, persistent=False)
        self.mix = make_mix(self.objective, num_classes, multi_label)
        self.metrics = classification_metrics(num_classes, multi_label)

    @classmethod
    def find_data(cls, path: Path) -> str:
        """Decide by the suffix: a list, a MedMNIST file, or else a folder."""
        names = {**dict.fromkeys(LIST_SUFFIXES, "CSVList"), ".npz": "MedMNIST"}
        return f"vimamba.data.{names.get(path.suffix.lower(), 'ImageFolder')}"

    def logged_scores(self) -> list[str]:
        """Scores logged in validation, which depend on the number of classes and labels."""
        scores = ["loss", "accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece"]
        scores += ["exact_match"] * self.multi_label
        return scores + ["top5"] * (not self.multi_label and len(self.class_names) > 5)

    @property
    def monitor(self) -> str:
        """The score, higher is better, that decides which checkpoint is best."""
        return "val/auroc" if self.multi_label else "val/accuracy"

    def body_parameters(self) -> list[nn.Parameter]:
        """All parameters except the classifier's."""
        classifier = cast(Any, self.net).get_classifier()
        # a distilled model has two
        heads = classifier if isinstance(classifier, tuple) else (classifier,)
        ends = {id(parameter) for head in heads for parameter in head.parameters()}
        return [parameter for parameter in self.net.parameters() if id(parameter) not in ends]

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits to probabilities, in float32."""
        logits = logits.float()
        return logits.sigmoid() if self.multi_label else logits.softmax(-1)

    def loss(self, logits: Tensor, target: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy with class indices or probabilities, or binary for multi-label."""
        weight = cast(Tensor | None, self.loss_weight)
        # true half precision also converts buffers and targets
        weight = None if weight is None else weight.float()
        target = target.float() if target.is_floating_point() else target
        logits = logits.float()
        if self.multi_label:
            target = target.float() * (1 - smoothing) + 0.5 * smoothing
            return F.binary_cross_entropy_with_logits(logits, target, pos_weight=weight)
        return F.cross_entropy(logits, target, weight, label_smoothing=smoothing)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch, mixed if requested."""
        image, target = batch
        smoothing = self.objective.label_smoothing
        # a last batch of odd size cannot be mixed in pairs
        if self.mix is not None and len(image) % 2 == 0:
            image, target = self.mix(image, target)
            smoothing = 0.0  # the mixed target is smoothed already
        loss = self.loss(self.run_training(image), target, smoothing=smoothing)
        self.log_training(loss, len(image))
        return loss

    def views(self, image: Tensor) -> list[Tensor]:
        """Logits of the flipped views requested by `tta`."""
        return [self.finite_logits(image.flip(axes) if axes else image) for axes in FLIPS[self.tta]]

    def score_batch(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        """Add one batch to the scores."""
        image, target = batch
        views = self.views(image)
        self.log_scoring(stage, self.loss(views[0], target), len(image))
        mean = torch.stack([self.probabilities(view) for view in views]).mean(0)
        self.metrics.update(mean, target.long())

    def compute_scores(self, stage: str) -> dict[str, Any]:
        """The full report; resets the metrics."""
        report = compute_report(self.metrics, self.class_names)
        self.metrics.reset()
        return report

    def predict_step(self, batch: Tensor | tuple[Tensor, ...], batch_idx: int) -> Tensor:
        """Probabilities, averaged over the views of `tta`.

        Args:
            batch: Images (N, C, H, W), or a tuple that starts with them.
            batch_idx: Unused.

        Returns:
            (N, num_classes).

        Raises:
            NotFiniteError: A logit is not finite.
        """
        image = batch if isinstance(batch, Tensor) else batch[0]
        views = self.views(image)
        return torch.stack([self.probabilities(view) for view in views]).mean(0)


def check_objective(objective: Objective) -> None:
    """Fail on an invalid value, naming the setting."""
    for name, most in (("label_smoothing", 1), ("mix_prob", 1), ("mixup", None), ("cutmix", None)):
        value = getattr(objective, name)
        if not 0 <= value <= (value if most is None else most):
            limits = "must be at least 0" if most is None else f"must lie in [0, {most}]"
            raise TaskError(f"objective.{name}={value} {limits}")


def loss_weights(
    requested: str | list[float] | None,
    counts: list[int] | None,
    num_classes: int,
    multi_label: bool,
) -> Tensor | None:
    """Weight of each class in the loss; for multi-label data, weight of its positives.

    Args:
        requested: "balanced", one weight per class, or None.
        counts: Training images of each class.
        num_classes: Number of classes.
        multi_label: Any number of classes per image.

    Raises:
        TaskError: An unknown word, a wrong number of weights, or no counts for balancing.
    """
    if requested is None:
        return None
    if isinstance(requested, str):
        if requested != "balanced":
            raise TaskError(f"class_weights={requested!r} must be 'balanced' or a list of numbers")
        if counts is None:
            raise TaskError("class_weights='balanced' needs class_counts")
        found = torch.tensor(counts, dtype=torch.float32, device=None).clamp(min=1)
        return found.max() / found if multi_label else balanced_weights(counts)
    if len(requested) != num_classes:
        raise TaskError(f"class_weights has {len(requested)} values for {num_classes} classes")
    return torch.tensor(requested, dtype=torch.float32, device=None)


def make_mix(objective: Objective, num_classes: int, multi_label: bool) -> timm.data.Mixup | None:
    """Mixup and CutMix as requested, or None."""
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
