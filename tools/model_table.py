"""Measure the models and list them: python tools/model_table.py.

Writes measured and published facts to vimamba/models/facts.json and the names of parameters to
names.json next to it, then, from these and from what families register, docs/models.md, the
README's table of families and the plot of accuracy against size.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

import vimamba  # noqa: F401  registers the models
from vimamba.benchmark.models import count_operations
from vimamba.checkpoints import (
    Facts,
    Family,
    classifiers,
    count_blocks,
    forget_stored,
    list_families,
)
from vimamba.checkpoints.identity import list_names
from vimamba.cli.model_list import Row, describe_model, find_models
from vimamba.console import number
from vimamba.files import write_whole
from vimamba.models._backbone import Backbone
from vimamba.timm_names import create_skeleton

ROOT = Path(__file__).parents[1]
FACTS = ROOT / "vimamba" / "models" / "facts.json"
NAMES = FACTS.with_name("names.json")
BEGIN, END = "<!-- models: written by tools/model_table.py -->", "<!-- end of models -->"


def families() -> list[Family]:
    """All families of this package, by name."""
    ours = [f for f in list_families() if f.model_cls.__module__.startswith("vimamba.models.")]
    return sorted(ours, key=lambda family: family.name.lower())


def measure(name: str) -> Facts:
    """Count a model's parameters, operations and blocks, without memory for its weights."""
    model = create_skeleton(name).eval()
    cfg: Any = model.pretrained_cfg
    weights = model.state_dict()
    names = (cfg["first_conv"], classifiers(cfg)[0])
    stem, head = (weights.get(f"{name}.weight") for name in names)
    return Facts(
        params=sum(parameter.numel() for parameter in model.parameters()),
        gflops=round(operations_of(model, cfg["input_size"]) / 1e9, 2),
        depth=count_blocks(weights),
        width=None if stem is None else stem.shape[0],
        features=None if head is None else head.shape[-1],
        prefix=getattr(model, "num_prefix_tokens", 0),
    )


def operations_of(model: nn.Module, size: tuple[int, ...]) -> float:
    """Operations for one image of (channels, height, width)."""
    return count_operations(lambda: model(torch.empty(1, *size, device="meta")))


def facts_text() -> str:
    """Measured and published facts about every released model, as JSON, in sorted order."""
    facts = {name: {**asdict(measure(name)), **published(name)} for name in find_models("*")}
    lines = [f'  "{name}": {json.dumps(known)}' for name, known in facts.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def published(name: str) -> dict[str, Any]:
    """What `vimamba list-models` shows for a model in addition to the measurements."""
    row = asdict(describe_model(name))
    return {key: row[key] for key in ("family", "input_size", "top1", "license", "pretrained")}


def names_text() -> str:
    """The names of parameters in every family, as JSON."""
    lines = [f'  "{f.name}": {json.dumps(sorted(list_names(f)))}' for f in families()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def models_text() -> str:
    """A section with a table for every family."""
    return "\n\n".join(_section(family) for family in families())


def summary_text() -> str:
    """One row for every family."""
    lines = [
        "| family | models | parameters (M) | best top-1 (%) | weights' license |",
        "|---|---:|---:|---:|---|",
    ]
    for family in families():
        rows = [describe_model(name) for name in family.list_models()]
        sizes = [row.params / 1e6 for row in rows if row.params]
        best = max(family.top1.values(), default=None)
        licenses = sorted({row.license for row in rows if row.license}) or ["none published"]
        smallest, largest = f"{min(sizes):.1f}", f"{max(sizes):.1f}"
        span = smallest if smallest == largest else f"{smallest} to {largest}"
        link = f"[{family.name}](docs/models.md#{anchor(family)})"
        cells = [link, str(len(rows)), span, number(best, 1), ", ".join(licenses)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def anchor(family: Family) -> str:
    """Anchor of a family's section in docs/models.md."""
    return "".join(c for c in family.name.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _section(family: Family) -> str:
    names = family.list_models()
    cfg: Any = timm.get_pretrained_cfg(names[0])
    paper = [cfg.paper_name] if cfg.paper_name else []
    paper += [f"[{cfg.paper_ids}]({_address(cfg.paper_ids)})"] if cfg.paper_ids else []
    lines = [
        f"### {family.name}",
        "",
        f"- Paper: {', '.join(paper) or 'none'}",
        f"- Original code: <{cfg.origin_url}>",
        f"- Scan order: {_scan_order(family)}",
        *([f"- {family.remarks}"] if family.remarks else []),
        "",
        "| model | parameters (M) | GFLOPs | input | top-1 (%) | weights' license |",
        "|---|---:|---:|---|---:|---|",
        *(_row(family, describe_model(name)) for name in names),
    ]
    return "\n".join(lines)


def _address(ids: str) -> str:
    return f"https://arxiv.org/abs/{ids.removeprefix('arXiv:')}"


def _scan_order(family: Family) -> str:
    arguments = cast(type[Backbone], family.model_cls).arguments()
    if "scan_order" not in arguments:
        return "part of the model"
    default = arguments["scan_order"]
    if default is None:
        return "any 2-D order; by default that of the published weights"
    if not isinstance(default, str):
        return f"any 2-D order; by default a list of {len(default)} that the blocks take in turn"
    return f"any 2-D order; `{default}` unless the model says otherwise"


def _row(family: Family, row: Row) -> str:
    published = {key: top1 for key, top1 in family.top1.items() if key.split(".")[0] == row.name}
    accuracies = [f"{top1:.1f}" for top1 in published.values()]
    if len(published) > 1:
        tags = [key.partition(".")[2] for key in published]
        accuracies = [f"{top1} ({tag})" for top1, tag in zip(accuracies, tags, strict=True)]
    cells = [
        f"`{row.name}`",
        number(row.params and row.params / 1e6, 1),
        number(row.gflops, 1),
        "x".join(map(str, row.input_size)),
        ", ".join(accuracies) or "-",
        weights_license(row),
    ]
    return f"| {' | '.join(cells)} |"


def weights_license(row: Row) -> str:
    """The license of a model's weights, or a note that there are none."""
    if row.pretrained:
        return row.license or "unknown"
    return f"{row.license} (load a file)" if row.license else "none published"


def with_tables(text: str, tables: str) -> str:
    """The document with new tables between its two markers."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{tables}\n{END}{rest.split(END)[1]}"


def write(path: Path, text: str) -> None:
    """Replace a file in one step; stored facts and names are read again afterwards."""
    with write_whole(path) as part:
        part.write_text(text, encoding="utf-8")
    forget_stored()


if __name__ == "__main__":
    from model_picture import draw_accuracy

    write(FACTS, facts_text())
    write(NAMES, names_text())
    for document, tables in (("docs/models.md", models_text), ("README.md", summary_text)):
        path = ROOT / document
        write(path, with_tables(path.read_text(encoding="utf-8"), tables()))
    draw_accuracy(ROOT / "docs" / "images" / "models.png")
