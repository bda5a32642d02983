"""The model taken apart into the steps that are timed."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..model.decoder_querypose import BoxStage, QuerySelection, take_rows
from ..model.modeling_querypose import QueryPoseForPoseEstimation, image_sizes_from_mask
from ..model.rois_querypose import QueryPoseRoiPooler
from .measuring import synchronize


MODEL_STEPS = ("backbone + neck", "boxes", "keypoints")


@torch.no_grad()
def run_steps(
    model: QueryPoseForPoseEstimation,
    pixel_values: Tensor,
    people: int | None,
    on_step: Callable[[str], Any],
    lazily: bool = True,
) -> None:
    """The model's forward pass, step by step; `on_step` hears which one starts, and of the end as an empty name.

    Where queries feed back, boxes and keypoints come in turn, once per stage. What is convolved `lazily` is part of
    the step that reads it.
    """
    decoder = model.model.decoder
    on_step("backbone + neck")
    pyramid = model.model.extract_pyramid(pixel_values, lazily=lazily)
    on_step("boxes")
    pooler = QueryPoseRoiPooler(model.config, pyramid, image_sizes_from_mask(pixel_values, None))
    selection = QuerySelection(top_k=people)
    queries, boxes = decoder.initial_queries(pooler)
    part_queries = decoder.part_queries.expand(queries.shape[:2].numel(), -1, -1)
    found: list[tuple[int, BoxStage]] = []
    for stage in range(len(decoder.box_layers)):
        found.append((stage, decoder.box_stage(stage, pooler, queries, boxes)))
        queries, boxes = found[-1][1].queries, found[-1][1].boxes.detach()
        if decoder.feeds_back and stage < len(decoder.box_layers) - 1:
            on_step("keypoints")
            rows, fed_back = decoder.rows_to_feed_back(found[-1][1], [])
            decoded = decoder.keypoint_stage(stage, pooler, found.pop()[1], take_rows(part_queries, rows), rows)
            queries, part_queries = decoder.feed_back(decoded, queries, part_queries, fed_back)
            on_step("boxes")
    on_step("keypoints")
    decoder.decode(pooler, found, selection, part_queries)
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


def count_multiply_adds(
    model: QueryPoseForPoseEstimation, pixel_values: Tensor, people: int | None, lazily: bool = True
) -> dict[str, int]:
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

        run_steps(model, pixel_values, people, on_step, lazily)
    return spent


def multiply_adds_of_all_queries(model: QueryPoseForPoseEstimation, pixel_values: Tensor) -> int:
    """Multiply-adds of the keypoints of every query, P2 left out.

    Each further query costs the same, so that all of them need not run to be counted.
    """
    one, two = (count_multiply_adds(model, pixel_values, count, lazily=False)["keypoints"] for count in (1, 2))
    return one + (model.config.num_queries - 1) * (two - one)
