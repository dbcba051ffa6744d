"""A model as an ONNX file with standard operators only.

The scan is ONNX's `Scan`, so the graph has one step for any number of tokens.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir
import onnx_ir.passes.common as passes
import onnxruntime
import torch
from onnxscript import opset18, optimizer
from torch import Tensor
from torch.export import ExportedProgram

from vimamba.exporting.onnx_operators import causal_conv_along_paths, selective_scan
from vimamba.exporting.report import ExportError
from vimamba.scan_orders import scan_paths

# operators that torch.onnx writes without conversion
OPSET = 18
# protobuf cannot read files of 2 GiB; the margin is for the graph itself
SINGLE_FILE_BYTES = 2**31 - 2**26

op: Any = opset18


def constant_paths(like: Any, order: str, grid: Sequence[int] | None = None) -> Any:
    """The paths of a grid whose size is known."""
    sizes = like.shape[1:-1] if grid is None else grid
    return op.Constant(value=onnx_ir.tensor(scan_paths(order, *sizes).numpy()))


def floor_quotient(a: Any, b: Any) -> Any:
    """Floor division of sizes; ONNX's integer division rounds toward zero."""
    return op.Div(op.Sub(a, op.Mod(a, b)), b)


def stable_sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """`torch.sort`, which torch.onnx cannot write if stable; equal values keep their order."""
    size = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
    return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)


def conv3d(
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Any:
    """`torch.nn.functional.conv3d`: torch.onnx gives one of groups without a bias one too short."""
    strides, pads, dilations = (list(n) * (3 // len(n)) for n in (stride, padding, dilation))
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return op.Conv(*inputs, strides=strides, pads=pads * 2, dilations=dilations, group=groups)


def write_onnx(program: ExportedProgram, names: dict[int, str], path: Path) -> None:
    """Translate a program.

    Args:
        program: Program of a float32 model with one input.
        names: Names of the input's dynamic dimensions: the batch, or batch, height and width.
        path: File to write. Weights of 2 GiB and more go to PATH.data next to it.

    Raises:
        ExportError: It calls an operator without an ONNX translation.
    """
    translations: dict[Any, Any] = {
        torch.ops.vimamba.selective_scan.default: selective_scan,
        torch.ops.vimamba.causal_conv_along_paths.default: causal_conv_along_paths,
        torch.ops.vimamba.scan_paths.default: constant_paths,
        operator.floordiv: floor_quotient,
        torch.ops.aten.sort.stable: stable_sort,
        torch.ops.aten.conv3d.default: conv3d,
    }
    _refuse_unknown(program, translations)
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    # onnxruntime does the rewrites of onnxscript's optimizer much faster
    written = torch.onnx.export(
        program,
        (),
        input_names=["image"],
        output_names=output_names(program),
        dynamic_shapes=(names,),
        opset_version=OPSET,
        custom_translation_table=translations,
        optimize=False,
        verbose=False,
    )
    assert written is not None
    _tidy(written.model)
    written.save(path, external_data=size >= SINGLE_FILE_BYTES)


def output_names(program: ExportedProgram) -> list[str] | None:
    """Names of a program's outputs, if it names them: the maps of change networks."""
    answer: Any = program.call_spec.out_spec
    fields = getattr(answer.context, "_fields", None)
    return None if fields is None else list(fields)


def _refuse_unknown(program: ExportedProgram, translations: Mapping[Any, Any]) -> None:
    """Fail if a program calls one of our operators that has no ONNX translation.

    Raises:
        ExportError: It calls one.
    """
    for node in program.graph.nodes:
        name = str(node.target)
        if name.startswith("vimamba.") and node.target not in translations:
            raise ExportError(
                f"{name.removesuffix('.default')} has no ONNX translation; export the "
                'model to "torch-export" or "aoti" instead'
            )


def _tidy(model: onnx_ir.Model) -> None:
    """Inline functions and deduplicate constants."""
    passes.InlinePass()(model)
    optimizer.fold_constants(model)
    for change in (
        passes.RemoveUnusedNodesPass(),
        passes.RemoveUnusedFunctionsPass(),
        passes.RemoveUnusedOpsetsPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
        # the Python origin of each node, a sixth of Vim-T's file
        passes.ClearMetadataAndDocStringPass(),
    ):
        change(model)


class OnnxRunner:
    """Runs an ONNX file with onnxruntime on the CPU."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(self, image: Tensor) -> Iterable[Tensor]:
        """Run one input; returns the outputs."""
        outputs = self.session.run(None, {"image": image.numpy()})
        return [torch.from_numpy(output) for output in outputs]  # type: ignore[arg-type]
