"""Semantic segmentation of images, and of volumes slice by slice."""

from vimamba.tasks.segmentation.loss import MaskObjective
from vimamba.tasks.segmentation.task import Segmentation

__all__ = ["MaskObjective", "Segmentation"]
