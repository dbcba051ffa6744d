"""What a bench is: models, scan orders, seeds and folds, and the folder of each run."""

import ast
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vimamba.errors import UsageError
from vimamba.files import write_whole
from vimamba.reading import read_json
from vimamba.scan_orders import num_paths

RECORD = "scanbench.json"
# in the folder of a run: which of the bench it is, and how it ended
MARK = "bench.json"


@dataclass(frozen=True)
class Trial:
    """One run of a bench.

    Attributes:
        model: Name of the model or network.
        order: Scan order of all its blocks.
        seed: Of the initial weights, of the order of images and of their augmentation.
        fold: The part of the data that is held out, or None.
    """

    model: str
    order: str
    seed: int
    fold: int | None = None

    def folder(self, out: Path) -> Path:
        """Path of the run in the folder of a bench."""
        seed = out / folder_name(self.model) / folder_name(self.order) / f"seed-{self.seed}"
        return seed if self.fold is None else seed / f"fold-{self.fold}"

    @property
    def unit(self) -> tuple[int, int]:
        """What the trials of different orders share: seed and fold."""
        return self.seed, self.fold or 0

    def __str__(self) -> str:
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.model}, {self.order}, seed {self.seed}{fold}"


@dataclass(frozen=True)
class Plan:
    """All trials of a bench, and how they are compared.

    Attributes:
        task: Name of the task.
        score: The score by which epochs are chosen and orders compared; more is better.
        data: What the data set is called.
        dims: Axes of the grids that are scanned.
        pretrained: Whether runs start from published weights.
        equal_paths: Whether all orders were given as many paths as the baseline has.
        models, orders, seeds: Every combination is a run.
        folds: Number of folds that every combination is trained on, or None.
        baseline: The order that the others are compared with.
    """

    task: str
    score: str
    data: str
    dims: int
    pretrained: bool
    equal_paths: bool
    models: tuple[str, ...]
    orders: tuple[str, ...]
    seeds: tuple[int, ...]
    folds: int | None
    baseline: str

    def trials(self) -> Iterator[Trial]:
        """All runs; whole sets of paired ones first, so that a bench that stops has pairs."""
        for seed in self.seeds:
            for fold in range(self.folds) if self.folds else (None,):
                for model in self.models:
                    for order in self.orders:
                        yield Trial(model, order, seed, fold)

    def write(self, out: Path) -> None:
        """Keep the plan in the folder."""
        with write_whole(out / RECORD) as part:
            part.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def grown(self, by: "Plan") -> "Plan":
        """This plan with the models, orders and seeds of another added, and its baseline."""
        added: dict[str, Any] = {
            name: tuple(dict.fromkeys((*getattr(self, name), *getattr(by, name))))
            for name in ("models", "orders", "seeds")
        }
        return replace(self, baseline=by.baseline, **added)


def read_plan(out: Path) -> Plan | None:
    """The plan of a folder; None if no bench was begun there.

    Raises:
        UsageError: It is damaged.
    """
    path = out / RECORD
    if not path.is_file():
        return None
    content = read_json(path, UsageError)
    try:
        lists = {name: tuple(content[name]) for name in ("models", "orders", "seeds")}
        return Plan(**{**content, **lists})
    except (KeyError, TypeError):
        raise UsageError(f"{path} is no record of a bench") from None


def read_mark(run: Path) -> dict[str, Any]:
    """What is known of a run of a bench; nothing of one that was not begun.

    Raises:
        UsageError: It is damaged.
    """
    path = run / MARK
    return read_json(path, UsageError) if path.is_file() else {}


def write_mark(run: Path, content: dict[str, Any]) -> None:
    """Write it down."""
    with write_whole(run / MARK) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def is_finished(run: Path) -> bool:
    """Whether a run was trained and scored."""
    return read_mark(run).get("code") == 0


def folder_name(text: str) -> str:
    """A model or an order as a folder that every file system takes: local_window=7."""
    return re.sub(r"[^\w.=,-]+", "_", text).strip("_.") or "_"


def check_names(option: str, names: Sequence[str]) -> None:
    """Fail on two names whose runs would be in the same folder.

    Raises:
        UsageError: They are named.
    """
    taken: dict[str, str] = {}
    for name in names:
        other = taken.setdefault(folder_name(name).casefold(), name)
        if other != name:
            raise UsageError(f"{option}: {other!r} and {name!r} would share the folder of a run")


def equalize(orders: Sequence[str], paths: int, dims: int) -> tuple[dict[str, str], list[str]]:
    """Give orders as many paths as another has: each followed by itself reversed, by count.

    Args:
        orders: As they were given.
        paths: Number of paths that all shall have.
        dims: Axes of the grids.

    Returns:
        For each order the one that takes its place; and those that have more paths, or a number
        that does not divide.

    Raises:
        ValueError: An order is unknown.
    """
    equal, left = {}, []
    for order in orders:
        own = num_paths(order, dims)
        if paths % own:
            left.append(order)
            continue
        both = (order, reverse_order(order))
        equal[order] = " + ".join(both[i % 2] for i in range(paths // own))
    return equal, left


def reverse_order(scan_order: str) -> str:
    """The order whose paths are those of another from their ends to their beginnings."""
    node, terms = ast.parse(scan_order.strip(), mode="eval").body, []
    while isinstance(node, ast.BinOp):
        terms.append(node.right)
        node = node.left
    return " + ".join(_reversed_term(term) for term in (node, *reversed(terms)))


def _reversed_term(node: ast.expr) -> str:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    keywords = [keyword for keyword in call.keywords if keyword.arg != "reverse"]
    given = next((k.value for k in call.keywords if k.arg == "reverse"), None)
    if given is None or not ast.literal_eval(given):
        keywords.append(ast.keyword("reverse", ast.Constant(value=True)))
    return ast.unparse(ast.Call(call.func, [], keywords) if keywords else call.func)


def label(order: str) -> str:
    """An order as it is shown: `hilbert x 4` where `equalize` made the order."""
    base = order.split(" + ")[0]
    count = order.count(" + ") + 1
    made = " + ".join((base, reverse_order(base))[i % 2] for i in range(count))
    return f"{base} x {count}" if count > 1 and made == order else order


def find_order(name: str, orders: Sequence[str]) -> str | None:
    """The order with that name, or the one that `equalize` made from it."""
    return next((o for o in orders if o == name or label(o).partition(" x ")[0] == name), None)
