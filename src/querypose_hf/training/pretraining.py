"""Training poses of people whose boxes are known, before everything.

It is not in the paper. With little data and time it makes much of every person: no image is mostly background, and no
query is on nobody.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..model.decoder_querypose import BoxStage, DecoderOutput, KeypointStage, QueryPoseDecoder
from ..model.loss_querypose import QueryPoseLoss
from ..model.matching_querypose import Matches
from ..model.modeling_querypose import QueryPoseForPoseEstimation, image_sizes_from_mask, stage_prediction
from ..model.rois_querypose import QueryPoseRoiPooler
from ..model.targets_querypose import QueryPoseTargets


@dataclass
class PretrainingOutput(ModelOutput):
    """Loss, and its terms by name."""

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None


class PosePretraining(nn.Module):
    """Everything but the choice of queries: one query for each person, which starts near the person's box.

    Each image gets a learned query at random, and the ground truth box, moved and scaled a little. The loss has the
    model's terms except the class term: there is nothing but people.

    Args:
        model ([`QueryPoseForPoseEstimation`]): trained in place.
        jitter (`float`): standard deviation of the box's place, relative to its size, and of the logarithm of its
            size.
    """

    def __init__(self, model: QueryPoseForPoseEstimation, jitter: float = 0.1):
        super().__init__()
        self.model = model
        self.jitter = jitter

    def forward(self, pixel_values: Tensor, labels: list[dict[str, Any]], pixel_mask: Tensor | None = None) -> Any:
        """The loss; arguments are those of the model, with at most one person in each image.

        Raises:
            ValueError: an image shows several people: train on `person_crops`.
        """
        config, decoder = self.model.config, self.model.model.decoder
        several = [number for number, label in enumerate(labels) if len(label["boxes"]) > 1]
        if several:
            raise ValueError(
                f"`labels[{several[0]}]` has {len(labels[several[0]]['boxes'])} people; pretraining poses takes one "
                "in each image: set `person_crops` of the data."
            )
        targets = QueryPoseTargets.from_labels(labels, pixel_values, config)
        sizes = image_sizes_from_mask(pixel_values, pixel_mask)
        pooler = QueryPoseRoiPooler(config, self.model.model.extract_pyramid(pixel_values), sizes)
        found = self._run_stages(decoder, pooler, targets)
        loss = QueryPoseLoss(config, self.model.flow)
        del loss.terms["class"]
        terms = loss([stage_prediction(found, stage) for stage in range(config.decoder_layers)], targets, sizes)
        return PretrainingOutput(loss=torch.stack(list(terms.values())).sum(), loss_dict=terms)

    def _run_stages(
        self, decoder: QueryPoseDecoder, pooler: QueryPoseRoiPooler, targets: QueryPoseTargets
    ) -> DecoderOutput:
        images, batch_size = targets.image_of_person(), len(pooler.scale)
        # drawn on the host, whose generator a checkpoint keeps
        chosen = torch.randint(decoder.config.num_queries, (batch_size,)).to(images.device)
        queries = decoder.instance_queries[chosen][:, None]
        boxes = self._boxes_near(targets, images, batch_size).to(pooler.scale.dtype)[:, None] * pooler.scale
        part_queries = decoder.part_queries.expand(batch_size, -1, -1)
        box_stages: list[BoxStage] = []
        keypoint_stages: list[KeypointStage] = []
        for stage in range(len(decoder.box_layers)):
            box_stages.append(decoder.box_stage(stage, pooler, queries, boxes))
            decoded = decoder.keypoint_stage(stage, pooler, box_stages[-1], part_queries, None, keeps_maps=True)
            keypoint_stages.append(decoded)
            boxes, part_queries = box_stages[-1].boxes.detach(), decoded.part_queries
            queries = decoded.queries[:, None] if decoder.feeds_back else box_stages[-1].queries
        matches = [Matches(images, torch.arange(len(images), device=images.device))] * len(box_stages)
        return DecoderOutput(box_stages, keypoint_stages, part_queries[:, None], [queries], pooler.scale, matches)

    def _boxes_near(self, targets: QueryPoseTargets, images: Tensor, batch_size: int) -> Tensor:
        """A box near that of each image's person, `(B, 4)`; near the whole image where there is nobody."""
        boxes = targets.boxes.new_tensor([0.0, 0.0, 1.0, 1.0]).repeat(batch_size, 1)
        boxes[images] = targets.boxes
        centers, extents = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        noise = self.jitter * torch.randn(batch_size, 4).to(boxes)
        centers, extents = centers + noise[:, :2] * extents, extents * noise[:, 2:].exp()
        return torch.cat([centers - extents / 2, centers + extents / 2], dim=1)
