"""`vimamba doctor`: finds where a network's values overflow a precision."""

import contextlib
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vimamba.cli.inquiries import check_at_least, make_parser
from vimamba.cli.networks import Network, add_arguments, open_network
from vimamba.console import say, show_table
from vimamba.errors import UsageError
from vimamba.networks.change import ChangeDetector

HELP = """\
Runs one batch and shows the range of the output of every layer and every scan. The exit code is 1
if a value is not finite or beyond the range of float16 (65504), and the first such layer is named.

  vimamba doctor vmamba_tiny_s1l8 --pretrained --precision 16-mixed
  vimamba doctor runs/photos --data photos --all
  vimamba doctor runs/ct --data ct/images              # a run on volumes

Of two dates, --data names a folder of pairs with labels, as in training, or both dates. What does
not match (names, sizes, maps, places, bands, values, labels) is named, and the exit code is 1.

  vimamba doctor runs/growth --data growth
  vimamba doctor runs/growth --data 2020 2025
"""

# names as in `vimamba fit --precision`
PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Range:
    """Range of an output.

    Attributes:
        layer: Name in the network, with the operator's name if the output is an operator's.
        kind: Class of the layer.
        low: The lowest finite number.
        high: The highest finite number.
        broken: How many numbers are not finite.
    """

    layer: str
    kind: str
    low: float
    high: float
    broken: int

    @property
    def reach(self) -> float:
        """The largest absolute value."""
        return float("inf") if self.broken else max(-self.low, self.high)

    @property
    def overflows(self) -> bool:
        """Whether it exceeds the range of float16."""
        return self.reach > LARGEST


