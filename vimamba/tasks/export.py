"""Writes a network as a folder that timm, and all that reads timm's folders, can load."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from vimamba.hub import save_pretrained


def export_network(
    net: nn.Module,
    folder: Path,
    *,
    class_names: Sequence[str],
    img_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    crop_pct: float = 1.0,
    preprocessing: dict[str, Any] | None = None,
    license: str | None = "unknown",
) -> None:
    """Write a network and its preprocessing for `timm.create_model("local-dir:<folder>")`.

    Args:
        net: A timm model.
        folder: Replaced as a whole once everything is written.
        class_names: In the order of the labels.
        img_size: Side of the square input, pixels.
        mean: Per-channel mean, in [0, 1].
        std: Per-channel standard deviation, in [0, 1].
        interpolation: How images are resized.
        crop_pct: Part of the resized shorter side that is kept.
        preprocessing: All of it; see `vimamba.save_pretrained`.
        license: Of the weights; None for that of the published weights they were trained from.
    """
    data_config = {
        "input_size": (len(mean), img_size, img_size),
        "mean": tuple(mean),
        "std": tuple(std),
        "interpolation": "box" if interpolation == "area" else interpolation,  # timm's name
        "crop_pct": crop_pct,
        "crop_mode": "center",
    }
    save_pretrained(
        net,
        folder,
        label_names=class_names,
        license=license,
        data_config=data_config,
        preprocessing=preprocessing,
    )
