"""Recorded outputs of the original models, in all recording formats, compared with ours.

Arrays are stored in float32 and mostly subsampled: every n-th entry of a dimension. Statistics of
the whole array (`probe_dot`, its product with fixed numbers; spread, extremes and norm) cover the
rest.
"""

import math
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch

from tests.parity.official import HERE, fill, read_manifest

# the arrays' own rounding is 1e-7, and the smallest wrong detail changes them by about 1e-3
TOLERANCE = 1e-6
# of originals that ran in float32
FLOAT32_TOLERANCE = 1e-4
# the probe was computed in float64
PROBE_TOLERANCE = 1e-10
_OF_THE_WHOLE = {
    # some are divided by n - 1
    "std": lambda x: [x.std(correction=c).item() for c in (0, 1)],
    "mean": lambda x: [x.mean().item()],
    "min": lambda x: [x.min().item()],
    "max": lambda x: [x.max().item()],
    "absmax": lambda x: [x.abs().max().item()],
    "norm": lambda x: [x.norm().item()],
}


@dataclass(frozen=True)
class Recorded:
    """One tensor of an original model.

    Attributes:
        part: The stored part, if any.
        shape: Shape of the whole tensor, if known.
        module: Name of the official module that returned it, if known.
        slices: Position of `part` in the whole.
        flat_step: Step of `part` in the flattened whole.
        numbers: Names and values of known statistics of the whole.
        tolerance: Tolerance of the relative L2 error.
    """

    part: np.ndarray | None
    shape: tuple[int, ...] | None
    module: str | None
    slices: tuple[slice, ...] = ()
    flat_step: int | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    tolerance: float = TOLERANCE

    def assert_equals(self, ours, what):
        """Compare the whole, in any arrangement of the same tokens and channels."""
        ours = ours.detach()
        if self.shape is not None:
            ours = arrange(ours, self.shape, what)
        is_whole = self.part is not None and self.part.shape == ours.shape
        if self.part is not None:
            part = (
                ours[self.slices] if self.flat_step is None else ours.flatten()[:: self.flat_step]
            )
            expected = torch.from_numpy(self.part).double()
            assert part.shape == expected.shape, what
            error = float((part - expected).norm() / expected.norm())
            assert error < self.tolerance, f"{what}: relative L2 error {error:.2e}"
        for name, expected in self.numbers.items():
            if name == "probe_dot":
                probe = torch.from_numpy(fill.fill_input(ours.shape, "probe")).double()
                error = float((ours * probe).sum()) - expected
                error = abs(error) / float(ours.norm() * probe.norm())
                assert error < PROBE_TOLERANCE, f"{what}: error of the probe {error:.2e}"
            elif not is_whole:
                # a mean is a difference of larger numbers
                least = 0.02 * ours.std().item() if name == "mean" else 0.0
                error = min(abs(x - expected) for x in _OF_THE_WHOLE[name](ours))
                # the minimum after a ReLU is zero
                error /= max(abs(expected), least) or 1.0
                assert error < self.tolerance, f"{what}: error of its {name} {error:.2e}"


def arrange(ours, shape, what):
    """Move channels first or last, and reshape the grid to rows or a sequence, as in `shape`."""
    shape = tuple(shape)
    ways = (ours, ours.movedim(-1, 1), ours.movedim(1, -1)) if ours.ndim > 2 else (ours,)
    for x in ways:
        if x.shape == shape:
            return x
    for x in ways:
        same_channels = x.shape[:2] == shape[:2] or x.shape[-1] == shape[-1]
        if x.ndim != len(shape) and same_channels and x.numel() == math.prod(shape):
            return x.reshape(shape)
    raise AssertionError(f"{what}: {tuple(ours.shape)} cannot be arranged as {shape}")


class Recording:
    """All recordings of one configuration.

    Attributes:
        outputs: By name; for a dense backbone, one per map.
        features: Input of the classifier, if recorded.
        stages: By the name that a `Variant` maps to a module of ours.
        grads: Of the outputs' product with fixed numbers, by official parameter or "input".
    """

    def __init__(self, name):
        self.manifest = read_manifest(name)
        file = HERE / f"{name}.npz"
        self.arrays = dict(np.load(file)) if file.exists() else {}
        self.checks = self.manifest.get("checks") or {}
        is_float32 = self.manifest.get("dtype") == "float32"
        self.tolerance = FLOAT32_TOLERANCE if is_float32 else TOLERANCE
        maps = self._maps()
        self.outputs = maps or self._outputs()
        stages = {} if maps else self.manifest.get("stages") or {}
        self.stages = {
            key.removeprefix("stages."): self._read(f"stages.{key.removeprefix('stages.')}", found)
            for key, found in stages.items()
        }
        self.features = None
        if "features" in self.arrays or "features" in self.checks:
            self.features = self._read("features", {}, self.checks.get("features", {}))
        self.grads = {
            key.removeprefix("grad."): self._read(f"grad.{key.removeprefix('grad.')}", found)
            for key, found in (self.manifest.get("grads") or {}).items()
        }

    def inputs(self):
        """Float64 tensors by name, in the order of the original's arguments."""
        inputs = self.manifest["input"]
        inputs = inputs if isinstance(inputs, list) else [inputs]
        names = [i.get("name", "input") for i in inputs]
        arrays = (fill.fill_input(i["shape"], name) for i, name in zip(inputs, names, strict=True))
        return dict(zip(names, (torch.from_numpy(x).double() for x in arrays), strict=True))

    def _outputs(self):
        listed = self.manifest.get("outputs")
        if isinstance(listed, dict):
            return {key: self._read(key, found) for key, found in listed.items()}
        logits = self.checks.get("logits") or {
            name.removeprefix("logits_"): value
            for name, value in {**self.manifest, **self.checks}.items()
            if name.startswith("logits_")
        }
        if "logits" not in self.arrays and not logits:
            return {}
        return {"logits": self._read("logits", self.manifest.get("output") or {}, logits)}

    def _maps(self):
        """The outputs of a dense backbone, which replace the stages in two formats."""
        stages = self.manifest.get("stages") or {}
        if isinstance(self.manifest.get("outputs"), str):
            *_, last = stages
            whole = {"shape": stages[last]["shape"]}
            return {
                **{key: self._read(key, found) for key, found in stages.items() if key != last},
                # the last one was stored in full
                last: self._read("logits", whole, stages[last]),
            }
        keys = [key for key in self.arrays if key.startswith("out.")]
        return {
            key: self._read(
                key,
                stages.get(key) or stages[key.removeprefix("out.")],
                self.checks["outputs"][i],
            )
            for i, key in enumerate(keys)
        }

    def _read(self, key, description, numbers=None):
        numbers = {**description, **(numbers or {})}
        part, steps = self.arrays.get(key), description.get("slices")
        if steps is None:
            steps = description.get("step") or description.get("stride") or ()
            steps = [(None, None, step) for step in steps]
        return Recorded(
            part=part,
            shape=description.get("shape"),
            module=description.get("module"),
            slices=() if steps == "full" else tuple(slice(*step) for step in steps),
            flat_step=description.get("flat_step"),
            numbers={
                name: value
                for name, value in numbers.items()
                if name in {*_OF_THE_WHOLE, "probe_dot"}
            },
            tolerance=self.tolerance,
        )


@cache
def read_recording(name):
    return Recording(name)
