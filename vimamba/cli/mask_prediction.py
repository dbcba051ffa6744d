"""The former location of `vimamba.tasks.segmentation.predict`."""

from vimamba.tasks.segmentation.jobs import find_jobs
from vimamba.tasks.segmentation.record import keep_record

__all__ = ["find_jobs", "keep_record"]
