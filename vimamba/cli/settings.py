"""Settings of a run folder, which may be untrusted: they are data and name no code.

`vimamba fit -c RECIPE` may name any class, as the user trusts the recipe. The settings in a run
folder may only name tasks and data sets that are already imported, and the parts of Lightning in
`PARTS` with plain arguments; everything else is refused with its name.
"""

import atexit
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from vimamba.data.base import ImageData
from vimamba.errors import UsageError
from vimamba.lightning import callbacks, loggers, name_in_use, profilers, strategies
from vimamba.plugins import find_loaded, is_plugin
from vimamba.reading import read_yaml
from vimamba.tasks import Task
from vimamba.tasks.backbone import is_address

SECTIONS = ("seed_everything", "trainer", "model", "data")
Logger = Literal["csv", "tensorboard", "wandb", "mlflow"]
# options of `vimamba fit` outside these sections, with the types of their values
BESIDE: dict[str, Any] = {
    "patience": int | None,
    "lr_find": bool | None,
    "logger": list[Logger] | None,
}
# keys of a mapping in a settings file that mean: build this class
_BUILDERS = {"class_path", "init_args", "dict_kwargs", "__path__", "__default_config__"}
# arguments that make timm's builders read files, whatever weights a run has
_FILES = {"checkpoint_path"}

_LOG = {"name", "version", "prefix", "save_dir"}
# parts of Lightning that a run folder may name for --resume, with those of their arguments that
# are plain data: none takes a function or an object, and none names a host
PARTS: dict[str, dict[str, set[str]]] = {
    "callbacks": {
        "EarlyStopping": {
            *("monitor", "min_delta", "patience", "verbose", "mode", "strict", "check_finite"),
            *("stopping_threshold", "divergence_threshold", "check_on_train_epoch_end"),
            "log_rank_zero_only",
        },
        "ModelCheckpoint": {
            *("dirpath", "filename", "monitor", "verbose", "save_last", "save_top_k", "mode"),
            *("save_weights_only", "auto_insert_metric_name", "every_n_train_steps"),
            *("every_n_epochs", "save_on_train_epoch_end", "enable_version_counter"),
            "save_on_exception",
        },
        "LearningRateMonitor": {"logging_interval", "log_momentum", "log_weight_decay"},
        "DeviceStatsMonitor": {"cpu_stats"},
        "GradientAccumulationScheduler": {"scheduling"},
        "StochasticWeightAveraging": {
            *("swa_lrs", "swa_epoch_start", "annealing_epochs", "annealing_strategy"),
        },
        "ModelSummary": {"max_depth"},
        "RichModelSummary": {"max_depth"},
        "RichProgressBar": {"refresh_rate", "leave"},
        "TQDMProgressBar": {"refresh_rate", "process_position", "leave"},
        "Timer": {"duration", "interval", "verbose"},
    },
    "logger": {
        "CSVLogger": {*_LOG, "flush_logs_every_n_steps"},
        "TensorBoardLogger": {*_LOG, "log_graph", "default_hp_metric", "sub_dir"},
        "WandbLogger": {*_LOG, "offline", "dir", "id", "project", "log_model", "checkpoint_name"},
        "MLFlowLogger": {
            "save_dir",
            "prefix",
            "experiment_name",
            "run_name",
            "run_id",
            "tags",
            "log_model",
        },
    },
    "strategy": {
        "DDPStrategy": {
            *("process_group_backend", "find_unused_parameters", "gradient_as_bucket_view"),
            *("static_graph", "broadcast_buffers", "bucket_cap_mb", "start_method"),
        },
        "ModelParallelStrategy": {
            *("data_parallel_size", "tensor_parallel_size", "process_group_backend"),
            "save_distributed_checkpoint",
        },
    },
    "profiler": {
        "SimpleProfiler": {"dirpath", "filename", "extended"},
        "AdvancedProfiler": {"dirpath", "filename", "line_count_restriction", "dump_stats"},
    },
    "plugins": {},
    "accelerator": {},
}
_HOMES: dict[str, Any] = {
    "callbacks": callbacks,
    "logger": loggers,
    "strategy": strategies,
    "profiler": profilers,
}
# for these Lightning has short names, such as "ddp"
_NAMED = ("strategy", "accelerator", "profiler")
# text that could be taken for a class name
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
_OWN = "register your own with --import MODULE_OR_FILE"


