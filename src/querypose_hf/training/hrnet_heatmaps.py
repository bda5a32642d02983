"""Pretrains an HRNet on the keypoint heatmaps of single people, as the public HRNet pose models were trained.

The paper's HRNet models start from such a network, which is worth 1.5 AP (Section 4.3). What comes out is loaded by
[`~weights.backbone_weights.load_heatmap_pretrained_hrnet`]. This follows Sun et al. (2019): top-down crops of a fixed
aspect ratio, one Gaussian per keypoint, mean squared error, a 1x1 convolution on the finest branch. Their half-body
augmentation is left out.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..data import AugmentedPoseDataset, HorizontalFlip, PersonCropDataset, PoseAugmentation, ResizeShortSide, formats
from ..data.augmentation import Rotation, ScaleJitter
from ..model.backbone_querypose import STRIDES, QueryPoseBackbone
from ..model.configuration_querypose import QueryPoseConfig
from ..processes import this_process
from ..settings import require
from .experiment import ModelSettings, TrainingSource
from .loop import TrainingLoop, check_stop_after
from .recipe import LearningRateSchedule, TrainingConfig
from .sources import describe_sources
from .starting_model import build_config, build_image_processor, load_backbone


#: The file in `last/` of a run.
HRNET_FILE = "pose_hrnet.safetensors"

#: The public models' recipe: Adam at 1e-3 for 128 crops per step, 32 on each of 4 GPUs; 210 epochs.
HRNET_HEATMAPS = TrainingConfig(
    learning_rate=1e-3,
    scale_learning_rate=False,
    weight_decay=0.0,
    batch_size=32,
    schedule=LearningRateSchedule(unit="epoch", length=210, milestones=(170, 200), warmup_steps=0),
)


# Settings of the training of whole models, which an HRNet alone does not have.
_OF_WHOLE_MODELS = ("gradient_checkpointing", "compile")


@dataclass
class HeatmapOutput(ModelOutput):
    """Loss, and its term by name."""

    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None


class HeatmapHRNet(nn.Module):
    """An HRNet and the 1x1 convolution that reads heatmaps off its finest branch.

    The last fusions into the coarser branches have no part in the loss and keep their weights.

    Args:
        config ([`QueryPoseConfig`]): of the model whose backbone is pretrained; it has to be an HRNet of timm.

    Raises:
        ValueError: the backbone is not an HRNet.
    """

    def __init__(self, config: QueryPoseConfig):
        super().__init__()
        name = str(getattr(config.backbone_config, "backbone", None))
        if "hrnet" not in name:
            raise ValueError(f"`backbone_config` is of {name!r}; expected an HRNet of timm.")
        self.config = config
        self.backbone = QueryPoseBackbone(config)
        self.final_layer = nn.Conv2d(self.backbone.channels[0], len(config.keypoint_names or ()), 1)
        nn.init.normal_(self.final_layer.weight, std=0.001)
        nn.init.zeros_(self.final_layer.get_parameter("bias"))

    def forward(self, pixel_values: Tensor, labels: list[dict[str, Any]], pixel_mask: Tensor | None = None) -> Any:
        """The loss of a batch.

        Args:
            pixel_values (`Tensor` of shape `(batch_size, 3, height, width)`): crops without padding.
            labels (`list[dict]`): the person of each crop, or nobody, as the image processor makes them.
            pixel_mask (`Tensor`, *optional*): not used.
        """
        heatmaps = self.final_layer(self.backbone(pixel_values)[0]).float()
        targets, weights = gaussian_heatmaps([label["keypoints"] for label in labels], heatmaps)
        loss = 0.5 * (weights[:, :, None, None] * (heatmaps - targets).square()).mean()
        return HeatmapOutput(loss=loss, loss_dict={"loss_heatmap": loss})

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes [`HRNET_FILE`], with the names of the public HRNet pose models."""
        state = {
            name.removeprefix("backbone.model._backbone."): tensor.detach().cpu().contiguous()
            for name, tensor in self.state_dict().items()
        }
        save_file(state, Path(folder) / HRNET_FILE, metadata={"format": "pt"})


