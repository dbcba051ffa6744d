"""Published checkpoints: read safely, rename to our parameters, load wholly or not at all.

A family describes its official layout in a table of rules and a `checkpoint_filter_fn`, as timm's
families do. What a file holds is told from names and shapes alone: `identify` tries it on every
registered model on the meta device.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models import load_pretrained
from torch import Tensor, nn

from vimamba.errors import VimambaError

StateDict = dict[str, Tensor]
Rules = Mapping[str, str | Callable[[re.Match[str]], str] | None]
FilterFn = Callable[[Mapping[str, Any], nn.Module], StateDict]

_logger = logging.getLogger(__name__)

# Where training code keeps the weights, in order of preference: Vim's own evaluation reads `model`
# even where an average (`model_ema`) lies beside it.
_NESTING = (
    "model",
    "state_dict",
    "state_dict_ema",
    "model_ema",
    "net",
    "network_weights",
    "model_state_dict",
)
_WRAPPERS = ("_orig_mod.", "module.", "backbone.", "net.", "model.", "encoder.")
_WHOLE_NETWORKS = (
    "Whole segmentation networks are not looked through: "
    "vimamba.create_segmenter(NAME, num_classes=...).load_pretrained(FILE) tries a file on one, "
    "with a NAME from vimamba.list_segmenters(); vimamba.load_segmenter(FOLDER) reads the export/ "
    "of a training"
)


class CheckpointError(VimambaError):
    """A checkpoint that does not fit, with what is missing, unexpected or of another shape."""


class _Inert(dict[Any, Any]):
    """Stands in for every class a checkpoint names that is not a tensor: none of its code runs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Forget the state."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a `.safetensors` or PyTorch file without running any code in it.

    Training checkpoints often hold an argument namespace or a configuration object beside the
    weights. Those become inert stand-ins; they are never unpickled.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is neither format, or needs code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint file {str(path)!r} does not exist")
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        with torch.serialization.safe_globals([(_Inert, name) for name in foreign]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError) as error:
        reason = "it needs code of its own"
        if not isinstance(error, UnpicklingError):
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{str(path)!r} is no checkpoint that can be read safely ({reason}); "
            "a PyTorch zip file or .safetensors is"
        ) from None
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            f"{str(path)!r} holds a {type(checkpoint).__name__}, not a dictionary of weights"
        )
    return dict(checkpoint)


def unwrap(checkpoint: Mapping[str, Any]) -> StateDict:
    """The weights inside a checkpoint, without nesting and wrapper prefixes.

    Where some keys begin with `backbone.`, the rest belongs to a task head and is left out.

    Raises:
        CheckpointError: There are no tensors in it.
    """
    nested = next((k for k in _NESTING if isinstance(checkpoint.get(k), Mapping)), None)
    if nested is not None:
        return unwrap(checkpoint[nested])
    state = {k: v for k, v in checkpoint.items() if isinstance(v, Tensor)}
    if not state:
        raise CheckpointError(f"no weights among the entries {sorted(map(str, checkpoint))[:8]}")
    backbone = {k: v for k, v in state.items() if k.startswith("backbone.")}
    if backbone and len(backbone) < len(state):
        heads = sorted({k.split(".")[0] for k in state if k not in backbone})
        _logger.info("Leaving out what is not the backbone: %s", ", ".join(heads))
        state = backbone
    prefix = next((w for w in _WRAPPERS if all(k.startswith(w) for k in state)), None)
    return unwrap({k.removeprefix(prefix): v for k, v in state.items()}) if prefix else state


