"""The former location of `vimamba.tasks.classification.metrics`."""

from vimamba.tasks.classification.metrics import classification_metrics, compute_report

__all__ = ["classification_metrics", "compute_report"]
