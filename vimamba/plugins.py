"""The user's own modules that the commands import: by `--import`, and by entry points.

Importing a module that registers a model with timm, a scan order, a network, or defines a task
makes it available. Nothing else is ever imported because a file names it.
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from vimamba.errors import VimambaError
from vimamba_command import find_plugins

_LOADED: list[str] = []


class PluginError(VimambaError):
    """A user's module cannot be imported; the message says where it fails."""


def load_plugins(names: Sequence[str] = ()) -> None:
    """Import modules by name or file, after those of installed packages' entry points.

    Args:
        names: Modules (`my_package.models`) or files (`models/fam.py`, or a package's folder).

    Raises:
        PluginError: There is no such module, or importing it fails.
    """
    for point in find_plugins():
        _load(point.value.partition(":")[0], f"entry point {point.name} of {point.group}")
    for name in names:
        _load(name, f"--import {name}")


def loaded_plugins() -> tuple[str, ...]:
    """Modules that were named by the user, for further processes to import as well."""
    return tuple(_LOADED)


def is_plugin(module: str) -> bool:
    """Whether a module, or its package, was named by the user."""
    return any(module == name or module.startswith(f"{name}.") for name in _LOADED)


def find_loaded(path: object, base: type) -> type | None:
    """The class with a dotted name, if it is already imported and derived from `base`.

    This is how names in files are looked up: nothing is imported.
    """
    module, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    found = getattr(sys.modules.get(module), "__dict__", {}).get(name)
    return found if isinstance(found, type) and issubclass(found, base) else None


def _load(name: str, said: str) -> None:
    path = Path(name)
    is_file = path.suffix == ".py" or "/" in name or "\\" in name or path.exists()
    try:
        module = _import_file(path, said) if is_file else importlib.import_module(name)
    except PluginError:
        raise
    # any exception of the user's module is the user's to fix
    except (Exception, SystemExit) as error:
        raise PluginError(f"{said}: {_where(error)}") from error
    if module.__name__ not in _LOADED:
        _LOADED.append(module.__name__)


def _import_file(path: Path, said: str) -> ModuleType:
    """Import a file as the module of its name, which child processes also find."""
    source = path / "__init__.py" if path.is_dir() else path
    name = path.stem
    if not source.is_file():
        raise PluginError(f"{said}: there is no file {source}")
    if not name.isidentifier():
        raise PluginError(f"{said}: the file name must be a Python identifier, such as own.py")
    there = sys.modules.get(name)
    if there is not None and getattr(there, "__file__", None) == str(source.resolve()):
        return there
    other = None if there else importlib.util.find_spec(name)
    if there or (other and other.origin != str(source.resolve())):
        raise PluginError(f"{said}: a module {name} already exists; rename the file")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, source.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _where(error: BaseException) -> str:
    """An error in one line, with its location in the user's file."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    text = " ".join(str(error).split()) or "no text"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    if not frames:
        hint = "; name a file with its suffix, as in --import own.py"
        return f"{text}{hint if isinstance(error, ModuleNotFoundError) else ''}"
    # the last line outside of installed packages
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    return f"{own[-1].filename}, line {own[-1].lineno}: {type(error).__name__}: {text}"
