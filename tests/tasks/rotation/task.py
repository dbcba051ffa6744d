"""Regression of the angle that an image was rotated by, with any timm model."""

import math
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vimamba.tasks import Optimization, Task, register_task
from vimamba.tasks.backbone import build_backbone

PLAIN = Optimization()


def rotate(image: Tensor, angle: Tensor) -> Tensor:
    """Rotate images (N, C, H, W) by angles (N,), radians, about their centers."""
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = torch.stack([cos, -sin, zero, sin, cos, zero], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(rows, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def error_of(found: Tensor, angle: Tensor) -> Tensor:
    """Absolute difference of angles, degrees in [0, 180]."""
    turned = (found - angle + math.pi).remainder(2 * math.pi) - math.pi
    return turned.abs() * (180 / math.pi)


@register_task("rotation")
class Rotation(Task):
    """Trains a network with two outputs, cosine and sine; the labels of the images do not matter.

    Args:
        model, pretrained, in_chans, img_size: As in classification.
        optim: Optimizer and schedule.
        seed: Seed of all random streams.
    """

    tools = "tests.tasks.rotation.report"
    headline_scores: ClassVar = {"within_30": "within 30°"}
    lower_is_better = ("loss", "error")

    def __init__(
        self,
        model: str = "test_vmamba",
        *,
        pretrained: bool = False,
        in_chans: int = 3,
        img_size: int | None = None,
        optim: Optimization = PLAIN,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        net = build_backbone(
            model,
            pretrained=pretrained,
            img_size=img_size,
            model_kwargs=None,
            num_classes=2,
            in_chans=in_chans,
        )
        self.prepare(net, optim, seed=seed, grad_checkpointing=False, compile=False)
        self.errors: list[Tensor] = []

    @classmethod
    def find_data(cls, path: Path) -> str:
        """A folder of images."""
        return "vimamba.data.ImageFolder"

    def logged_scores(self) -> list[str]:
        """Mean error, and how many are close."""
        return ["loss", "error", "within_30"]

    @property
    def monitor(self) -> str:
        """How many images are close."""
        return "val/within_30"

    def body_parameters(self) -> list[nn.Parameter]:
        """All parameters except the classifier's."""
        head = {id(p) for p in cast(Any, self.net).get_classifier().parameters()}
        return [p for p in self.net.parameters() if id(p) not in head]

    def loss(self, out: Tensor, angle: Tensor) -> Tensor:
        """Squared distance on the circle."""
        return F.mse_loss(out.float(), torch.stack([angle.cos(), angle.sin()], dim=1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Rotate at random."""
        image = batch[0]
        angle = (torch.rand(len(image), device=image.device) * 2 - 1) * math.pi
        loss = self.loss(self.run_training(rotate(image, angle)), angle)
        self.log_training(loss, len(image))
        return loss

    def score_batch(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        """Rotate each image by its own angle, the same in every evaluation."""
        image = batch[0]
        seen = sum(len(e) for e in self.errors)
        angle = (torch.arange(seen, seen + len(image), device=image.device) * 2.4) - math.pi
        out = self.finite_logits(rotate(image, angle))
        self.log_scoring(stage, self.loss(out, angle), len(image))
        self.errors.append(error_of(torch.atan2(out[:, 1], out[:, 0]), angle).cpu())

    def compute_scores(self, stage: str) -> dict[str, Any]:
        """Mean error in degrees, share within 30 degrees, all errors."""
        errors, self.errors = torch.cat(self.errors), []
        near = float((errors < 30).float().mean())
        return {"error": float(errors.mean()), "within_30": near, "errors": errors.tolist()}

    def views(self, image: Tensor) -> list[Tensor]:
        """Outputs to average for a prediction: of one network, or of all folds."""
        return [self.finite_logits(image)]

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Angles of images, (N,), radians."""
        out = torch.stack(self.views(batch[0])).mean(0)
        return torch.atan2(out[:, 1], out[:, 0])
