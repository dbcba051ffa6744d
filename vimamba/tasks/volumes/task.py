"""Semantic segmentation of volumes, in three dimensions.

Sizes: K classes, d x h x w voxels at the network's spacing, D x H x W as stored.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models import PretrainedCfg
from torch import Tensor

from vimamba.data.listing import subfolders
from vimamba.layers import resize
from vimamba.networks import list_segmenters
from vimamba.sizes import ImageSize
from vimamba.tasks.dense import mirrored
from vimamba.tasks.errors import TaskError
from vimamba.tasks.optim import DEFAULT_OPTIMIZATION, Optimization
from vimamba.tasks.registry import register_task
from vimamba.tasks.segmentation.loss import DEFAULT_MASK_OBJECTIVE, MaskObjective, shrink
from vimamba.tasks.segmentation.metrics import CaseTable
from vimamba.tasks.segmentation.task import Scored, Segmentation, likeliest
from vimamba.tasks.windows import Scene

# networks whose stages are planned for a patch and its spacing
PLANNED = tuple(n for n in list_segmenters() if n.startswith(("vss_unet_3d", "umamba")))


@register_task("volumes")
class Volumes(Segmentation):
    """Trains and scores a segmentation network for volumes.

    The network sees patches of one size at one spacing. Whole volumes are predicted in overlapping
    windows that are blended with Gaussian weights, and the probabilities are resampled to the
    stored voxels slice by slice, so that a volume of any size takes little memory beyond its own
    voxels.

    Args:
        model: A network for volumes: `vss_unet_3d_*`, `umamba_*_3d`, `segmamba`.
        model_kwargs: Additional arguments of the network.
        pretrained: Start from the published weights.
        drop_path_rate: Stochastic depth; the model's own default if None.
        aux: Deep supervision.
        in_chans: Input channels.
        num_classes: Classes; set by the data module.
        class_names: In the order of the classes; numbers by default.
        label_values: Value of each class in masks; 0, 1, 2 and so on by default.
        background: The first class is background (excluded from mean Dice).
        regions: Sets of mask values that are also scored, as unions, by name.
        img_size: Size of the patches: a side, or slices, rows and columns.
        spacing: Millimeters along the three axes.
        optim: Optimizer and schedule.
        objective: The losses.
        score: What decides which epoch is best: mean Dice of the foreground classes, or mean IoU.
        case_scores: Outside of training, score each volume separately, with surface distances.
        tolerance: Distance up to which a surface counts as matched, in millimeters.
        overlap: Overlap of neighboring windows, a fraction in [0, 1).
        memory: GiB of memory for the scores of a volume's classes; larger ones go to a temporary
            memory-mapped file.
        grad_checkpointing: Recompute activations to save memory.
        compile: Compile the network.
        seed: Seed of all random streams.
    """

    tools = "vimamba.tasks.volumes.report"
    axes: ClassVar[int] = 3
    # slices 2, rows 3, columns 4
    flips: ClassVar[dict[str, list[tuple[int, ...]]]] = {
        "none": [()],
        "hflip": [(), (4,)],
        "flips": list(chain.from_iterable(combinations((2, 3, 4), n) for n in range(4))),
    }
    usual_size: ClassVar[int] = 64
    of_the_data: ClassVar[tuple[str, ...]] = (*Segmentation.of_the_data, "spacing", "regions")

    def __init__(
        self,
        model: str = "vss_unet_3d_tiny",
        *,
        model_kwargs: dict[str, Any] | None = None,
        pretrained: bool = False,
        drop_path_rate: float | None = None,
        aux: bool = False,
        in_chans: int = 1,
        num_classes: int = 2,
        class_names: list[str] | None = None,
        label_values: list[int] | None = None,
        background: bool = True,
        regions: dict[str, list[int]] | None = None,
        img_size: ImageSize | None = None,
        spacing: list[float] | None = None,
        optim: Optimization = DEFAULT_OPTIMIZATION,
        objective: MaskObjective = DEFAULT_MASK_OBJECTIVE,
        score: Literal["dice", "miou"] = "dice",
        case_scores: bool = True,
        tolerance: float = 2.0,
        overlap: float = 0.5,
        memory: float = 2.0,
        grad_checkpointing: bool = False,
        compile: bool = False,
        seed: int = 0,
    ) -> None:
        if memory <= 0:
            raise TaskError(f"memory={memory} must be above 0, in GiB")
        self._spacing = spacing
        values = label_values or list(range(num_classes))
        self._regions = {
            name: [values.index(value) for value in chosen]
            for name, chosen in (regions or {}).items()
        }
        super().__init__(
            model,
            model_kwargs=model_kwargs,
            pretrained=pretrained,
            drop_path_rate=drop_path_rate,
            aux=aux,
            in_chans=in_chans,
            num_classes=num_classes,
            class_names=class_names,
            label_values=label_values,
            background=background,
            img_size=img_size,
            optim=optim,
            objective=objective,
            score=score,
            case_scores=case_scores,
            tolerance=tolerance,
            overlap=overlap,
            grad_checkpointing=grad_checkpointing,
            compile=compile,
            seed=seed,
        )
        self.hparams.update(spacing=spacing, regions=regions, memory=memory)
        for name in ("head", "left_out", "border"):  # of images only
            self.hparams.pop(name, None)
        self.memory = memory

    def planned_arguments(self, model: str) -> dict[str, Any]:
        """The patch and the spacing, for networks that are planned for them."""
        if model not in PLANNED:
            return {}
        return {"patch_size": self.sides, "spacing": self._spacing}

    @classmethod
    def find_data(cls, path: Path) -> str:
        """Decide by the contents of the folder: ACDC, BraTS, or volumes and masks by name."""
        name = "VolumeFolder"
        for place in subfolders(path) if path.is_dir() else ():
            for folder in (place, *subfolders(place)[:1]):
                if any(folder.glob("*_frame*_gt.nii*")):
                    name = "ACDC"
                elif any(folder.glob("*[_-]seg.nii*")):
                    name = "BraTS"
        return f"vimamba.data.{name}"

    @classmethod
    def find_cfg(cls, model: str, model_kwargs: dict[str, Any] | None) -> PretrainedCfg:
        """A config without size: the data proposes one."""
        return PretrainedCfg(input_size=cast(Any, (1,)))

    def new_cases(self) -> CaseTable:
        """An empty table for the scores of cases."""
        return CaseTable(
            self.class_names,
            background=self.background,
            tolerance=self.tolerance,
            regions=self._regions,
        )

    def room(self, shape: tuple[int, ...]) -> Tensor:
        """Zeros of a shape, in an unlinked temporary file if they are large."""
        if 4 * math.prod(shape) <= self.memory * 2**30:
            return torch.zeros(shape, dtype=torch.float32, device="cpu")
        with tempfile.TemporaryFile(prefix="vimamba-") as file:
            return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=shape))

    def view(self, image: Tensor | Scene, axes: tuple[int, ...]) -> Tensor:
        """Logits (N, K, d, h, w) of a volume whose windows are mirrored, each by itself.

        So nothing of a volume's size is copied.
        """
        return self.slide(image, mirrored(self.finite_logits, axes))

    def stored_slices(self, views: Sequence[Tensor], size: Sequence[int]) -> Iterator[Tensor]:
        """Probabilities of the slices of the stored volume, one after the other, (N, K, H, W).

        They equal the trilinear interpolation of the whole volume, which is never computed at once.

        Args:
            views: Logits (N, K, d, h, w).
            size: (D, H, W).
        """
        depth = views[0].shape[2]
        planes: dict[int, Tensor] = {}
        for place in range(size[0]):
            at = min(max((place + 0.5) * depth / size[0] - 0.5, 0), depth - 1)
            low = int(at)
            pair = (low, min(low + 1, depth - 1))
            planes = {
                n: planes[n]
                if n in planes
                else self.mean_probabilities([view[:, :, n] for view in views])
                for n in pair
            }
            mixed = torch.lerp(planes[pair[0]], planes[pair[1]], at - low)
            yield mixed if mixed.shape[2:] == tuple(size[1:]) else resize(mixed, size[1:])

    def classes(self, views: Sequence[Tensor], size: Sequence[int]) -> NDArray[np.uint8]:
        """The most likely class of every stored voxel, (N, D, H, W), from the mean of the views."""
        return np.stack([likeliest(part) for part in self.stored_slices(views, size)], axis=1)

    def score_batch(self, batch: list[Scored], stage: str) -> None:
        """Add volumes, each with its stored mask, to the scores."""
        for image, mask, case, spacing in batch:
            views = self.views(image[None])
            target = shrink(mask[None], views[0].shape[2:])
            loss = self.loss.single(views[0].to(target.device), target)
            self.log_scoring(stage, loss, 1)
            found = self.classes(views, mask.shape)[0]
            prediction = torch.from_numpy(found).to(mask.device)
            self.confusion.update(prediction[None], mask[None].long())
            if self.scores_cases(stage):
                for one, other in zip(found, mask.cpu().numpy(), strict=True):
                    self.cases.add(case, one, other, spacing)
