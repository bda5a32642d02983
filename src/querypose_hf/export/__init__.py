"""Models as files for other engines: ONNX Runtime, OpenVINO, and torch without this package."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from .engines import choose_engine, load_engine
    from .exported_model import ExportedPoseEstimator
    from .exporting import export_model
    from .formats import FORMATS
    from .options import ExportOptions
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = ["FORMATS", "ExportOptions", "ExportedPoseEstimator", "choose_engine", "export_model", "load_engine"]
