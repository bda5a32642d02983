"""QueryPose, sparse end-to-end multi-person pose estimation, for Hugging Face Transformers.

Importing the package registers its classes: `AutoModelForPoseEstimation`, `AutoImageProcessor` and
`pipeline("pose-estimation")` then know QueryPose. Torch and Transformers themselves are imported when they are needed.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from .assets import QUERYPOSE_NANO
from .lazy import lazy_names
from .registration import register_with_transformers


if TYPE_CHECKING:
    from .model.configuration_querypose import QueryPoseConfig
    from .model.image_processing_pil_querypose import QueryPoseImageProcessorPil
    from .model.image_processing_querypose import QueryPoseImageProcessor
    from .model.modeling_querypose import QueryPoseForPoseEstimation, QueryPoseModel, QueryPosePreTrainedModel
    from .model.pipeline_querypose import PoseEstimationPipeline
    from .model.skeletons import COCO_17, CROWDPOSE_14, Skeleton
else:
    __getattr__, __dir__ = lazy_names(__name__)

try:
    __version__ = version("querypose-hf")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

register_with_transformers()

__all__ = [
    "COCO_17",
    "CROWDPOSE_14",
    "QUERYPOSE_NANO",
    "PoseEstimationPipeline",
    "QueryPoseConfig",
    "QueryPoseForPoseEstimation",
    "QueryPoseImageProcessor",
    "QueryPoseImageProcessorPil",
    "QueryPoseModel",
    "QueryPosePreTrainedModel",
    "Skeleton",
]
