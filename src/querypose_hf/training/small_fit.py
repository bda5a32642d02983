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
    height: int = 192,
    width: int = 256,
    learning_rate: float = 2e-3,
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
        height, width (`int`): what all pictures are resized to, in pixels; multiples of 32.
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
        # one size for all: what has been learnt by heart with the padding of a batch is missed without it
        size={"height": height, "width": width},
        num_keypoints=skeleton.num_keypoints,
    )
    batch = image_processor(
        [sample["image"] for sample in samples],
        [{key: sample[key] for key in ("image_id", "annotations")} for sample in samples],
        return_tensors="pt",
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    warm_up = max(1, steps // 10)

    def factor(step: int) -> float:
        return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses = []
    with tqdm(range(steps), desc="Fitting", unit="step") as progress:
        for _ in progress:
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            progress.set_postfix(loss=f"{losses[-1]:.2f}")
    model.eval().save_pretrained(output_dir)
    image_processor.save_pretrained(output_dir)
    return losses
