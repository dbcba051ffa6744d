"""A model as an ONNX file that needs ONNX's own operators only.

The scan is ONNX's `Scan`, so the graph has one step whatever the number of tokens.
"""

import operator
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime
import torch
from onnxscript import FLOAT, graph, opset18, script
from onnxscript.values import Opset
from torch import Tensor
from torch.export import ExportedProgram

from vimamba.exporting.portable import decompositions
from vimamba.scan_orders import scan_paths

# what torch.onnx writes without converting
OPSET = 18
# protobuf reads no file of 2 GiB; some of it are names and numbers of the graph
SINGLE_FILE_BYTES = 2**31 - 2**26

# `scan_steps` is read by onnxscript, not run: its types are ONNX's
op: Any = opset18
if TYPE_CHECKING:
    X = Any
else:
    X = FLOAT[...]  # of any shape


@script(Opset("vimamba", 1), default_opset=op)
def scan_steps(dt: X, A: X, write: X, B: X, C: X) -> X:
    """See `vimamba.exporting.portable.scan_steps`."""
    last = op.Constant(value_ints=[-1])
    one_before = op.Constant(value_ints=[-2])
    state = op.Concat(op.Shape(dt, start=0, end=2), op.Shape(A, start=1), axis=0)
    start = op.Expand(op.Constant(value_float=0.0), state)

    @graph()
    def step(h: X, dt_t: X, write_t: X, B_t: X, C_t: X):  # noqa: ANN202
        written = op.Unsqueeze(write_t, last) * op.Unsqueeze(B_t, one_before)
        h_t = op.Exp(op.Unsqueeze(dt_t, last) * A) * h + written
        y_t = op.ReduceSum(h_t * op.Unsqueeze(C_t, one_before), last, keepdims=0)
        return h_t, y_t

    _, y = op.Scan(
        start,
        dt,
        write,
        B,
        C,
        body=step,
        num_scan_inputs=4,
        scan_input_axes=[2, 2, 2, 2],
        scan_output_axes=[2],
    )
    return y


def constant_paths(
    like: Any, order: str, height: int | None = None, width: int | None = None
) -> Any:
    """The paths of a grid whose size is known."""
    import onnx_ir

    if height is None or width is None:
        _, height, width, _ = like.shape
    assert isinstance(height, int)
    assert isinstance(width, int)
    return op.Constant(value=onnx_ir.tensor(scan_paths(order, height, width).numpy()))


def floor_quotient(a: Any, b: Any) -> Any:
    """A // b of sizes; ONNX's own quotient of integers is rounded towards zero."""
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
    """
    program = program.run_decompositions(decompositions(any_size=len(names) > 1))
    translations: dict[Any, Any] = {
        torch.ops.vimamba.scan_steps.default: scan_steps,
        torch.ops.vimamba.scan_paths.default: constant_paths,
        operator.floordiv: floor_quotient,
        torch.ops.aten.sort.stable: stable_sort,
    }
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    torch.onnx.export(
        program,
        (),
        str(path),
        input_names=["image"],
        dynamic_shapes=(names,),
        opset_version=OPSET,
        custom_translation_table=translations,
        external_data=size >= SINGLE_FILE_BYTES,
        verbose=False,
    )


class OnnxRunner:
    """An ONNX file, run by onnxruntime on the CPU."""

    def __init__(self, path: Path) -> None:
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(self, image: Tensor) -> Iterable[Tensor]:
        """An input to the outputs."""
        outputs = self.session.run(None, {"image": image.numpy()})
        return [torch.from_numpy(output) for output in outputs]  # type: ignore[arg-type]
