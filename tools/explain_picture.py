"""Explain a small model of every family: python tools/explain_picture.py [file].

Each is trained for a few seconds on scikit-learn's digits. The picture shows, for an unseen digit,
the model's evidence for the true class and its effective receptive field.
"""

import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import timm
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from model_table import families
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from vimamba import explain
from vimamba.checkpoints import Family
from vimamba.explain.pictures import as_picture
from vimamba.files import write_whole
from vimamba.models._backbone import Backbone
from vimamba.models._plain import PlainBackbone

DEFAULT_FILE = Path(__file__).parents[1] / "docs" / "images" / "explain_families.png"
SIDE, PATCH = 32, 4  # pixels; models with a stem of stride 16 see images twice as large
SEEN = 1400  # number of training digits; the others measure the accuracy
STEPS, BATCH, RATE = 50, 32, 6e-3
# initial step sizes of softplus(0): the class token, ahead of all patches, sees the first few only
SLOW = {"VideoMamba": 400}
SHOWN = 4  # index of the shown digit among the unseen ones
FIELD_IMAGES = 4
COLUMNS = 4  # families per row


def read_digits(side: int) -> tuple[Tensor, Tensor]:
    """Scans (N, 1, side, side), normalized, and their digits (N,)."""
    digits: Any = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=(side, side), mode="bicubic")
    return (images - 0.3) / 0.35, torch.tensor(digits.target)


def has_argument(family: Family, name: str) -> bool:
    """Whether the models of a family have an argument."""
    return name in cast(type[Backbone], family.model_cls).arguments()


def train(family: Family, images: Tensor, labels: Tensor) -> nn.Module:
    """The family's first small model, after STEPS batches, or as many as SLOW says."""
    torch.manual_seed(0)
    steps = SLOW.get(family.name, STEPS)
    wanted: dict[str, Any] = {"img_size": images.shape[-1], "patch_size": PATCH}
    size = {key: value for key, value in wanted.items() if has_argument(family, key)}
    name = family.list_models(tests=True)[0]
    model = timm.create_model(name, num_classes=10, in_chans=1, **size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(steps):
        batch = torch.randint(len(images), (BATCH,))
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    # so few steps leave running variances near their start, 1
    update_bn(images.split(BATCH), model)
    return model.eval()


def measure(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of the images that are classified correctly."""
    with torch.no_grad():
        predictions = torch.cat([model(batch).argmax(1) for batch in images.split(100)])
    return (predictions == labels).float().mean().item()


def add_panels(cell: SubFigure, title: str) -> tuple[Axes, Axes]:
    """Two panels under one title."""
    cell.suptitle(title, fontsize=8)
    left, right = cell.subplots(1, 2)
    for panel in (left, right):
        panel.set_axis_off()
    return left, right


def draw_pair(panels: tuple[Axes, Axes], model: nn.Module, images: Tensor, digit: int) -> None:
    """Evidence for the digit in the first image, and the receptive field over several images."""
    evidence = explain.cam(model, images[0], target=digit, method="hirescam")
    panels[0].imshow(as_picture(images[0]))
    panels[0].imshow(evidence, cmap="inferno", alpha=0.7, vmin=0, vmax=1)
    field = explain.erf(model, images[:FIELD_IMAGES])
    strength = np.log10(np.maximum(field.map / field.map.max(), 1e-4))
    panels[1].imshow(strength, cmap="inferno", vmin=-4, vmax=0)
    half = field.radii[0.5]
    panels[1].set_title(f"50 % in {half:.0f} of {len(strength)} px", fontsize=6, pad=2)


def draw(file: Path) -> None:
    """Train all models, and write the picture."""
    known = families()
    rows = -(-(len(known) + 1) // COLUMNS)
    figure = Figure(figsize=(COLUMNS * 2.3, rows * 1.45), dpi=150, layout="constrained")
    cells = figure.subfigures(rows, COLUMNS).ravel()
    images, labels = read_digits(SIDE)
    truth = labels[SEEN:]
    digit, _ = add_panels(cells[0], f"the digit, a {truth[SHOWN]}")
    digit.imshow(as_picture(images[SEEN + SHOWN]))
    for cell, family in zip(cells[1:], known, strict=False):
        is_coarse = issubclass(family.model_cls, PlainBackbone) and not has_argument(
            family, "patch_size"
        )
        images = read_digits(2 * SIDE if is_coarse else SIDE)[0]
        unseen = images[SEEN:]
        model = train(family, images[:SEEN], labels[:SEEN])
        accuracy = measure(model, unseen, truth)
        print(f"{family.name}: {accuracy:.1%} of the unseen digits", flush=True)
        panels = add_panels(cell, f"{family.name}, {accuracy:.0%}")
        draw_pair(panels, model, unseen[SHOWN:], int(truth[SHOWN]))
    with write_whole(file) as part:
        figure.savefig(part, format="png", facecolor="white")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FILE)
