"""QueryPose, sparse end-to-end multi-person pose estimation, for Hugging Face Transformers.

Importing the package registers its classes: `AutoModelForPoseEstimation`, `AutoImageProcessor` and
`pipeline("pose-estimation")` then know QueryPose.
"""

from importlib.metadata import PackageNotFoundError, version

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForPoseEstimation
from transformers.pipelines import PIPELINE_REGISTRY

from .assets import QUERYPOSE_NANO
from .model.configuration_querypose import QueryPoseConfig
from .model.image_processing_pil_querypose import QueryPoseImageProcessorPil
from .model.image_processing_querypose import QueryPoseImageProcessor
from .model.modeling_querypose import QueryPoseForPoseEstimation, QueryPoseModel, QueryPosePreTrainedModel
from .model.pipeline_querypose import PoseEstimationPipeline
from .model.skeletons import COCO_17, CROWDPOSE_14, Skeleton


try:
    __version__ = version("querypose-hf")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

AutoConfig.register("querypose", QueryPoseConfig, exist_ok=True)
AutoModel.register(QueryPoseConfig, QueryPoseModel, exist_ok=True)
AutoModelForPoseEstimation.register(QueryPoseConfig, QueryPoseForPoseEstimation, exist_ok=True)
AutoImageProcessor.register(
    QueryPoseConfig,
    image_processor_classes={"torchvision": QueryPoseImageProcessor, "pil": QueryPoseImageProcessorPil},
    exist_ok=True,
)
if "pose-estimation" not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        "pose-estimation",
        pipeline_class=PoseEstimationPipeline,
        pt_model=AutoModelForPoseEstimation,
        default={"model": (QUERYPOSE_NANO, "main")},
        type="image",
    )

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
