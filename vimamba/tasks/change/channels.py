"""From the logits of a change network to the written maps.

A network's outputs are concatenated in one tensor:

    binary    change (1 channel, sigmoid)
    semantic  change (2), before (C), after (C)
    damage    building (2), damage (C)

Sizes: N images, K channels of all outputs, C classes, H x W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# written maps of each kind
WRITTEN = {"binary": ("change",), "semantic": ("before", "after"), "damage": ("damage",)}


@dataclass(frozen=True)
class OutputChannels:
    """Layout of the outputs of a kind in the network's channels.

    Attributes:
        kind: "binary", "semantic" or "damage".
        num_classes: C.
    """

    kind: str
    num_classes: int

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each output, in order; their names are those of the label maps."""
        return {
            "binary": {"change": 1},
            "semantic": {"change": 2, "before": self.num_classes, "after": self.num_classes},
            "damage": {"building": 2, "damage": self.num_classes},
        }[self.kind]

    @property
    def count(self) -> int:
        """K."""
        return sum(self.channels.values())

    @property
    def net_classes(self) -> int:
        """`num_classes` for the network: one channel is a binary mask."""
        return 1 if self.kind == "binary" else self.num_classes

    def part(self, joined: Tensor) -> dict[str, Tensor]:
        """(N, K, H, W) to the outputs by name."""
        sizes = list(self.channels.values())
        return dict(zip(self.channels, joined.split(sizes, dim=1), strict=True))

    def probabilities(self, joined: Tensor) -> dict[str, Tensor]:
        """Logits (N, K, H, W) to probabilities of each output, (N, 2 or C, H, W) float32."""
        found = {}
        for name, logits in self.part(joined.float()).items():
            if logits.shape[1] == 1:
                positive = logits.sigmoid()
                found[name] = torch.cat([1 - positive, positive], dim=1)
            else:
                found[name] = logits.softmax(1)
        return found

    def logits(self, probabilities: Mapping[str, Tensor]) -> Tensor:
        """Logits (N, K, H, W) with these probabilities."""
        parts = []
        for name, count in self.channels.items():
            found = probabilities[name].clamp(1e-7, 1 - 1e-7)
            parts.append(found[:, 1:].logit() if count == 1 else found.log())
        return torch.cat(parts, dim=1)

    def decide(self, probabilities: Mapping[str, Tensor]) -> list[Tensor]:
        """Probabilities of the written maps, (N, C, H, W) each.

        Where there is a change, or a building, the first class is excluded, and elsewhere it is
        certain: change is decided first and the classes second, so both dates of a pixel have
            changed or neither has.

        Args:
            probabilities: Those of the outputs, as returned by `probabilities`.
        """
        first, *details = self.channels
        gate = probabilities[first]
        if not details:
            return [gate]
        here = (gate[:, 1:] > gate[:, :1]).float()
        maps = []
        for name in details:
            classes = probabilities[name][:, 1:]
            classes = classes / classes.sum(1, keepdim=True).clamp(min=1e-12)
            maps.append(torch.cat([1 - here, classes * here], dim=1))
        return maps


def join_logits(found: Any) -> Tensor:
    """A network's output, one tensor or several, as one (N, K, H, W)."""
    return found if isinstance(found, Tensor) else torch.cat(list(found), dim=1)


def mean_of(views: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of the probabilities of several views."""
    return {name: torch.stack([view[name] for view in views]).mean(0) for name in views[0]}
