"""Every recipe that comes with the package parses, and its parts can be built."""

import dataclasses
import importlib
import inspect
import typing
from pathlib import Path

import pytest
import torch
import yaml

from vimamba.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = [path for path in sorted(CONFIGS.rglob("*.yaml")) if path.parent.name != "cluster"]


def print_config(path, capsys, tmp_path, monkeypatch):
    """The parsed recipe, found by its name from any folder."""
    monkeypatch.chdir(tmp_path)
    name = path.relative_to(CONFIGS).with_suffix("")
    assert main(["fit", "-c", str(name), "--data", "somewhere", "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def find(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def arguments(cls, given):
    """Arguments of a class, with dataclasses built from dicts."""
    hints = {}
    for ancestor in reversed(cls.__mro__):
        hints |= typing.get_type_hints(ancestor.__init__) if ancestor is not object else {}
    made = {}
    for name, value in given.items():
        kinds = (hints.get(name), *typing.get_args(hints.get(name)))
        kind = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        made[name] = kind(**value) if kind and isinstance(value, dict) else value
    return made


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_its_parts(path, capsys, tmp_path, monkeypatch):
    content = print_config(path, capsys, tmp_path, monkeypatch)
    model, data = (find(content[part]["class_path"]) for part in ("model", "data"))
    source = data(**arguments(data, content["data"]["init_args"]))
    given = {**content["model"]["init_args"], "pretrained": False}
    chans = getattr(source, "given_chans", None) or len(getattr(source, "bands", None) or "RGB")
    known = inspect.signature(model).parameters
    names = getattr(getattr(source, "labels", None), "classes", None) or ["a", "b", "c"]
    of_the_data = {
        "num_classes": len(names),
        "in_chans": chans,
        "class_counts": [3, 2, 1],
        "img_size": content["data"]["init_args"].get("img_size"),
        "class_names": names,
    }
    if content["data"]["class_path"].endswith("VolumeFolder"):
        of_the_data["in_chans"] = 1
    given |= {name: value for name, value in of_the_data.items() if name in known}
    if "kind" in known:
        given |= {"kind": source.kind, "num_classes": 2 if source.kind == "binary" else 5}
    given["optim"]["ema"] = None  # timm cannot average weights without memory
    with torch.device("meta"):  # weights take no time
        task = model(**arguments(model, given))
    assert sum(parameter.numel() for parameter in task.net.parameters()) > 0
    assert content["trainer"]["max_epochs"] >= 1
