"""Sources of annotated pictures, augmentation and collation."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from .augmentation import (
        HorizontalFlip,
        Mosaic,
        Photometric,
        PoseAugmentation,
        RandomCrop,
        RandomErasing,
        ResizeShortSide,
        Rotation,
        ScaleJitter,
    )
    from .augmented_dataset import AugmentedPoseDataset, AugmentedPoseStream
    from .check import DataReport, check_data
    from .coco import CocoPoseDataset, CrowdPoseDataset
    from .collation import AspectRatioBatchSampler, PoseCollator
    from .hub_dataset import HubPoseDataset, HubPoseStream, PoseColumns
    from .joined_dataset import JoinedPoseDataset, SyntheticPasses
    from .person_crops import PersonCropDataset
    from .pose_dataset import PoseDataset, image_sizes
    from .sample import PoseSample, UnusableImageError
    from .yolo_pose import YoloPoseDataset
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "AspectRatioBatchSampler",
    "AugmentedPoseDataset",
    "AugmentedPoseStream",
    "CocoPoseDataset",
    "CrowdPoseDataset",
    "DataReport",
    "HorizontalFlip",
    "HubPoseDataset",
    "HubPoseStream",
    "JoinedPoseDataset",
    "Mosaic",
    "PersonCropDataset",
    "Photometric",
    "PoseAugmentation",
    "PoseCollator",
    "PoseColumns",
    "PoseDataset",
    "PoseSample",
    "RandomCrop",
    "RandomErasing",
    "ResizeShortSide",
    "Rotation",
    "ScaleJitter",
    "SyntheticPasses",
    "UnusableImageError",
    "YoloPoseDataset",
    "check_data",
    "image_sizes",
]
