"""A backbone of stages that halve the grid, with timm's contract.

Sizes: N batch, H and W image, h and w map, C channels of a stage.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vimamba.checkpoints import StateDict
from vimamba.layers import (
    BottleneckDownsample,
    PositionedBlock,
    ResidualStem,
    Stage,
    drop_path_rates,
)
from vimamba.models._backbone import Backbone, Options, take_orders
from vimamba.timm_layers import ClassifierHead, get_device_dtype

__all__ = ["StagedBackbone", "StagedParts", "positioned_parts"]


def plain_stage(
    _stage: int, downsample: nn.Module, blocks: list[nn.Module], **_dd: Any
) -> nn.Module:
    """Halve the grid, run the blocks."""
    return Stage(downsample, blocks)


@dataclass(frozen=True, kw_only=True)
class StagedOptions(Options):
    """Further arguments of every pyramid."""

    stage_norm: bool = False


@dataclass(frozen=True, kw_only=True)
class StagedParts:
    """The parts that a family supplies for a pyramid; all factories also get device and dtype.

    Attributes:
        depths: Blocks of the stages.
        dims: Channels of the stages.
        stem: From (channels of the images, channels of the first stage) to the module that makes
            the first stage's map. Its `patch_size`, if it has one, is the number of pixels that the
            image size must be a multiple of if all pixels are to be used.
        block: From (stage, number in the stage, channels, drop path rate, scan orders) to a block,
            which takes the next scan order if it scans.
        downsample: From the channels of the stage before and of this stage to a module that halves
            the grid.
        stage: From (stage, the module that halves the grid, blocks) to the stage.
        scan_order: One for all blocks that scan, or a list that they take in turn.
        norm: Of the last stage, before the classifier.
        dense_norm: Of every stage's features in a dense backbone.
        head: From (channels of the last stage, classes, pooling, drop rate) and the map's layout to
            the classifier.
        stride: Of the first stage, image pixels per cell.
        output_fmt: Internal layout of the maps, "NHWC" or "NCHW".
    """

    depths: Sequence[int]
    dims: Sequence[int]
    stem: Callable[..., nn.Module]
    block: Callable[..., nn.Module]
    downsample: Callable[..., nn.Module]
    stage: Callable[..., nn.Module] = plain_stage
    scan_order: str | Sequence[str] = ""
    norm: Callable[..., nn.Module] = nn.LayerNorm
    dense_norm: Callable[..., nn.Module] = nn.LayerNorm
    head: Callable[..., Any] = ClassifierHead
    stride: int = 4
    output_fmt: str = "NHWC"

    def make_stages(self, drop_path_rate: float, dd: dict[str, Any]) -> Iterator[nn.Module]:
        """The stages, with drop path rates that increase up to that of the last block."""
        orders = take_orders(self.scan_order)
        for i, rates in enumerate(drop_path_rates(drop_path_rate, self.depths)):
            dim = self.dims[i]
            blocks = [self.block(i, j, dim, rate, orders, **dd) for j, rate in enumerate(rates)]
            halve = self.downsample(self.dims[i - 1], dim, **dd) if i else nn.Identity()
            yield self.stage(i, halve, blocks, **dd)


def positioned_parts(
    depths: Sequence[int],
    dims: Sequence[int],
    mixer: Callable[..., nn.Module],
    mlp_ratio: float,
    scan_order: str | Sequence[str] = "",
) -> StagedParts:
    """MLLA's pyramid (Han et al. 2024, arXiv:2405.16605), whose mixers others replaced.

    Args:
        depths: Blocks of the stages.
        dims: Channels of the stages.
        mixer: From (stage, channels, scan orders) to a mixer, which takes the next scan order if it
            scans.
        mlp_ratio: Hidden channels of the MLPs divided by channels.
        scan_order: As of `StagedParts`.
    """

    def block(
        stage: int, _number: int, dim: int, rate: float, orders: Iterator[str], **dd: Any
    ) -> nn.Module:
        made = mixer(stage, dim, orders, **dd)
        return PositionedBlock(dim, made, mlp_ratio=mlp_ratio, drop_path=rate, **dd)

    return StagedParts(
        depths=depths,
        dims=dims,
        stem=ResidualStem,
        block=block,
        downsample=BottleneckDownsample,
        scan_order=scan_order,
    )


class StagedBackbone(Backbone):
    """A stem, stages that halve the grid, a norm and a classifier.

    Args:
        parts: What the family puts into it.
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: As in timm.
        stage_norm: A norm on each stage's output and no classifier: the layout of the published
            segmentation and detection backbones.
        device, dtype: Device and dtype of the parameters.
    """

    options = StagedOptions
    dense: ClassVar[Mapping[str, Any]] = {"stage_norm": True}

    def __init__(self, parts: StagedParts, /, **given: Any) -> None:
        super().__init__()
        options: StagedOptions = self.read_options(given)
        dd, dims = options.dd, parts.dims
        if len(parts.depths) != len(dims):
            raise ValueError(f"depths={parts.depths} and dims={dims} must name the same stages")
        self.has_stage_norms = options.stage_norm
        self.in_chans = options.in_chans
        self.num_classes = 0 if options.stage_norm else options.num_classes
        self.num_features = dims[-1]
        self.output_fmt = parts.output_fmt
        self.is_nchw = parts.output_fmt == "NCHW"
        self.stem = parts.stem(options.in_chans, dims[0], **dd)
        self.patch_size = int(getattr(self.stem, "patch_size", 1))
        self.stages = nn.Sequential(*parts.make_stages(options.drop_path_rate, dd))
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": dim, "reduction": parts.stride * 2**i, "module": f"stages.{i}"}
            for i, dim in enumerate(dims)
        ]
        dense_norm, norm = nn.Identity, parts.norm
        if options.stage_norm:
            dense_norm, norm = parts.dense_norm, nn.Identity
        self.stage_norms = nn.ModuleList(dense_norm(dim, **dd) for dim in dims)
        self.norm = norm(dims[-1], **dd)
        sizes = dims[-1], self.num_classes, options.global_pool, options.drop_rate
        self.head = parts.head(*sizes, input_fmt=parts.output_fmt, **dd)
        self.head_hidden_size = self.head.num_features

    @classmethod
    def default_features(cls, given: Mapping[str, Any]) -> Sequence[int]:
        """All stages."""
        return range(len({**cls.arguments(), **given}["depths"]))

    def adapt(self, state: StateDict) -> StateDict:
        """Drop the classifier for a dense backbone, which may start from a classifier's file."""
        if not self.has_stage_norms:
            return state
        return {k: v for k, v in state.items() if not k.startswith(("norm.", "head."))}

    def may_be_missing(self, state: StateDict) -> tuple[str, ...]:
        """The norms of a dense backbone, which may start from a classifier's file."""
        return ("stage_norms.",) if self.has_stage_norms else ()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates."""
        fine = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            # in the group before, that of the last block
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

        With `norm`, the last stage's features are normalized; the others have no norm unless the
        model was made with `stage_norm`, which always normalizes all.
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
        """Map after stage `last`, and features of the stages `take`, in the internal layout."""
        patch = self.patch_size
        if patch > 1:
            # feature maps cover all pixels, as in other backbones; logits do not, as in official
            # code
            x = F.pad(x, (0, -x.shape[3] % patch, 0, -x.shape[2] % patch))
        x = self.stem(x)
        features: list[Tensor] = []
        # TorchScript does not support `strict`
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
        """The last stage's normalized map to (N, num_classes)."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _to_nchw(features: list[Tensor]) -> list[Tensor]:
    return [f.permute(0, 3, 1, 2).contiguous() for f in features]


def _to_nhwc(features: list[Tensor]) -> list[Tensor]:
    return [f.permute(0, 2, 3, 1).contiguous() for f in features]
