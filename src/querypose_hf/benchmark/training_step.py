"""A training step, side by side with plainer ways to write it."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..model.decoder_querypose import BoxStage, DecoderOutput
from ..model.modeling_querypose import QueryPoseForPoseEstimation, image_sizes_from_mask
from ..model.rois_querypose import QueryPoseRoiPooler
from ..model.targets_querypose import QueryPoseTargets
from ..training.fast_convolutions import speed_up_convolutions
from .measuring import measure_side_by_side


def measure_training_step(
    model: QueryPoseForPoseEstimation, pixel_values: Tensor, people: int, rounds: int, plain_rounds: int
) -> dict[str, Any]:
    """Times forward, loss and backward of one batch.

    Args:
        pixel_values (`Tensor` of shape `(B, 3, H, W)`)
        people (`int`): annotated in each image.
        rounds, plain_rounds (`int`): how often the package's step is timed, and those that decode every query.

    Returns:
        By name what [`measure_side_by_side`] gives, and `images_per_second`.
    """
    folded = copy.deepcopy(model).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    unfolded = copy.deepcopy(folded)
    speed_up_convolutions(folded.model.backbone)
    labels = _labels(len(pixel_values), people, model)
    nhwc = pixel_values.contiguous(memory_format=torch.channels_last)
    steps = {
        "training step": (_step(folded, nhwc, labels, _loss), rounds),
        "batch norms not folded": (_step(unfolded, nhwc, labels, _loss), rounds),
        "keypoints of every query": (_step(folded, nhwc, labels, _loss_of_every_query), plain_rounds),
        "keypoints of every query, not folded": (_step(unfolded, nhwc, labels, _loss_of_every_query), plain_rounds),
    }
    found = measure_side_by_side(
        {name: work for name, (work, _) in steps.items()},
        {name: count for name, (_, count) in steps.items()},
        pixel_values.device,
        "Training",
    )
    for each in found.values():
        each["images_per_second"] = len(pixel_values) / each["median_s"]
    return found


Labels = list[dict[str, Tensor]]


def _loss(model: QueryPoseForPoseEstimation, pixel_values: Tensor, labels: Labels) -> Tensor:
    return model(pixel_values, labels=labels).loss


def _loss_of_every_query(model: QueryPoseForPoseEstimation, pixel_values: Tensor, labels: Labels) -> Tensor:
    """The same loss of a model whose keypoints do not feed back, but every query is decoded."""
    decoder = model.model.decoder
    targets = QueryPoseTargets.from_labels(labels, pixel_values, model.config)
    sizes = image_sizes_from_mask(pixel_values, None)
    pyramid = model.model.extract_pyramid(pixel_values)
    pooler = QueryPoseRoiPooler(model.config, pyramid, sizes)
    queries, boxes = decoder.initial_queries(pooler)
    part_queries = decoder.part_queries.expand(queries.shape[:2].numel(), -1, -1)
    stages: list[BoxStage] = []
    for stage in range(len(decoder.box_layers)):
        stages.append(decoder.box_stage(stage, pooler, queries, boxes))
        queries, boxes = stages[-1].queries, stages[-1].boxes.detach()
    keypoints = decoder.keypoint_stages(
        pooler, list(enumerate(stages)), [None] * len(stages), part_queries, keeps_maps=True
    )
    matches = decoder.match(stages, pooler, targets)
    found = DecoderOutput(stages, keypoints, keypoints[-1].part_queries, [queries], pooler.scale, matches)
    return torch.stack(list(model.compute_loss(found, targets, sizes, pyramid[0]).values())).sum()


def _step(
    model: QueryPoseForPoseEstimation, pixel_values: Tensor, labels: Labels, loss: Callable[..., Tensor]
) -> Callable[[], Any]:
    def work() -> None:
        with torch.enable_grad():
            loss(model, pixel_values, labels).backward()
        model.zero_grad(set_to_none=True)

    return work


def _labels(batch_size: int, people: int, model: QueryPoseForPoseEstimation) -> list[dict[str, Tensor]]:
    """People at random places, of a fifth to half of the picture's sides, with all keypoints."""
    generator = torch.Generator().manual_seed(0)
    keypoints = len(model.config.keypoint_names or ())
    labels = []
    for _ in range(batch_size):
        extent = 0.2 + 0.3 * torch.rand(people, 2, generator=generator)
        center = extent / 2 + (1 - extent) * torch.rand(people, 2, generator=generator)
        offset = torch.rand(people, keypoints, 2, generator=generator) - 0.5
        places = center[:, None] + offset * extent[:, None]
        labels.append(
            {
                "class_labels": torch.zeros(people, dtype=torch.long),
                "boxes": torch.cat([center, extent], dim=1),
                "keypoints": torch.cat([places, torch.full((people, keypoints, 1), 2.0)], dim=2),
            }
        )
    return labels
