"""Semantic segmentation of images, and of volumes slice by slice, with any segmentation network."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models import PretrainedCfg
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from vimamba.data.lists import LIST_SUFFIXES
from vimamba.errors import UsageError
from vimamba.labels import IGNORE
from vimamba.layers import resize
from vimamba.networks import create_segmenter
from vimamba.sizes import ImageSize, read_size, sides_of
from vimamba.tasks.backbone import is_timm_model, refuse_task_arguments, self_contained
from vimamba.tasks.dense import DenseTask
from vimamba.tasks.errors import TaskError
from vimamba.tasks.optim import DEFAULT_OPTIMIZATION, Optimization
from vimamba.tasks.registry import register_task
from vimamba.tasks.segmentation.loss import DEFAULT_MASK_OBJECTIVE, MaskLoss, MaskObjective
from vimamba.tasks.segmentation.metrics import CaseTable, class_scores, without_borders
from vimamba.tasks.task import balanced_weights
from vimamba.tasks.windows import Scene

# rows decided at a time: a large image's probabilities never exist all at once
STRIP = 256
# image, mask at its own size, case, spacing
Scored = tuple[Tensor, Tensor, str, tuple[float, ...]]


@register_task("segmentation")
class Segmentation(DenseTask):
    """Trains and scores a segmentation network.

    Two classes have one output with a sigmoid, more have one output each with a softmax. Scores are
    computed at the masks' own sizes. Images of another size than the network's are predicted in
    overlapping windows that are blended with Gaussian weights.

    Args:
        model: A network (vimamba.list_segmenters()) or a timm backbone.
        head: Decoder on a backbone (vimamba.list_heads()); UPerNet by default.
        model_kwargs: Additional arguments of the network or backbone.
        pretrained: Start from the published weights.
        drop_path_rate: Stochastic depth; the model's own default if None.
        aux: Also train auxiliary outputs: an FCN head on a backbone, deep supervision in networks.
        in_chans: Input channels.
        num_classes: Classes; set by the data module.
        class_names: In the order of the classes; numbers by default.
        label_values: Value of each class in masks; 0, 1, 2 and so on by default.
        background: The first class is background (excluded from mean Dice).
        img_size: Side of the images the network gets, or height and width, pixels.
        optim: Optimizer and schedule.
        objective: The losses.
        score: What decides which epoch is best: mean Dice of the foreground classes, or mean IoU.
        case_scores: Outside of training, score each image or volume separately, with surface
            distances.
        tolerance: Distance up to which a surface counts as matched, in millimeters or pixels.
        left_out: Classes without a part in the mean scores, as ["clutter"] in Potsdam and
            Vaihingen; their pixels count against other classes and in the accuracy.
        border: Pixels up to this far from another true class are in no score over all pixels: 3 for
            the eroded truth of Potsdam and Vaihingen.
        overlap: Overlap of neighboring windows, a fraction in [0, 1).
        grad_checkpointing: Recompute activations to save memory.
        compile: Compile the network.
        seed: Seed of all random streams.
    """

    tools = "vimamba.tasks.segmentation.report"
    headline_scores: ClassVar = {"dice": "Dice", "miou": "mIoU", "accuracy": "accuracy"}
    # default arguments of networks
    usual_size: ClassVar[int] = 256

    def __init__(
        self,
        model: str = "vm_unet",
        *,
        head: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        pretrained: bool = False,
        drop_path_rate: float | None = None,
        aux: bool = False,
        in_chans: int = 3,
        num_classes: int = 2,
        class_names: list[str] | None = None,
        label_values: list[int] | None = None,
        background: bool = True,
        img_size: ImageSize | None = None,
        optim: Optimization = DEFAULT_OPTIMIZATION,
        objective: MaskObjective = DEFAULT_MASK_OBJECTIVE,
        score: Literal["dice", "miou"] = "dice",
        case_scores: bool = True,
        tolerance: float = 2.0,
        left_out: list[str] | None = None,
        border: int = 0,
        overlap: float = 0.5,
        grad_checkpointing: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise TaskError(f"there is only one class, {class_names}; at least two are needed")
        if not 0 <= overlap < 1:
            raise TaskError(f"overlap={overlap} must lie in [0, 1)")
        img_size = None if img_size is None else read_size(img_size, self.axes)
        self.save_hyperparameters()
        self.hparams["img_size"] = img_size
        self.objective = MaskObjective(**objective) if isinstance(objective, dict) else objective
        self.hparams["objective"] = asdict(self.objective)
        name, arguments = self_contained(model, model_kwargs)
        self.hparams["model"], self.hparams["model_kwargs"] = name, arguments
        self.class_names = class_names or [str(index) for index in range(num_classes)]
        self.label_values = label_values or list(range(num_classes))
        self.background = background
        check_counted(left_out or [], border, self.class_names)
        self.sides = sides_of(img_size or self.usual_size, self.axes)
        self.score = score
        self.case_scores = case_scores
        self.tolerance = tolerance
        self.left_out = left_out or []
        self.border = border
        self.overlap = overlap
        # for inference in windows: windows at a time, and the progress callback
        self.binary = num_classes == 2
        net = build_network(
            model,
            head,
            num_classes=1 if self.binary else num_classes,
            in_chans=in_chans,
            pretrained=pretrained,
            img_size=img_size,
            aux=aux,
            drop_path_rate=drop_path_rate,
            model_kwargs={**self.planned_arguments(model), **(model_kwargs or {})},
        )
        if len(cast(Any, net).cell) != self.axes:
            kind, task = ("volumes", "volumes") if self.axes == 2 else ("images", "segmentation")
            raise TaskError(f"model={model!r} takes {kind}; add --task {task}")
        self.loss = MaskLoss(self.objective, num_classes)
        self.prepare(net, optim, seed=seed, grad_checkpointing=grad_checkpointing, compile=compile)
        self.confusion = MulticlassConfusionMatrix(
            num_classes, ignore_index=IGNORE, validate_args=False
        )
        self.cases = self.new_cases()

    def planned_arguments(self, model: str) -> dict[str, Any]:
        """Arguments of a network that are determined by the data."""
        return {}

    @classmethod
    def find_data(cls, path: Path) -> str:
        """Decide by the contents of the folder: Synapse, ISIC, volumes, or images and masks."""
        if path.suffix.lower() in LIST_SUFFIXES:
            name = "MaskCSV"
        elif (path / "train_npz").is_dir() or (path / "test_vol_h5").is_dir():
            name = "Synapse"
        elif any(path.glob("*GroundTruth*")):
            name = "ISIC"
        elif any(True for ending in ("nii", "nii.gz") for _ in path.rglob(f"*.{ending}")):
            name = "NiftiSlices"
        else:
            name = "MaskFolder"
        return f"vimamba.data.{name}"

    @classmethod
    def find_cfg(cls, model: str, model_kwargs: dict[str, Any] | None) -> PretrainedCfg:
        """The config of a backbone; a whole network has a default input size."""
        if is_timm_model(model):
            return super().find_cfg(model, model_kwargs)
        return PretrainedCfg(input_size=(3, 256, 256))

    def logged_scores(self) -> list[str]:
        """Scores logged in every validation."""
        return ["loss", "dice", "miou", "accuracy"]

    @property
    def monitor(self) -> str:
        """The score, higher is better, that decides which checkpoint is best."""
        return f"val/{self.score}"

    def body_parameters(self) -> list[nn.Parameter]:
        """Parameters of the backbone or encoder."""
        return cast(Any, self.net).body_parameters()

    def new_cases(self) -> CaseTable:
        """An empty table for the scores of cases."""
        return CaseTable(
            self.class_names,
            background=self.background,
            tolerance=self.tolerance,
            left_out=self.left_out,
        )

    def on_fit_start(self) -> None:
        """Use the requested class weights, not those of a resumed checkpoint.

        Raises:
            TaskError: Balanced weights are requested, but the training data are unknown.
        """
        requested = self.objective.class_weights
        if requested == "balanced":
            counts = getattr(cast(Any, self.trainer).datamodule, "class_counts", None)
            if counts is None:
                raise TaskError(
                    "class_weights='balanced' needs a data module with class_counts, such as those "
                    "of vimamba.data; or give a list of numbers"
                )
            weights = balanced_weights(counts)
        else:
            requested = [1.0] * len(self.class_names) if requested is None else requested
            weights = torch.tensor(requested, dtype=torch.float32, device="cpu")
        cast(Tensor, self.loss.class_weight).copy_(weights)

    def forward_training(self, image: Tensor) -> list[Tensor]:
        """The main and the auxiliary logits of a batch of images."""
        return cast(Any, self.net).forward_all(image)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch."""
        image, mask = batch
        loss = self.loss(self.run_training(image), mask)
        self.log_training(loss, len(image))
        return loss

    def check_folds(self) -> None:
        """Fail if cases are not scored individually."""
        if not self.case_scores:
            raise UsageError("--model.case_scores must be true: the report is about cases")

    def joint_logits(self, image: Tensor) -> Tensor:
        """(N, C, h, w) to the logits whose probabilities are the mean of those of the views."""
        views = self.views(image, whole=True)
        if len(views) == 1:
            return views[0].float()
        mean = self.mean_probabilities(views).clamp(1e-7, 1 - 1e-7)
        return mean[:, 1:].logit() if self.binary else mean.log()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (N, C, H, W) to probabilities of all classes, in float32."""
        logits = logits.float()
        if not self.binary:
            return logits.softmax(1)
        positive = logits.sigmoid()
        return torch.cat([1 - positive, positive], dim=1)

    def classes(self, views: Sequence[Tensor], size: Sequence[int]) -> NDArray[np.uint8]:
        """The most likely class of every pixel, (N, H, W), from the mean of the views."""
        if views[0].shape[2:] != tuple(size):
            return likeliest(resize(self.mean_probabilities(views), size, antialias=True))
        strips = zip(*(view.split(STRIP, dim=2) for view in views), strict=True)
        return np.concatenate([likeliest(self.mean_probabilities(s)) for s in strips], axis=1)

    def mean_probabilities(self, views: Sequence[Tensor]) -> Tensor:
        """Mean over the views, (N, C, H, W)."""
        return torch.stack([self.probabilities(view) for view in views]).mean(0)

    def segment(
        self, images: Sequence[Tensor | Scene], sizes: Sequence[Sequence[int]]
    ) -> list[NDArray[np.uint8]]:
        """Images (C, h, w), or scenes of one image, to classes (H, W), each at its own size.

        Raises:
            NotFiniteError: A logit of one of them is not finite.
        """
        found = []
        with torch.inference_mode():
            for group in of_one_size(list(zip(images, sizes, strict=True))):
                first = group[0][0]
                whole = first if isinstance(first, Scene) else torch.stack([i for i, _ in group])
                views = self.views(whole)
                for place, (_, size) in enumerate(group):
                    own = [view[place : place + 1] for view in views]
                    found.append(self.classes(own, size)[0])
        return found

    def predict_step(
        self, batch: Tensor | Sequence[Tensor | Sequence[Any]], batch_idx: int
    ) -> list[Tensor]:
        """The most likely class of every pixel of some images, which may differ in size.

        Args:
            batch: Images (N, C, H, W), or a tuple that starts with them; or a list of images (C, h,
                w) or of tuples that start with an image and its mask (H, W), as the data modules
                return them: classes then have the mask's size, which is the stored image's.
            batch_idx: Unused.

        Returns:
            For each image (H, W) uint8.
        """
        if not isinstance(batch, Tensor) and isinstance(batch[0], Tensor) and batch[0].ndim == 4:
            batch = batch[0]
        images, sizes = [], []
        for item in batch:
            image, like = (item, item[0]) if isinstance(item, Tensor) else (item[0], item[1])
            images.append(image)
            sizes.append(like.shape[-2:])
        return [torch.from_numpy(found) for found in self.segment(images, sizes)]

    def score_batch(self, batch: list[Scored], stage: str) -> None:
        """Add images, each with a mask of its own size, to the scores."""
        for group in of_one_size(batch):
            views = self.views(torch.stack([item[0] for item in group]))
            for place, (_, mask, case, spacing) in enumerate(group):
                own = [view[place : place + 1] for view in views]
                logits = resize(own[0].float(), mask.shape, antialias=True)
                loss = self.loss.single(logits, mask[None])
                self.log_scoring(stage, loss, 1)
                found = self.classes(own, mask.shape)[0]
                prediction = torch.from_numpy(found).to(mask.device)
                self.confusion.update(prediction[None], self.counted(mask)[None].long())
                if self.scores_cases(stage):
                    self.cases.add(case, found, mask.cpu().numpy(), spacing)

    def counted(self, mask: Tensor) -> Tensor:
        """(H, W) classes, with `IGNORE` at the borders that no score over all pixels counts."""
        if not self.border:
            return mask
        return torch.from_numpy(without_borders(mask.cpu().numpy(), self.border)).to(mask.device)

    def scores_whole(self, stage: str) -> bool:
        """Whether every process scores the whole split, so that volumes are not divided.

        This is the case in tests, and in validations outside of training.
        """
        return stage == "test" or self.trainer.state.fn == "validate"

    def scores_cases(self, stage: str) -> bool:
        """Whether each case is scored separately."""
        return self.case_scores and self.scores_whole(stage)

    def compute_scores(self, stage: str) -> dict[str, Any]:
        """The full report; resets the metrics."""
        confusion = self.confusion.compute()
        self.confusion.reset()
        if self.scores_whole(stage):
            confusion = confusion // self.trainer.world_size
        report = class_scores(
            confusion, self.class_names, background=self.background, left_out=self.left_out
        )
        given = {"left_out": self.left_out, "border": self.border}
        report |= {name: value for name, value in given.items() if value}
        if self.scores_cases(stage):
            self.cases.close()
            means, per_class = self.cases.means()
            report.update({f"case_{key}": value for key, value in means.items()})
            report["cases"] = {"per_class": per_class, "rows": self.cases.rows}
            self.cases = self.new_cases()
        return report


def check_counted(left_out: Sequence[str], border: int, class_names: Sequence[str]) -> None:
    """Fail on classes to leave out of means that are not there, and on a border below 0.

    Raises:
        TaskError: Names the argument.
    """
    unknown = [name for name in left_out if name not in class_names]
    if unknown or not {*class_names} - {*left_out}:
        raise TaskError(f"left_out={list(left_out)} must be some of the classes {class_names}")
    if border < 0:
        raise TaskError(f"border={border} must be at least 0 (pixels)")


def likeliest(probabilities: Tensor) -> NDArray[np.uint8]:
    """The most likely classes, (N, C, H, W) to (N, H, W)."""
    return probabilities.argmax(1).to(torch.uint8).cpu().numpy()


def of_one_size(batch: Sequence[Any]) -> Iterator[list[Any]]:
    """Split a batch into parts, in order, whose first entries, the images, have the same size.

    A scene is a separate part.
    """
    group: list[Any] = []
    for item in batch:
        alone = any(isinstance(image, Scene) for image, *_ in (item, *group[:1]))
        if group and (alone or item[0].shape != group[0][0].shape):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def build_network(
    model: str,
    head: str | None,
    *,
    drop_path_rate: float | None,
    model_kwargs: dict[str, Any] | None,
    make: Callable[..., nn.Module] = create_segmenter,
    **kwargs: Any,
) -> nn.Module:
    """`create_segmenter`, or a similar function, with errors a user can act on.

    Raises:
        TaskError: Unknown name, argument or weights.
    """
    extra = dict(model_kwargs or {})
    if drop_path_rate is not None:
        kwargs["drop_path_rate"] = drop_path_rate
    refuse_task_arguments(extra, kwargs)
    try:
        return make(model, head, **kwargs, **extra)
    except TypeError as error:
        if "keyword argument" not in str(error):
            raise
        raise TaskError(f"model={model!r} does not take model_kwargs={extra}: {error}") from None
    except ValueError as error:
        named = f"model={model!r}"
        text = str(error)
        raise TaskError(text if named in text else f"{named}: {text}") from None
    except (RuntimeError, OSError) as error:
        if not kwargs["pretrained"]:
            raise
        raise TaskError(f"pretrained weights of {model!r} cannot be loaded: {error}") from None
