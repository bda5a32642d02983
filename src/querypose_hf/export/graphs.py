"""The graphs that are exported: tensors in, tensors out."""

from torch import Tensor, nn

from ..model.modeling_querypose import QueryPoseForPoseEstimation
from ..model.people_querypose import people_of_queries


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
        people = people_of_queries(
            outputs.logits,
            outputs.pred_boxes,
            outputs.pred_keypoints,
            outputs.keypoint_scores,
            outputs.keypoint_query_mask,
            target_sizes,
            self.nms_threshold,
        )
        scores, order = (people.scores * people.counts).topk(self.num_people, dim=1)

        def chosen(values: Tensor) -> Tensor:
            index = order.reshape(*order.shape, *([1] * (values.ndim - 2)))
            return values.gather(1, index.expand(-1, -1, *values.shape[2:]))

        fields = (people.labels, people.boxes, people.keypoints, people.keypoint_scores)
        return scores, *(chosen(values) for values in fields)
