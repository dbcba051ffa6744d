"""Rows of the table of recordings: a configuration of an original model, and our equivalent.

A row is all that a model needs: tests/parity/test_parity.py derives the tests of outputs, stages,
gradients, strict loading and `vimamba.identify` from it. The rows are in tests/parity/rows; each
manifest `<name>.json` and, if there are arrays, `<name>.npz` are next to this file.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vimamba import create_segmenter
from vimamba.networks import create_network, list_networks


@dataclass(frozen=True)
class Tap:
    """Position of a stage in our model.

    Attributes:
        module: Name of the module; may refer to groups of the matched pattern.
        entering: Use the input of the module instead of the output.
        then: Converts our tensor to the original's, if the layouts differ in more than channels
            first or last.
    """

    module: str
    entering: bool = False
    then: Callable[[Tensor], Tensor] | None = None


# a module's name, its position, or a function that returns it; None: ours has no such tensor
Place = str | Tap | Callable[[nn.Module, re.Match[str]], nn.Module] | None


@dataclass(frozen=True)
class Variant:
    """One recorded configuration of an original model, and our model that must match it.

    Attributes:
        name: Name of the manifest.
        model: Name of a timm model or of a segmentation network, or a function that builds it.
        kwargs: Its arguments; `features_only` where the maps of a dense backbone were recorded.
        modules: Patterns of the stages' names, or of the official modules where the manifest
            names them, and where we have each. The first that matches counts; STAGED or PLAIN
            follow.
        wrap: Converts the original's state dict to the contents of its file.
        finish: Additional processing of the outputs in the original.
        call: Our method that matches the original, if it is not `forward`.
        fresh: Our parameters that are missing in the file, as expected.
        absorbed: Pattern of original parameters that ours computes, or merges into others.
        also: Arguments of other models that load the file; parameters they do not use are ignored.
        slow: Compare outputs only with `-m slow`; by default all except `*_test`.
        slow_gradients: Compare gradients only with `-m slow`.
        tables: Scan orders to register during the test, as by `vimamba.register_scan_table`.
        identify: Whether `vimamba.identify` recognizes the file; by default for all that need no
            arguments.
    """

    name: str
    model: str | Callable[..., nn.Module]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, Place] = field(default_factory=dict)
    wrap: Callable[[dict[str, Tensor]], Any] = lambda state: {"model": state}
    finish: Callable[[Tensor], Tensor] = lambda output: output
    call: str = ""
    fresh: tuple[str, ...] = ()
    absorbed: str | None = None
    also: tuple[Mapping[str, Any], ...] = ()
    slow: bool | None = None
    slow_gradients: bool = False
    tables: Mapping[str, Mapping[tuple[int, ...], Tensor]] = field(default_factory=dict)
    identify: bool | None = None

    @property
    def is_small(self) -> bool:
        return self.name.endswith("_test")

    @property
    def is_loaded(self) -> bool:
        """Whether strict loading needs weights, as for other models that load the file."""
        return self.is_small or bool(self.also)

    @property
    def is_slow(self) -> bool:
        return not self.is_small if self.slow is None else self.slow

    @property
    def is_network(self) -> bool:
        return not isinstance(self.model, str) or not timm.is_model(self.model)

    @property
    def is_identified(self) -> bool:
        is_stock = not (self.is_network or self.is_small or self.kwargs)
        return is_stock if self.identify is None else self.identify

    def is_absorbed(self, key: str) -> bool:
        return self.absorbed is not None and re.search(self.absorbed, key) is not None

    @property
    def make(self) -> Callable[..., Any]:
        """The function that builds our network."""
        if callable(self.model):
            return self.model
        is_segmenter = self.model in list_networks("segmentation")
        return partial(create_segmenter if is_segmenter else create_network, self.model)

    def create(self, file: Path, **kwargs: Any) -> nn.Module:
        """Our model with the weights of an official file."""
        kwargs = {**self.kwargs, **kwargs}
        if not self.is_network:
            overlay = {"file": str(file)}
            kwargs |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
            return timm.create_model(self.model, **kwargs)
        network = self.make(**kwargs)
        network.load_pretrained(file)
        return network

    def outline(self) -> nn.Module:
        """Our model on the meta device, including parts that feature maps do not need."""
        kwargs = dict(self.kwargs)
        if self.is_network:
            with torch.device("meta"):
                return self.make(**kwargs)
        if kwargs.pop("features_only", False):
            kwargs.pop("out_indices", None)
            kwargs["num_classes"] = 0
        return timm.create_model(self.model, device="meta", **kwargs)


# positions of the recorded tensors in staged models, channels-last or -first, and plain models
STAGED: dict[str, Place] = {
    r"stem|patch_embed": "stem",
    r"(\d+)": r"stages.\1",
    r"norm": "norm",
}
PLAIN: dict[str, Place] = {
    r"stem|patch_embed": "patch_embed",
    # the residual stream after a block
    r"(\d+)": r"blocks.\1",
    r"norm": "norm",
}
DENSE = {"stage_norm": True, "features_only": True}


def merged(prefix: str) -> Callable[[nn.Module, re.Match[str]], nn.Module]:
    """Official stages that downsample at the end; ours downsample at the start of the next."""

    def find(model: nn.Module, match: re.Match[str]) -> nn.Module:
        stages, following = model.get_submodule(prefix), int(match[1]) + 1
        last = following == len(stages)
        return stages[-1].blocks if last else stages[following].downsample

    return find
