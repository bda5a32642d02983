"""Which query stands for which person."""

from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .boxes_querypose import generalized_box_iou
from .configuration_querypose import QueryPoseConfig
from .targets_querypose import QueryPoseTargets


class Matches(NamedTuple):
    """Which query stands for which person in one stage, ordered by image and rising query index.

    Attributes:
        query_rows (`LongTensor` of shape `(num_matches,)`): image index * num_queries + query index.
        target_rows (`LongTensor` of shape `(num_matches,)`): index into [`QueryPoseTargets`].
    """

    query_rows: Tensor
    target_rows: Tensor


class QueryPoseHungarianMatcher:
    """Assigns people to queries one to one, at least cost (Section 3.4).

    The cost of a pair is the weighted sum of a focal class cost, the L1 distance between boxes relative to the image,
    and the negative generalised IoU.
    """

    def __init__(self, config: QueryPoseConfig):
        self.class_cost = config.class_cost
        self.bbox_cost = config.bbox_cost
        self.giou_cost = config.giou_cost
        self.focal_alpha = config.focal_alpha
        self.focal_gamma = config.focal_gamma

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, targets: QueryPoseTargets) -> list[Matches]:
        """Matches every stage on its own, with one host sync for all of them.

        Args:
            logits (`Tensor` of shape `(num_stages, batch_size, num_queries, num_labels)`)
            boxes (`Tensor` of shape `(num_stages, batch_size, num_queries, 4)`): corners.
            targets ([`QueryPoseTargets`])

        Returns:
            `list[Matches]`: one per stage. Where people outnumber queries, those that fit best are matched.
        """
        num_stages, _, num_queries, _ = logits.shape
        device = logits.device
        counts = targets.people_per_image
        if not sum(counts):
            empty = torch.zeros(0, dtype=torch.long, device=device)
            return [Matches(empty, empty)] * num_stages

        dtype = torch.promote_types(logits.dtype, torch.float32)
        # people padded to (batch_size, most people in an image), so that no pair across images is computed
        slots = torch.tensor(
            [image * max(counts) + person for image, count in enumerate(counts) for person in range(count)]
        ).to(device, non_blocking=True)
        class_labels = targets.class_labels.new_zeros(len(counts) * max(counts)).index_copy(
            0, slots, targets.class_labels
        )
        target_boxes = targets.boxes.new_zeros(len(counts) * max(counts), 4).index_copy(0, slots, targets.boxes)
        class_labels = class_labels.view(len(counts), max(counts))
        target_boxes = target_boxes.view(len(counts), 1, max(counts), 4).to(dtype)
        boxes = boxes.to(dtype).unsqueeze(-2)

        probability = logits.to(dtype).sigmoid()
        positive = self.focal_alpha * (1 - probability) ** self.focal_gamma * -(probability + 1e-8).log()
        negative = (1 - self.focal_alpha) * probability**self.focal_gamma * -(1 - probability + 1e-8).log()
        index = class_labels[None, :, None, :].expand(num_stages, -1, num_queries, -1)
        cost = self.class_cost * (positive - negative).gather(-1, index)
        cost = cost + self.bbox_cost * (boxes - target_boxes).abs().sum(-1)
        cost = cost - self.giou_cost * generalized_box_iou(boxes, target_boxes)
        # scipy refuses NaN and infinity, which a diverging model predicts
        largest = torch.finfo(torch.float32).max
        cost = cost.nan_to_num(nan=largest, posinf=largest, neginf=-largest).cpu().numpy()

        offsets = [sum(counts[:image]) for image in range(len(counts))]
        stages = []
        for stage_cost in cost:
            queries, people = [], []
            for image, count in enumerate(counts):
                query_index, person_index = linear_sum_assignment(stage_cost[image, :, :count])
                queries.append(torch.as_tensor(query_index + image * num_queries))
                people.append(torch.as_tensor(person_index + offsets[image]))
            stages.append(torch.stack([torch.cat(queries), torch.cat(people)]))
        matched = torch.stack(stages).to(device, non_blocking=True)
        return [Matches(query_rows, target_rows) for query_rows, target_rows in matched]
