"""Training: a step side by side with plainer ways to write it, and a short fine-tuning by parts."""

import contextlib
import copy
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..assets import SAMPLE_IMAGE
from ..data import AugmentationRecipe, AugmentedPoseDataset, PoseAugmentation
from ..data.sample import PoseSample, read_image
from ..model.decoder_querypose import BoxStage, DecoderOutput
from ..model.image_processing_querypose import QueryPoseImageProcessor
from ..model.modeling_querypose import QueryPoseForPoseEstimation, image_sizes_from_mask
from ..model.rois_querypose import QueryPoseRoiPooler
from ..model.targets_querypose import QueryPoseTargets
from ..training.fast_convolutions import speed_up_convolutions
from ..training.log import LOG_FILE
from ..training.loop import TrainingLoop
from ..training.optimizer import build_optimizer
from ..training.recipe import RECIPES, LearningRateSchedule
from .measuring import measure_side_by_side, synchronize
from .settings import BenchmarkSettings


# what is measured must not run away
_LEARNING_RATE = 1e-8
_MIXED_PRECISION: dict[str, Any] = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
#: The parts of a fine-tuning's step.
PARTS = ("waiting for data", "forward", "matching and loss", "backward", "optimizer")

Labels = list[dict[str, Tensor]]


def measure_training_step(
    model: QueryPoseForPoseEstimation, pixel_values: Tensor, people: int, rounds: int, plain_rounds: int
) -> dict[str, Any]:
    """Times a step of one batch: forward, loss, backward, clipping, optimizer.

    The package's step is that of [`RECIPES`]' `fine_tuning`, but for its moving average.

    Args:
        pixel_values (`Tensor` of shape `(B, 3, H, W)`): where they are not in float32, the step is in mixed precision.
        people (`int`): annotated in each image.
        rounds, plain_rounds (`int`): how often the package's step and a plain one are timed, and one that decodes
            every query.

    Returns:
        By name what [`measure_side_by_side`] gives, and `images_per_second`.
    """
    # weights are in float32, as in training; torch's optimizer as it comes for the plain loop
    dtype, pixel_values = pixel_values.dtype, pixel_values.float()
    plain = copy.deepcopy(model).float().train()
    ours = copy.deepcopy(plain)
    if pixel_values.device.type == "cpu":
        speed_up_convolutions(ours, bfloat16=dtype == torch.bfloat16)
    labels = _labels(len(pixel_values), people, model)
    optimizer = build_optimizer(ours, replace(RECIPES["fine_tuning"], learning_rate=_LEARNING_RATE))
    of_plain = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=_LEARNING_RATE)
    steps = {
        "training step": (_step(ours, optimizer, pixel_values, labels, _loss, dtype), rounds),
        "plain loop": (_step(plain, of_plain, pixel_values, labels, _loss, dtype), rounds),
        "keypoints of every query": (
            _step(ours, optimizer, pixel_values, labels, _loss_of_every_query, dtype),
            plain_rounds,
        ),
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


def measure_fine_tuning(model: QueryPoseForPoseEstimation, settings: BenchmarkSettings) -> dict[str, Any]:
    """Times the parts of a fine-tuning on the sample photograph: files, augmentation and all.

    The recipe is [`RECIPES`]' `fine_tuning`, with the batch size, image size and people of the settings. As many steps
    as the settings have rounds are left out, then as many count.

    Returns:
        `dict`: `images_per_second`, `data_wait` (the share of the time spent waiting for data), `workers` that prepare
        it, and `parts`, seconds of a step by name ([`PARTS`]).
    """
    height, width = settings.image_sizes[0]
    steps, batch_size = settings.rounds, settings.batch_sizes[0]
    config = replace(
        RECIPES["fine_tuning"],
        learning_rate=_LEARNING_RATE,
        schedule=LearningRateSchedule(length=2 * steps, milestones=(), warmup_steps=0),
        batch_size=batch_size,
        mixed_precision=_MIXED_PRECISION[settings.dtype],
        log_every=steps,
        patience=None,
        trackers=(),
    )
    sizes = AugmentationRecipe(short_sides=(min(height, width),), longest_side=max(height, width))
    keypoints = len(model.config.keypoint_names or ())
    photographs = _SamplePhotograph(2 * steps * batch_size, settings.people[0], keypoints)
    dataset = AugmentedPoseDataset(
        photographs, PoseAugmentation.from_recipe(model.config.keypoint_flip_indices, sizes)
    )
    processor = QueryPoseImageProcessor(num_keypoints=keypoints)
    with tempfile.TemporaryDirectory() as folder, _on_cpu(settings.device == "cpu"):
        loop = TrainingLoop(copy.deepcopy(model).float(), dataset, processor, config, folder)
        clock = _Clock(loop)
        loop.run()
        record = clock.record(Path(folder), steps)
    return {"workers": config.num_workers, **record}


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
    model: QueryPoseForPoseEstimation,
    optimizer: torch.optim.Optimizer,
    pixel_values: Tensor,
    labels: Labels,
    loss: Callable[..., Tensor],
    dtype: torch.dtype,
) -> Callable[[], Any]:
    def work() -> None:
        with torch.enable_grad():
            with torch.autocast(pixel_values.device.type, dtype, enabled=dtype != torch.float32):
                found = loss(model, pixel_values, labels)
            found.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

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


