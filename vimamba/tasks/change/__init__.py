"""What has changed between two dates, pixel by pixel: the task."""

from vimamba.tasks.change.loss import ChangeObjective
from vimamba.tasks.change.task import Change

__all__ = ["Change", "ChangeObjective"]
