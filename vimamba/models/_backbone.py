"""What every backbone is to timm: initialization, decay rules, official files.

A family makes its parts (stem or patch embedding, blocks, norms) and hands them to one of

    StagedBackbone   a stem, and stages that halve the grid: a pyramid of maps (_staged.py)
    PlainBackbone    tokens of one grid, perhaps with a class token or registers (_plain.py)

which hold timm's contract: everything that users of a backbone call and that no family changes.
"""

from collections.abc import Mapping
from typing import Any

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

__all__ = ["Backbone"]


class Backbone(nn.Module):
    """What both kinds have in common: initialization and official files.

    A family may override `init_parameters`, `from_official` and `adapt`.

    Attributes:
        prefers_average: Where files hold the weights and their average, `model_ema`, the published
            accuracy is that of the average, which is loaded.
    """

    prefers_average = False

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Start all parameters as the official code does.

        Args:
            mode: Only "" is known.
            needs_reset: Also reset layers that start themselves, as after `to_empty()`.
        """
        if mode:
            raise ValueError(f"mode={mode!r} is unknown; only '' is")
        if any(p.is_meta for p in self.parameters()):
            # nothing to start, and drawing no numbers takes seconds
            return
        if needs_reset:
            for module in self.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()  # type: ignore[operator]
        self.init_parameters()

    def init_parameters(self) -> None:
        """What the official code starts otherwise than the layers themselves do."""
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
        """Change weights under our names to the arguments this model was made with."""
        return state

    def may_be_missing(self, state: StateDict) -> tuple[str, ...]:
        """Prefixes of parameters that start fresh where a file lacks them."""
        return ()

    def read_weights(self, checkpoint: Mapping[str, Any]) -> StateDict:
        """A state dict for this model from a checkpoint, under official names or ours.

        Raises:
            CheckpointError: It does not fit; lists what is missing, unexpected or of another shape.
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
        # where shapes are another's, or parts are missing that belong together
        except (RuntimeError, ValueError, LookupError) as error:
            raise CheckpointError(f"the layout is another: {error}") from error
        return check_fit(state, self, fresh=self.may_be_missing(state))

    def load_pretrained(self, path: str) -> None:
        """Load an official file strictly."""
        load_official(self, path)
