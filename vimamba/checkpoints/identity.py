"""Identifies a checkpoint file by names and shapes only.

Renaming needs no model: a name that matches no rule excludes a family. The rest is compared with
models on the meta device, but only with those of the file's depth and width.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import timm
from torch import nn
from torch.overrides import TorchFunctionMode

from vimamba.checkpoints.families import (
    Family,
    count_blocks,
    family_of,
    find_facts,
    find_names,
    list_families,
)
from vimamba.checkpoints.fit import check_finite, classifiers
from vimamba.checkpoints.nesting import Bare, find_weights, thin_out
from vimamba.checkpoints.rename import StateDict, listed, rename_key, without_numbers
from vimamba.reading import CheckpointError, read_checkpoint


@dataclass(frozen=True)
class Identity:
    """Identity of a checkpoint.

    Attributes:
        variant: Registered name of the model.
        family: Its family.
        notes: Remarks of its authors or ours.
        accuracy: Published for the official weights; "" if it is not a classifier.
        license: License of the official weights.
        arguments: Additional arguments of the model.
        in_chans: Channels of the images.
        num_classes: Classes; 0 if the file has no classifier.
        others: Other models with the same names and shapes.
    """

    variant: str
    family: str
    notes: str
    accuracy: str
    license: str
    arguments: tuple[tuple[str, Any], ...] = ()
    in_chans: int = 3
    num_classes: int = 1000
    others: tuple["Identity", ...] = ()

    @property
    def all_arguments(self) -> dict[str, Any]:
        """All arguments of the model that differ from its defaults."""
        unusual = {"in_chans": (self.in_chans, (3,)), "num_classes": (self.num_classes, (0, 1000))}
        sizes = {key: value for key, (value, usual) in unusual.items() if value not in usual}
        return {**dict(self.arguments), **sizes}

    @property
    def create_line(self) -> str:
        """The line of code that builds the matching model and loads the file."""
        overlay = "pretrained_cfg_overlay=dict(file=FILE)"
        arguments = [f"{key}={value!r}" for key, value in self.all_arguments.items()]
        call = ", ".join([f'"{self.variant}"', "pretrained=True", *arguments, overlay])
        return f"timm.create_model({call})"

    def line(self, file: str | Path) -> str:
        """`create_line` with the name of the file."""
        return self.create_line.replace("FILE", repr(str(file)))

    def folder_line(self, folder: str | Path) -> str:
        """The line of code that loads a folder from `vimamba.save_pretrained`."""
        return f'timm.create_model("local-dir:{folder}", pretrained=True)'

    def load(self, file: str | Path) -> nn.Module:
        """Build the model and load the file, as in `create_line`."""
        overlay = {"file": str(file)}
        arguments = {**self.all_arguments, "pretrained_cfg_overlay": overlay}
        return timm.create_model(self.variant, pretrained=True, **arguments)

    def read_weights(self, checkpoint: Mapping[str, Any]) -> StateDict:
        """The weights in the file under our names, complete and finite.

        Raises:
            CheckpointError: Some are not.
        """
        state = self.skeleton().read_weights(checkpoint)  # type: ignore[operator]
        check_finite(state)
        return state

    def skeleton(self) -> nn.Module:
        """The model on the meta device."""
        return timm.create_model(self.variant, device="meta", **self.all_arguments)

    def __str__(self) -> str:
        if self.others:
            names = [self.variant, *(other.variant for other in self.others)]
            return " or ".join(dict.fromkeys(names))
        return f"{self.variant} ({self.accuracy})" if self.accuracy else self.variant


# common file names that identify no model
_ANY_FILE = {"", "model.safetensors", "model.pth", "pytorch_model.bin", "checkpoint.pth"}

Matcher = Callable[[Mapping[str, Any]], list[Identity]]

_MATCHERS: list[Matcher] = []


def register_matcher(matcher: Matcher) -> None:
    """Add a matcher to `identify`, called before it searches timm's models."""
    _MATCHERS.append(matcher)


def identify(path: str | Path) -> Identity:
    """Identify the registered model of a checkpoint file by names and shapes.

    Any number of channels and classes works. If several models have exactly these names and shapes,
    the first one is returned along with the others, unless the file has the name under which one of
    them was published.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: It fits none, or cannot be read.
    """
    return identify_checkpoint(read_checkpoint(path), path)


