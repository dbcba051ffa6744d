"""Base class of all whole networks.

A network has a registered name and arguments (`config`), from which it can be rebuilt, and possibly
a published file, which fits it strictly. A part of it, its `body`, may be a timm model with its own
weights.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import group_parameters
from torch import nn

from vimamba.checkpoints import (
    CheckpointError,
    Rules,
    StateDict,
    check_finite,
    check_fit,
    known_names,
    read_checkpoint,
    rename_keys,
    unwrap,
)
from vimamba.layers import scan_parameters, split_paths


class Network(nn.Module):
    """A whole network with its published file.

    Args:
        in_chans: Channels of the images.
        pretrained_cfg: Facts about images and weights, in timm's form: `architecture`,
            `input_size`, `license`, `origin_url`, `paper_ids`; without `mean` and `std`,
            ImageNet's.

    Attributes:
        config: Arguments of `vimamba.create_network` from which it can be rebuilt, including
            `name`; None if it was created from its class.
        license: License of the published weights that it started from, by the Hub's name; None if
            there were none.
    """

    # prefixes of parameters that a file may have but the network lacks
    optional: ClassVar[tuple[str, ...]] = ()
    # of the scans in an official file
    official_paths: ClassVar[int] = 4
    # needed by timm to adapt classifiers; weights of networks are never adapted
    num_classes: int = 0

    def __init__(self, in_chans: int, *, pretrained_cfg: dict[str, Any]) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.config: dict[str, Any] | None = None
        self.license: str | None = None
        self.pretrained_cfg: dict[str, Any] = {
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "num_classes": 0,
            **pretrained_cfg,
            "classifier": "",
            "first_conv": "",
        }
        self.default_cfg = self.pretrained_cfg

    @property
    def body(self) -> nn.Module | None:
        """The timm model inside, which may be pretrained; None if there is none."""
        return None

    def note_start(self, model: nn.Module) -> None:
        """Record the license of the published timm weights that this network starts from."""
        cfg: Any = model.pretrained_cfg
        self.license = cfg.get("license")

    def body_parameters(self) -> list[nn.Parameter]:
        """Parameters of the pretrainable part."""
        return [] if self.body is None else list(self.body.parameters())

    def no_weight_decay(self) -> set[str]:
        """Names of the scans' parameters, and those named by the body."""
        names = getattr(self.body, "no_weight_decay", set)()
        return scan_parameters(self) | {f"{self._body_prefix()}{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> Any:
        """The body's layer groups for layer-wise learning rates; the rest is the last group."""
        body: Any = self.body
        if body is None:
            return lambda name: math.inf
        layers: Any = group_parameters(body, body.group_matcher(coarse=coarse), reverse=True)
        prefix = self._body_prefix()
        named = {f"{prefix}{name}": layer for name, layer in layers.items()}
        return lambda name: named.get(name, math.inf)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in the body.

        Raises:
            ValueError: There is no body that supports it.
        """
        body: Any = self.body
        if body is not None:
            body.set_grad_checkpointing(enable)
        elif enable:
            raise ValueError(f"enable=True: {type(self).__name__} has no gradient checkpointing")

    def _body_prefix(self) -> str:
        """Prefix of the body's parameter names in the network."""
        body = self.body
        return next((f"{name}." for name, module in self.named_modules() if module is body), "")

    @classmethod
    def official_rules(cls) -> Rules:
        """Rules for renaming an official file's parameters; empty if there is no such file."""
        return {}

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename the parameters of an official file."""
        rules = self.official_rules()
        if not rules:
            return state_dict
        return split_paths(rename_keys(state_dict, rules), self.official_paths)

    def rename_weights(self, checkpoint: Mapping[str, Any]) -> StateDict:
        """Weights of a checkpoint under our names, without `optional` ones that the network lacks.

        Raises:
            CheckpointError: A name is not from the official code, or there are no weights.
        """
        ours = self.state_dict()
        state = unwrap(checkpoint, known_names(self, self.official_rules()))
        if not state.keys() & ours.keys():
            state = self.from_official(state)
        return {k: v for k, v in state.items() if k in ours or not k.startswith(self.optional)}

    def read_weights(self, checkpoint: Mapping[str, Any]) -> StateDict:
        """A state dict for this network from a checkpoint, under official names or ours.

        Raises:
            CheckpointError: It does not fit; lists missing and unexpected keys and wrong shapes.
        """
        return check_fit(self.rename_weights(checkpoint), self)

    def load_pretrained(self, path: str | Path) -> None:
        """Load a file of the official code, or weights under our names, strictly.

        Wrappers are removed as in `vimamba.checkpoints.unwrap`. `optional` parameters in a file are
        skipped if the network lacks them.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: The file does not fit; the message lists the differences.
        """
        checkpoint = read_checkpoint(path)
        try:
            state = self.read_weights(checkpoint)
            check_finite(state)
        except CheckpointError as error:
            raise CheckpointError(f"{str(path)!r} does not fit: {error}") from None
        self.load_state_dict(state)
