"""Lightning modules: one file per task."""

from vimamba.tasks.classification import Classification, Objective
from vimamba.tasks.errors import TaskError
from vimamba.tasks.mask_loss import MaskObjective
from vimamba.tasks.segmentation import Segmentation
from vimamba.tasks.task import Optimisation, Task

__all__ = [
    "Classification",
    "MaskObjective",
    "Objective",
    "Optimisation",
    "Segmentation",
    "Task",
    "TaskError",
]
