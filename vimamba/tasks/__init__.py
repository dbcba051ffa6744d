"""Lightning modules: one file per task."""

from vimamba.tasks.classification import Classification, Objective, Optimisation
from vimamba.tasks.errors import TaskError

__all__ = ["Classification", "Objective", "Optimisation", "TaskError"]
