"""Tasks by the names that `vimamba fit --task` takes."""

import importlib
from collections.abc import Callable
from difflib import get_close_matches
from typing import TypeVar

from vimamba.errors import UsageError
from vimamba.tasks.task import Task

TaskT = TypeVar("TaskT", bound=type[Task])
_TASKS: dict[str, type[Task]] = {}


def register_task(name: str) -> Callable[[TaskT], TaskT]:
    """Register a class as a task.

    Args:
        name: Name for `--task`.

    Raises:
        ValueError: The name is taken.
    """

    def register(cls: TaskT) -> TaskT:
        if name in _TASKS:
            raise ValueError(f"name={name!r} is already the task {_TASKS[name].__name__}")
        _TASKS[name] = cls
        return cls

    return register


def list_tasks() -> list[str]:
    """Names of all tasks, in the order of their registration."""
    return list(_TASKS)


def find_task(name: str) -> type[Task]:
    """The class of a task.

    Raises:
        UsageError: No task has this name.
    """
    if name not in _TASKS:
        near = get_close_matches(name, _TASKS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"--task {name}: expected one of {', '.join(_TASKS)}{hint}")
    return _TASKS[name]


def task_name(cls: type) -> str:
    """The name that a task is registered under, else the dotted name of its class."""
    return next((name for name, task in _TASKS.items() if task is cls), None) or class_path(cls)


def class_path(cls: type) -> str:
    """The shortest dotted name from which a class can be imported."""
    parts = cls.__module__.split(".")
    for count in range(1, len(parts)):
        module = ".".join(parts[:count])
        if getattr(importlib.import_module(module), cls.__name__, None) is cls:
            return f"{module}.{cls.__name__}"
    return f"{cls.__module__}.{cls.__qualname__}"
