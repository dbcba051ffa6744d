"""Change between two dates with any change network: binary, semantic, or damage."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassConfusionMatrix

from vimamba.labels import IGNORE
from vimamba.layers import resize
from vimamba.networks import create_change_detector
from vimamba.sizes import ImageSize, height_and_width, read_size
from vimamba.tasks.backbone import is_timm_model, self_contained
from vimamba.tasks.change.channels import OutputChannels, join_logits, mean_of
from vimamba.tasks.change.loss import (
    DEFAULT_CHANGE_OBJECTIVE,
    ChangeLoss,
    ChangeObjective,
    restore_objective,
)
from vimamba.tasks.change.metrics import TABLES, counted, score_tables
from vimamba.tasks.dense import DenseTask
from vimamba.tasks.errors import TaskError
from vimamba.tasks.optim import DEFAULT_OPTIMIZATION, Optimization
from vimamba.tasks.registry import register_task
from vimamba.tasks.segmentation.task import build_network, of_one_size
from vimamba.tasks.windows import Scene

# the score that decides which epoch is best, for each kind
MONITORS = {"binary": "f1", "semantic": "sek", "damage": "score"}
LOGGED = {
    "binary": ["f1", "iou", "precision", "recall", "accuracy", "kappa"],
    "semantic": ["score", "sek", "fscd", "miou", "f1", "iou", "accuracy", "kappa"],
    "damage": ["score", "f1_building", "f1_damage", "iou", "accuracy"],
}


@register_task("change")
class Change(DenseTask):
    """Trains and scores a network that compares two images of one place.

    Scores are computed at the labels' own sizes. Images of another size than the network's are
    predicted in overlapping windows that are blended with Gaussian weights. Two dates are one
    tensor (N, 2, C, H, W), or in windows concatenated along the channels, (N, 2 C, H, W).

    Args:
        model: A network (vimamba.list_change_detectors()) or a timm backbone.
        head: Decoder on a backbone (vimamba.list_heads()); UPerNet by default.
        fusion: How the feature maps of both dates are joined on a backbone
            (vimamba.list_fusions()); their difference by default.
        model_kwargs: Additional arguments of the network or backbone.
        pretrained: Start from the published weights.
        drop_path_rate: Stochastic depth; the model's own default if None.
        in_chans: Channels of either date.
        kind: "binary", "semantic" or "damage"; set by the data module.
        num_classes: Classes, the first of which is unchanged; set by the data module.
        class_names: In the order of the classes; numbers by default.
        img_size: Side of the images the network gets, or height and width, pixels.
        optim: Optimizer and schedule.
        objective: The losses.
        overlap: Overlap of neighboring windows, a fraction in [0, 1).
        grad_checkpointing: Recompute activations to save memory.
        compile: Compile the network.
        seed: Seed of all random streams.
    """

    tools = "vimamba.tasks.change.report"
    headline_scores: ClassVar = {"f1": "F1", "score": "score", "sek": "SeK", "iou": "IoU"}
    of_the_data = ("kind", "num_classes", "class_names", "img_size", "in_chans")
    stack = (2,)

    def __init__(
        self,
        model: str = "mamba_bcd_tiny",
        *,
        head: str | None = None,
        fusion: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        pretrained: bool = False,
        drop_path_rate: float | None = None,
        in_chans: int = 3,
        kind: str = "binary",
        num_classes: int = 2,
        class_names: list[str] | None = None,
        img_size: ImageSize | None = None,
        optim: Optimization = DEFAULT_OPTIMIZATION,
        objective: ChangeObjective = DEFAULT_CHANGE_OBJECTIVE,
        overlap: float = 0.5,
        grad_checkpointing: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if kind not in MONITORS:
            raise TaskError(f"kind={kind!r} must be one of {', '.join(MONITORS)}")
        if num_classes < 2 or (kind == "binary" and num_classes != 2):
            raise TaskError(f"num_classes={num_classes} does not fit kind={kind!r}")
        if not 0 <= overlap < 1:
            raise TaskError(f"overlap={overlap} must lie in [0, 1)")
        img_size = None if img_size is None else read_size(img_size)
        self.save_hyperparameters()
        self.hparams["img_size"] = img_size
        self.objective = restore_objective(objective)
        self.hparams["objective"] = asdict(self.objective)
        name, arguments = self_contained(model, model_kwargs)
        self.hparams["model"], self.hparams["model_kwargs"] = name, arguments
        self.class_names = class_names or [str(index) for index in range(num_classes)]
        self.kind = kind
        self.outputs = OutputChannels(kind, num_classes)
        self.sides = height_and_width(img_size or 256)
        self.overlap = overlap
        # for inference in windows: windows at a time, and the progress callback
        net = build_network(
            model,
            head,
            make=create_change_detector,
            num_classes=self.outputs.net_classes,
            in_chans=in_chans,
            pretrained=pretrained,
            img_size=img_size,
            drop_path_rate=drop_path_rate,
            model_kwargs={**(model_kwargs or {}), **({"fusion": fusion} if fusion else {})},
        )
        if cast(Any, net).kind != kind:
            raise TaskError(
                f"model={model!r} predicts {cast(Any, net).kind} change, the labels are {kind}; "
                f"choose from {', '.join(matching_networks(kind))}"
            )
        self.loss = ChangeLoss(self.objective, num_classes)
        self.prepare(net, optim, seed=seed, grad_checkpointing=grad_checkpointing, compile=compile)
        self.tables = MetricCollection(
            {
                name: cast(Any, MulticlassConfusionMatrix)(
                    num_classes if place else 2, ignore_index=IGNORE, validate_args=False
                )
                for place, name in enumerate(TABLES[kind])
            },
            compute_groups=False,
        )

    @classmethod
    def find_data(cls, path: Path) -> str:
        """The data set with folders of two dates."""
        return "vimamba.data.ChangeFolder"

    @classmethod
    def find_cfg(cls, model: str, model_kwargs: dict[str, Any] | None) -> PretrainedCfg:
        """The config of a backbone; a whole network has a default input size."""
        if is_timm_model(model):
            return super().find_cfg(model, model_kwargs)
        return PretrainedCfg(input_size=(3, 256, 256))

    def logged_scores(self) -> list[str]:
        """Scores logged in every validation."""
        return ["loss", *LOGGED[self.kind]]

    @property
    def monitor(self) -> str:
        """The score, higher is better, that decides which checkpoint is best."""
        return f"val/{MONITORS[self.kind]}"

    def body_parameters(self) -> list[nn.Parameter]:
        """Parameters of the backbone or encoder."""
        return cast(Any, self.net).body_parameters()

    def forward(self, image: Tensor) -> Tensor:
        """Two dates, (N, 2, C, H, W) or (N, 2 C, H, W), to all logits, (N, K, H, W)."""
        return join_logits(self.scored_net(*dates_of(image)))

    def forward_training(self, image: Tensor) -> Any:
        """Logits of a batch, (N, K, H, W)."""
        return join_logits(self.net(*dates_of(image)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        dates, truth = batch
        loss = self.loss(self.outputs.part(self.run_training(dates)), truth)
        self.log_training(loss, len(dates))
        return loss

    def joint_logits(self, image: Tensor) -> Tensor:
        """(N, 2 C, h, w) to logits whose probabilities are the mean of those of the views."""
        views = self.views(image, whole=True)
        if len(views) == 1:
            return views[0].float()
        mean = mean_of([self.outputs.probabilities(view) for view in views])
        return self.outputs.logits(mean)

    def decide(self, views: Sequence[Tensor], size: Sequence[int]) -> list[Tensor]:
        """Classes of the written maps, (N, H, W) each, from the mean of the views.

        Args:
            views: (N, K, h, w).
            size: H and W.
        """
        mean = mean_of([self.outputs.probabilities(view) for view in views])
        if views[0].shape[2:] != tuple(size):
            mean = {name: resize(found, size, antialias=True) for name, found in mean.items()}
        return [found.argmax(1).to(torch.uint8) for found in self.outputs.decide(mean)]

    def compare(self, image: Tensor | Scene, size: Sequence[int]) -> list[Tensor]:
        """Two dates, (2 C, h, w) or a scene of one pair, to the written maps, (H, W).

        Raises:
            NotFiniteError: A logit is not finite.
        """
        with torch.inference_mode():
            views = self.views(image if isinstance(image, Scene) else image[None])
            return [found[0].cpu() for found in self.decide(views, size)]

    def predict_step(self, batch: Any, batch_idx: int) -> list[list[Tensor]]:
        """The maps of some pairs, which may differ in size.

        Args:
            batch: Pairs (N, 2, C, H, W), or a tuple that starts with them; or a list of tuples that
                start with a pair (2, C, h, w) and its labels (M, H, W), as the data modules return
                them: maps then have the labels' size, which is the stored images'.
            batch_idx: Unused.

        Returns:
            For each pair the written maps, (H, W) uint8 each.
        """
        if not isinstance(batch, Tensor) and isinstance(batch[0], Tensor) and batch[0].ndim == 5:
            batch = batch[0]
        found = []
        for item in batch:
            dates, like = (item, item[0]) if isinstance(item, Tensor) else (item[0], item[1])
            found.append(self.compare(dates.flatten(0, 1), like.shape[-2:]))
        return found

    def score_batch(self, batch: list[tuple[Tensor, Tensor, str]], stage: str) -> None:
        """Add pairs, each with labels of its own size, to the scores."""
        for group in of_one_size(batch):
            views = self.views(torch.stack([item[0].flatten(0, 1) for item in group]))
            for place, (_, truth, _) in enumerate(group):
                own = [view[place : place + 1] for view in views]
                logits = resize(own[0].float(), truth.shape[1:], antialias=True)
                loss = self.loss(self.outputs.part(logits), truth[None])
                self.log_scoring(stage, loss, 1)
                self._count(self.decide(own, truth.shape[1:]), truth[None].long())

    def _count(self, maps: Sequence[Tensor], truth: Tensor) -> None:
        """Add one pair, maps (1, H, W) and truth (1, M, H, W), to the matrices."""
        for name, found, wanted in counted(self.kind, [one[0] for one in maps], truth[0]):
            cast(Any, self.tables)[name].update(found, wanted)

    def compute_scores(self, stage: str) -> dict[str, Any]:
        """The full report; resets the metrics."""
        found = {name: table.cpu() for name, table in self.tables.compute().items()}
        self.tables.reset()
        return score_tables(self.kind, found, self.class_names)


def dates_of(image: Tensor) -> tuple[Tensor, Tensor]:
    """Before and after of (N, 2, C, H, W) or (N, 2 C, H, W), (N, C, H, W) each."""
    if image.ndim == 5:
        before, after = image.unbind(1)
        return before, after
    before, after = image.chunk(2, dim=1)
    return before, after


def matching_networks(kind: str) -> list[str]:
    """Whole networks for a kind of change."""
    letters = {"binary": "bcd", "semantic": "scd", "damage": "bda"}[kind]
    names = [f"mamba_{letters}_{size}" for size in ("tiny", "small", "base")]
    return [*names, "rsm_cd_tiny", "a backbone"] if kind == "binary" else names
