"""Published checkpoints: find the weights, rename to our parameters, load wholly or not at all.

A family registers the names of its official files (`register_family`); its models turn a checkpoint
into their own state dict (`read_weights`). What a file holds is told from names and shapes alone:
`identify` tries it on every registered model on the meta device.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
from timm.models import load_pretrained
from torch import Tensor, nn

from vimamba.reading import CheckpointError, Inert, read_checkpoint

__all__ = [
    "CheckpointError",
    "Identity",
    "check_finite",
    "check_fit",
    "identify",
    "known_names",
    "load_official",
    "read_checkpoint",
    "rename_keys",
    "unwrap",
]

StateDict = dict[str, Tensor]
Rules = Mapping[str, str | Callable[[re.Match[str]], str] | None]
Known = Callable[[str], bool]

_logger = logging.getLogger(__name__)

# Where training code keeps the weights. Of several whole copies the first is taken: Vim's own
# evaluation reads `model` even where an average (`model_ema`) lies beside it.
_NESTING = (
    "model",
    "state_dict",
    "state_dict_ema",
    "model_ema",
    "net",
    "network_weights",
    "model_state_dict",
)
# the copy that a run of ours scores, where it keeps an average of the weights
_SCORED = "average.module."
# what counters of operations (thop) leave in every layer
_COUNTERS = {"total_ops", "total_params"}
# how deep wrappers lie in one another, as mappings and as dotted names
_MOST_WRAPPERS = 6
# where files keep the filters that read the image
_STEMS = ("patch_embed.", "stem.")
_WHOLE_NETWORKS = (
    "Whole segmentation networks are not looked through: "
    "vimamba.create_segmenter(NAME, num_classes=...).load_pretrained(FILE) tries a file on one, "
    "with a NAME from vimamba.list_segmenters(); vimamba.load_segmenter(FOLDER) reads the export/ "
    "of a training"
)


@dataclass(frozen=True)
class Family:
    """What is published of a family of models.

    Attributes:
        name: As its authors write it.
        model_cls: Class of its models.
        rules: Official names to ours, as `rename_keys` takes them.
        layouts: Arguments with which a registered model fits further official files, e.g. dense
            backbones.
        top1: Published ImageNet-1k accuracy in percent, by "model.tag".
    """

    name: str
    model_cls: type[nn.Module]
    rules: Rules
    layouts: tuple[Mapping[str, Any], ...] = ()
    top1: Mapping[str, float] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """Name of its file, by which timm lists its models."""
        return self.model_cls.__module__.rpartition(".")[2]


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


def family_of(model_cls: type[nn.Module]) -> Family:
    """The family of a class of models."""
    return _FAMILIES[model_cls]


class _Bare(dict[str, Tensor]):
    """Weights out of their wrappers, which are not looked for again."""


@dataclass(frozen=True)
class Weights:
    """What was found in a checkpoint.

    Attributes:
        state: Weights without nesting and wrappers.
        place: Where they lie in the checkpoint.
        others: Where whole copies lie that were not taken.
        left_over: Names of the tensors beside `state`, which belong to something else.
    """

    state: StateDict
    place: str
    others: tuple[str, ...]
    left_over: tuple[str, ...]


def known_names(model: nn.Module, rules: Rules) -> Known:
    """Whether a name is one of the model's, or one that the rules rename."""
    ours = model.state_dict().keys()
    patterns = [re.compile(pattern) for pattern in rules]
    return lambda key: key in ours or any(pattern.fullmatch(key) for pattern in patterns)


def in_official_names(state: Mapping[str, Tensor], model: nn.Module, rules: Rules) -> bool:
    """Whether weights have names of the official code that are none of ours, whatever the depth."""
    ours = {_without_numbers(key) for key in model.state_dict()}
    others = (key for key in state if _without_numbers(key) not in ours)
    return any(_renamed(key, rules) != key for key in others)


def _renamed(key: str, rules: Rules) -> str | None:
    """What the first rule for a key makes of it: a name, None to drop it, or the key itself."""
    pattern = next((p for p in rules if re.fullmatch(p, key)), None)
    if pattern is None:
        return key
    replacement = rules[pattern]
    return None if replacement is None else re.sub(pattern, replacement, key)


