"""Exports a model to a file, which is compared with the model before it is kept.

The batch size is always dynamic. Height and width are dynamic if the model takes any size, and, in
formats without our operators, if its scan orders can be computed from the size. Volumes have a
fixed size.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vimamba.checkpoints import check_finite
from vimamba.errors import VimambaError
from vimamba.exporting.portable import Substitutes, computes_from_size
from vimamba.exporting.report import (
    ExportError,
    Report,
    as_list,
    compare,
    first_line,
    write_report,
)
from vimamba.files import write_whole
from vimamba.hub import save_pretrained
from vimamba.networks import Network, load_network

# format -> suffix of its files
TARGETS = {"onnx": ".onnx", "torch-export": ".pt2", "aoti": ".aoti.pt2"}
# names of the axes of images and volumes
_AXES = {2: ("height", "width"), 3: ("depth", "height", "width")}
# pixels; more than two cells of the coarsest map of any of our networks
_ROOMY = 128
_NEEDS_VIMAMBA = "a program that loads it has to `import vimamba` first, for the operators"


def export_model(
    model: nn.Module,
    path: str | Path,
    *,
    target: str = "onnx",
    image_size: tuple[int, ...] | None = None,
    fixed_size: bool = False,
    name: str | None = None,
    label_names: Sequence[str] | None = None,
    data_config: dict[str, Any] | None = None,
    preprocessing: dict[str, Any] | None = None,
) -> Report:
    """Write a model as one file, and PATH.json, the report, next to it.

    The file is written in a temporary folder, run on random images of several shapes, and moved
    into place only if its outputs agree with the model's to 1e-4 of the largest output.

    Args:
        model: In float32 on the CPU; set to eval mode.
        path: File to write or replace.
        target: "onnx" (standard ONNX operators only), "torch-export" (for `torch.export.load`) or
            "aoti" (compiled, for `torch._inductor.aoti_load_package`). A program that loads one of
            the last two has to import vimamba.
        image_size: Channels, height and width, pixels; for volumes channels, depth, height and
            width. Those of the model's pretrained config if None.
        fixed_size: Fix height and width even if they could be dynamic.
        name: Name of the model in the report.
        label_names: For the report; see `Report`.
        data_config: The same.
        preprocessing: The same.

    Raises:
        CheckpointError: Weights are not finite.
        ExportError: The model cannot be exported this way, or the file's outputs differ.
    """
    path = Path(path)
    if target not in TARGETS:
        raise ExportError(f"target={target!r} is unknown; choose from {list(TARGETS)}")
    for parameter in model.parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            found = f"{parameter.dtype} on {parameter.device}"
            raise ExportError(f"the model is {found}; export it in float32 on the CPU")
    check_finite(model.state_dict())
    model.eval()
    channels, *sides = image_size or _input_size(model)
    if len(sides) not in _AXES:
        raise ExportError(f"the model takes {len(sides)} dimensions, expected two or three")
    axes = _AXES[len(sides)]
    notes = [] if fixed_size else _obstacles(model, target, len(sides))
    any_size = not fixed_size and not notes
    example = _example(model, channels)
    names = {0: "batch", **(dict(enumerate(axes, len(example) + 1)) if any_size else {})}
    roomy = [_roomy(side) if any_size else side for side in sides]
    program = _capture(model, _blank(*example, *roomy), names, target)
    least = _smallest(program, names)
    if any(side < least.get(name, 0) for name, side in zip(axes, sides, strict=True)):
        sizes = "x".join(str(least[name]) for name in axes)
        notes.append(f"a file with dynamic sizes needs at least {sizes}")
        any_size, names = False, {0: "batch"}
        program = _capture(model, _blank(*example, *sides), names, target)
        least = _smallest(program, names)
    fixed = f"{', '.join(axes[:-1])} and width are fixed at {'x'.join(map(str, sides))}"
    notes = [f"{fixed}: {note}" for note in notes]
    if target != "onnx":
        notes.append(_NEEDS_VIMAMBA)
    # that they are not 1 is assumed for all
    notes += [f"{name} must be at least {size}" for name, size in least.items() if size > 2]

    shapes = [(1, *example, *sides), (3, *example, *sides)]
    if any_size:
        height, width = sides
        shapes.append((2, *example, height + 32, width + 64))
        if hasattr(model, "cell"):  # a dense network, which pads to a multiple of its stride
            shapes.append((1, *example, height + 11, width + 37))
    with write_whole(path) as part:
        run = _write(program, names, part, target)
        report = Report(
            target=target,
            model=name or type(model).__name__,
            input=tuple(names.get(i, size) for i, size in enumerate(shapes[0])),
            notes=tuple(notes),
            versions=_versions(target),
            checks=compare(model, run, shapes),
            label_names=label_names,
            data_config=data_config,
            preprocessing=preprocessing,
        )
        weights = part.with_name(f"{path.name}.data")
        if weights.exists():
            with write_whole(path.with_name(weights.name)) as place:
                os.replace(weights, place)
    write_report(report, path.with_name(f"{path.name}.json"))
    return report


def export_folder(
    model: nn.Module,
    folder: str | Path,
    *,
    image_size: tuple[int, ...] | None = None,
    name: str | None = None,
    label_names: Sequence[str] | None = None,
    label_values: Sequence[int] | None = None,
    data_config: dict[str, Any] | None = None,
    preprocessing: dict[str, Any] | None = None,
) -> Report:
    """Write weights and config.json of a model or network to a folder, and FOLDER.json next to it.

    Args:
        model: As in `export_model`.
        folder: Folder to write; replaced if it has a model.
        image_size: As in `export_model`.
        name: The same.
        label_names: Classes in the order of the logits.
        label_values: See `vimamba.hub.save_pretrained`.
        data_config: For timm's transform; see `vimamba.hub.save_pretrained`.
        preprocessing: See `vimamba.hub.save_pretrained`.

    Raises:
        ExportError: The folder has other content, or the outputs of the reloaded model differ.
    """
    folder = Path(folder)
    model.eval()
    channels, *sides = image_size or _input_size(model)
    shape = (2, *_example(model, channels), *sides)
    try:
        save_pretrained(
            model,
            folder,
            label_names=label_names,
            label_values=label_values,
            data_config=data_config,
            preprocessing=preprocessing,
        )
    except ValueError as error:
        raise ExportError(str(error)) from error
    if isinstance(model, Network):
        again, how = load_network(folder), f'vimamba.load_network("{folder}")'
    else:
        how = f'timm.create_model("local-dir:{folder}", pretrained=True)'
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    report = Report(
        target="safetensors",
        model=name or type(model).__name__,
        input=("batch", *shape[1:]),
        notes=(f"{how} loads it",),
        versions=_versions("safetensors"),
        checks=compare(model, lambda image: as_list(again(image)), [shape]),
        label_names=label_names,
        data_config=data_config,
        preprocessing=preprocessing,
    )
    write_report(report, folder.with_name(f"{folder.name}.json"))
    return report


def _input_size(model: nn.Module) -> tuple[int, ...]:
    """Channels, height and width that a model was created for; for volumes also depth."""
    cfg: Any = getattr(model, "pretrained_cfg", None)
    if cfg is None:
        raise ExportError("the model has no pretrained_cfg with its input size; give image_size")
    channels, *sides = cfg["input_size"]
    # a model with a position embedding may have been created for another size
    embed = getattr(model, "patch_embed", None)
    sides = getattr(embed, "img_size", None) or sides
    return getattr(model, "in_chans", channels), *sides


def _example(model: nn.Module, channels: int) -> tuple[int, ...]:
    """Input dimensions before height and width: channels, after the dates if any."""
    return *getattr(model, "stack", ()), channels


def _obstacles(model: nn.Module, target: str, dims: int) -> list[str]:
    """Reasons why the sides of the input cannot be dynamic."""
    if dims == 3:
        return ["networks of volumes see windows of one size"]
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    if cfg.get("fixed_input_size") and not getattr(model, "dynamic_img_size", False):
        return ["the model takes one size; created with dynamic_img_size=True it takes any"]
    if target != "onnx":
        return []
    orders: set[Any] = {m.scan_order for m in model.modules() if hasattr(m, "scan_order")}
    orders.update(*(m.scan_orders for m in model.modules() if hasattr(m, "scan_orders")))  # type: ignore[arg-type]
    return [
        f"the paths of scan_order={order!r} cannot be computed in the file from a dynamic size"
        for order in sorted(orders)
        if not computes_from_size(order)
    ]


def _roomy(side: int) -> int:
    """A multiple of a side, for an example without single-cell maps.

    torch.export treats a single cell as a broadcast dimension.
    """
    return side * max(1, -(-_ROOMY // side))


def _blank(*size: int) -> Tensor:
    """Two examples, as in (2, C, H, W), to trace a model with."""
    return torch.zeros((2, *size), dtype=torch.float32, device="cpu")


def _capture(
    model: nn.Module, image: Tensor, names: dict[int, str], target: str
) -> ExportedProgram:
    sizes = dict.fromkeys(names, Dim.DYNAMIC)
    own = Substitutes(any_size=len(names) > 1) if target == "onnx" else nullcontext()
    try:
        with torch.no_grad(), own:
            return torch.export.export(model, (image,), dynamic_shapes=(sizes,))
    except Exception as error:  # user code run on symbolic sizes can raise anything
        reason = first_line(error)
        if len(names) == 1:
            raise ExportError(f"torch.export does not accept the model: {reason}") from error
        raise ExportError(
            f"the model cannot be exported with dynamic height and width ({reason});"
            " fixed_size=True (--fixed-size) fixes them"
        ) from error


def _smallest(program: ExportedProgram, names: dict[int, str]) -> dict[str, int]:
    """The program's lower bounds on dynamic sizes of its input."""
    (image,) = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.name == image)
    symbols = {name: node.meta["val"].shape[i].node.expr for i, name in names.items()}
    return {name: int(program.range_constraints[s].lower) for name, s in symbols.items()}


