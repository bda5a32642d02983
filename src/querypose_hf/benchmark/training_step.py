"""A training step, side by side with plainer ways to write it."""

import copy
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from ..model import modeling_querypose
from ..model.modeling_querypose import QueryPoseForPoseEstimation, QueryPoseStages
from ..training.fast_convolutions import speed_up_convolutions
from .measuring import measure_side_by_side


class _StagesOfEveryQuery(QueryPoseStages):
    """Decodes the keypoints of every query in training; the loss then takes those of the matched ones."""

    def run_keypoint_layer(self, stage: int, rows: Tensor | None, feed_back: bool) -> None:
        super().run_keypoint_layer(stage, None, feed_back)


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
        "training step": (_step(folded, nhwc, labels, QueryPoseStages), rounds),
        "batch norms not folded": (_step(unfolded, nhwc, labels, QueryPoseStages), rounds),
        "keypoints of every query": (_step(folded, nhwc, labels, _StagesOfEveryQuery), plain_rounds),
        "keypoints of every query, not folded": (_step(unfolded, nhwc, labels, _StagesOfEveryQuery), plain_rounds),
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


def _step(
    model: QueryPoseForPoseEstimation, pixel_values: Tensor, labels: list[dict[str, Tensor]], stages: type
) -> Callable[[], Any]:
    def work() -> None:
        with patch.object(modeling_querypose, "QueryPoseStages", stages), torch.enable_grad():
            model(pixel_values, labels=labels).loss.backward()
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
