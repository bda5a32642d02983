"""Fits a small model to a handful of pictures, from scratch, in minutes on a CPU.

It learns those pictures by heart: of use to see that a data set, a skeleton or an installation works from annotations
to found people, and to nobody who wants to find people elsewhere.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import BatchFeature

from ..configuration_querypose import QueryPoseConfig
from ..image_processing_querypose import QueryPoseImageProcessor
from ..modeling_querypose import QueryPoseForPoseEstimation
from ..skeletons import COCO_17, Skeleton


def small_config(skeleton: Skeleton = COCO_17) -> QueryPoseConfig:
    """A full QueryPose of 9.5 million parameters: 3 stages, 20 queries, width 64, and ConvNeXt-Atto as the backbone.

    The backbone has layer norms, whose results do not depend on the batch as those of batch norms do. No query is fed
    back: training updates matched queries alone, and a model that has seen a few pictures only does not learn what an
    update that inference gives to all of them would do to the others (AP 0.07 instead of 0.91 on ten photographs).
    """
    return QueryPoseConfig(
        backbone_config={"model_type": "timm_backbone", "backbone": "convnext_atto", "out_indices": [0, 1, 2, 3]},
        d_model=64,
        num_queries=20,
        decoder_layers=3,
        decoder_attention_heads=4,
        decoder_ffn_dim=256,
        dynamic_dim=16,
        part_dim=64,
        num_pose_convs=4,
        query_feedback="never",
        **QueryPoseConfig.skeleton_fields(skeleton),
    )


def fit_small_model(
    samples: Sequence[Mapping[str, Any]],
    output_dir: str | Path,
    *,
    steps: int = 350,
    shortest_edge: int = 192,
    learning_rate: float = 1e-3,
    skeleton: Skeleton = COCO_17,
    seed: int = 0,
) -> list[float]:
    """Fits a new model of [`small_config`] to the samples, all of them in every step, and saves it.

    Args:
        samples (`Sequence[Mapping]`):
            `{"image": PIL.Image, "image_id": int, "annotations": [COCO objects]}`, as the readers of
            `querypose_hf.data` give them.
        output_dir (`str` or `Path`): where model and image processor are saved, for `from_pretrained`.
        steps (`int`): optimizer steps.
        shortest_edge (`int`): shorter side that pictures are resized to, in pixels.
        learning_rate (`float`): peak of the schedule, a linear warm-up and a cosine.
        skeleton ([`Skeleton`]): of the annotations.
        seed (`int`): of the initial weights. Sets torch's global seed.

    Returns:
        `list[float]`: the loss of every step.
    """
    if not samples:
        raise ValueError("`samples` must hold at least one sample, but is empty.")
    torch.manual_seed(seed)
    model = QueryPoseForPoseEstimation(small_config(skeleton)).train()
    image_processor = QueryPoseImageProcessor(
        size={"shortest_edge": shortest_edge, "longest_edge": 2 * shortest_edge},
        num_keypoints=skeleton.num_keypoints,
    )
    batches = _batches_of_one_size(samples, image_processor)
    # Flow and deviations can stand in for each other in the loss. With a slower flow it is the deviations that shrink
    # as keypoints fit, and a person's score with them that rises.
    optimizer = torch.optim.AdamW(
        [
            {"params": [*model.model.parameters()]},
            {"params": [*model.flow.parameters()], "lr": 0.1 * learning_rate},
        ],
        lr=learning_rate,
        weight_decay=1e-4,
    )
    warm_up = max(1, steps // 10)

    def factor(step: int) -> float:
        return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses = []
    with tqdm(range(steps), desc="Fitting", unit="step") as progress:
        for _ in progress:
            optimizer.zero_grad()
            total = 0.0
            for batch, share in batches:
                loss = share * model(**batch).loss
                loss.backward()
                total += loss.item()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(total)
            progress.set_postfix(loss=f"{losses[-1]:.2f}")
    model.eval().save_pretrained(output_dir)
    image_processor.save_pretrained(output_dir)
    return losses


def _batches_of_one_size(
    samples: Sequence[Mapping[str, Any]], image_processor: QueryPoseImageProcessor
) -> list[tuple[BatchFeature, float]]:
    """Batches of pictures that need no padding beyond their own, each with its share of all people.

    A model that has learnt pictures by heart knows their borders too, and would miss the padding of a larger batch.
    """
    by_size: dict[tuple[int, ...], list[BatchFeature]] = {}
    for sample in samples:
        annotation = {key: sample[key] for key in ("image_id", "annotations")}
        encoded = image_processor(sample["image"], annotations=annotation, return_tensors="pt")
        by_size.setdefault(tuple(encoded["pixel_values"].shape), []).append(encoded)
    batches = []
    for group in by_size.values():
        tensors = {name: torch.cat([encoded[name] for encoded in group]) for name in ("pixel_values", "pixel_mask")}
        labels = [label for encoded in group for label in encoded["labels"]]
        batches.append((BatchFeature({**tensors, "labels": labels}), max(1, sum(len(x["boxes"]) for x in labels))))
    people = sum(count for _, count in batches)
    return [(batch, count / people) for batch, count in batches]
