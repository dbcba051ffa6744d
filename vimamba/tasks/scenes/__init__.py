"""Maps of scenes of any size: windows in, georeferenced files out, with little memory."""

from vimamba.tasks.scenes.maps import Legend
from vimamba.tasks.scenes.raster import RasterReport, predict_raster
from vimamba.tasks.scenes.scene import Scene

__all__ = ["Legend", "RasterReport", "Scene", "predict_raster"]
