"""`vimamba list-models`: facts about models, without building them.

Stored facts about our own models are listed without importing torch.
"""

import json
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path

from vimamba.cli.inquiries import make_parser
from vimamba.console import number, show_table
from vimamba.errors import UsageError
from vimamba.plugins import is_plugin, loaded_plugins

# written by tools/model_table.py
_FACTS = Path(__file__).parents[1] / "models" / "facts.json"


@dataclass(frozen=True)
class Row:
    """One row of the list.

    Attributes:
        name: Registered name.
        family: Its family; None for models of timm or the user.
        params: Parameters; None for timm's own models, which would have to be built.
        gflops: 1e9 operations for an image of this size, as papers count them.
        input_size: Channels, height and width.
        top1: Published ImageNet-1k accuracy, percent.
        license: License of the published weights, as named by the Hub.
        pretrained: Whether they can be downloaded.
    """

    name: str
    family: str | None
    params: int | None
    gflops: float | None
    input_size: tuple[int, ...]
    top1: float | None
    license: str | None
    pretrained: bool


def list_models(args: list[str]) -> int:
    """Print the models; returns the exit code."""
    parser = make_parser(
        "list-models",
        "List models with parameters, 1e9 operations per image, input size, accuracy as\n"
        "published on ImageNet-1k, license of the weights, and family.\n\n"
        "  vimamba list-models\n  vimamba list-models 'vmamba_tiny*' --pretrained --json\n"
        "  vimamba list-models --family VMamba --max-params 50 --license mit",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="name with * and ?")
    parser.add_argument("--family", help="only models of this family, as its authors write it")
    parser.add_argument(
        "--max-params", type=float, metavar="M", help="only models up to M million parameters"
    )
    parser.add_argument("--license", metavar="NAME", help="only this license, such as mit")
    parser.add_argument(
        "--pretrained", action="store_true", help="only models whose weights can be downloaded"
    )
    parser.add_argument(
        "--all", action="store_true", help="also timm's own models, whose sizes are not known"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")
    given = parser.parse_args(args)
    rows = find_rows(given)
    if given.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
        return 0
    if not rows:
        asked = repr(given.pattern) if args == [given.pattern] else " ".join(args)
        raise UsageError(f"no model fits {asked}; --all looks at timm's own models, too")
    shown = [
        [
            row.name,
            number(row.params and row.params / 1e6, 1),
            number(row.gflops, 1),
            "x".join(str(size) for size in row.input_size),
            number(row.top1, 1),
            row.license or "-",
            row.family or "-",
        ]
        for row in rows
    ]
    head = ["model", "params (M)", "GFLOPs", "input", "top-1 (%)", "weights' license", "family"]
    show_table(f"{len(rows)} models", head, shown)
    return 0


def find_rows(given: Namespace) -> list[Row]:
    """The models that the user asked for.

    Raises:
        UsageError: The family or license is unknown.
    """
    pattern = given.pattern if re.search(r"[*?\[]", given.pattern) else f"*{given.pattern}*"
    if given.all or loaded_plugins() or pattern.startswith("test"):
        rows = [describe_model(name) for name in find_models(pattern, everything=given.all)]
        families = _list_families()
    else:
        stored = read_rows()
        rows = [row for row in stored if fnmatchcase(row.name, pattern)]
        families = {row.family for row in stored if row.family}
    wanted: list[Callable[[Row], bool]] = []
    if given.pretrained:
        wanted.append(lambda row: row.pretrained)
    if given.family is not None:
        family = _checked_family(given.family, families)
        wanted.append(lambda row: row.family == family)
    if given.max_params is not None:
        if given.max_params <= 0:
            raise UsageError(f"--max-params {given.max_params} must be more than 0")
        most = given.max_params * 1e6
        wanted.append(lambda row: row.params is not None and row.params <= most)
    if given.license is not None:
        license = _checked_license(given.license, rows)
        wanted.append(lambda row: (row.license or "").lower() == license)
    return [row for row in rows if all(fits(row) for fits in wanted)]


def _checked_license(asked: str, rows: list[Row]) -> str:
    known = {row.license.lower() for row in rows if row.license}
    if asked.lower() not in known:
        choices = ", ".join(sorted(known)) or "none, as no such model has published weights"
        raise UsageError(f"--license {asked} is unknown; choose from {choices}")
    return asked.lower()


def _checked_family(asked: str, families: set[str]) -> str:
    found = next((name for name in families if name.lower() == asked.lower()), None)
    if found is None:
        raise UsageError(f"--family {asked} is unknown; choose from {', '.join(sorted(families))}")
    return found


def _list_families() -> set[str]:
    from vimamba.checkpoints import list_families

    return {family.name for family in list_families()}


def read_rows() -> list[Row]:
    """Our own models, from what is stored of them."""
    stored = json.loads(_FACTS.read_text(encoding="utf-8"))
    names = {field.name for field in fields(Row)} - {"name", "input_size"}
    return [
        Row(name=model, input_size=tuple(facts["input_size"]), **{n: facts[n] for n in names})
        for model, facts in stored.items()
    ]


def find_models(pattern: str, *, everything: bool = False) -> list[str]:
    """Names that match a pattern: ours and the user's own, or all that timm knows."""
    import timm

    import vimamba  # noqa: F401  registers the models

    names = timm.list_models(pattern)
    if everything:
        return names
    modules = {name: timm.model_entrypoint(name).__module__ for name in names}
    names = [n for n in names if modules[n].startswith("vimamba.") or is_plugin(modules[n])]
    return [n for n in names if not n.startswith("test_") or pattern.startswith("test")]


def describe_model(name: str) -> Row:
    """Facts about a model; the user's own models are built for this, without memory."""
    import timm
    from timm.models import PretrainedCfg

    from vimamba.checkpoints import find_facts, find_family
    from vimamba.timm_names import create_skeleton

    cfg = timm.get_pretrained_cfg(name) or PretrainedCfg()
    family, facts = find_family(name), find_facts(name)
    params = facts and facts.params
    if facts is None and not timm.model_entrypoint(name).__module__.startswith("timm."):
        params = sum(parameter.numel() for parameter in create_skeleton(name).parameters())
    return Row(
        name=name,
        family=family and family.name,
        params=params,
        gflops=facts and facts.gflops,
        input_size=tuple(cfg.input_size),
        top1=family and family.top1.get(f"{name}.{cfg.tag}"),
        license=cfg.license,
        pretrained=timm.models.is_model_pretrained(name),
    )