def unwrap(checkpoint: Mapping[str, Any], known: Known | None = None) -> StateDict:
    """The weights inside a checkpoint, whatever they are wrapped in.

    Weights are told by their names: those that fit best are taken, without the dictionaries and
    prefixes around them. What lies beside them (losses, optimisers, counters, an average) is left
    out and named in a warning. Of several whole copies that which our runs score is taken, else
    the first; the warning names the others.

    Args:
        checkpoint: As it was read.
        known: Whether a name belongs to the model; None takes the first weights as they are.

    Raises:
        CheckpointError: There are no tensors in it.
    """
    if isinstance(checkpoint, _Bare):
        return checkpoint
    found = find_weights(checkpoint, known)
    if found.others:
        others = ", ".join(found.others)
        _logger.warning("The weights at %s are taken, not those at %s", found.place, others)
    if found.left_over:
        ends = (key.split(".") for key in found.left_over)
        parts = list(dict.fromkeys(e[-1] if e[-1] in _COUNTERS else e[0] for e in ends))
        _logger.warning("Left out, as it is nothing of the model: %s", _listed("part", parts))
    return found.state


def find_weights(checkpoint: Mapping[str, Any], known: Known | None = None) -> Weights:
    """As `unwrap`, with what was left out.

    Raises:
        CheckpointError: There are no tensors in it.
    """
    holders = list(_holders(checkpoint, (), set()))
    if not holders:
        raise CheckpointError(f"no weights among the entries {sorted(map(str, checkpoint))[:8]}")
    if known is None:
        place, state = holders[0]
        return Weights(state, ".".join(place), (), ())
    copies = [
        (count, prefix, place, state)
        for place, state in holders
        for prefix, count in _count_prefixes(state, known).items()
    ]
    most = max((count for count, *_ in copies), default=0)
    whole = [copy for copy in copies if copy[0] == most]
    if not whole:
        return find_weights(checkpoint)
    whole.sort(key=lambda copy: copy[1] != _SCORED)
    labels = [f"{'.'.join((*place, prefix)) or 'the top'!r}" for _, prefix, place, _ in whole]
    _, prefix, _, holder = whole[0]
    state = {k.removeprefix(prefix): v for k, v in holder.items() if k.startswith(prefix)}
    roots = {key.split(".")[0] for key in state if known(key)}
    foreign = [
        key
        for key in state
        if key.rsplit(".", 1)[-1] in _COUNTERS or key.split(".")[0] not in roots
    ]
    taken = tuple(prefix for _, prefix, _, state in whole if state is holder)
    beside = [key for key in holder if not key.startswith(taken)]
    kept = {key: value for key, value in state.items() if key not in set(foreign)}
    return Weights(kept, labels[0], tuple(labels[1:]), (*beside, *foreign))


def _holders(
    content: Mapping[str, Any], place: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], StateDict]]:
    """Every dictionary that holds tensors, with its place; first where weights usually are."""
    if id(content) in seen or len(place) > _MOST_WRAPPERS:
        return
    seen.add(id(content))
    nested = [k for k, v in content.items() if isinstance(v, Mapping) and not isinstance(v, Inert)]
    usual = [key for key in _NESTING if key in nested]
    own = {k: v for k, v in content.items() if isinstance(v, Tensor) and isinstance(k, str)}
    for key in usual:
        yield from _holders(content[key], (*place, key), seen)
    if own:
        yield place, own
    for key in nested:
        if key not in usual:
            yield from _holders(content[key], (*place, str(key)), seen)


def _count_prefixes(state: StateDict, known: Known) -> Counter[str]:
    """How many known names follow each prefix."""
    counts: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for depth in range(min(len(parts), _MOST_WRAPPERS)):
            if known(".".join(parts[depth:])):
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    return counts


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Fail on weights that are not numbers.

    Raises:
        CheckpointError: NaN or infinite values; the first tensors are named and all counted.
    """
    broken = [key for key, value in state.items() if not _is_finite(value)]
    if broken:
        raise CheckpointError(
            f"weights are not finite (NaN or infinite) in {_listed('tensor', broken)}; "
            f"of {len(state)} tensors"
        )


def _is_finite(value: Tensor) -> bool:
    if value.is_meta or not (value.is_floating_point() or value.is_complex()):
        return True
    if value.itemsize == 1:  # torch has no isfinite for eight bits
        value = value.float()
    return bool(value.isfinite().all())


def rename_keys(state_dict: Mapping[str, Tensor], rules: Rules) -> StateDict:
    r"""Rename every key by the first rule whose pattern matches it whole.

    Args:
        state_dict: The published weights.
        rules: Regular expression to replacement, e.g. `{r"layers\.(.*)": r"blocks.\1"}`; None
            leaves the entry out (buffers that are computed).

    Raises:
        CheckpointError: Keys match no rule, or two keys get one name.
    """
    out: StateDict = {}
    unknown = []
    for key, value in state_dict.items():
        pattern = next((p for p in rules if re.fullmatch(p, key)), None)
        if pattern is None:
            unknown.append(key)
            continue
        replacement = rules[pattern]
        if replacement is None:
            continue
        new = re.sub(pattern, replacement, key)
        if new in out:
            raise CheckpointError(f"{key!r} and another key are both renamed to {new!r}")
        out[new] = value
    if unknown:
        raise CheckpointError(f"the layout is another: {_listed('unknown key', unknown)}")
    return out


def classifiers(cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the last linear layers in a pretrained config; a distilled model has two."""
    names = cfg["classifier"]
    return (names,) if isinstance(names, str) else tuple(names)


