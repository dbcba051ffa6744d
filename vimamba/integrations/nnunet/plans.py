"""Adds a configuration with one of our networks to the plans of a data set."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from vimamba.files import write_whole
from vimamba.integrations.nnunet.network import CLASS_NAME, PLANNED, UMAMBA, make_network
from vimamba.integrations.nnunet.registration import require_nnunet
from vimamba.networks import Segmenter, UMamba


@dataclass(frozen=True)
class Configuration:
    """A configuration for nnU-Net's commands.

    Attributes:
        plans_file: The file that contains it.
        plans_name: Its plans, `-p` of the commands.
        name: Its name, `-c` of the commands.
        patch_size: Patch size of the network's input.
    """

    plans_file: Path
    plans_name: str
    name: str
    patch_size: tuple[int, ...]


def add_configuration(
    plans_json: str | Path,
    *,
    network: str,
    name: str | None = None,
    base: str = "2d",
    patch_size: Sequence[int] | None = None,
    batch_size: int | None = None,
    plans_name: str = "nnUNetPlans_vimamba",
    amp: bool = True,
    **network_kwargs: Any,
) -> Configuration:
    """Write plans with an additional configuration for any nnU-Net with vimamba installed.

    They are written to a file next to the given one, which is not changed. The preprocessed data of
    the base are reused. Everything that defines the network is in the plans, and so in the trained
    model.

    Args:
        plans_json: Plans made by nnU-Net, in `nnUNet_preprocessed`.
        network: "umamba_bot_2d", "umamba_enc_2d" or "..._3d", sized by the base; "vss_unet_3d_nano"
            or larger, whose strides follow patch and spacing; or a model for
            `vimamba.create_segmenter`, such as "segmamba".
        name: Name of the configuration; base and network if None.
        base: Configuration of these plans that defines everything except the network.
        patch_size: Patch size, rounded up to whole cells of its coarsest map; the
            base's if None.
        batch_size: Patches per step; the base's if None.
        plans_name: Name of the new plans; configurations added earlier are kept.
        amp: False to run the network in float32, also in prediction.
        **network_kwargs: More arguments of the network, such as head="unet" or pretrained=True.

    Raises:
        ValueError: An argument does not fit the plans or the network.
        WriteError: The new plans cannot be written.
    """
    require_nnunet()
    source = Path(plans_json)
    plans = _read(source)
    name = name or re.sub(r"[\W_]+", "_", f"{base}_{network}")
    if not re.fullmatch(r"(?!.*__)\w+", name):
        raise ValueError(f"name={name!r} must be letters, digits and single underscores")
    if name in plans["configurations"] and not _is_ours(plans["configurations"][name]):
        raise ValueError(f"name={name!r} is a configuration of {source.name}; choose another")
    based_on = _find_base(plans, base)
    wanted = list(patch_size or based_on["patch_size"])
    if len(wanted) != len(based_on["patch_size"]):
        raise ValueError(
            f"patch_size={wanted} must have the dimensions of {base!r}, {based_on['patch_size']}"
        )
    arch_kwargs, patch = _plan_network(network, based_on, wanted, network_kwargs)
    configuration = {
        "inherits_from": base,
        "patch_size": patch,
        "architecture": {
            "network_class_name": CLASS_NAME,
            "arch_kwargs": {"network": network, **arch_kwargs, "amp": amp},
            "_kw_requires_import": [],
        },
    }
    if batch_size is not None:
        configuration["batch_size"] = batch_size
    target = source.with_name(f"{plans_name}.json")
    earlier = _read(target)["configurations"] if target.exists() else {}
    kept = {key: value for key, value in earlier.items() if _is_ours(value)}
    plans["configurations"] = {**plans["configurations"], **kept, name: configuration}
    plans["plans_name"] = plans_name
    with write_whole(target) as part:
        part.write_text(json.dumps(plans, indent=4), encoding="utf-8")
    return Configuration(target, plans_name, name, tuple(patch))


def plan_umamba(architecture: Mapping[str, Any], patch_size: Sequence[int]) -> dict[str, Any]:
    """`network_kwargs` of a U-Mamba with the sizes of a configuration's U-Net.

    Args:
        architecture: `arch_kwargs` of the configuration.
        patch_size: Patch size of the network's input.

    Raises:
        ValueError: It is not one of nnU-Net's U-Nets.
    """
    depths = next((k for k in ("n_conv_per_stage", "n_blocks_per_stage") if k in architecture), "")
    sizes = ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage_decoder")
    missing = [key for key in sizes if key not in architecture]
    if missing or not depths:
        raise ValueError(
            f"U-Mamba takes its sizes from nnU-Net's U-Net, and this configuration has no "
            f"{', '.join(missing) or 'n_conv_per_stage'}; base it on '2d' or '3d_fullres'"
        )
    kwargs = {key: architecture[key] for key in sizes}
    return {**kwargs, "n_conv_per_stage": architecture[depths], "patch_size": list(patch_size)}


def _read(file: Path) -> dict[str, Any]:
    plans = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(plans, dict) or "configurations" not in plans:
        raise ValueError(f"{file} has no nnU-Net plans")
    return plans


def _is_ours(configuration: Mapping[str, Any]) -> bool:
    return configuration.get("architecture", {}).get("network_class_name") == CLASS_NAME


def _find_base(plans: dict[str, Any], base: str) -> dict[str, Any]:
    """A configuration with everything it inherits."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    if base not in plans["configurations"]:
        raise ValueError(f"base={base!r} must be one of {list(plans['configurations'])}")
    return PlansManager(plans).get_configuration(base).configuration


