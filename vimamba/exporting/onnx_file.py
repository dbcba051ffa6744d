"""A model as an ONNX file that needs ONNX's own operators only.

The scan is ONNX's `Scan`, so the graph has one step whatever the number of tokens.
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

# what torch.onnx writes without converting
OPSET = 18
# protobuf reads no file of 2 GiB; some of it are names and numbers of the graph
SINGLE_FILE_BYTES = 2**31 - 2**26

op: Any = opset18


def constant_paths(like: Any, order: str, grid: Sequence[int] | None = None) -> Any:
    """The paths of a grid whose size is known."""
    sizes = like.shape[1:-1] if grid is None else grid
    return op.Constant(value=onnx_ir.tensor(scan_paths(order, *sizes).numpy()))


def floor_quotient(a: Any, b: Any) -> Any:
    """A // b of sizes; ONNX's own quotient of integers is rounded toward zero."""
    return op.Div(op.Sub(a, op.Mod(a, b)), b)


def stable_sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """`torch.sort`, which torch.onnx cannot write if stable; equal numbers keep their order."""
    size = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
    return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)


def write_onnx(program: ExportedProgram, names: dict[int, str], path: Path) -> None:
    """Translate a program.

    Args:
        program: Of a float32 model with one input.
        names: Of the input's free dimensions: the batch, or that, height and width.
        path: Where to write. Weights of 2 GiB and more go to PATH.data beside it.

    Raises:
        ExportError: It calls an operator without a form in ONNX.
    """
    translations: dict[Any, Any] = {
        torch.ops.vimamba.selective_scan.default: selective_scan,
        torch.ops.vimamba.causal_conv_along_paths.default: causal_conv_along_paths,
        torch.ops.vimamba.scan_paths.default: constant_paths,
        operator.floordiv: floor_quotient,
        torch.ops.aten.sort.stable: stable_sort,
    }
    _refuse_unknown(program, translations)
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    # what onnxscript's optimizer would rewrite onnxruntime rewrites as well, in no time
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
    """Names of what a program returns, where it names them: the answers on change of two dates."""
    answer: Any = program.call_spec.out_spec
    fields = getattr(answer.context, "_fields", None)
    return None if fields is None else list(fields)


def _refuse_unknown(program: ExportedProgram, translations: Mapping[Any, Any]) -> None:
    """Refuse a program that calls an operator of ours without a form in ONNX.

    Raises:
        ExportError: It does.
    """
    for node in program.graph.nodes:
        name = str(node.target)
        if name.startswith("vimamba.") and node.target not in translations:
            raise ExportError(
                f"{name.removesuffix('.default')} has no form in ONNX's operators; export the "
                'model to "torch-export" or "aoti" instead'
            )


def _tidy(model: onnx_ir.Model) -> None:
    """Leave standard operators, each once, and every constant once."""
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
        # where in Python each node comes from: a sixth of a file of Vim-T
        passes.ClearMetadataAndDocStringPass(),
    ):
        change(model)


class OnnxRunner:
    """An ONNX file, run by onnxruntime on the CPU."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(self, image: Tensor) -> Iterable[Tensor]:
        """An input to the outputs."""
        outputs = self.session.run(None, {"image": image.numpy()})
        return [torch.from_numpy(output) for output in outputs]  # type: ignore[arg-type]
