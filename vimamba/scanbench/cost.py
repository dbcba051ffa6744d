"""What an order costs: time, memory and operations of the network that was trained with it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vimamba.benchmark.models import added_memory, count_operations
from vimamba.benchmark.timing import describe_machine, take_turns
from vimamba.errors import UsageError
from vimamba.files import write_whole
from vimamba.reading import read_json

COSTS = "costs.json"
# images at a time; more than one, so that the calls themselves weigh little
BATCH = 4
# about how long to measure an order's time
SECONDS = 1.0


@dataclass(frozen=True)
class Cost:
    """Cost of a network with one order.

    Attributes:
        milliseconds: Of inference, per image, in batches of `BATCH`; median over rounds in which
            all orders had their turn.
        memory: Peak MiB that a step of training with such a batch adds; None if it cannot be
            measured.
        gflops: Operations of inference per image, as papers count them.
    """

    milliseconds: float
    memory: float | None
    gflops: float


def measure_costs(tasks: Mapping[str, Any]) -> dict[str, Cost]:
    """Measure tasks that differ in their order, alternating, on the GPU if there is one.

    Args:
        tasks: The trained task of each order.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    images = {
        order: task.to(device).blank_images(BATCH).to(device) for order, task in tasks.items()
    }
    memory = {order: training_memory(task, images[order]) for order, task in tasks.items()}
    for task in tasks.values():
        task.eval()

    def answer(order: str) -> Any:
        with torch.no_grad():
            return tasks[order](images[order])

    runs = {order: partial(answer, order) for order in tasks}
    timed = take_turns("one batch", runs, seconds=SECONDS * len(runs), least=3)
    return {
        result.candidate: Cost(
            result.milliseconds / BATCH,
            memory[result.candidate],
            count_operations(runs[result.candidate]) / BATCH / 1e9,
        )
        for result in timed
    }


def training_memory(task: Any, image: Tensor) -> float | None:
    """Peak MiB that a training step adds, without the optimizer; None if it cannot be measured."""
    if not image.is_cuda and not Path("/proc/self/statm").exists():
        return None
    task.train()

    def step() -> None:
        outputs = tensors_of(task.forward_training(image))
        torch.stack([tensor.float().square().mean() for tensor in outputs]).sum().backward()
        task.zero_grad()

    step()  # code that is loaded once does not count
    return added_memory(step)


def tensors_of(output: Any) -> Iterator[Tensor]:
    """The tensors with a gradient in what a network returns."""
    if isinstance(output, Tensor):
        if output.requires_grad:
            yield output
    elif is_dataclass(output):
        for field in fields(output):
            yield from tensors_of(getattr(output, field.name))
    elif isinstance(output, list | tuple):
        for part in output:
            yield from tensors_of(part)


def read_costs(out: Path) -> tuple[dict[str, dict[str, Cost]], str]:
    """What was measured for a bench, by model and order, and the machine.

    Raises:
        UsageError: The file is damaged.
    """
    path = out / COSTS
    if not path.is_file():
        return {}, describe_machine()
    content = read_json(path, UsageError)
    try:
        costs = {
            model: {order: Cost(**cost) for order, cost in by_order.items()}
            for model, by_order in content["costs"].items()
        }
        return costs, content["machine"]
    except (KeyError, TypeError, AttributeError):
        raise UsageError(f"{path} holds no costs; remove it to measure them again") from None


def write_costs(out: Path, costs: Mapping[str, Mapping[str, Cost]], machine: str) -> None:
    """Keep what was measured."""
    plain = {model: {o: asdict(c) for o, c in by.items()} for model, by in costs.items()}
    with write_whole(out / COSTS) as part:
        part.write_text(json.dumps({"machine": machine, "costs": plain}, indent=2) + "\n")
