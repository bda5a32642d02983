"""Readers of annotated images, augmentation and collation."""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from .augmentation import (
        AugmentationRecipe,
        HorizontalFlip,
        Photometric,
        PoseAugmentation,
        RandomCrop,
        ResizeShortSide,
        Rotation,
        ScaleJitter,
    )
    from .augmented_dataset import AugmentedPoseDataset, AugmentedPoseStream
    from .check import check_data
    from .coco import CocoPoseDataset, CrowdPoseDataset
    from .collation import AspectRatioBatchSampler, PoseCollator
    from .data_report import DataReport
    from .description import DataDescription
    from .generated import GeneratedPeople
    from .hub_dataset import HubPoseDataset
    from .hub_rows import PoseColumns
    from .hub_stream import HubPoseStream
    from .joined_dataset import JoinedPoseDataset
    from .person_crops import PersonCropDataset
    from .pose_dataset import PoseDataset, image_sizes
    from .reading_options import ReadingOptions
    from .sample import PoseSample, UnusableImageError
    from .yolo_pose import YoloPoseDataset
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "AspectRatioBatchSampler",
    "AugmentationRecipe",
    "AugmentedPoseDataset",
    "AugmentedPoseStream",
    "CocoPoseDataset",
    "CrowdPoseDataset",
    "DataDescription",
    "DataReport",
    "GeneratedPeople",
    "HorizontalFlip",
    "HubPoseDataset",
    "HubPoseStream",
    "JoinedPoseDataset",
    "PersonCropDataset",
    "Photometric",
    "PoseAugmentation",
    "PoseCollator",
    "PoseColumns",
    "PoseDataset",
    "PoseSample",
    "RandomCrop",
    "ReadingOptions",
    "ResizeShortSide",
    "Rotation",
    "ScaleJitter",
    "UnusableImageError",
    "YoloPoseDataset",
    "check_data",
    "image_sizes",
]
