"""Writes a segmentation network as weights and the settings that build it again."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_model

from vimamba.checkpoints import check_finite
from vimamba.files import write_folder
from vimamba.tasks.segmentation.task import Segmentation


def export_segmenter(task: Segmentation, folder: Path, *, preprocessing: Any) -> None:
    """Write model.safetensors and config.json.

    config.json holds `network`, the arguments of `vimamba.create_segmenter`; `preprocessing`, how
    stored pixels become the network's input; `class_names` and `label_values`.

    Args:
        task: Holds the network to export.
        folder: Replaced in one step once everything is written.
        preprocessing: A dataclass of plain values.

    Raises:
        CheckpointError: Weights are not finite.
        WriteError: The disk is full, the folder cannot be written, or the like.
    """
    check_finite(task.scored_net.state_dict())
    hparams: Any = task.hparams
    network = {
        "model": hparams["model"],
        "head": hparams["head"],
        "num_classes": 1 if task.binary else len(task.class_names),
        "in_chans": hparams["in_chans"],
        "img_size": hparams["img_size"],
        "aux": hparams["aux"],
        **(hparams["model_kwargs"] or {}),
    }
    config = {
        "network": network,
        "preprocessing": asdict(preprocessing),
        "class_names": task.class_names,
        "label_values": task.label_values,
    }
    with write_folder(folder) as part:
        (part / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        save_model(task.scored_net, str(part / "model.safetensors"))
        # the weights come readable for their owner only
        shutil.copymode(part / "config.json", part / "model.safetensors")
