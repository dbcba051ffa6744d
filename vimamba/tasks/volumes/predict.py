"""Masks of volumes in their own geometry, pictures of three planes, probabilities on request."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vimamba.data.volume_files import forget_volumes, save_labels
from vimamba.data.volumes.cases import VolumeCase
from vimamba.data.volumes.preprocessing import VolumePreprocessing
from vimamba.errors import UsageError
from vimamba.progress import Progress
from vimamba.tasks.outputs import shown
from vimamba.tasks.overlays import View, draw_card, find_view, panel
from vimamba.tasks.segmentation.inputs import OpenImage
from vimamba.tasks.segmentation.jobs import Job
from vimamba.tasks.segmentation.predict import VIEW_IMAGES, MaskWriter, save_image
from vimamba.tasks.segmentation.task import likeliest
from vimamba.tasks.volumes.pictures import choose_places, three_planes

# slices of a volume that the range of the overlays is taken from
VIEW_SLICES = 16


class VolumeWriter(MaskWriter):
    """Predicts whole volumes and writes masks, overlays and, on request, probabilities.

    Args:
        *args: Those of `MaskWriter`.
        softmax: Also write `<name>_softmax.nii.gz`: the probabilities of all classes on a fourth
            axis, float32.
    """

    preparation = VolumePreprocessing
    prepare: VolumePreprocessing

    def __init__(self, *args: Any, softmax: bool) -> None:
        super().__init__(*args)
        self.softmax = softmax
        self.options = {"softmax": True} if softmax else {}

    def _case(self, job: Job) -> VolumeCase:
        case = VolumeCase(job.paths, None, job.paths[0].parent, align=self.align)
        case.check()
        if case.channels != self.prepare.in_chans:
            raise UsageError(
                f"{shown(job.paths[0])} has {case.channels} channels, the network takes "
                f"{self.prepare.in_chans}"
            )
        return case

    def look(self, jobs: Sequence[Job]) -> None:
        """Choose the value range of overlays from some volumes; without it, none are drawn."""
        found = []
        for job in jobs[:: max(1, len(jobs) // VIEW_IMAGES)]:
            try:
                case = self._case(job)
                step = max(1, case.shape[0] // VIEW_SLICES)
                found.append(self.prepare.pixels(case.part(slice(None, None, step))))
            except ImportError:
                raise
            except Exception:  # reported when it is processed
                continue
        self.view = find_view(found)

    def predict(
        self, batch: Sequence[tuple[Job, OpenImage | str | None]], bar: Progress
    ) -> list[NDArray[np.uint8] | str]:
        """Classes of each volume, (D, H, W), or why there are none."""
        if any(opened is not None and not isinstance(opened, str) for _, opened in batch):
            return [f"{shown(job.paths[0])} is no volume, NIfTI or DICOM" for job, _ in batch]
        return super().predict(batch, bar)

    def _segment_volume(self, job: Job, bar: Progress) -> NDArray[np.uint8]:
        """Predict in windows, then slice by slice at the stored resolution."""
        import torch

        case = self._case(job)
        self.task.advance = lambda done, total: bar.part(done, total, "window")
        with torch.inference_mode():
            views = self.task.views(self.prepare.volume(case)[None])
            found = np.empty(case.shape, dtype=np.uint8)
            scores = None
            if self.softmax:
                kinds = len(self.task.class_names)
                scores = self.task.room((*case.shape, kinds)).numpy()
            for place, part in enumerate(self.task.stored_slices(views, case.shape)):
                found[place] = likeliest(part)[0]
                if scores is not None:
                    scores[place] = part[0].movedim(0, -1).cpu().numpy()
        if scores is not None:
            target = job.mask_file(self.out)
            target.parent.mkdir(parents=True, exist_ok=True)
            save_labels(scores, job.paths[0], "axial", softmax_file(target))
        return found

    def write(self, job: Job, opened: OpenImage | str | None, mask: NDArray[np.uint8]) -> None:
        """Write the overlay, then the mask; and let go of the volume before the next one."""
        super().write(job, opened, mask)
        forget_volumes()

    def _write_overlay(
        self, job: Job, opened: OpenImage | str | None, mask: NDArray[np.uint8], view: View
    ) -> None:
        case = self._case(job)
        places = choose_places(mask, background=self.task.background)
        look: dict[str, Any] = {"colors": self.colors, "background": self.task.background}
        panels = [
            (caption, panel(view(image), classes, **look, aspect=aspect, longest=400))
            for caption, image, classes, aspect in three_planes(self.prepare, case, mask, places)
        ]
        note = f"{shown(job.name)}: {view.text(self.prepare.intensity, self.prepare.bands)}"
        save_image(draw_card(panels, self.legend, note), job.overlay_file(self.out))


def softmax_file(mask: Path) -> Path:
    """Path of the probabilities of a mask."""
    return mask.with_name(mask.name.removesuffix(".nii.gz") + "_softmax.nii.gz")
