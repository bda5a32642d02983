"""The graphs that are exported: tensors in, tensors out."""

import torch
from torch import Tensor, nn

from ..model.boxes_querypose import find_duplicates
from ..model.modeling_querypose import QueryPoseForPoseEstimation


RAW_OUTPUTS = ("logits", "pred_boxes", "pred_keypoints", "keypoint_scores", "keypoint_query_mask")
PEOPLE_OUTPUTS = ("scores", "labels", "boxes", "keypoints", "keypoint_scores")


class RawOutputsGraph(nn.Module):
    """The model's outputs as it gives them, see [`QueryPosePoseEstimationOutput`]."""

    output_names = RAW_OUTPUTS

    def __init__(self, model: QueryPoseForPoseEstimation, keypoint_top_k: int | None):
        super().__init__()
        self.model = model
        self.keypoint_top_k = keypoint_top_k

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, ...]:
        outputs = self.model(pixel_values, pixel_mask=pixel_mask, keypoint_top_k=self.keypoint_top_k)
        return tuple(outputs[name] for name in RAW_OUTPUTS)


class PeopleGraph(nn.Module):
    """People, best first, as `post_process_pose_estimation` makes them, but always `num_people` per image.

    People whose box is empty once clipped to the image have score 0, and with an `nms_threshold` so have those whose
    box overlaps a better one's by a larger IoU.
    """

    output_names = PEOPLE_OUTPUTS

    def __init__(
        self,
        model: QueryPoseForPoseEstimation,
        keypoint_top_k: int | None,
        num_people: int,
        nms_threshold: float | None = None,
    ):
        super().__init__()
        self.model = model
        self.keypoint_top_k = keypoint_top_k
        self.num_people = num_people
        self.nms_threshold = nms_threshold

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor, target_sizes: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            target_sizes (`Tensor` of shape `(B, 2)`): height and width of each image that coordinates are wanted for.

        Returns:
            `tuple`: scores `(B, P)`, labels `(B, P)`, boxes `(B, P, 4)` as corners clipped to the image, keypoints
            `(B, P, K, 2)` as pixel indices, keypoint scores `(B, P, K)`.
        """
        outputs = self.model(pixel_values, pixel_mask=pixel_mask, keypoint_top_k=self.keypoint_top_k)
        best, labels = outputs.logits.max(dim=-1)
        scores = best.sigmoid() * outputs.keypoint_scores.mean(dim=-1)
        limits = target_sizes.to(scores.dtype).flip(-1)[:, None]  # (B, 1, 2): width, height
        centres, sizes = outputs.pred_boxes.split(2, dim=-1)
        low = torch.minimum((centres - sizes / 2).clamp(min=0) * limits, limits)
        high = torch.minimum((centres + sizes / 2).clamp(min=0) * limits, limits)
        scores = scores * ((high > low).all(dim=-1) & outputs.keypoint_query_mask)
        boxes = torch.cat([low, high], dim=-1)
        if self.nms_threshold is not None:
            scores = scores * ~find_duplicates(scores, labels, boxes, self.nms_threshold)
        scores, order = scores.topk(self.num_people, dim=1)
        keypoints = outputs.pred_keypoints * limits[:, :, None] - 0.5

        def chosen(values: Tensor) -> Tensor:
            index = order.reshape(*order.shape, *([1] * (values.ndim - 2)))
            return values.gather(1, index.expand(-1, -1, *values.shape[2:]))

        return scores, chosen(labels), chosen(boxes), chosen(keypoints), chosen(outputs.keypoint_scores)
