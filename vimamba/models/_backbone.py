"""What all backbones share: timm's initialization and decay rules, and official files.

A family makes its parts (stem or patch embedding, blocks, norms) and hands them to one of

    StagedBackbone   a stem, and stages that halve the grid: a pyramid of maps (_staged.py)
    PlainBackbone    tokens of one grid, perhaps with a class token or registers (_plain.py)

which implement timm's contract: everything that users of a backbone call and no family changes.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import count
from typing import Any, ClassVar

from torch import nn

from vimamba.checkpoints import (
    CheckpointError,
    StateDict,
    check_fit,
    family_of,
    in_official_names,
    known_names,
    load_official,
    rename_keys,
    unwrap,
)
from vimamba.layers import init_vss_, scan_parameters
from vimamba.names import near_names
from vimamba.scan_orders import order_of_block

__all__ = ["Backbone", "Options", "take_orders"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Arguments that all families take and pass to their base class, spelled as in timm."""

    in_chans: int = 3
    num_classes: int = 1000
    global_pool: str = "avg"
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    device: Any = None
    dtype: Any = None

    @property
    def dd(self) -> dict[str, Any]:
        """Device and dtype of the parameters, as keyword arguments of layers."""
        return {"device": self.device, "dtype": self.dtype}


class Backbone(nn.Module):
    """Base of both kinds: arguments, initialization and official files.

    A family may override `init_parameters`, `from_official` and `adapt`.

    Attributes:
        prefers_average: Load the average, `model_ema`, from files that have both it and the
            weights, because the published accuracy is that of the average.
        options: The constructor's arguments apart from those that it names.
        unsupported: Names of options that do not apply to a family.
        dense: Arguments for dense prediction: norms of all features, images of any size.
    """

    prefers_average = False
    options: ClassVar[type[Options]] = Options
    unsupported: ClassVar[frozenset[str]] = frozenset()
    dense: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def arguments(cls) -> dict[str, Any]:
        """Names of all arguments of the constructor, with their defaults."""
        found: dict[str, Any] = {}
        for ancestor in cls.__mro__:
            if "__init__" not in vars(ancestor):
                continue
            if not issubclass(ancestor, Backbone):
                break
            named = list(inspect.signature(ancestor.__init__).parameters.values())[1:]
            own = {p.name: p.default for p in named if p.kind is p.KEYWORD_ONLY}
            found = {**own, **found}
            if all(p.kind is not p.VAR_KEYWORD for p in named):
                return found
        passed = {f.name: f.default for f in fields(cls.options) if f.name not in cls.unsupported}
        return {**passed, **found}

    @classmethod
    def default_features(cls, given: Mapping[str, Any]) -> Sequence[int]:
        """Indices of the features that `features_only` takes from a model with these arguments."""
        raise NotImplementedError

    def read_options(self, given: Mapping[str, Any]) -> Any:
        """The arguments that the constructor does not name itself.

        Raises:
            TypeError: An argument is unknown.
        """
        known = self.arguments()
        for name in given:
            if name not in known:
                raise TypeError(self._refusal(name, known))
        return self.options(**given)

    def _refusal(self, name: str, known: Mapping[str, Any]) -> str:
        model = type(self).__name__
        if name == "scan_order":
            return f"{model} has no scan and so no scan order: unexpected keyword argument {name!r}"
        if name in ("img_size", "dynamic_img_size"):
            return f"{model} takes images of any size: unexpected keyword argument {name!r}"
        hint = near_names(name, known) or f"choose from {sorted(known)}"
        return f"{model} got an unexpected keyword argument {name!r}; {hint}"

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialize all parameters as the official code does.

        Args:
            mode: Only "" is known.
            needs_reset: Also reset layers that initialize themselves, as after `to_empty()`.
        """
        if mode:
            raise ValueError(f"mode={mode!r} is unknown; only '' is")
        if any(p.is_meta for p in self.parameters()):
            # no values to set, and drawing random numbers takes seconds even on "meta"
            return
        if needs_reset:
            for module in self.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()  # type: ignore[operator]
        self.init_parameters()

    def init_parameters(self) -> None:
        """Initialize what the official code initializes differently from the layers themselves."""
        init_vss_(self)

    def no_weight_decay(self) -> set[str]:
        """Names of the scans' parameters."""
        return scan_parameters(self)

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename an official state dict by the family's rules.

        Raises:
            CheckpointError: A key matches no rule.
        """
        return rename_keys(state_dict, family_of(type(self)).rules)

    def adapt(self, state: StateDict) -> StateDict:
        """Adapt weights under our names to the arguments of this model."""
        return state

    def may_be_missing(self, state: StateDict) -> tuple[str, ...]:
        """Prefixes of parameters that keep their initial values if a file lacks them."""
        return ()

    def read_weights(self, checkpoint: Mapping[str, Any]) -> StateDict:
        """A state dict for this model from a checkpoint, under official names or ours.

        Raises:
            CheckpointError: It does not fit; lists missing and unexpected keys and shapes that
                differ.
        """
        rules = family_of(type(self)).rules
        average = checkpoint.get("model_ema") if self.prefers_average else None
        if isinstance(average, Mapping):
            checkpoint = average
        state = unwrap(checkpoint, known_names(self, rules))
        try:
            if in_official_names(state, self, rules):
                state = self.from_official(state)
            state = self.adapt(state)
        except CheckpointError:
            raise
        # shapes of another model, or only some of the parts that belong together
        except (RuntimeError, ValueError, LookupError) as error:
            raise CheckpointError(f"the layout is another: {error}") from error
        return check_fit(state, self, fresh=self.may_be_missing(state))

    def load_pretrained(self, path: str) -> None:
        """Load an official file strictly."""
        load_official(self, path)


def take_orders(scan_order: str | Sequence[str]) -> Iterator[str]:
    """The scan orders of all blocks, one after another, repeated endlessly."""
    return (order_of_block(scan_order, block) for block in count())