def check_fit(state: StateDict, model: nn.Module, *, fresh: tuple[str, ...] = ()) -> StateDict:
    """Give `state` back if it fits `model` name by name and shape by shape.

    What timm adapts is allowed: a classifier of another size, input channels of another number.

    Args:
        state: Weights under our names.
        model: A model with a `pretrained_cfg`.
        fresh: Prefixes of parameters that may start fresh; a warning names them.

    Raises:
        CheckpointError: Lists what is missing, unexpected or of another shape.
    """
    cfg: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    expected = model.state_dict()
    names = classifiers(cfg)
    classifier = {f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")}
    head = state.get(f"{names[0]}.weight")
    num_classes = cfg["num_classes"] if head is None else head.shape[0]
    adapted = classifier if num_classes != model.num_classes else set()

    def same_shape(key: str) -> bool:
        ours, theirs = expected[key].shape, state[key].shape
        if key == f"{cfg['first_conv']}.weight" and theirs[1:2] == cfg["input_size"][:1]:
            ours, theirs = ours[:1] + ours[2:], theirs[:1] + theirs[2:]
        if key in adapted:
            ours, theirs = ours[1:], theirs[1:]
        return ours == theirs

    def same_kind(key: str) -> bool:
        real = expected[key].is_floating_point()
        return state[key].is_floating_point() or not (real or state[key].is_complex())

    missing = [k for k in expected if k not in state and k not in adapted]
    started = [k for k in missing if k.startswith(fresh)] if fresh else []
    missing = [k for k in missing if k not in started]
    unexpected = [k for k in state if k not in expected and k not in adapted]
    shared = [k for k in state if k in expected]
    reshaped = [
        f"{k} {tuple(state[k].shape)}, not {tuple(expected[k].shape)}"
        for k in shared
        if not same_shape(k)
    ]
    unlike = [f"{k} {state[k].dtype}" for k in shared if not same_kind(k)]
    if missing or unexpected or reshaped or unlike:
        problems = {
            "missing key": missing,
            "unexpected key": unexpected,
            "key of another shape": reshaped,
            "key of another kind of numbers": unlike,
        }
        raise CheckpointError("; ".join(_listed(w, k) for w, k in problems.items() if k))
    if started:
        _logger.warning("The checkpoint has none of these, they start fresh: %s", started)
    return state


def _listed(what: str, keys: list[str], most: int = 6) -> str:
    plural = what if len(keys) == 1 else re.sub(r"\b(key|tensor|part)\b", r"\1s", what)
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{len(keys)} {plural}: {', '.join(keys[:most])}{rest}"


def load_official(model: nn.Module, path: str | Path) -> None:
    """Load a published file into a timm model strictly: the body of `model.load_pretrained`.

    Raises:
        CheckpointError: The file does not fit; the message says which variant it belongs to.
    """
    checkpoint = read_checkpoint(path)
    cfg: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    try:
        state = model.read_weights(checkpoint)  # type: ignore[operator]
    except CheckpointError as error:
        found = next(_matches(checkpoint), None)
        verdict = f"it is {found}" if found else "it fits no model that vimamba knows"
        raise CheckpointError(
            f"{str(path)!r} does not fit {cfg['architecture']}: {verdict} ({error})"
        ) from None
    try:
        check_finite(state)
    except CheckpointError as error:
        raise CheckpointError(f"{str(path)!r}: {error}") from None
    head = state.get(f"{classifiers(cfg)[0]}.weight")
    if head is not None:
        cfg["num_classes"] = head.shape[0]
    cfg.update(state_dict=state, custom_load=False)
    load_pretrained(model, cfg, num_classes=model.num_classes, in_chans=model.in_chans)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Identity:
    """What a checkpoint is.

    Attributes:
        variant: Registered name of the model.
        family: Its family.
        generation: Of the official code.
        accuracy: Published with the official weights.
        license: Of the official weights.
        arguments: What the model has to be made with besides.
        in_chans: Channels of the images.
        num_classes: Classes; 0 where the file has no classifier.
    """

    variant: str
    family: str
    generation: str
    accuracy: str
    license: str
    arguments: tuple[tuple[str, Any], ...] = ()
    in_chans: int = 3
    num_classes: int = 1000

    @property
    def create_line(self) -> str:
        """The line that makes the model which this file fits."""
        unusual = {"in_chans": (self.in_chans, (3,)), "num_classes": (self.num_classes, (0, 1000))}
        arguments = [
            *self.arguments,
            *((k, v) for k, (v, usual) in unusual.items() if v not in usual),
        ]
        extra = "".join(f", {k}={v!r}" for k, v in arguments)
        overlay = "pretrained_cfg_overlay=dict(file=FILE)"
        return f'timm.create_model("{self.variant}", pretrained=True{extra}, {overlay})'

    def __str__(self) -> str:
        return f"{self.variant} ({self.generation}; {self.accuracy})"


def cfg_note(cfg: Mapping[str, Any], key: str, default: str = "unstated") -> str:
    """The value of a `key: value` line among the notes of a pretrained config."""
    notes = (n.split(": ", 1) for n in cfg.get("notes") or () if ": " in n)
    return dict(notes).get(key, default)  # type: ignore[arg-type]


def identify(path: str | Path) -> Identity:
    """Tell from names and shapes which registered model a checkpoint file belongs to.

    Any number of channels and classes will do. Whole segmentation networks are not among the
    models; the error says how to try those.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It fits none, or cannot be read.
    """
    checkpoint = read_checkpoint(path)
    try:
        keys = _listed("key", list(find_weights(checkpoint).state))
    except CheckpointError as error:
        raise CheckpointError(f"{str(path)!r}: {error}") from None
    found = next(_matches(checkpoint), None)
    if found is None:
        raise CheckpointError(
            f"{str(path)!r} fits no model that vimamba knows; it holds {keys}. {_WHOLE_NETWORKS}"
        )
    return found


def _matches(checkpoint: Mapping[str, Any]) -> Iterator[Identity]:
    """Every model of this package that the checkpoint fits, with the arguments that it takes."""
    for family in _FAMILIES.values():
        names = [n for n in timm.list_models(module=family.module) if _is_of(n, family)]
        state = _of_family(checkpoint, family, names)
        if not state:
            continue
        released = [name for name in names if not name.startswith("test_")]
        # a file that is some model's as it is may pass for another one's backbone, too
        for name in released:
            yield from _matches_model(state, family, name, {})
        for name in released:
            for arguments in family.layouts:
                yield from _matches_model(state, family, name, arguments)


def _is_of(name: str, family: Family) -> bool:
    return timm.model_entrypoint(name).__module__ == family.model_cls.__module__


def _of_family(checkpoint: Mapping[str, Any], family: Family, names: list[str]) -> StateDict:
    """The weights, if most have names that the family or its official code gives; else none."""
    tests = [_outline(timm.model_entrypoint(n), n, 3, ()) for n in names if n.startswith("test_")]
    ours = {_without_numbers(key) for model in tests for key in model.state_dict()}
    patterns = [re.compile(pattern) for pattern in family.rules]

    def known(key: str) -> bool:
        return _without_numbers(key) in ours or any(p.fullmatch(key) for p in patterns)

    state = find_weights(checkpoint, known).state
    present = {_without_numbers(key) for key in state}
    # rules of numbered parts count as one, like the parts
    kinds = {re.compile(_without_numbers(pattern)) for pattern in family.rules}
    used = [kind for kind in kinds if any(kind.fullmatch(key) for key in present)]
    share = max(len(present & ours) / len(ours), len(used) / len(kinds))
    return _Bare(state) if share > 0.5 else {}


def _without_numbers(key: str) -> str:
    return re.sub(r"\d+", "0", key)


@lru_cache(maxsize=64)
def _outline(
    entrypoint: Callable[..., nn.Module], name: str, in_chans: int, arguments: tuple[Any, ...]
) -> nn.Module:
    """A model without memory for its weights; the entry point tells models of one name apart."""
    return timm.create_model(name, device="meta", in_chans=in_chans, **dict(arguments))


def _matches_model(
    state: StateDict, family: Family, name: str, arguments: Mapping[str, Any]
) -> Iterator[Identity]:
    """A model made with some arguments, if the weights have its layout."""
    stems = (v for k, v in state.items() if k.startswith(_STEMS) and v.ndim == 4)
    in_chans = next((stem.shape[1] for stem in stems), 3)
    model = _outline(timm.model_entrypoint(name), name, in_chans, tuple(arguments.items()))
    try:
        fitting = model.read_weights(state)  # type: ignore[operator]
    except CheckpointError:
        return
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    head = fitting.get(f"{classifiers(cfg)[0]}.weight")
    yield Identity(
        variant=name,
        family=family.name,
        generation=cfg_note(cfg, "generation"),
        accuracy=f"ImageNet-1k top-1 {cfg_note(cfg, 'top-1')} with the official weights",
        license=cfg.get("license") or "unstated",
        arguments=tuple(arguments.items()),
        in_chans=in_chans,
        num_classes=0 if head is None else head.shape[0],
    )
