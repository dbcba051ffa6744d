"""Task of predicting changes between two dates, pixel by pixel."""

from vimamba.tasks.change.loss import ChangeObjective
from vimamba.tasks.change.task import Change

__all__ = ["Change", "ChangeObjective"]
