"""Gradients of one batch, by one process or as one of several, in float64."""

from pathlib import Path

import torch
from tiny import people, tiny_config
from torch import nn

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.training.loop import build_accelerator
from querypose_hf.training.recipe import TrainingConfig


#: People in each image of the batch, and fields of the model's configuration.
CASES = {
    "unequal": ([3, 0, 1, 2], {}),
    "process_without_people": ([4, 1, 0, 0], {}),
    "unused_parameters": ([2, 1, 0, 5], {"auxiliary_loss": False, "backbone": "swin"}),
}


def model_and_batch(case: str) -> tuple[QueryPoseForPoseEstimation, dict]:
    counts, fields = CASES[case]
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config(**fields)).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # in training it sees only the people of its own process
            module.eval()
    pixels = torch.randn(len(counts), 3, 64, 96, dtype=torch.float64)
    labels = [
        {name: value.double() if value.is_floating_point() else value for name, value in people(count, seed=i).items()}
        for i, count in enumerate(counts)
    ]
    return model, {"pixel_values": pixels, "labels": labels}


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def write_gradients(folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    accelerator = build_accelerator(TrainingConfig(trackers=()), folder)
    rank, size = accelerator.process_index, accelerator.num_processes
    for case in CASES:
        model, batch = model_and_batch(case)
        share = len(batch["labels"]) // size
        batch = {name: value[rank * share : (rank + 1) * share] for name, value in batch.items()}
        prepared = accelerator.prepare(model)
        for _ in range(2):  # a parameter whose gradient never came would make the second pass fail
            model.zero_grad()
            loss = prepared(**batch).loss
            accelerator.backward(loss)
        mean_loss = accelerator.reduce(loss.detach(), reduction="mean")
        if accelerator.is_main_process:
            torch.save({"loss": mean_loss, "gradients": gradients_of(model), "processes": size}, folder / f"{case}.pt")
