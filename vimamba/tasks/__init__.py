"""Lightning modules: a folder per task, and what all tasks share."""

from vimamba.tasks.classification import Classification, Objective
from vimamba.tasks.errors import NotFiniteError, TaskError
from vimamba.tasks.optim import Optimization
from vimamba.tasks.registry import register_task
from vimamba.tasks.segmentation import MaskObjective, Segmentation
from vimamba.tasks.task import Task
from vimamba.tasks.volumes import Volumes

__all__ = [
    "Classification",
    "MaskObjective",
    "NotFiniteError",
    "Objective",
    "Optimization",
    "Segmentation",
    "Task",
    "TaskError",
    "Volumes",
    "register_task",
]
