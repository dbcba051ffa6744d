"""What every family's entry points do with timm's builder."""

import socket
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import constants, try_to_load_from_cache
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    resolve_pretrained_cfg,
)
from timm.models._features import FeatureGetterNet
from torch import Tensor, nn

from vimamba.checkpoints import CheckpointError, StateDict, check_finite
from vimamba.models._backbone import Backbone

NO_LICENSE = "the official repository has no license file"

# where timm says that a pretrained config comes from, of models saved with their arguments
_SAVED = ("hf-hub", "local-dir")
# since timm 1.0.31 it also says with which arguments
_PARAMETERS = signature(build_model_with_cfg).parameters

ModelT = TypeVar("ModelT", bound=Backbone)


class WeightsError(CheckpointError, RuntimeError):
    """Published weights are not available; the message says what to do. timm: a RuntimeError."""


class FeatureMaps(FeatureGetterNet):
    """timm's extractor of feature maps, which also compiles as TorchScript.

    A script gets its maps (N, C, H, W) from the model's `forward_maps(x, indices, norm)`.
    """

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.out_indices = list(self.out_indices)  # type: ignore[arg-type]
        self.is_nchw = self.output_fmt == "NCHW"

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C_in, H, W) to the maps of the chosen indices."""
        if torch.jit.is_scripting():
            assert self.is_nchw, "output_fmt must be NCHW in TorchScript"
            return self.model.forward_maps(x, self.out_indices, self.norm)  # type: ignore[operator]
        else:
            return super().forward(x)


def build_model(
    model_cls: type[ModelT],
    variant: str,
    pretrained: bool,
    given: Mapping[str, Any],
    **sizes: Any,
) -> ModelT:
    """Build a registered model, or with `features_only` the extractor of its feature maps.

    A file or address that the user gives is read by the model's own `load_pretrained`, which is
    strict and does not run code from the file.

    Args:
        model_cls: The family's class.
        variant: Registered name.
        pretrained: Load the weights of the pretrained config.
        given: The user's arguments: the model's and those of timm's `create_model`.
        **sizes: The model's arguments that the user does not give.

    Raises:
        WeightsError: There are no published weights, or they cannot be fetched.
        CheckpointError: They do not fit.
    """
    kwargs = {**sizes, **given}
    feature_cfg: dict[str, Any] = {"out_indices": tuple(model_cls.default_features(kwargs))}
    if kwargs.get("features_only"):
        kwargs.setdefault("num_classes", 0)  # a file without a classifier loads, too
        if kwargs.get("feature_cls", "getter") == "getter":
            kwargs["feature_cls"] = FeatureMaps
            # whatever dtype the model computes in
            feature_cfg["output_fmt"] = "NCHW"
    if overlay := kwargs.get("pretrained_cfg_overlay"):
        kwargs["pretrained_cfg_overlay"] = {"custom_load": "hf", **overlay}

    def adapt(checkpoint: Mapping[str, Any], model: Backbone) -> StateDict:
        state = model.read_weights(checkpoint)
        check_finite(state)
        return state

    source = None
    if pretrained:
        asked = kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay")
        cfg = resolve_pretrained_cfg(variant, *asked)
        source = _published_source(variant, cfg)
        if cfg.source in _SAVED and "pretrained_model_args" in _PARAMETERS:
            _compare_orders(model_cls, sizes, kwargs)
    try:
        return build_model_with_cfg(
            model_cls,
            variant,
            pretrained,
            pretrained_filter_fn=adapt,
            feature_cfg=feature_cfg,
            **kwargs,
        )
    except OSError as error:
        if source is None:
            raise
        raise WeightsError(f"{source.failure} ({error}); {source.way_out}") from error


def make_cfgs(
    rows: Mapping[str, Mapping[str, Any]],
    *,
    license: str,
    hub: str = "",
    folder: str = "",
    cell: int | None = 32,
    notes: tuple[str, ...] = (),
    **shared: Any,
) -> Any:
    """The pretrained configs of a family, as timm's registry takes them.

    Args:
        rows: By "model.tag": the fields of `timm.models.PretrainedCfg` that a row has of its own,
            and these short forms: `size`, the side of the images, 224 pixels by default; `file`,
            the weights' file name at the shared address; `by_hand`, where the weights are if no
            program can download them; `note`.
        license: Of the weights; rows tagged "untrained" have none.
        hub: Repository of the files on the Hub; a row may have its own.
        folder: Address of the folder that they are in, instead of `hub`.
        cell: Pixels per cell of the last map; None for models of tokens.
        notes: What `identify` says about all, apart from accuracy and license.
        **shared: Further fields of all configs.
    """

    def make(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
        own = dict(row)
        size, file = own.pop("size", 224), own.pop("file", None)
        by_hand, note = own.pop("by_hand", None), own.pop("note", None)
        there = own.pop("hub", hub)
        place = [f"weights: {by_hand}, to be fetched by hand"] if by_hand else []
        return {
            "url": f"{folder}/{file}" if folder and file else None,
            "hf_hub_id": there or None if file else None,
            "hf_hub_filename": file if there else None,
            "custom_load": "hf" if file else False,
            "num_classes": 1000,
            "input_size": (3, size, size),
            "pool_size": cell and (-(-size // cell), -(-size // cell)),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "license": None if name.endswith(".untrained") else license,
            "notes": (*notes, *([note] if note else []), *place),
            **shared,
            **own,
        }

    return generate_default_cfgs({name: make(name, row) for name, row in rows.items()})


def _compare_orders(
    model_cls: type[Backbone], sizes: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> None:
    """Warn if a saved model was trained with another scan order than the one asked for."""
    parameter = signature(model_cls).parameters.get("scan_order")
    usual = sizes.get("scan_order", parameter and parameter.default)
    saved = kwargs.get("pretrained_model_args") or {}
    trained, asked = (_as_list(given.get("scan_order", usual)) for given in (saved, kwargs))
    if trained != asked:
        warnings.warn(
            f"scan_order={asked} differs from that of the saved weights, {trained}: without "
            "training, the model does not do what it did",
            stacklevel=5,
        )


def _as_list(scan_order: str | Sequence[str] | None) -> list[str]:
    """The orders that blocks take in turn."""
    return [scan_order] if isinstance(scan_order, str) else list(scan_order or ())


@dataclass(frozen=True)
class _Source:
    """Where published weights come from.

    Attributes:
        failure: The error message if that fails.
        way_out: What to do about it.
    """

    failure: str
    way_out: str


def _published_source(variant: str, cfg: PretrainedCfg) -> _Source | None:
    """Where the weights are downloaded from; None if they are already here.

    Raises:
        WeightsError: There are none, or the Hub cannot be reached; huggingface_hub would keep
            trying for half a minute.
    """
    if cfg.file or cfg.state_dict or cfg.source:
        return None
    way_out = "load a file with pretrained_cfg_overlay=dict(file=PATH)"
    if not cfg.has_weights:
        if cfg.license is None:
            raise WeightsError(
                f"No pretrained weights of {variant} were published; {way_out}, or train it"
            )
        where = "".join(f" ({note})" for note in cfg.notes or () if note.startswith("weights:"))
        raise WeightsError(
            f"No pretrained weights exist for {variant} that can be fetched{where}; {way_out}"
        )
    if cfg.hf_hub_id:
        file = cfg.hf_hub_filename or "model.safetensors"
        address = f"{constants.ENDPOINT}/{cfg.hf_hub_id}/resolve/main/{file}"
        there = try_to_load_from_cache(cfg.hf_hub_id, file)
        put = ""
    else:
        address = cfg.url if isinstance(cfg.url, str) else cfg.url[0]  # type: ignore[index]
        there = None
        put = f", or put it into {Path(torch.hub.get_dir()) / 'checkpoints'}"
    source = _Source(
        f"the weights of {variant} cannot be fetched from {address}",
        f"fetch it by hand and {way_out}{put}",
    )
    host = urlsplit(address).hostname
    if cfg.hf_hub_id and not isinstance(there, str) and host and not getproxies():
        try:
            socket.getaddrinfo(host, 443)
        except OSError as error:
            raise WeightsError(f"{source.failure} ({error}); {source.way_out}") from error
    return source