class _SamplePhotograph(Dataset[PoseSample]):
    """The sample photograph again and again, read from its file each time, with people at random places."""

    def __init__(self, count: int, people: int, num_keypoints: int):
        with PIL.Image.open(SAMPLE_IMAGE) as image:
            self.sizes = np.array([image.size] * count)
        self.people = people
        self.num_keypoints = num_keypoints

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> PoseSample:
        width, height = self.sizes[index].tolist()
        rng = np.random.default_rng(index)
        annotations = []
        for person in range(self.people):
            sides = rng.uniform(0.2, 0.5, 2) * (width, height)
            corner = rng.uniform(0, 1, 2) * ((width, height) - sides)
            places = corner + rng.uniform(0, 1, (self.num_keypoints, 2)) * sides
            keypoints = np.concatenate([places, np.full((self.num_keypoints, 1), 2)], axis=1)
            annotations.append(
                {
                    "id": person,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": float(sides.prod()),
                    "bbox": [*corner.tolist(), *sides.tolist()],
                    "keypoints": keypoints.flatten().tolist(),
                }
            )
        return {"image": read_image(SAMPLE_IMAGE, "sample"), "image_id": index, "annotations": annotations}


class _Clock:
    """Seconds that the parts of a loop's steps take, in their order."""

    def __init__(self, loop: TrainingLoop):
        self.device = loop.accelerator.device
        self.spent: dict[str, list[float]] = {}
        model = loop.model
        for owner, method in (
            (loop, "_train_on"),
            (model, "forward"),
            (model.model.decoder, "match"),
            (model, "compute_loss"),
            (loop.accelerator, "backward"),
        ):
            self.spent[method] = []
            setattr(owner, method, self._timed(getattr(owner, method), self.spent[method]))

    def _timed(self, function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            synchronize(self.device)
            start = time.perf_counter()
            result = function(*args, **kwargs)
            synchronize(self.device)
            spent.append(time.perf_counter() - start)
            return result

        return timed

    def record(self, folder: Path, steps: int) -> dict[str, Any]:
        """What the last record of the log says, and how the time of its steps was spent."""
        log = [json.loads(line) for line in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]

        def mean(method: str) -> float:
            values = self.spent[method]
            return sum(values[len(values) // 2 :]) / steps  # each step calls it as often

        work, forward, backward = mean("_train_on"), mean("forward"), mean("backward")
        loss = mean("match") + mean("compute_loss")
        wait = log[-1]["data_wait"]
        seconds = (
            work * wait / (1 - wait),
            forward - loss,
            loss,
            backward,
            work - forward - backward,
        )
        return {
            "images_per_second": log[-1]["images_per_second"],
            "data_wait": wait,
            "parts": dict(zip(PARTS, seconds, strict=True)),
        }


@contextlib.contextmanager
def _on_cpu(wanted: bool) -> Iterator[None]:
    """Has Accelerate stay on the CPU, where there is a GPU, too."""
    before = os.environ.get("ACCELERATE_USE_CPU")
    if wanted:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        yield
    finally:
        if before is not None:
            os.environ["ACCELERATE_USE_CPU"] = before
        elif wanted:
            del os.environ["ACCELERATE_USE_CPU"]