def _plan_network(
    network: str, base: Mapping[str, Any], patch_size: list[int], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], list[int]]:
    """Arguments of `PlansNetwork`, and the patch size in whole cells."""
    dims = len(patch_size)
    if network in UMAMBA:
        if not network.endswith(f"{dims}d"):
            raise ValueError(f"network={network!r} must have {dims} dimensions, like the base")
        plan = {**plan_umamba(base["architecture"]["arch_kwargs"], patch_size), **kwargs}
        cell = [math.prod(axis) for axis in zip(*plan["strides"], strict=True)]
        patch = _round_up(patch_size, cell, UMamba.fewest_cells)
        plan["patch_size"] = patch
        _make_probe(network, plan)
        return {"network_kwargs": plan, "strides": plan["strides"]}, patch
    if network in PLANNED:
        kwargs = {"patch_size": patch_size, "spacing": list(base["spacing"]), **kwargs}
    net = _make_probe(network, kwargs)
    if len(net.cell) != dims:
        raise ValueError(f"network={network!r} has {len(net.cell)} dimensions and the base {dims}")
    patch = _round_up(patch_size, net.cell, net.fewest_cells)
    kwargs = {"img_size": max(patch), **kwargs}
    strides = _measure_strides(_make_probe(network, kwargs), patch)
    return {"network_kwargs": kwargs, "strides": strides}, patch


def _make_probe(network: str, kwargs: dict[str, Any]) -> Segmenter:
    """The network on the meta device."""
    kwargs = {**kwargs, "pretrained": False} if "pretrained" in kwargs else kwargs
    with torch.device("meta"):
        return make_network(network, 1, 2, kwargs).eval()


def _round_up(patch_size: Sequence[int], cell: Sequence[int], fewest: int) -> list[int]:
    return [max(-(-p // c), fewest) * c for p, c in zip(patch_size, cell, strict=True)]


def _measure_strides(net: Segmenter, patch: list[int]) -> list[list[int]]:
    """`strides` of a network's outputs, and one more if the loss would use only one."""
    with torch.no_grad():
        image = torch.zeros(1, 1, *patch, dtype=torch.float32, device="meta")
        outputs = net.forward_all(image)
    factors = [[p // side for p, side in zip(patch, y.shape[2:], strict=True)] for y in outputs]
    if len(factors) < 3:
        factors.append([2 * factor for factor in factors[-1]])
    levels = [[1] * len(patch), *factors, list(net.cell)]
    steps = [
        [coarse // fine for fine, coarse in zip(before, after, strict=True)]
        for before, after in pairwise(levels)
    ]
    return [[max(1, step) for step in axis] for axis in steps]
