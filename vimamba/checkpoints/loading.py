"""Loads a published file into a model, or reports what the file is."""

from pathlib import Path
from typing import Any

from timm.models import load_pretrained
from torch import nn

from vimamba.checkpoints.fit import check_finite, classifiers
from vimamba.checkpoints.identity import find_identity
from vimamba.reading import CheckpointError, read_checkpoint


def load_official(model: nn.Module, path: str | Path) -> None:
    """Load a published file into a timm model strictly, for `model.load_pretrained`.

    Raises:
        CheckpointError: The file does not fit; the message says which variant it belongs to.
    """
    checkpoint = read_checkpoint(path)
    cfg: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    try:
        state = model.read_weights(checkpoint)  # type: ignore[operator]
    except CheckpointError as error:
        found = find_identity(checkpoint)
        verdict = f"it is {found}" if found else "it fits no model that vimamba knows"
        raise CheckpointError(
            f"{str(path)!r} does not fit {cfg['architecture']}: {verdict} ({error})"
        ) from None
    try:
        check_finite(state)
    except CheckpointError as error:
        raise CheckpointError(f"{str(path)!r}: {error}") from None
    head = state.get(f"{classifiers(cfg)[0]}.weight")
    if head is not None:
        cfg["num_classes"] = head.shape[0]
    cfg.update(state_dict=state, custom_load=False)
    load_pretrained(model, cfg, num_classes=model.num_classes, in_chans=model.in_chans)  # type: ignore[arg-type]
