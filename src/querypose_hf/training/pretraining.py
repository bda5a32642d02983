"""Training parts of a model alone, before all of it: keypoint heatmaps, and poses of people whose boxes are known.

Neither is the paper's way, though its authors start from an HRNet trained on heatmaps (Section 4.3). With little data
and time both make much of every person: there is no background to look at, and no query that holds nobody.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..model.loss_querypose import Matches, Targets, number_of_people, part_attention_loss, pose_estimation_loss
from ..model.modeling_querypose import (
    QueryPoseForPoseEstimation,
    QueryPoseStages,
    image_sizes_from_mask,
    targets_from_labels,
)


@dataclass
class _PretrainingOutput(ModelOutput):
    """Loss, and its terms by name."""

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None


class HeatmapPretraining(nn.Module):
    """Backbone, neck and auxiliary heatmap head: a distribution over P2 for each keypoint of each person.

    The loss is the cross-entropy of [`~loss_querypose.part_attention_loss`] over the picture.

    Args:
        model ([`QueryPoseForPoseEstimation`]): with a heatmap head.
    """

    def __init__(self, model: QueryPoseForPoseEstimation):
        super().__init__()
        if model.heatmap_head is None:
            raise ValueError(
                "`objective` is 'heatmaps', but the model has no heatmap head: `heatmap_loss_coefficient` is 0; "
                "expected it above 0."
            )
        # not the model itself: what is not trained here must not wait for gradients
        self.backbone, self.neck, self.head = model.model.backbone, model.model.neck, model.heatmap_head
        self.extract_pyramid = model.model.extract_pyramid
        self.config = model.config

    def forward(self, pixel_values: Tensor, labels: list[dict[str, Any]], pixel_mask: Tensor | None = None) -> Any:
        """The loss; arguments as the model's."""
        targets = targets_from_labels(labels, pixel_values, self.config)
        sizes = image_sizes_from_mask(pixel_values, pixel_mask)
        logits = self.head(self.extract_pyramid(pixel_values)[0]).float()
        maps = logits.flatten(2).softmax(dim=-1).view_as(logits)
        images = _image_of_each_person(targets, logits.device)
        keypoints = targets.keypoints.clone()
        keypoints[..., :2] *= sizes.flip(-1)[images][:, None].to(keypoints.dtype)
        # the maps cover the padding, too, up to the next multiple of 32
        height, width = (4 * length for length in logits.shape[-2:])
        whole = keypoints.new_tensor([0, 0, width, height]).expand(len(keypoints), 4)
        each = [[keypoint] for keypoint in range(logits.shape[1])]
        loss = part_attention_loss(maps[images], whole, keypoints, each)
        loss = loss / number_of_people(targets, loss.device) / logits.shape[1]
        return _PretrainingOutput(loss=loss, loss_dict={"loss_heatmap": loss})


class PosePretraining(nn.Module):
    """Everything but the choice of queries: one query for each person, which starts near the person's box.

    The query is any of the learned ones, the box the annotated one, moved and scaled a little. The loss has the terms
    of the model's but that of the class, as there is nothing else than people.

    Args:
        model ([`QueryPoseForPoseEstimation`]): trained in place.
        jitter (`float`): deviation of the box's place, relative to its size, and of the logarithm of its size.
    """

    def __init__(self, model: QueryPoseForPoseEstimation, jitter: float = 0.1):
        super().__init__()
        self.model = model
        self.jitter = jitter

    def forward(self, pixel_values: Tensor, labels: list[dict[str, Any]], pixel_mask: Tensor | None = None) -> Any:
        """The loss; arguments as the model's, with one person in each picture.

        Raises:
            ValueError: a picture shows several people: train on `person_crops`.
        """
        config, base = self.model.config, self.model.model
        several = [number for number, label in enumerate(labels) if len(label["boxes"]) > 1]
        if several:
            raise ValueError(
                f"`labels[{several[0]}]` has {len(labels[several[0]]['boxes'])} people; pretraining poses takes one "
                "in each picture: set `person_crops` of the data."
            )
        targets = targets_from_labels(labels, pixel_values, config)
        sizes = image_sizes_from_mask(pixel_values, pixel_mask)
        pyramid = base.extract_pyramid(pixel_values)
        stages = _StagesOfKnownPeople(self.model, pyramid, sizes, targets, self.jitter)
        for stage in range(config.decoder_layers):
            stages.run_box_layer(stage)
            stages.run_keypoint_layer(stage, None, feed_back=base.decoder.feeds_back)
        rows = torch.tensor([number for number, count in enumerate(targets.people_per_image) if count])
        rows = rows.to(pixel_values.device, torch.long)
        matches = [Matches(rows, torch.arange(len(rows), device=rows.device))] * config.decoder_layers
        _, terms = pose_estimation_loss(
            config,
            torch.stack(stages.logits),
            torch.stack(stages.relative_boxes),
            torch.stack(stages.keypoints),
            torch.stack(stages.sigmas),
            matches,
            targets,
            self.model.flow,
            [maps[rows] for maps in stages.decoded_maps] or None,
            image_sizes=sizes,
        )
        terms = {name: term for name, term in terms.items() if not name.startswith("loss_class")}
        return _PretrainingOutput(loss=torch.stack(list(terms.values())).sum(), loss_dict=terms)


class _StagesOfKnownPeople(QueryPoseStages):
    """The decoder's stages with one query in each picture, on a box near the person's."""

    def __init__(
        self,
        model: QueryPoseForPoseEstimation,
        pyramid: list[Tensor],
        image_sizes: Tensor,
        targets: Targets,
        jitter: float,
    ):
        decoder, config = model.model.decoder, model.config
        with_maps = config.part_attention_loss_coefficient > 0
        super().__init__(decoder, pyramid, image_sizes, False, keeps_decoded_maps=with_maps)
        batch_size, device = len(image_sizes), image_sizes.device
        self.shape = (batch_size, 1)
        # drawn on the host, whose generator a checkpoint keeps
        chosen = torch.randint(config.num_queries, (batch_size,)).to(device)
        self.queries = decoder.instance_queries[chosen][:, None]
        self.part_queries = decoder.part_queries.expand(batch_size, -1, -1)
        boxes = targets.boxes.new_tensor([0.0, 0.0, 1.0, 1.0]).repeat(batch_size, 1)
        boxes[_image_of_each_person(targets, device)] = targets.boxes
        centers, extents = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
        noise = jitter * torch.randn(batch_size, 4).to(boxes)
        centers, extents = centers + noise[:, :2] * extents, extents * noise[:, 2:].exp()
        near = torch.cat([centers - extents / 2, centers + extents / 2], dim=1)
        self.next_boxes = near.to(self.dtype)[:, None] * self.scale  # type: ignore[assignment]


def _image_of_each_person(targets: Targets, device: torch.device) -> Tensor:
    counts = torch.tensor(targets.people_per_image, device=device)
    return torch.arange(len(counts), device=device).repeat_interleave(counts)


#: What a run can be trained for, by the name in [`TrainingConfig`]; everything is the model's own loss.
OBJECTIVES: dict[str, Any] = {"everything": None, "heatmaps": HeatmapPretraining, "poses": PosePretraining}
