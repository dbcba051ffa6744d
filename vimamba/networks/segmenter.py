"""What all segmentation networks have in common.

Every network pads the image with zeros, right and below, to whole cells of its coarsest map and
crops the logits, so any height and width will do, and cells lie on pixels exactly.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import group_parameters
from torch import Tensor, nn

from vimamba.checkpoints import (
    CheckpointError,
    Rules,
    StateDict,
    check_finite,
    check_fit,
    known_names,
    read_checkpoint,
    rename_keys,
    unwrap,
)
from vimamba.layers import scan_parameters, split_paths
from vimamba.layers.tracing import pad_to_cells


class Segmenter(nn.Module):
    """An image in, logits of its own size out.

    Args:
        cell: Pixels per cell of the coarsest map, for each spatial dimension.
        num_classes: Channels of the logits.
        in_chans: Channels of the images.
        pretrained_cfg: What is known about images and weights, as timm keeps it; without `mean`
            and `std`, ImageNet's.
    """

    # where the timm model lies whose layers have learning rates of their own
    body = "encoder"
    # per side of the coarsest map; an instance norm needs more than one
    fewest_cells = 1

    def __init__(
        self,
        cell: tuple[int, ...],
        *,
        num_classes: int,
        in_chans: int,
        pretrained_cfg: dict[str, Any],
    ) -> None:
        super().__init__()
        self.cell = cell
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.pretrained_cfg: dict[str, Any] = {
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            **pretrained_cfg,
            "num_classes": num_classes,
            # weights are never adapted, they fit or do not
            "classifier": "",
            "first_conv": "",
        }
        self.default_cfg = self.pretrained_cfg

    def predict(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        """Logits of a padded image at any resolution, the main ones first.

        Args:
            x: (N, C_in, H, W), whole cells.
            auxiliary: Also give the auxiliary outputs, if there are any.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to logits (N, num_classes, H, W)."""
        return self._predict_padded(x, auxiliary=False)[0]

    def forward_all(self, x: Tensor) -> list[Tensor]:
        """(N, C_in, H, W) to logits (N, num_classes, H, W) and, coarser, the auxiliary ones."""
        return self._predict_padded(x, auxiliary=True)

    def _predict_padded(self, x: Tensor, *, auxiliary: bool) -> list[Tensor]:
        size = x.shape[2:]
        x = pad_to_cells(x, list(self.cell), self.fewest_cells)
        outputs = self.predict(x, auxiliary=auxiliary)
        if outputs[0].shape[2:] != x.shape[2:]:
            outputs[0] = F.interpolate(
                outputs[0], size=x.shape[2:], mode="bilinear", align_corners=False
            )
        return [self._crop(logits, size, x.shape[2:]) for logits in outputs]

    @staticmethod
    def _crop(logits: Tensor, size: tuple[int, ...], padded: tuple[int, ...]) -> Tensor:
        """Leave the padding's share of the logits out."""
        for dim, (wanted, whole) in enumerate(zip(size, padded, strict=True), start=2):
            kept = -(-wanted * logits.shape[dim] // whole)
            if torch.compiler.is_exporting():
                # a view would be exported either for whole cells only or for no whole cells
                cells = torch.arange(kept, dtype=torch.int64, device=logits.device)
                logits = logits.index_select(dim, cells)
            else:
                logits = logits.narrow(dim, 0, kept)
        return logits

    def no_weight_decay(self) -> set[str]:
        """Names of the scans' parameters, and what the backbone names."""
        names = getattr(self.get_submodule(self.body), "no_weight_decay", set)()
        return scan_parameters(self) | {f"{self.body}.{name}" for name in names}

    def body_parameters(self) -> list[nn.Parameter]:
        """Parameters of the backbone or encoder."""
        return list(self.get_submodule(self.body).parameters())

    def group_matcher(self, coarse: bool = False) -> Any:
        """The backbone's layer groups for layer-wise learning rates; all else is the last one."""
        body: Any = self.get_submodule(self.body)
        layers: Any = group_parameters(body, body.group_matcher(coarse=coarse), reverse=True)
        named = {f"{self.body}.{name}": layer for name, layer in layers.items()}
        return lambda name: named.get(name, math.inf)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in the backbone."""
        body: Any = self.get_submodule(self.body)
        body.set_grad_checkpointing(enable)

    def official_rules(self) -> Rules:
        """How the parameters of an official file are renamed; none if there is no such file."""
        return {}

    def from_official(self, state_dict: StateDict) -> StateDict:
        """Rename the parameters of an official file."""
        rules = self.official_rules()
        return split_paths(rename_keys(state_dict, rules)) if rules else state_dict

    def load_pretrained(self, path: str | Path) -> None:
        """Load a file of the official code, or weights under our names, strictly.

        Wrappers are taken off, as `vimamba.checkpoints.unwrap` does. Classifiers of auxiliary
        outputs that this network was made without are left out.

        Raises:
            FileNotFoundError: There is no such file.
            CheckpointError: The file does not fit; the message lists what does not.
        """
        checkpoint, ours = read_checkpoint(path), self.state_dict()
        try:
            state = unwrap(checkpoint, known_names(self, self.official_rules()))
            if not state.keys() & ours.keys():
                state = self.from_official(state)
            state = {k: v for k, v in state.items() if k in ours or ".aux_" not in f".{k}"}
            check_finite(check_fit(state, self))
        except CheckpointError as error:
            raise CheckpointError(f"{str(path)!r} does not fit: {error}") from None
        self.load_state_dict(state)
