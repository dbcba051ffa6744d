"""Families of models: parameter names in their official files, and published facts."""

import inspect
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import timm
from torch import nn

from vimamba.checkpoints.rename import Rules


@dataclass(frozen=True)
class Family:
    """Published facts of a family of models.

    Attributes:
        name: Name as written by its authors.
        model_cls: Class of its models.
        rules: Official names to ours, for `rename_keys`; every name in an official file matches one
            of them.
        layouts: Arguments with which a registered model fits other official files, e.g. dense
            backbones. They change neither the number of blocks nor the stem's width, and each adds
            parameters whose names no other model of the family has.
        top1: Published ImageNet-1k accuracy in percent, by "model.tag".
        remarks: Text for the list of models: where numbers differ from the paper and why, and wrong
            links. Full sentences.
    """

    name: str
    model_cls: type[nn.Module]
    rules: Rules
    layouts: tuple[Mapping[str, Any], ...] = ()
    top1: Mapping[str, float] = field(default_factory=dict)
    remarks: str = ""

    @cached_property
    def patterns(self) -> tuple[re.Pattern[str], ...]:
        """Patterns of official names."""
        return tuple(re.compile(pattern) for pattern in self.rules)

    def is_official(self, key: str) -> bool:
        """Whether a name is from the official code."""
        return any(pattern.fullmatch(key) for pattern in self.patterns)

    def list_models(self, *, tests: bool = False) -> list[str]:
        """Registered names of its models, sorted; test models only with `tests`."""
        module = self.model_cls.__module__.rpartition(".")[2]
        names = timm.list_models(module=module)
        return [n for n in names if n.startswith("test_") == tests and find_family(n) is self]

    def describe_accuracy(self, model: str) -> str:
        """Text on the accuracy of a model's official weights, by tag if there are several."""
        found = {k.partition(".")[2]: v for k, v in self.top1.items() if k.split(".")[0] == model}
        if not found:
            return "no ImageNet-1k accuracy published"
        each = [f"{v} ({tag})" if len(found) > 1 else f"{v}" for tag, v in found.items()]
        return f"ImageNet-1k top-1 {', '.join(each)} with the official weights"


@dataclass(frozen=True)
class Facts:
    """Facts about a model, available without building it, at its own image size and classes.

    Attributes:
        params: Parameters.
        gflops: 1e9 operations for one image, as papers count them: a multiply-add of a matrix
            product is one, those of a scan are `vimamba_kernels.flops.scan_flops`.
        depth: Blocks.
        width: Channels of the first convolution's output; None if there is no such layer.
        features: Channels that the classifier reads; None if there is none.
        prefix: Class tokens and registers.
    """

    params: int
    gflops: float
    depth: int
    width: int | None
    features: int | None
    prefix: int


_FAMILIES: dict[type[nn.Module], Family] = {}


def register_family(name: str, model_cls: type[nn.Module], rules: Rules, **published: Any) -> None:
    """Register a family for `identify` and for loading its models; see `Family`.

    Raises:
        ValueError: The class is already registered.
    """
    if model_cls in _FAMILIES:
        raise ValueError(
            f"model_cls={model_cls.__name__} has a family, {_FAMILIES[model_cls].name}"
        )
    _FAMILIES[model_cls] = Family(name, model_cls, rules, **published)


def list_families() -> list[Family]:
    """All families, in order of registration."""
    return list(_FAMILIES.values())


def family_of(model_cls: type[nn.Module]) -> Family:
    """The family of a class of models."""
    return _FAMILIES[model_cls]


def find_family(model: str) -> Family | None:
    """The family of a registered model; None for models of other packages.

    It is found by the class that its entry point returns, or, without an annotation, by its module.
    """
    entrypoint = timm.model_entrypoint(model)
    made = inspect.get_annotations(entrypoint).get("return")
    if made in _FAMILIES:
        return _FAMILIES[made]
    module = entrypoint.__module__
    return next((f for cls, f in _FAMILIES.items() if cls.__module__ == module), None)


def find_facts(model: str) -> Facts | None:
    """Facts about a registered model from `facts.json` next to its module."""
    found = _read_beside(timm.model_entrypoint(model).__module__, "facts.json").get(model)
    return found and Facts(**{f.name: found[f.name] for f in fields(Facts)})


def find_names(family: Family) -> frozenset[str] | None:
    """Our parameter names in a family's smallest models, from `names.json` next to its module.

    All numbers in them are set to zero.
    """
    found = _read_beside(family.model_cls.__module__, "names.json").get(family.name)
    return found and frozenset(found)


def forget_stored() -> None:
    """Read `facts.json` and `names.json` again when next needed, after they were replaced."""
    _read.cache_clear()


def _read_beside(module: str, file: str) -> dict[str, Any]:
    place = getattr(sys.modules[module], "__file__", None)
    return _read(Path(place).with_name(file)) if place else {}


@lru_cache
def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def count_blocks(names: Mapping[str, Any]) -> int:
    """Number of blocks of a model with these parameter names (ours)."""
    found = (re.match(r".*?\bblocks\.\d+\.", name) for name in names)
    return len({match[0] for match in found if match})
