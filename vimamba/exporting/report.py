"""What an exported file is held to: the model's own numbers, at several input shapes."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vimamba.errors import VimambaError
from vimamba.files import write_whole

# of the largest number that the model gives; float32 sums in another order differ by some 1e-6
TOLERANCE = 1e-4


class ExportError(VimambaError):
    """A model cannot be exported as asked; the message says why and what would do."""


@dataclass(frozen=True)
class Check:
    """The largest difference between the file and the model at one input shape.

    Attributes:
        shape: Of the input.
        difference: The largest of any number.
        relative: That, over the largest number that the model gives.
    """

    shape: tuple[int, ...]
    difference: float
    relative: float


@dataclass(frozen=True)
class Report:
    """What was written, and how far it was tried.

    Attributes:
        target: Name of the format.
        model: Name of the model.
        input: Sizes of the input; a name stands for a free one.
        notes: What the user should know, a sentence each.
        versions: Of the packages that took part, and of the ONNX operators.
        checks: Every shape that was tried.
        label_names: Classes in the order of the logits, if they are known.
        data_config: Mean, standard deviation and the like of the input, by timm's names.
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
    """What an error of other code says, in one line."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


@torch.no_grad()
def compare(
    model: nn.Module,
    run: Callable[[Tensor], Iterable[Tensor]],
    shapes: Iterable[tuple[int, ...]],
) -> tuple[Check, ...]:
    """Run a file and the model it was made of on the same random images.

    Args:
        model: In eval mode.
        run: An input to the file's outputs.
        shapes: Of the inputs.

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
        # not "greater": a difference may be nan
        if not check.relative <= TOLERANCE:
            raise ExportError(
                f"the file differs from the model by {difference:.2g} at the input shape {shape}, "
                f"{check.relative:.2g} of the largest output; at most {TOLERANCE:g} is accepted "
                "(a model that computes with its input's size may need a fixed one)"
            )
        checks.append(check)
    return tuple(checks)


def _run(run: Callable[[Tensor], Iterable[Tensor]], image: Tensor) -> list[Tensor]:
    try:
        return list(run(image))
    except Exception as error:  # whatever runs the file has errors of its own
        raise ExportError(
            f"the file does not run at the input shape {tuple(image.shape)}: {first_line(error)}; "
            "fixed_size=True (--fixed-size) or a larger image size may do"
        ) from error


def as_list(output: Tensor | list[Tensor] | tuple[Tensor, ...]) -> list[Tensor]:
    """What a model gives, as a list."""
    return [output] if isinstance(output, Tensor) else list(output)
