"""The model taken apart into the steps that are timed."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..model.modeling_querypose import QueryPoseForPoseEstimation, QueryPoseStages, image_sizes_from_mask
from .measuring import synchronize


MODEL_STEPS = ("backbone + neck", "boxes", "keypoints")


@torch.no_grad()
def run_steps(
    model: QueryPoseForPoseEstimation, pixel_values: Tensor, people: int | None, on_step: Callable[[str], Any]
) -> None:
    """The model's forward pass, step by step; `on_step` hears which one starts, and of the end as an empty name.

    Where queries feed back, boxes and keypoints come in turn, once per stage.
    """
    decoder = model.model.decoder
    on_step("backbone + neck")
    pyramid = model.model.extract_pyramid(pixel_values)
    on_step("boxes")
    stages = QueryPoseStages(decoder, pyramid, image_sizes_from_mask(pixel_values, None), output_attentions=False)
    for stage in range(len(decoder.box_layers)):
        stages.run_box_layer(stage)
        if decoder.feeds_back:
            on_step("keypoints")
            rows = decoder.select_queries(stages.logits[stage], people, None)
            stages.run_keypoint_layer(stage, rows, feed_back=True)
            on_step("boxes")
    if not decoder.feeds_back:
        on_step("keypoints")
        stages.decode_keypoints(decoder.select_queries(stages.logits[-1], people, None))
    on_step("")


def time_steps(
    model: QueryPoseForPoseEstimation, pixel_values: Tensor, people: int | None, device: torch.device
) -> dict[str, float]:
    """Seconds of each step in one pass."""
    spent = dict.fromkeys(MODEL_STEPS, 0.0)
    current, since = "", 0.0

    def on_step(name: str) -> None:
        nonlocal current, since
        synchronize(device)
        now = time.perf_counter()
        if current:
            spent[current] += now - since
        current, since = name, now

    run_steps(model, pixel_values, people, on_step)
    return spent


def count_multiply_adds(model: QueryPoseForPoseEstimation, pixel_values: Tensor, people: int | None) -> dict[str, int]:
    """Multiply-adds of the matrix products and convolutions of each step; RoIAlign, norms and softmax are not in."""
    spent = dict.fromkeys(MODEL_STEPS, 0)
    current, since = "", 0
    with FlopCounterMode(display=False) as counter:

        def on_step(name: str) -> None:
            nonlocal current, since
            now = counter.get_total_flops()
            if current:
                spent[current] += (now - since) // 2
            current, since = name, now

        run_steps(model, pixel_values, people, on_step)
    return spent
