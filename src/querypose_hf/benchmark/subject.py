"""The model and the images that are measured."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.configuration_querypose import QueryPoseConfig
from ..model.fusion_querypose import fuse_for_inference
from ..model.modeling_querypose import QueryPoseForPoseEstimation
from .settings import BenchmarkSettings


@dataclass(frozen=True)
class Subject:
    """What everything is compared at: the first value of each list of the settings.

    Attributes:
        settings ([`BenchmarkSettings`]): their queries are the model's.
        plain: the model as it is built or given.
        fused: a copy with folded batch norms.
        pixel_values (`Tensor` of shape `(B, 3, height, width)`): the images.
    """

    settings: BenchmarkSettings
    plain: Any
    fused: Any
    pixel_values: Tensor

    @classmethod
    def build(cls, settings: BenchmarkSettings, model: QueryPoseForPoseEstimation | None) -> "Subject":
        """By default the model has random weights."""
        plain = build_model(settings, model)
        return cls(settings, plain, fuse_for_inference(copy.deepcopy(plain)), build_images(settings))

    @property
    def people(self) -> int:
        """People in the image."""
        return self.settings.people[0]

    @property
    def base(self) -> dict[str, Any]:
        """The values that everything is compared at, by name."""
        return {
            "people": self.people,
            "queries": self.settings.queries[0],
            "image_size": list(self.settings.image_sizes[0]),
            "batch_size": self.settings.batch_sizes[0],
        }


def build_model(settings: BenchmarkSettings, model: QueryPoseForPoseEstimation | None) -> Any:
    """The model, where and in the precision that the settings say; by default with random weights."""
    if model is None:
        model = _random_model(settings, settings.queries[0])
    return model.to(device=settings.device, dtype=getattr(torch, settings.dtype)).eval()  # type: ignore[call-arg]


def build_images(settings: BenchmarkSettings) -> Tensor:
    """Random images `(B, 3, height, width)`, where and in the precision that the settings say."""
    images = _random_images(settings.batch_sizes[0], settings.image_sizes[0])
    return images.to(settings.device, getattr(torch, settings.dtype))


def _random_model(settings: BenchmarkSettings, queries: int) -> QueryPoseForPoseEstimation:
    torch.manual_seed(0)
    overrides = {**settings.overrides, "num_queries": queries}
    config = QueryPoseConfig.from_variant(settings.variant, light=settings.light, **overrides)
    model = QueryPoseForPoseEstimation(config)
    with torch.no_grad():  # the boxes of new queries are the whole image, those of trained ones are people
        boxes = model.model.decoder.initial_boxes
        boxes.copy_(torch.cat([0.1 + 0.8 * torch.rand(queries, 2), 0.1 + 0.4 * torch.rand(queries, 2)], dim=1))
        # random deltas would move the boxes out of the image, where RoIAlign has nothing to do
        for layer in model.model.decoder.box_layers:
            layer.box_head.weight.zero_()
            layer.box_head.bias.zero_()
    return model


def _random_images(batch_size: int, size: Sequence[int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, 3, *size, generator=generator)


def forward_of(model: Any, pixel_values: Tensor, people: int | None) -> Callable[[], Any]:
    """A forward pass that decodes the keypoints of so many queries; of all for `None`."""
    return lambda: model(pixel_values, keypoint_top_k=people)
