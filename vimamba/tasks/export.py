"""Writes a network as a folder that timm, and all that reads timm's folders, can load."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from timm.models import save_for_hf
from torch import nn


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
) -> None:
    """Write config.json and model.safetensors for `timm.create_model("local-dir:<folder>")`.

    Args:
        net: A timm model.
        folder: Replaced as a whole once everything is written.
        class_names: In the order of the labels.
        img_size: Side of the square input, pixels.
        mean: Per-channel mean, in [0, 1].
        std: Per-channel standard deviation, in [0, 1].
        interpolation: How images are resized.
        crop_pct: Part of the resized shorter side that is kept.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    data_config = {
        "input_size": (len(mean), img_size, img_size),
        "mean": tuple(mean),
        "std": tuple(std),
        "interpolation": interpolation,
        "crop_pct": crop_pct,
        "crop_mode": "center",
    }
    save_for_hf(
        net,
        str(part),
        model_config={"label_names": list(class_names)},
        safe_serialization=True,
        data_config=data_config,
    )
    config_file = part / "config.json"
    config = json.loads(config_file.read_text())
    # transformers passes num_classes itself and would then get it twice
    config.get("model_args", {}).pop("num_classes", None)
    # the weights are no longer those that were published
    for key in ("tag", "notes", "license", "origin_url", "description"):
        config.get("pretrained_cfg", {}).pop(key, None)
    config_file.write_text(json.dumps(config, indent=2))
    # the weights come readable for their owner only
    for file in part.iterdir():
        shutil.copymode(config_file, file)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(part, folder)
