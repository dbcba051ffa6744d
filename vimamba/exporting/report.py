"""Compares an exported file with the model at several input shapes."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vimamba.errors import VimambaError
from vimamba.files import write_whole

# relative to the model's largest output; reordered float32 sums differ by about 1e-6
TOLERANCE = 1e-4


class ExportError(VimambaError):
    """A model cannot be exported as requested; the message says why and what would work."""


@dataclass(frozen=True)
class Check:
    """The largest difference between the file and the model at one input shape.

    Attributes:
        shape: Input shape.
        difference: The largest difference of any element.
        relative: The difference divided by the model's largest output.
    """

    shape: tuple[int, ...]
    difference: float
    relative: float


@dataclass(frozen=True)
class Report:
    """What was written, and how it was checked.

    Attributes:
        target: Name of the format.
        model: Name of the model.
        input: Sizes of the input; a name stands for a dynamic one.
        notes: Notes for the user, a sentence each.
        versions: Versions of the packages used, and of the ONNX operators.
        checks: All checked shapes.
        label_names: Classes in the order of the logits, if they are known.
        data_config: Mean, standard deviation and so on of the input, by timm's names.
        preprocessing: Fields of a `vimamba.data.Preprocessing`, from a file to the input.
    """

    target: str
    model: str
    input: tuple[int | str, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    checks: tuple[Check, ...]
    label_names: Sequence[str] | None = None
    data_config: dict[str, Any] | None = None
    preprocessing: dict[str, Any] | None = None


def write_report(report: Report, path: Path) -> None:
    """Write a report as JSON."""
    with write_whole(path) as part:
        part.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")


def first_line(error: Exception) -> str:
    """The message of a third-party error, in one line."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


@torch.no_grad()
def compare(
    model: nn.Module,
    run: Callable[[Tensor], Iterable[Tensor]],
    shapes: Iterable[tuple[int, ...]],
) -> tuple[Check, ...]:
    """Run a file and its model on the same random images.

    Args:
        model: In eval mode.
        run: Function from an input to the file's outputs.
        shapes: Input shapes.

    Raises:
        ExportError: They differ by more than `TOLERANCE`, or the file cannot be run.
    """
    checks = []
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        image = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
        expected = as_list(model(image))
        found = _run(run, image)
        pairs = list(zip(expected, found, strict=True))
        difference = max(float((a - b).abs().max()) for a, b in pairs)
        largest = max(float(a.abs().max()) for a in expected)
        check = Check(shape, difference, difference / max(largest, 1e-30))
        # not ">": a difference may be NaN
        if not check.relative <= TOLERANCE:
            raise ExportError(
                f"the file differs from the model by {difference:.2g} at the input shape {shape}, "
                f"{check.relative:.2g} of the largest output; at most {TOLERANCE:g} is accepted "
                "(a model whose computation depends on its input's size may need a fixed size)"
            )
        checks.append(check)
    return tuple(checks)


def _run(run: Callable[[Tensor], Iterable[Tensor]], image: Tensor) -> list[Tensor]:
    try:
        return list(run(image))
    except Exception as error:  # runtimes can raise anything
        raise ExportError(
            f"the file does not run at the input shape {tuple(image.shape)}: {first_line(error)}; "
            "fixed_size=True (--fixed-size) or a larger image size may help"
        ) from error


def as_list(output: Tensor | Sequence[Tensor | None]) -> list[Tensor]:
    """A model's output, as a list without what is None."""
    found = [output] if isinstance(output, Tensor) else list(output)
    return [part for part in found if part is not None]
