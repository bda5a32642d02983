"""A training run of seconds on images of noise, which tests start, kill and resume."""

import json
import os
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from tiny import tiny_config
from torch.utils.data import Dataset

from querypose_hf import QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.data import AugmentedPoseDataset, HorizontalFlip, PoseAugmentation, ResizeShortSide
from querypose_hf.model.skeletons import COCO_17
from querypose_hf.training.loop import TrainingLoop
from querypose_hf.training.recipe import LearningRateSchedule, TrainingConfig


class NoiseImages(Dataset):
    """Small images, wide and tall, with 0 to 3 people each."""

    def __init__(self, count: int = 11):
        self.sizes = np.array([(64, 48) if index % 2 else (48, 64) for index in range(count)])

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        width, height = self.sizes[index].tolist()
        image = PIL.Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        annotations = []
        for person in range(index % 4):
            x, y = rng.uniform(0, 20, 2)
            keypoints = np.concatenate([rng.uniform((x, y), (x + 24, y + 24), (17, 2)), np.full((17, 1), 2)], axis=1)
            annotations.append(
                {
                    "id": index * 10 + person,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": 500.0,
                    "bbox": [x, y, 24.0, 24.0],
                    "keypoints": keypoints.flatten().tolist(),
                }
            )
        return {"image": image, "image_id": index, "annotations": annotations}


def small_config(length: int = 14, **settings) -> TrainingConfig:
    schedule = LearningRateSchedule(length=length, milestones=(length // 2,) if length > 1 else (), warmup_steps=3)
    defaults = {"learning_rate": 1e-3, "num_workers": 0, "log_every": 1, "save_every": 3, "ema_decay": 0.9}
    return TrainingConfig(**{"schedule": schedule, **defaults, **settings})


def small_loop(folder, config=None, evaluate=None, **model_fields) -> TrainingLoop:
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config(**{"dropout": 0.1, **model_fields}))
    steps = [HorizontalFlip(COCO_17.flip_indices), ResizeShortSide((48, 64), 96)]
    dataset = AugmentedPoseDataset(NoiseImages(), PoseAugmentation(steps), seed=5)
    image_processor = QueryPoseImageProcessor(num_keypoints=17)
    return TrainingLoop(model, dataset, image_processor, config or small_config(), folder, evaluate=evaluate)


def read_log(folder) -> list[dict]:
    lines = (Path(folder) / "training_log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def hang_while_writing_checkpoint(number: int, marker: Path) -> None:
    """Has `torch.save` stop half way through the checkpoint of that number, say so, and wait to be killed."""
    save, calls = torch.save, iter(range(1, 1000))

    def save_or_hang(state, path):
        save(state, path)
        if next(calls) == number:
            os.truncate(path, os.path.getsize(path) // 2)
            marker.touch()
            time.sleep(600)

    torch.save = save_or_hang


def run_or_resume(folder: Path, length: int = 14, hang_in_checkpoint: int | None = None) -> None:
    """Trains, and notes the images of each batch and the final weights."""
    torch.set_num_threads(1)  # sums depend on how many threads share them
    folder.mkdir(exist_ok=True)
    if hang_in_checkpoint is not None:
        hang_while_writing_checkpoint(hang_in_checkpoint, folder / "hanging")
    loop = small_loop(folder, small_config(length), evaluate=lambda model: {"AP": torch.rand(()).item()})
    order = (folder / f"order_{loop.accelerator.process_index}.jsonl").open("a")

    def note_images(module, args, kwargs):
        images = [int(label["image_id"]) for label in kwargs["labels"]]
        order.write(json.dumps({"epoch": loop.epoch, "batch": loop.batch, "images": images}) + "\n")
        order.flush()

    loop.model.register_forward_pre_hook(note_images, with_kwargs=True)
    loop.run(resume=True)
    if loop.accelerator.is_main_process:
        torch.save(
            {"model": loop.model.state_dict(), "average": loop.average.module.state_dict()},
            folder / "weights.pt",
        )
