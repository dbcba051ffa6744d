"""Measure the models and list them: python tools/model_table.py.

Writes what is measured to vimamba/models/facts.json, the tables of docs/models.md and README.md
from it and from what families register, and the picture of accuracy against parameters.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import vimamba  # noqa: F401  registers the models
from vimamba.checkpoints import Facts, count_blocks, list_families
from vimamba.files import write_whole
from vimamba.hub import create_skeleton

ROOT = Path(__file__).parents[1]
FACTS = ROOT / "vimamba" / "models" / "facts.json"


def list_released() -> list[str]:
    """Names of this package's models, family by family."""
    return [name for family in list_families() for name in family.list_models()]


def measure(name: str) -> Facts:
    """Count a model's parameters, operations and blocks, without memory for its weights."""
    model = create_skeleton(name).eval()
    cfg: Any = model.pretrained_cfg
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *cfg["input_size"], device="meta"))
    # torch counts a multiplication and an addition as two, papers as one; scans count as they are
    operations = sum(
        count if "vimamba" in str(operator) else count / 2
        for operator, count in counter.get_flop_counts()["Global"].items()
    )
    weights = model.state_dict()
    stem = weights.get(f"{cfg['first_conv']}.weight")
    return Facts(
        params=sum(parameter.numel() for parameter in model.parameters()),
        gflops=round(operations / 1e9, 2),
        depth=count_blocks(weights),
        width=None if stem is None else stem.shape[0],
    )


def write(path: Path, text: str) -> None:
    """Replace a file in one step."""
    with write_whole(path) as part:
        part.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    facts = {name: asdict(measure(name)) for name in list_released()}
    write(FACTS, json.dumps(facts, indent=2) + "\n")