def rename_keys(state_dict: Mapping[str, Tensor], rules: Rules) -> StateDict:
    r"""Rename every key by the first rule whose pattern matches it whole.

    Args:
        state_dict: The published weights.
        rules: Regular expression to replacement, e.g. `{r"layers\.(.*)": r"blocks.\1"}`; None
            leaves the entry out (buffers that are computed).

    Raises:
        CheckpointError: Keys match no rule, or two keys get one name.
    """
    out: StateDict = {}
    unknown = []
    for key, value in state_dict.items():
        pattern = next((p for p in rules if re.fullmatch(p, key)), None)
        if pattern is None:
            unknown.append(key)
            continue
        replacement = rules[pattern]
        if replacement is None:
            continue
        new = re.sub(pattern, replacement, key)
        if new in out:
            raise CheckpointError(f"{key!r} and another key are both renamed to {new!r}")
        out[new] = value
    if unknown:
        raise CheckpointError(f"the layout is another: {_listed('unknown key', unknown)}")
    return out


def ss2d_rules(theirs: str, ours: str) -> dict[str, str]:
    """Rules for one SS2D as VMamba's files name it, which the networks after it kept.

    Args:
        theirs: Pattern of everything before a parameter's name.
        ours: Its replacement.
    """
    names = {
        r"conv2d\.(?:1\.)?": "conv.",
        "x_proj_weight": "x_proj.weight",
        "dt_projs_weight": "dt_proj",
        "dt_projs_bias": "dt_bias",
        "A_logs": "A_log",
        "Ds": "D",
        r"in_proj\.": "in_proj.",
        r"out_norm\.": "out_norm.",
        r"out_proj\.": "out_proj.",
    }
    return {f"{theirs}{name}(?P<leaf>.*)": f"{ours}{our}\\g<leaf>" for name, our in names.items()}


def split_paths(state_dict: StateDict, num_paths: int = 4) -> StateDict:
    """Give what renamed SS2D parameters hold for each path an axis or a layer of its own."""
    state: StateDict = {}
    for key, value in state_dict.items():
        leaf = key.rsplit(".", 1)[-1]
        if leaf == "dt_proj":
            state.update({f"{key}.{k}.weight": weight for k, weight in enumerate(value)})
        elif leaf in ("A_log", "D") and value.shape[0] != num_paths:
            state[key] = value.unflatten(0, (num_paths, -1))
        elif key.endswith("x_proj.weight") and value.ndim == 3:
            state[key] = value.flatten(0, 1)
        else:
            state[key] = value
    return state


