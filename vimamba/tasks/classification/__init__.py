"""Image classification."""

from vimamba.tasks.classification.task import Classification, Objective

__all__ = ["Classification", "Objective"]
