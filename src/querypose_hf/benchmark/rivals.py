"""Other models for the same task, to compare speed alone: their weights are random."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def keypoint_rcnn(pixel_values: Tensor, people: int) -> Callable[[], Any]:
    """torchvision's Keypoint R-CNN R50-FPN on the same images, limited to so many people.

    A score threshold below 0 lets random weights report that many boxes, as trained ones would of as many people.
    """
    from torchvision.models.detection import keypointrcnn_resnet50_fpn

    height, width = pixel_values.shape[-2:]
    torch.manual_seed(0)
    model = keypointrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        min_size=min(height, width),
        max_size=max(height, width),
        box_detections_per_img=people,
        box_score_thresh=-1.0,
        box_nms_thresh=0.999,
    )
    # as loaded with weights, where the class gives frozen batch norms
    model = model.to(pixel_values.device, pixel_values.dtype).eval()
    images = list(pixel_values.sigmoid())  # it normalises by itself

    def run() -> Any:
        found = model(images)
        counts = [len(each["boxes"]) for each in found]
        if counts != [people] * len(images):
            raise RuntimeError(f"Keypoint R-CNN reported {counts} people; {people} per image were wanted.")
        return found

    return run


class _TopDown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from transformers import (
            RTDetrConfig,
            RTDetrForObjectDetection,
            VitPoseBackboneConfig,
            VitPoseConfig,
            VitPoseForPoseEstimation,
        )

        torch.manual_seed(0)
        self.detector = RTDetrForObjectDetection(RTDetrConfig())
        backbone = VitPoseBackboneConfig(
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            image_size=[256, 192],
            patch_size=[16, 16],
            out_indices=[12],  # type: ignore[call-arg]
        )
        self.pose = VitPoseForPoseEstimation(VitPoseConfig(backbone_config=backbone, num_labels=17))  # type: ignore[call-arg]


def top_down(pixel_values: Tensor, people: int) -> Callable[[], Any]:
    """transformers' RT-DETR R50 at 640x640 and ViTPose-B on a 256x192 crop for each person; cutting crops is free."""
    model = _TopDown().to(pixel_values.device, pixel_values.dtype).eval()
    batch_size = len(pixel_values)
    whole = pixel_values.new_zeros(batch_size, 3, 640, 640)
    crops = pixel_values.new_zeros(batch_size * people, 3, 256, 192)
    return lambda: (model.detector(pixel_values=whole), model.pose(pixel_values=crops))