def check_fit(state: StateDict, model: nn.Module, *, fresh: tuple[str, ...] = ()) -> StateDict:
    """Give `state` back if it fits `model` name by name and shape by shape.

    What timm adapts is allowed: a classifier of another size, input channels of another number.

    Args:
        state: Weights under our names.
        model: A model with a `pretrained_cfg`.
        fresh: Prefixes of parameters that may start fresh; a warning names them.

    Raises:
        CheckpointError: Lists what is missing, unexpected or of another shape.
    """
    cfg: Mapping[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    expected = model.state_dict()
    classifier = {f"{cfg['classifier']}.{leaf}" for leaf in ("weight", "bias")}
    head = state.get(f"{cfg['classifier']}.weight")
    num_classes = cfg["num_classes"] if head is None else head.shape[0]
    adapted = classifier if num_classes != model.num_classes else set()

    def same_shape(key: str) -> bool:
        ours, theirs = expected[key].shape, state[key].shape
        if key == f"{cfg['first_conv']}.weight" and model.in_chans != cfg["input_size"][0]:
            ours, theirs = ours[:1] + ours[2:], theirs[:1] + theirs[2:]
        return ours == theirs

    missing = [k for k in expected if k not in state and k not in adapted]
    started = [k for k in missing if k.startswith(fresh)] if fresh else []
    missing = [k for k in missing if k not in started]
    unexpected = [k for k in state if k not in expected and k not in adapted]
    shared = (k for k in state if k in expected and k not in adapted)
    reshaped = [
        f"{k} {tuple(state[k].shape)}, not {tuple(expected[k].shape)}"
        for k in shared
        if not same_shape(k)
    ]
    if missing or unexpected or reshaped:
        problems = {
            "missing key": missing,
            "unexpected key": unexpected,
            "key of another shape": reshaped,
        }
        raise CheckpointError("; ".join(_listed(w, k) for w, k in problems.items() if k))
    if started:
        _logger.warning("The checkpoint has none of these, they start fresh: %s", started)
    return state


def _listed(what: str, keys: list[str], most: int = 6) -> str:
    plural = what if len(keys) == 1 else what.replace("key", "keys")
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{len(keys)} {plural}: {', '.join(keys[:most])}{rest}"


def load_official(model: nn.Module, path: str | Path, filter_fn: FilterFn) -> None:
    """Load a published file into a timm model strictly: the body of `model.load_pretrained`.

    Raises:
        CheckpointError: The file does not fit; the message says which variant it belongs to.
    """
    checkpoint = read_checkpoint(path)
    cfg: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    try:
        state = filter_fn(checkpoint, model)
    except CheckpointError as error:
        found = next(_matches(checkpoint), None)
        verdict = f"it is {found}" if found else "it fits no model that vimamba knows"
        raise CheckpointError(
            f"{str(path)!r} does not fit {cfg['architecture']}: {verdict} ({error})"
        ) from None
    head = state.get(f"{cfg['classifier']}.weight")
    if head is not None:
        cfg["num_classes"] = head.shape[0]
    cfg.update(state_dict=state, custom_load=False)
    load_pretrained(model, cfg, num_classes=model.num_classes, in_chans=model.in_chans)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Identity:
    """What a checkpoint is."""

    variant: str
    family: str
    generation: str
    accuracy: str
    license: str
    arguments: tuple[tuple[str, Any], ...] = ()

    @property
    def create_line(self) -> str:
        """The line that makes the model which this file fits."""
        extra = "".join(f", {k}={v!r}" for k, v in self.arguments)
        overlay = "pretrained_cfg_overlay=dict(file=FILE)"
        return f'timm.create_model("{self.variant}", pretrained=True{extra}, {overlay})'

    def __str__(self) -> str:
        return f"{self.variant} ({self.generation}; {self.accuracy})"


def cfg_note(cfg: Mapping[str, Any], key: str, default: str = "unstated") -> str:
    """The value of a `key: value` line among the notes of a pretrained config."""
    notes = (n.split(": ", 1) for n in cfg.get("notes") or () if ": " in n)
    return dict(notes).get(key, default)  # type: ignore[arg-type]


def identify(path: str | Path) -> Identity:
    """Tell from names and shapes which registered model a checkpoint file belongs to.

    Whole segmentation networks are not among them; the error says how to try those.

    Raises:
        CheckpointError: It fits none, or cannot be read.
    """
    checkpoint = read_checkpoint(path)
    found = next(_matches(checkpoint), None)
    if found is None:
        keys = _listed("key", list(unwrap(checkpoint)))
        raise CheckpointError(
            f"{str(path)!r} fits no model that vimamba knows; it holds {keys}. {_WHOLE_NETWORKS}"
        )
    return found


def _matches(checkpoint: Mapping[str, Any]) -> Iterator[Identity]:
    """Every model of this package that the checkpoint fits, with the arguments that it takes."""
    for name in timm.list_models():
        module = sys.modules[timm.model_entrypoint(name).__module__]
        if not module.__name__.startswith("vimamba.") or name.startswith("test_"):
            continue
        for arguments in getattr(module, "CHECKPOINT_LAYOUTS", ({},)):
            model = timm.create_model(name, device="meta", **arguments)
            try:
                module.checkpoint_filter_fn(checkpoint, model)
            except CheckpointError:
                continue
            cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
            yield Identity(
                variant=name,
                family=cfg_note(cfg, "family", module.__name__.rsplit(".", 1)[-1]),
                generation=cfg_note(cfg, "generation"),
                accuracy=f"ImageNet-1k top-1 {cfg_note(cfg, 'top-1')} with the official weights",
                license=cfg.get("license") or "unstated",
                arguments=tuple(arguments.items()),
            )