def gaussian_heatmaps(keypoints: list[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    """The target heatmaps of crops: a Gaussian around each keypoint, 1 at its place.

    The standard deviation is a 96th of the width, in cells: 2 for crops of 192 x 256 pixels and 3 for 288 x 384, as
    the public models have it.

    Args:
        keypoints (`list[Tensor]`): per crop `(n, K, 3)`, relative x, y and visibility. The first person counts.
        like (`Tensor` of shape `(batch_size, K, height, width)`): gives shape, device and type.

    Returns:
        `tuple[Tensor, Tensor]`: the heatmaps, of the shape of `like`, and `(batch_size, K)`: 1 for labelled keypoints
        and 0 for others.
    """
    height, width = like.shape[-2:]
    people = like.new_zeros(*like.shape[:2], 3)
    for index, found in enumerate(keypoints):
        if len(found):  # nothing where augmentation left nothing of the person
            people[index] = found[0].to(like)
    x, y, visibility = people.unbind(dim=-1)
    across = torch.arange(width, device=like.device) + 0.5 - width * x[..., None]
    down = torch.arange(height, device=like.device) + 0.5 - height * y[..., None]
    deviation = STRIDES[0] * width / 96
    distances = across.square()[:, :, None, :] + down.square()[:, :, :, None]
    return torch.exp(-distances / (2 * deviation**2)), (visibility > 0).to(like)


def heatmap_augmentation(flip_indices: Sequence[int] | None, size: tuple[int, int]) -> PoseAugmentation:
    """Mirrors, rotates by up to 40 degrees in 6 of 10 crops, and zooms in up to 1.8 times.

    A crop is 1.7 times as large as the box before and 0.94 to 1.7 times afterwards.
    """
    # the last step leaves the crops' size and marks that it is final
    last = ResizeShortSide((min(size),), None)
    return PoseAugmentation([HorizontalFlip(flip_indices), Rotation(40, 0.6), ScaleJitter((1.0, 1.8)), last])


def pretrain_hrnet(
    source: TrainingSource,
    output_dir: str | Path,
    *,
    variant: str = "hrnet_w32",
    size: tuple[int, int] = (288, 384),
    backbone_weights: str = "imagenet",
    training: TrainingConfig = HRNET_HEATMAPS,
    resume: bool = False,
    stop_after: int | None = None,
) -> Path:
    """Pretrains the backbone of a published HRNet variant, on as many processes as the program was started with.

    Args:
        source ([`TrainingSource`]): annotated people, in any format that is not streamed.
        output_dir (`str` or `Path`): gets what [`TrainingLoop`] writes.
        variant (`str`): `"hrnet_w32"` or `"hrnet_w48"`.
        size (`tuple[int, int]`): width and height of the crops in pixels, multiples of 32.
        backbone_weights (`str`): what to start from, see [`ModelSettings`].
        training ([`TrainingConfig`]): by default the public models' recipe. `gradient_checkpointing`,
            `fast_convolutions` and `compile` are of whole models and stay as they are there.
        resume, stop_after: see [`TrainingLoop.run`].

    Returns:
        `Path`: the weights.

    Raises:
        FileNotFoundError, ValueError: something is wrong with the data or an argument.
    """
    if any(length < 32 or length % 32 for length in size):
        raise ValueError(f"`size` is {tuple(size)}; expected a width and a height that are multiples of 32.")
    check_stop_after(stop_after)
    for name in _OF_WHOLE_MODELS:
        expected = getattr(HRNET_HEATMAPS, name)
        require(training, name, getattr(training, name) == expected, f"{expected!r}: only a whole model can have it")
    if source.streaming:
        raise ValueError("`source` has `streaming`; expected data that is read before training starts.")
    settings = ModelSettings(variant=variant, backbone_weights=backbone_weights)
    crops = PersonCropDataset(formats.open_source(source, source), size)
    description = describe_sources([crops])
    config = build_config(settings, description)
    augmentation = heatmap_augmentation(config.keypoint_flip_indices, size)
    dataset = AugmentedPoseDataset(crops, augmentation, seed=training.seed)
    torch.manual_seed(training.seed)  # new weights are drawn
    model: Any = HeatmapHRNet(config)
    reports = load_backbone(settings, model)
    if this_process().is_main_process:
        rate = training.describe_learning_rate(this_process().num_processes)
        print(f"{len(dataset)} people in an epoch", rate, *reports, sep="\n")
    image_processor = build_image_processor(settings, {}, description)
    TrainingLoop(model, dataset, image_processor, training, output_dir).run(resume, stop_after)
    return Path(output_dir) / "last" / HRNET_FILE