def read_settings(run: Path) -> dict[str, Any]:
    """Read and check the settings of a run, so that it is safe to build from them.

    Raises:
        UsageError: There is no run, or its settings name something that a run must not name.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UsageError(f"{run} is not a run folder: there is no {path}")
    settings = read_yaml(path, UsageError)
    for name in settings:
        if name not in (*SECTIONS, *BESIDE):
            raise UsageError(f"{path}: {name} is not a section of a run's settings")
    for name, hint in BESIDE.items():
        if not _fits(value := settings.get(name), hint):
            raise UsageError(f"{path}: {name} is {value!r:.60}; expected {hint}")
    if not isinstance(settings.get("seed_everything"), int | None):
        raise UsageError(f"{path}: seed_everything must be a whole number, true or false")
    for part, base in (("model", Task), ("data", ImageData)):
        _check_part(path, part, settings.get(part), base)
    trainer = settings.setdefault("trainer", {}) or {}
    if not isinstance(trainer, dict):
        raise UsageError(f"{path}: trainer must be a mapping")
    trainer = {k: v for k, v in trainer.items() if k != "default_root_dir"}
    settings["trainer"] = name_in_use(trainer)
    data = find_loaded(settings["data"]["class_path"], ImageData)
    for name in data.settles if data else ():
        if settings["data"]["init_args"].get(name) is None:
            raise UsageError(f"{path}: data.init_args.{name} is missing")
    return settings


def store_settings(settings: dict[str, Any]) -> str:
    """Write settings to a file that exists until the process ends; returns its path."""
    folder = Path(tempfile.mkdtemp(prefix="vimamba-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(folder / "config.yaml")


def without_parts(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those for training only: callbacks, loggers and similar."""
    left_out = ("callbacks", "logger", "profiler", "plugins")
    trainer = {k: v for k, v in settings["trainer"].items() if k not in left_out}
    return {**settings, "trainer": trainer}


def check_trainer(run: Path, settings: dict[str, Any]) -> None:
    """Fail on anything in the trainer's settings that is neither plain nor one of `PARTS`.

    Raises:
        UsageError: Names the setting.
    """
    for name, value in settings["trainer"].items():
        where = f"{run / 'config.yaml'}: trainer.{name}"
        if name not in PARTS:
            check_plain(value, where)
            if isinstance(value, str) and _DOTTED.fullmatch(value):
                raise UsageError(f"{where} must not name {value!r}")
            continue
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict):
                _check_lightning(entry, name, where)
            elif isinstance(entry, str) and not (name in _NAMED and re.fullmatch(r"[\w-]+", entry)):
                raise UsageError(f"{where} must not name {entry!r}")
            elif not isinstance(entry, str | bool | None):
                raise UsageError(f"{where} must not be {entry!r}")


def _check_lightning(entry: dict[str, Any], name: str, where: str) -> None:
    path, arguments = entry.get("class_path"), entry.get("init_args") or {}
    if not entry.keys() <= {"class_path", "init_args"} or not isinstance(arguments, dict):
        raise UsageError(f"{where} may only have class_path and init_args")
    check_plain(arguments, f"{where}.init_args")
    found = find_loaded(path, object)
    if found is not None and is_plugin(found.__module__):
        names = [v for v in arguments.values() if isinstance(v, str) and _DOTTED.fullmatch(v)]
        if names:
            raise UsageError(f"{where}: {path} must not get {names[0]!r} from a run folder")
        return
    if found is None or found is not getattr(_HOMES.get(name), found.__name__, None):
        allowed = None
    else:
        allowed = PARTS[name].get(found.__name__)
    if allowed is None:
        raise UsageError(
            f"{where}: {path!r} must not be named by a run folder; give it on the command "
            f"line, with -c RECIPE or as an option, or {_OWN}"
        )
    if foreign := sorted(arguments.keys() - allowed):
        raise UsageError(
            f"{where}: {path} must not get {', '.join(foreign)} from a run folder; "
            "give it on the command line"
        )


