"""Official checkpoints without the weights: names, shapes, and numbers that `fill.py` makes."""

import importlib.util
import json
from pathlib import Path

import torch

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("fill", HERE / "fill.py")
fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fill)


def read_manifest(name):
    return json.loads((HERE / f"{name}.json").read_text())


def rows(name):
    """[name, shape] of every entry of the official file, computed buffers last."""
    manifest = read_manifest(name)
    params = [row[:2] for row in manifest["params"] if row[2:] != ["computed"]]
    return params + list((manifest.get("computed_buffers") or {}).items())


def filled_state(name):
    """The weights that the official code was given; computed buffers are zero."""
    buffers = read_manifest(name).get("computed_buffers") or {}
    filled = fill.fill_state_dict([r for r in rows(name) if r[0] not in buffers])
    state = {k: torch.from_numpy(v) for k, v in filled.items()}
    return {**state, **{k: torch.zeros(shape) for k, shape in buffers.items()}}


def shapes_only(name):
    """The same names and shapes in a file of a few kilobytes: every entry is one number."""
    return {k: torch.zeros(()).expand(shape) for k, shape in rows(name)}
