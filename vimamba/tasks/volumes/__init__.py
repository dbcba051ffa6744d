"""Semantic segmentation of whole volumes."""

from vimamba.tasks.volumes.task import Volumes

__all__ = ["Volumes"]
