"""Models as files for other engines: ONNX Runtime, OpenVINO, and torch without this package."""

from .exported_model import ExportedPoseEstimator
from .exporting import FORMATS, export_model


__all__ = ["FORMATS", "ExportedPoseEstimator", "export_model"]
