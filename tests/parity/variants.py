"""What a row of the table of recordings is: a configuration of an original model, and ours for it.

A row is all that a model needs: tests/parity/test_parity.py makes from it the tests of outputs,
stages, gradients, strict loading and `vimamba.identify`. The rows are in tests/parity/rows, the
manifest `<name>.json` and, if there are arrays, `<name>.npz` of each beside this file.
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
    """Where a stage is found in our model.

    Attributes:
        module: Its name; may refer to groups of the matched pattern.
        entering: What goes into the module, not what comes out.
        then: From our tensor to the original's, where they hold the same otherwise arranged than
            by channels first or last.
    """

    module: str
    entering: bool = False
    then: Callable[[Tensor], Tensor] | None = None


# a module's name, more about it, or what finds the module; None: ours has no such tensor
Place = str | Tap | Callable[[nn.Module, re.Match[str]], nn.Module] | None


@dataclass(frozen=True)
class Variant:
    """One recorded configuration of an original model, and ours that must give the same.

    Attributes:
        name: Of the manifest.
        model: A timm name, that of a segmentation network, or what makes the model.
        kwargs: Its arguments; `features_only` where the maps of a dense backbone were recorded.
        modules: Patterns of the stages' names, or of the official modules where the manifest
            names them, and where we have each. The first that matches counts; STAGED or PLAIN
            follow.
        wrap: What the file holds, made from the state dict of the original.
        finish: What the original does to the outputs besides.
        call: Method of ours that gives what the original does, if it is not the whole network.
        fresh: Our parameters that the file lacks and may lack.
        absorbed: Pattern of parameters of the original that ours computes, or reads into others.
        also: Arguments of models that take the file, too; what they have no use for is left out.
        slow: Compare outputs with `-m slow` only; by default all that are no `*_test`.
        slow_gradients: Compare gradients with `-m slow` only.
        tables: Scan orders to register while it is tested, as `vimamba.register_scan_table` does.
        identify: Whether `vimamba.identify` tells the file, by default of all that need no
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
        """Whether strict loading needs weights, as it does for what other models take of a file."""
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
        """What makes our network."""
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
        """Our model without memory for weights, whole where maps are all that is wanted."""
        kwargs = dict(self.kwargs)
        if self.is_network:
            with torch.device("meta"):
                return self.make(**kwargs)
        if kwargs.pop("features_only", False):
            kwargs.pop("out_indices", None)
            kwargs["num_classes"] = 0
        return timm.create_model(self.model, device="meta", **kwargs)


# where models of stages, channels-last or -first, and models of blocks have what is recorded
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
    """Official stages that downsample at their end; ours do at the beginning of the next."""

    def find(model: nn.Module, match: re.Match[str]) -> nn.Module:
        stages, following = model.get_submodule(prefix), int(match[1]) + 1
        last = following == len(stages)
        return stages[-1].blocks if last else stages[following].downsample

    return find