def identify_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> Identity:
    """As `identify`, for a file that has already been read.

    Raises:
        CheckpointError: It fits no model.
    """
    try:
        keys = listed("key", list(find_weights(checkpoint).state))
    except CheckpointError as error:
        raise CheckpointError(f"{str(path)!r}: {error}") from None
    found = find_identity(checkpoint)
    if found is None:
        raise CheckpointError(
            f"{str(path)!r} fits no model that vimamba knows; it holds {keys}. A whole "
            "network with nondefault sizes can be tried with vimamba.create_network(NAME, ...)"
            ".load_pretrained(FILE)"
        )
    candidates = (found, *found.others)
    named = [one for one in candidates if Path(path).name in published_files(one.variant)]
    return replace(named[0], others=()) if len(named) == 1 else found


def published_files(model: str) -> set[str]:
    """Names of the files in which weights of a registered model were published."""
    if not timm.is_model(model):
        return set()
    cfgs: list[Any] = [timm.get_pretrained_cfg(key) for key in timm.list_pretrained(f"{model}.*")]
    files = {str(cfg.hf_hub_filename or cfg.url or "").rsplit("/", 1)[-1] for cfg in cfgs}
    return files - _ANY_FILE


def find_identity(checkpoint: Mapping[str, Any]) -> Identity | None:
    """Identity of a checkpoint; None if it fits nothing."""
    for match in (*_MATCHERS, _match_models):
        with _silence():
            found = match(checkpoint)
        if found:
            return replace(found[0], others=tuple(found[1:]))
    return None


def _match_models(checkpoint: Mapping[str, Any]) -> list[Identity]:
    """The timm models of this package that a checkpoint fits, with the arguments they need."""
    sample = thin_out(checkpoint)
    known = [(family, _count_known(sample, family)) for family in list_families()]
    most = max((count for _, count in known), default=0)
    # a family that knows far fewer names than another knows only common parts
    readings = [_Reading.of(checkpoint, f) for f, count in known if 4 * count > 3 * most]
    # a complete file of one model may also fit another one's backbone
    for layouts in (_as_registered, _without_classifier, _in_other_layouts, _at_another_size):
        found = [identity for reading in readings for identity in reading.fit(layouts)]
        if found:
            return found
    return []


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress warnings about models that are only tried."""
    logger = logging.getLogger("vimamba.checkpoints")

    def refuse(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(refuse)
    try:
        yield
    finally:
        logger.removeFilter(refuse)


@dataclass(frozen=True)
class _Reading:
    """A file interpreted with one family's rules.

    Attributes:
        family: The family.
        state: Unwrapped weights, under official names or ours.
    """

    family: Family
    state: StateDict

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], family: Family) -> "_Reading":
        """A file's weights that a family knows by name."""
        return cls(family, find_weights(checkpoint, partial(_is_known, family)).state)

    @cached_property
    def renamed(self) -> StateDict:
        """Weights under our names, as far as rules alone determine them."""
        names = {key: rename_key(key, self.family.rules) for key in self.state}
        return {new: self.state[key] for key, new in names.items() if new is not None}

    @cached_property
    def has_our_names(self) -> bool:
        """Whether names are ours rather than official ones."""
        ours = sum(_is_ours(self.family, key) for key in self.state)
        return ours > sum(map(self.family.is_official, self.state))

    @cached_property
    def variants(self) -> list[str]:
        """Models with the file's depth and width, as far as known."""
        depth = count_blocks(self.renamed)
        return [n for n in self.family.list_models() if self._may_be(n, depth)]

    def _may_be(self, name: str, depth: int) -> bool:
        facts = find_facts(name)
        if facts is None:
            return True
        stem, head = self.renamed.get(_stem(name)), self.renamed.get(_head(name))
        prefix = self.renamed.get("cls_token")
        if stem is None and facts.width is not None and self.has_our_names:
            return False
        return (
            depth in (0, facts.depth)  # 0: rules alone do not determine the names of blocks
            and (stem is None or facts.width in (None, stem.shape[0]))
            # some official classifiers are convolutions
            and (head is None or facts.features in (None, head.flatten(1).shape[1]))
            and (prefix is None or facts.prefix == prefix.shape[1])
        )

    @cached_property
    def has_classifier(self) -> bool:
        """Whether it includes a classifier."""
        return any(_head(name) in self.renamed for name in self.family.list_models())

    def fit(self, layouts: "_Layouts") -> Iterator[Identity]:
        """The models that the file fits with the arguments of some layout."""
        for name in self.variants:
            tried = (self._fit(name, layout) for layout in layouts(self, name))
            if found := next(filter(None, tried), None):
                yield found

    def _fit(self, name: str, layout: Mapping[str, Any]) -> Identity | None:
        stem = self.renamed.get(_stem(name))
        in_chans = 3 if stem is None or stem.ndim < 4 else stem.shape[1]
        arguments = tuple(layout.items())
        model = _outline(timm.model_entrypoint(name), name, in_chans, arguments)
        try:
            renamed = model.read_weights(Bare(self.state))  # type: ignore[operator]
        except CheckpointError:
            return None
        cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        head = renamed.get(f"{classifiers(cfg)[0]}.weight")
        size = layout.get("img_size")
        resized = [f"its position embedding is for images of {size} pixels"] if size else []
        return Identity(
            variant=name,
            family=self.family.name,
            notes="; ".join([*(cfg.get("notes") or ()), *resized]),
            accuracy=self.family.describe_accuracy(name),
            license=cfg.get("license") or "none: no weights of this model are published",
            arguments=arguments,
            in_chans=in_chans,
            num_classes=0 if head is None else head.shape[0],
        )