def _check_part(path: Path, part: str, content: Any, base: type) -> None:
    """Fail unless a section names a loaded class and plain arguments of the right types."""
    if not isinstance(content, dict) or not content.keys() <= {"class_path", "init_args"}:
        raise UsageError(f"{path}: {part} must have class_path and init_args")
    found = find_loaded(content.get("class_path"), base)
    if found is None:
        kind = "task" if part == "model" else "data set"
        named = content.get("class_path")
        raise UsageError(f"{path}: {part}.class_path={named!r} is not a known {kind}; {_OWN}")
    arguments = content.setdefault("init_args", {})
    check_arguments(found, arguments, f"{path}: {part}.init_args")


def check_arguments(cls: type, arguments: Any, where: str) -> None:
    """Fail unless the arguments are plain values of the types that a class declares.

    Types are checked here and not by jsonargparse, which takes a string for a class name wherever a
    class is allowed, and imports it.

    Raises:
        UsageError: The argument is named.
    """
    if not isinstance(arguments, dict):
        raise UsageError(f"{where} must be a mapping")
    check_plain(arguments, where)
    hints: dict[str, Any] = {}
    for parent in reversed(cls.__mro__):
        hints.update(get_type_hints(parent.__init__))
    for name, value in arguments.items():
        if name not in hints or name == "return":
            raise UsageError(f"{where}.{name}: {cls.__name__} takes no such argument")
        if not _fits(value, hints[name]):
            wanted = getattr(hints[name], "__name__", str(hints[name]))
            wanted = wanted if wanted != "Optional" else str(hints[name])
            raise UsageError(f"{where}.{name} is {value!r:.60}; expected {wanted}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value matches a type hint; no value matches an object."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if hint is Any:
        return True
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Literal:
        return value in inner
    if hint in (None, type(None)):
        return value is None
    if kind in (list, tuple, Sequence):
        item_types = [one for one in inner if one is not ...]
        return isinstance(value, list | tuple) and all(
            any(_fits(item, one) for one in item_types or [Any]) for item in value
        )
    if kind in (dict, Mapping):
        of_value = inner[1] if inner else Any
        return isinstance(value, dict) and all(_fits(item, of_value) for item in value.values())
    if is_dataclass(hint):
        fields = get_type_hints(hint)
        return isinstance(value, dict) and all(
            name in fields and _fits(item, fields[name]) for name, item in value.items()
        )
    if hint in (int, float):
        numbers = int if hint is int else (int, float)
        return not isinstance(value, bool) and isinstance(value, numbers)
    return hint in (bool, str) and isinstance(value, hint)


def check_plain(value: Any, where: str) -> None:
    """Fail on values that are not plain data, or would be taken for a class to build.

    Raises:
        UsageError: It is named.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _BUILDERS or key in _FILES or not isinstance(key, str | int):
                raise UsageError(f"{where} must not have {key!r}: a run folder names no code")
            check_plain(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            check_plain(inner, where)
    elif not isinstance(value, str | int | float | bool | None):
        raise UsageError(f"{where} is a {type(value).__name__}, not plain data")


def task_class(settings: dict[str, Any]) -> type[Task]:
    """The task of checked settings."""
    found = find_loaded(settings["model"]["class_path"], Task)
    assert found is not None
    return found


def check_model(model: Any, where: str) -> None:
    """Fail on a model name that points outside the registry.

    Raises:
        UsageError: Something would have to be downloaded or read from elsewhere.
    """
    if isinstance(model, str) and is_address(model):
        raise UsageError(
            f"{where}: model={model!r} names files outside the run, which are not downloaded"
        )
