"""Semantic segmentation of volumes as a whole."""

from vimamba.tasks.volumes.task import Volumes

__all__ = ["Volumes"]
