"""The model taken apart into the steps that are timed."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..model.decoder_querypose import BoxStage, QueryPoseDecoder, QuerySelection, lay_out, take_rows
from ..model.modeling_querypose import QueryPoseForPoseEstimation, image_sizes_from_mask
from ..model.rois_querypose import QueryPoseRoiPooler
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
    pooler = QueryPoseRoiPooler(model.config, pyramid, image_sizes_from_mask(pixel_values, None))
    selection = QuerySelection(top_k=people)
    if not decoder.feeds_back:
        box_stages = run_box_stages(decoder, pooler)
        on_step("keypoints")
        decoder.decode(pooler, box_stages, selection, keeps_maps=False)
        on_step("")
        return
    queries, boxes = decoder.initial_queries(pooler)
    part_queries = decoder.part_queries.expand(queries.shape[:2].numel(), -1, -1)
    for stage in range(len(decoder.box_layers)):
        on_step("boxes")
        found = decoder.box_stage(stage, pooler, queries, boxes)
        on_step("keypoints")
        rows = decoder.best_rows(found.logits, selection)
        decoded = decoder.keypoint_stage(stage, pooler, found, take_rows(part_queries, rows), rows)
        part_queries = lay_out(decoded.part_queries, rows, part_queries)
        queries = lay_out(decoded.queries, rows, found.queries.flatten(0, 1)).view_as(queries)
        boxes = found.boxes.detach()
    on_step("")


def run_box_stages(decoder: QueryPoseDecoder, pooler: QueryPoseRoiPooler) -> list[BoxStage]:
    """All box stages of a model whose keypoints do not feed back."""
    queries, boxes = decoder.initial_queries(pooler)
    stages: list[BoxStage] = []
    for stage in range(len(decoder.box_layers)):
        stages.append(decoder.box_stage(stage, pooler, queries, boxes))
        queries, boxes = stages[-1].queries, stages[-1].boxes.detach()
    return stages


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
