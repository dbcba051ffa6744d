"""The former place of what `vimamba.tasks.segmentation.predict` does."""

from vimamba.tasks.segmentation.jobs import find_jobs
from vimamba.tasks.segmentation.record import keep_record

__all__ = ["find_jobs", "keep_record"]
