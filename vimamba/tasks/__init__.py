"""Lightning modules: one file per task."""

from vimamba.tasks.classification import Classification, Objective
from vimamba.tasks.errors import TaskError
from vimamba.tasks.finite import NotFiniteError
from vimamba.tasks.mask_loss import MaskObjective
from vimamba.tasks.optimisation import Optimisation
from vimamba.tasks.segmentation import Segmentation
from vimamba.tasks.task import Task

__all__ = [
    "Classification",
    "MaskObjective",
    "NotFiniteError",
    "Objective",
    "Optimisation",
    "Segmentation",
    "Task",
    "TaskError",
]
