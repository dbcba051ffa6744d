"""Files of a model for other programs: ONNX, torch.export and AOTInductor."""

from vimamba.exporting.files import TARGETS, export_folder, export_model
from vimamba.exporting.report import ExportError, Report

__all__ = ["TARGETS", "ExportError", "Report", "export_folder", "export_model"]
