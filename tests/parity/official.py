"""Official checkpoints without the weights: names, shapes, and numbers that `fill.py` makes.

`<name>.json` is the manifest of one configuration of an original model. Some of its rows `params`
have a third column: "computed" for buffers computed by the constructor, or `{"alias_of": name}` for
a tensor that is stored twice.
"""

import importlib.util
import json
import re
from functools import cache
from pathlib import Path

import torch

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("fill", HERE / "fill.py")
fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fill)


@cache
def read_manifest(name):
    return json.loads((HERE / f"{name}.json").read_text())


def rows(name):
    """[name, shape, "computed" or {"alias_of": name} or None] of all entries of the file."""
    manifest = read_manifest(name)
    buffers = (manifest.get("computed_buffers") or {}).items()
    rows = [*manifest["params"], *([key, shape, "computed"] for key, shape in buffers)]
    return [[*row, None][:3] for row in rows]


def filled_state(name):
    """The weights used with the official code; computed buffers are zero."""
    state = {}
    for key, shape, kind in rows(name):
        if kind == "computed":
            state[key] = torch.zeros(shape)
        elif kind:
            state[key] = state[kind["alias_of"]]
        else:
            state[key] = torch.from_numpy(fill.fill_param(key, shape))
            for pattern, factor in read_manifest(name).get("fill_post") or ():
                if re.search(pattern, key):
                    state[key] = state[key] * factor
    return state


def shapes_only(name):
    """The same names and shapes in a file of a few kilobytes: every entry repeats one number."""
    return {key: torch.zeros(()).expand(shape) for key, shape, _ in rows(name)}