class Observer(TorchDispatchMode):
    """Records the outputs of the network's layers and our operators while it is active.

    Attributes:
        ranges: In the order of computation.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.ranges: list[Range] = []
        self._running: list[str] = []
        self._names = {module: name for name, module in net.named_modules()}

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Record within this context."""
        before = nn.modules.module.register_module_forward_pre_hook(self._enter)
        after = nn.modules.module.register_module_forward_hook(self._leave)
        try:
            with self:
                yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._running.append(self._names.get(module, ""))

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        name = self._running.pop()
        # containers and identities are skipped: their children or inputs are recorded
        inner = any(module.children()) or isinstance(module, nn.Identity)
        if isinstance(output, Tensor) and name and not inner:
            self._record(name, type(module).__name__, output)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator; record the outputs of ours."""
        output = func(*args, **(kwargs or {}))
        if func.namespace == "vimamba":
            first = output if isinstance(output, Tensor) else output[0]
            inside = next((name for name in reversed(self._running) if name), "")
            kind = func.name().removeprefix("vimamba::")
            self._record(inside if inside.endswith("scan") else f"{inside}: {kind}", kind, first)
        return output

    def _record(self, layer: str, kind: str, output: Tensor) -> None:
        if not output.is_floating_point() or output.numel() == 0:
            return
        # outside this dispatch mode, which would otherwise see its own operators
        with torch._C._DisableTorchDispatch():
            output = output.detach().float()
            finite = output[output.isfinite()]
            low, high = (float(x) for x in finite.aminmax()) if finite.numel() else (0.0, 0.0)
            broken = output.numel() - finite.numel()
        self.ranges.append(Range(layer, kind, low, high, broken))


def observe(net: nn.Module, image: Tensor, dtype: torch.dtype | None) -> list[Range]:
    """Run a network and record the range of every layer's output.

    Args:
        net: In eval mode.
        image: Its input.
        dtype: Autocast dtype; None for float32.
    """
    observer = Observer(net)
    autocast = torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None)
    with torch.no_grad(), autocast, observer.watch():
        net(image)
    return observer.ranges


def doctor(args: list[str]) -> int:
    """Print the ranges; returns 1 if any overflows."""
    parser = make_parser("doctor", HELP)
    add_arguments(parser)
    what = "image or volume, or a folder of them; of two dates a folder of pairs, or both dates"
    parser.add_argument("--data", type=Path, nargs="+", help=f"{what}; random by default")
    choices = tuple(PRECISIONS)
    parser.add_argument("--precision", default="32-true", choices=choices, help="of the run")
    parser.add_argument("--batch-size", type=int, help="images; 4, of volumes 1")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--rows", type=int, default=20, help="layers to show, those of largest values"
    )
    shown.add_argument("--all", action="store_true", help="show all layers")
    given = parser.parse_args(args)
    check_at_least(given, batch_size=1, rows=1)
    network = open_network(given)
    if given.batch_size is None:
        given.batch_size = 4 if len(network.image_size) == 3 else 1
    image = _batch(network, given)
    if image is None:
        return 1
    ranges = observe(network.net, image, PRECISIONS[given.precision])
    _show(network, given, ranges, image)
    return int(any(entry.overflows for entry in ranges))


def _batch(network: Network, given: Namespace) -> Tensor | None:
    """Preprocessed images or volumes of the input size; None of pairs that do not match."""
    stack = getattr(network.net, "stack", ())
    if given.data is None:
        shape = (given.batch_size, *stack, *network.image_size)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    if isinstance(network.net, ChangeDetector):
        from vimamba.cli.doctor_pairs import find_pairs, pairs_match, read_batch

        pairs, truths = find_pairs(
            network, Path(given.model.removeprefix("local-dir:")), given.data
        )
        matched = pairs_match(pairs, truths)
        return read_batch(network, pairs[: given.batch_size]) if matched else None
    if stack:
        raise UsageError(f"--data is for networks of one image; {network.name} takes two")
    if len(given.data) > 1:
        raise UsageError(f"--data takes one file or folder; {len(given.data)} are named")
    (place,) = given.data
    of_volumes = len(network.image_size) == 4
    find = _find_volumes if of_volumes else _find_images
    found = find(place, network.image_size[0])
    if not found:
        kind = "volume" if of_volumes else "image"
        raise UsageError(f"--data {place}: no {kind}s found")
    return torch.stack([network.read(paths) for paths in found[: given.batch_size]])


def _find_images(place: Path, channels: int) -> list[tuple[Path, ...]]:
    """Image files of a folder, or the one file."""
    from vimamba.data.listing import list_images

    files = list_images(place) if place.is_dir() else [place]
    return [(file,) for file in files if file.exists()]


def _find_volumes(place: Path, channels: int) -> list[tuple[Path, ...]]:
    """The files of each volume of a folder, or of the one."""
    from vimamba.tasks.segmentation.jobs import find_jobs

    return [job.paths for job in find_jobs([place], channels) if job.is_volume]


def _show(network: Network, given: Namespace, ranges: list[Range], image: Tensor) -> None:
    first = next((entry for entry in ranges if entry.overflows), None)
    shown = ranges
    if not given.all:
        worst = sorted(ranges, key=lambda entry: entry.reach, reverse=True)[: given.rows]
        shown = [entry for entry in ranges if entry in worst or entry is first]
    rows = [
        [entry.layer, entry.kind, f"{entry.low:.4g}", f"{entry.high:.4g}", entry.broken or "-"]
        for entry in shown
    ]
    random = "random images" if len(network.image_size) == 3 else "random volumes"
    what = random if given.data is None else ", ".join(map(str, given.data))
    size = " x ".join(map(str, image.shape))
    title = f"{network.name} in {given.precision}, {what}, {size}: {len(ranges)} layers"
    if len(shown) < len(ranges):
        title += f", the {len(shown)} with the largest numbers"
    show_table(title, ["layer", "kind", "lowest", "highest", "not finite"], rows)
    if first is None:
        say(f"every number is finite and within float16 (+-{LARGEST:g})")
    elif first.broken:
        say(f"the first layer that overflows: {first.layer} ({first.broken} numbers not finite)")
    else:
        limit = f"float16 ends at {LARGEST:g}"
        say(f"the first layer that overflows: {first.layer} ({first.reach:.4g}; {limit})")