def _write(
    program: ExportedProgram, names: dict[int, str], path: Path, target: str
) -> Callable[[Tensor], Iterable[Tensor]]:
    """Write the file; returns a function that runs it.

    Raises:
        ExportError: The format's writer or reader does not accept the program.
    """
    try:
        return _write_and_read(program, names, path, target)
    except (ImportError, OSError, VimambaError):
        raise
    except Exception as error:  # torch.onnx, onnxruntime and Inductor can raise anything
        raise ExportError(
            f"the model cannot be written as {target}: {first_line(error)}"
        ) from error


def _write_and_read(
    program: ExportedProgram, names: dict[int, str], path: Path, target: str
) -> Callable[[Tensor], Iterable[Tensor]]:
    if target == "onnx":
        from vimamba.exporting.onnx_file import OnnxRunner, write_onnx

        write_onnx(program, names, path)
        return OnnxRunner(path)
    if target == "torch-export":
        torch.export.save(program, path)
        module = torch.export.load(path).module()
    else:
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        module = torch._inductor.aoti_load_package(str(path))
    return lambda image: as_list(module(image))


def _versions(target: str) -> dict[str, str]:
    packages = ["vimamba", "torch", "timm"]
    if target != "onnx":
        return {package: version(package) for package in packages}
    from vimamba.exporting.onnx_file import OPSET

    packages += ["onnx", "onnxscript", "onnxruntime"]
    return {**{package: version(package) for package in packages}, "opset": str(OPSET)}
