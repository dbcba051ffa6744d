"""A backbone of stages that halve the grid, with timm's contract.

Sizes: N batch, H and W image, h and w map, C channels of a stage.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn.functional as F
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vimamba.checkpoints import StateDict
from vimamba.layers import Stage
from vimamba.models._backbone import Backbone
from vimamba.scan_orders import order_of_block
from vimamba.timm_layers import ClassifierHead, get_device_dtype

__all__ = ["StagedBackbone", "make_stages"]


class StagedBackbone(Backbone):
    """A stem, stages that halve the grid, a norm and a classifier.

    Args:
        stem: (N, C_in, H, W) to the first stage's map. Its `patch_size`, if it has one, says of how
            many pixels it needs multiples to use them all.
        stages: Each from the map of the stage before it to its own.
        dims: Channels of the stages.
        in_chans, num_classes, global_pool, drop_rate: As in timm.
        norm: Of the last stage, before the classifier.
        stage_norms: One for each stage's features. A model that has them has no classifier: it is
            the layout of published segmentation and detection backbones.
        strides: Of the stages, image pixels per cell; 4, 8, 16, ... if None.
        output_fmt: Layout of the maps inside, "NHWC" or "NCHW".
        device, dtype: Of the classifier's parameters.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Iterable[nn.Module],
        dims: Sequence[int],
        *,
        in_chans: int,
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        norm: nn.Module,
        stage_norms: Sequence[nn.Module] | None = None,
        strides: Sequence[int] | None = None,
        output_fmt: str = "NHWC",
        **dd: Any,
    ) -> None:
        super().__init__()
        self.in_chans, self.num_classes = in_chans, 0 if stage_norms else num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.output_fmt = output_fmt
        self.is_nchw = output_fmt == "NCHW"
        self.patch_size = int(getattr(stem, "patch_size", 1))
        self.stem = stem
        self.stages = nn.Sequential(*stages)
        strides = strides or [4 * 2**i for i in range(len(dims))]
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": dim, "reduction": stride, "module": f"stages.{i}"}
            for i, (dim, stride) in enumerate(zip(dims, strides, strict=True))
        ]
        self.stage_norms = nn.ModuleList(stage_norms or [nn.Identity() for _ in dims])
        self.has_stage_norms = bool(stage_norms)
        self.norm = nn.Identity() if stage_norms else norm
        self.head = ClassifierHead(
            dims[-1], self.num_classes, global_pool, drop_rate, input_fmt=output_fmt, **dd
        )

    def adapt(self, state: StateDict) -> StateDict:
        """Leave the classifier out of a dense backbone, which may start from one."""
        if not self.has_stage_norms:
            return state
        return {k: v for k, v in state.items() if not k.startswith(("norm.", "head."))}

    def may_be_missing(self, state: StateDict) -> tuple[str, ...]:
        """The norms of a dense backbone, which may start from a classifier."""
        return ("stage_norms.",) if self.has_stage_norms else ()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates."""
        fine = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            # with the group before, the last block's
            (r"^stages\.(\d+)\.norm", (99999,)),
            (r"^(?:stage_)?norm", (99999,)),
        ]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in every stage."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer; 0 classes leave pooled features."""
        self.num_classes = num_classes
        dd: dict[str, Any] = get_device_dtype(self)
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **dd)
        self.head_hidden_size = self.head.num_features

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of the chosen stages; see timm's `forward_intermediates`.

        With `norm`, the last stage's features are normed; the others have no norm of their own
        unless the model was made with `stage_norm`, which always norms all.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt={output_fmt!r} is unknown; choose NCHW or NHWC")
        take, last = feature_take_indices(len(self.stages), indices)
        last = last if stop_early else len(self.stages) - 1
        x, features = self._run_stages(x, take, last, norm)
        if output_fmt != self.output_fmt:
            features = _to_nchw(features) if output_fmt == "NCHW" else _to_nhwc(features)
        if intermediates_only:
            return features
        if last == len(self.stages) - 1:
            x = self.norm(self.stage_norms[-1](x))
        return x, features

    def forward_maps(self, x: Tensor, indices: list[int], norm: bool) -> list[Tensor]:
        """Features (N, C, h, w) of the chosen stages, in TorchScript, too."""
        features = self._run_stages(x, indices, len(self.stages) - 1, norm)[1]
        return features if self.is_nchw else _to_nchw(features)

    def _run_stages(
        self, x: Tensor, take: list[int], last: int, norm: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Map behind stage `last`, and features of the stages `take`, in the layout inside."""
        patch = self.patch_size
        if patch > 1:
            # maps leave no pixel out, as those of other backbones; logits do, as the official ones
            x = F.pad(x, (0, -x.shape[3] % patch, 0, -x.shape[2] % patch))
        x = self.stem(x)
        features: list[Tensor] = []
        # TorchScript knows no `strict`
        for i, (stage, stage_norm) in enumerate(zip(self.stages, self.stage_norms)):  # noqa: B905
            if i <= last:
                x = stage(x)
            if i in take:
                feature = stage_norm(x)
                is_final = i == len(self.stages) - 1
                feature = self.norm(feature) if norm and is_final else feature
                # a norm of channels may leave them last in memory
                features.append(feature.contiguous())
        return x, features

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what the chosen features do not need; gives back their absolute indices."""
        take, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        self.stage_norms = self.stage_norms[: last + 1]
        if shortened:
            self.num_features = self.feature_info[last]["num_chs"]
        if shortened or prune_norm:
            self.norm = nn.Identity()
        if shortened or prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to the last stage's map, normed."""
        return self.norm(self.stage_norms[-1](self.stages(self.stem(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last stage's map, normed, to (N, num_classes)."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def make_stages(
    depths: Sequence[int],
    dims: Sequence[int],
    scan_order: str | Sequence[str],
    drop_path_rates: Sequence[Sequence[float]],
    *,
    make_block: Any,
    make_downsample: Any,
) -> list[nn.Module]:
    """The stages of a pyramid, with each block's drop path rate and scan order.

    Args:
        depths: Blocks of the stages.
        dims: Channels of the stages.
        scan_order: Of all blocks, or a list that they take by turns.
        drop_path_rates: Of the blocks of each stage.
        make_block: From (stage, channels, drop path rate, scan order) to a block.
        make_downsample: From the channels before and those of the stage to what halves the grid.
    """
    if len(depths) != len(dims):
        raise ValueError(f"depths={depths} and dims={dims} must name the same stages")
    stages: list[nn.Module] = []
    number = 0
    for i, dim in enumerate(dims):
        blocks = []
        for rate in drop_path_rates[i]:
            blocks.append(make_block(i, dim, rate, order_of_block(scan_order, number)))
            number += 1
        stages.append(Stage(make_downsample(dims[i - 1], dim) if i else nn.Identity(), blocks))
    return stages


def _to_nchw(features: list[Tensor]) -> list[Tensor]:
    return [f.permute(0, 3, 1, 2).contiguous() for f in features]


def _to_nhwc(features: list[Tensor]) -> list[Tensor]:
    return [f.permute(0, 2, 3, 1).contiguous() for f in features]
