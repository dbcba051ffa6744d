"""Lightning modules: a folder per task, and what all tasks share."""

from vimamba.tasks.change import Change
from vimamba.tasks.classification import Classification, Objective
from vimamba.tasks.errors import NotFiniteError, TaskError
from vimamba.tasks.optim import Optimization
from vimamba.tasks.registration import ImageRegistration, RegistrationObjective
from vimamba.tasks.registry import register_task
from vimamba.tasks.segmentation import MaskObjective, Segmentation
from vimamba.tasks.task import Task
from vimamba.tasks.volumes import Volumes

__all__ = [
    "Change",
    "Classification",
    "ImageRegistration",
    "MaskObjective",
    "NotFiniteError",
    "Objective",
    "Optimization",
    "RegistrationObjective",
    "Segmentation",
    "Task",
    "TaskError",
    "Volumes",
    "register_task",
]
