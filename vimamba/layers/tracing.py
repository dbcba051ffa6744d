"""Functions of an image's size: dynamic in a traced model, otherwise kept.

A trace records Python's decisions for the example. A scripted function called by a traced model
decides again at every size.
"""

import warnings
from collections.abc import Callable
from functools import cache, lru_cache, partial, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from vimamba.errors import VimambaError
from vimamba.scan_orders.registry import without_modes

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def decide_when_run(function: FunctionT) -> FunctionT:
    """Let traced models call a function as TorchScript; otherwise it is called directly.

    Args:
        function: Must take sizes from its tensors and compile as TorchScript.
    """

    @wraps(function)
    def call(*arguments: Any) -> Any:
        return (_script(function) if torch.jit.is_tracing() else function)(*arguments)

    return call  # type: ignore[return-value]


@cache
def _script(function: Callable[..., Any]) -> Any:
    with warnings.catch_warnings():
        # torch 2.10 and later warn about both scripting and tracing
        warnings.simplefilter("ignore")
        return torch.jit.script(function)


def keep_by_size(function: FunctionT) -> FunctionT:
    """Keep the last 64 results of a function, which become constants of exported programs.

    The function is called directly in other programs, and where sizes are symbolic.

    Args:
        function: From a map (..., H, W, C), of which it uses only these sizes, dtype and device,
            and numbers, to tensors that nobody modifies.
    """

    @lru_cache(maxsize=64)
    def make(size: torch.Size, dtype: torch.dtype, device: torch.device, *arguments: Any) -> Any:
        like = partial(torch.empty, (), dtype=dtype, device=device)
        return without_modes(lambda: function(like().expand(size), *arguments))

    @wraps(function)
    def call(x: Tensor, *arguments: Any) -> Any:
        if not _takes_constants(x):
            return function(x, *arguments)
        return make(x.shape[-3:], x.dtype, x.device, *arguments)

    return call  # type: ignore[return-value]


def _takes_constants(x: Tensor) -> bool:
    """Whether a computation on a map (..., H, W, C) may use other tensors for its size."""
    if torch.compiler.is_dynamo_compiling() or torch.jit.is_tracing():
        return False
    # a CUDA graph would not keep them
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    is_known = all(isinstance(side, int) for side in x.shape[-3:])
    return is_known and (type(x) is Tensor or torch.compiler.is_exporting())


@decide_when_run
def expect_size(x: Tensor, size: list[int], advice: str) -> Tensor:
    """Return `x` if it is an image of this size (N, C, *size).

    Raises:
        ValueError: It has another size; `advice` ends the message.
    """
    if list(x.shape[2:]) != size:
        raise ValueError(f"images are {list(x.shape[2:])} pixels, expected {size}; {advice}")
    return x


@decide_when_run
def expect_whole_cells(x: Tensor, cell: int) -> Tensor:
    """Return `x` if the sides of the image (N, C, H, W) are multiples of `cell`.

    Raises:
        ValueError: A side is not.
    """
    if x.shape[2] % cell != 0 or x.shape[3] % cell != 0:
        size = f"({x.shape[2]}, {x.shape[3]})"
        raise ValueError(f"image of {size}: sides must be multiples of {cell}")
    return x


@torch.compiler.assume_constant_result
def refuse_plain_onnx() -> None:
    """Point to the right function instead of `torch.onnx.export(model)`, which would fail.

    Raises:
        VimambaError: The model is being exported by it.
    """
    # the last question takes longest, and every mixer asks at every call
    recorded = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if recorded and torch.onnx.is_in_onnx_export():
        raise VimambaError(
            "torch.onnx.export cannot write a scan; vimamba.exporting.export_model(model, "
            '"model.onnx") and `vimamba export MODEL --to onnx` write it in standard operators'
        )
