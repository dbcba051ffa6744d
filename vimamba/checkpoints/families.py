"""Families of models: the names in their official files, and what is published of them."""

import inspect
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import timm
from torch import nn

from vimamba.checkpoints.rename import Rules


@dataclass(frozen=True)
class Family:
    """What is published of a family of models.

    Attributes:
        name: As its authors write it.
        model_cls: Class of its models.
        rules: Official names to ours, as `rename_keys` takes them; every name in an official file
            matches one of them.
        layouts: Arguments with which a registered model fits further official files, e.g. dense
            backbones. They change neither the number of blocks nor the stem's width.
        top1: Published ImageNet-1k accuracy in percent, by "model.tag".
        remarks: For the list of models: where figures differ from the paper's and why, which
            links of the authors lead elsewhere. Whole sentences.
    """

    name: str
    model_cls: type[nn.Module]
    rules: Rules
    layouts: tuple[Mapping[str, Any], ...] = ()
    top1: Mapping[str, float] = field(default_factory=dict)
    remarks: str = ""

    @cached_property
    def patterns(self) -> tuple[re.Pattern[str], ...]:
        """What official names match."""
        return tuple(re.compile(pattern) for pattern in self.rules)

    def is_official(self, key: str) -> bool:
        """Whether a name is one of the official code's."""
        return any(pattern.fullmatch(key) for pattern in self.patterns)

    def list_models(self, *, tests: bool = False) -> list[str]:
        """Registered names of its models, sorted; those made for tests only with `tests`."""
        module = self.model_cls.__module__.rpartition(".")[2]
        names = timm.list_models(module=module)
        return [n for n in names if n.startswith("test_") == tests and find_family(n) is self]

    def describe_accuracy(self, model: str) -> str:
        """What is published of a model's official weights, by tag if there are several."""
        found = {k.partition(".")[2]: v for k, v in self.top1.items() if k.split(".")[0] == model}
        if not found:
            return "no ImageNet-1k accuracy published"
        each = [f"{v} ({tag})" if len(found) > 1 else f"{v}" for tag, v in found.items()]
        return f"ImageNet-1k top-1 {', '.join(each)} with the official weights"


@dataclass(frozen=True)
class Facts:
    """What is known of a model without making it, at its own image size and classes.

    Attributes:
        params: Parameters.
        gflops: 1e9 operations of one image, as papers count them: a multiplication and an addition
            of a matrix product are one, a scan's are `vimamba_kernels.flops.scan_flops`.
        depth: Blocks.
        width: Channels of the first convolution's output; None if there is no such layer.
        features: Channels that the classifier reads; None if there is none.
    """

    params: int
    gflops: float
    depth: int
    width: int | None
    features: int | None


_FAMILIES: dict[type[nn.Module], Family] = {}


def register_family(name: str, model_cls: type[nn.Module], rules: Rules, **published: Any) -> None:
    """Make a family known to `identify` and to the loading of its models; see `Family`.

    Raises:
        ValueError: The class is registered.
    """
    if model_cls in _FAMILIES:
        raise ValueError(
            f"model_cls={model_cls.__name__} has a family, {_FAMILIES[model_cls].name}"
        )
    _FAMILIES[model_cls] = Family(name, model_cls, rules, **published)


def list_families() -> list[Family]:
    """All families, in the order in which they were registered."""
    return list(_FAMILIES.values())


def family_of(model_cls: type[nn.Module]) -> Family:
    """The family of a class of models."""
    return _FAMILIES[model_cls]


def find_family(model: str) -> Family | None:
    """The family of a registered model; None for models of other packages.

    Its entry point says so by the class that it returns, or where it says none, by its module.
    """
    entrypoint = timm.model_entrypoint(model)
    made = inspect.get_annotations(entrypoint).get("return")
    if made in _FAMILIES:
        return _FAMILIES[made]
    module = entrypoint.__module__
    return next((f for cls, f in _FAMILIES.items() if cls.__module__ == module), None)


def find_facts(model: str) -> Facts | None:
    """What a file `facts.json` beside a registered model's module says of it."""
    module = sys.modules[timm.model_entrypoint(model).__module__]
    place = getattr(module, "__file__", None)
    found = _read_facts(Path(place).with_name("facts.json")).get(model) if place else None
    return found and Facts(**found)


@lru_cache
def _read_facts(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def count_blocks(names: Mapping[str, Any]) -> int:
    """Blocks of a model with parameters of these names of ours."""
    found = (re.match(r".*?\bblocks\.\d+\.", name) for name in names)
    return len({match[0] for match in found if match})
