"""Batches of a training process."""

import itertools

import torch
from accelerate import Accelerator
from small_run import NoiseImages, small_config

from querypose_hf import QueryPoseImageProcessor
from querypose_hf.data import AugmentedPoseDataset, PoseAugmentation, ResizeShortSide
from querypose_hf.training.loaders import build_loader


def test_labels_stay_on_the_host():
    """Their values are checked without waiting for the device, after skipped batches, too."""
    dataset = AugmentedPoseDataset(NoiseImages(6), PoseAugmentation([ResizeShortSide((48,), 96)]))
    loader = build_loader(dataset, QueryPoseImageProcessor(), small_config(batch_size=2), Accelerator(cpu=True))
    loader.device = torch.device("meta")
    for skipped in (0, 2):
        batches = list(itertools.islice(loader.batches(0, skipped), 4))
        assert len(batches) == 3 - skipped
        for batch in batches:
            assert batch["pixel_values"].is_meta and batch["pixel_mask"].is_meta
            assert all(value.device.type == "cpu" for label in batch["labels"] for value in label.values())