_Layouts = Callable[[_Reading, str], Sequence[Mapping[str, Any]]]


def _as_registered(reading: _Reading, name: str) -> list[Mapping[str, Any]]:
    facts = find_facts(name)
    needs_classifier = facts is not None and facts.features is not None
    return [] if needs_classifier and not reading.has_classifier else [{}]


def _in_other_layouts(reading: _Reading, _name: str) -> list[Mapping[str, Any]]:
    """The family's layouts; each has parameters of its own, without which a file is in none."""
    names = {without_numbers(key) for key in reading.renamed}
    is_other = not names <= _names_of(reading.family.model_cls)
    return list(reading.family.layouts) if is_other else []


def _without_classifier(reading: _Reading, _name: str) -> list[Mapping[str, Any]]:
    return [] if reading.has_classifier else [{"num_classes": 0}]


def _at_another_size(reading: _Reading, name: str) -> list[Mapping[str, Any]]:
    """Image sizes that may match a position embedding in the file."""
    embedding = reading.renamed.get("pos_embed")
    bare = {} if reading.has_classifier else {"num_classes": 0}
    model = _outline(timm.model_entrypoint(name), name, 3, tuple(bare.items()))
    find_sizes = getattr(model, "img_sizes_of", None)
    if embedding is None or find_sizes is None:
        return []
    return [{"img_size": size, **bare} for size in find_sizes(embedding.shape[1])]


def _is_ours(family: Family, key: str) -> bool:
    return without_numbers(key) in _names_of(family.model_cls)


def _is_known(family: Family, key: str) -> bool:
    return family.is_official(key) or _is_ours(family, key)


def _count_known(sample: Mapping[str, Any], family: Family) -> int:
    """How many names of a sample a family knows: all as official ones, or most as our own."""
    found = find_weights(sample, partial(_is_known, family))
    names = found.state
    known = sum(_is_known(family, key) for key in names)
    ours = sum(_is_ours(family, key) for key in names)
    official = sum(map(family.is_official, names))
    is_most = 2 * known > len(names) + len(found.foreign)
    return known if is_most and (official == len(names) or ours >= official) else 0


@lru_cache
def _names_of(model_cls: type[nn.Module]) -> frozenset[str]:
    """Our names in a family, with all numbers set to zero."""
    family = family_of(model_cls)
    return find_names(family) or list_names(family)


def list_names(family: Family) -> frozenset[str]:
    """Our names in a family's smallest models, which are built; all numbers are set to zero."""
    names = family.list_models(tests=True) or family.list_models()[:1]
    models = [_outline(timm.model_entrypoint(name), name, 3, ()) for name in names]
    return frozenset(without_numbers(key) for model in models for key in model.state_dict())


def _stem(name: str) -> str:
    """Our name of a model's first convolution."""
    return f"{timm.get_pretrained_cfg(name).first_conv}.weight"  # type: ignore[union-attr]


def _head(name: str) -> str:
    """Our name of the weights of a model's classifier."""
    return f"{classifiers(timm.get_pretrained_cfg(name).to_dict())[0]}.weight"  # type: ignore[union-attr]


@lru_cache(maxsize=64)
def _outline(
    entrypoint: Callable[..., nn.Module], name: str, in_chans: int, arguments: tuple[Any, ...]
) -> nn.Module:
    """A model on the meta device; the entry point is part of the cache key."""
    with _NoNumbers():
        return timm.create_model(name, device="meta", in_chans=in_chans, **dict(arguments))


class _NoNumbers(TorchFunctionMode):
    """Skips random initialization, which takes a third of the time even on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return tensors unchanged instead of initializing them."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("kaiming_uniform_", "uniform_", "normal_", "erfinv_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
