"""Training runs that something happens to, each in a process of its own."""

import os
import resource
import signal
from pathlib import Path

import PIL.Image
import torch
from kill_training import LENGTH
from small_run import NoiseImages, small_config, small_loop

from querypose_hf.data import AugmentedPoseDataset, PoseAugmentation, ResizeShortSide
from querypose_hf.export.formats import FORMATS
from querypose_hf.files import write_image
from querypose_hf.training.loop import TrainingLoop


def limit_files(largest: int) -> None:
    """No file of this process can become larger than `largest` bytes, as where a disk is full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))


def export_with_little_disk(path: Path) -> None:
    program = torch.export.export(torch.nn.Linear(200, 200), (torch.zeros(1, 200),))
    limit_files(10_000)
    try:
        FORMATS["torch-export"].write(program, path, {})
    except OSError as error:
        print(f"told: {error}", flush=True)
        os._exit(2)


def draw_with_little_disk(path: Path) -> None:
    """A part of the last bytes has room."""
    image = PIL.Image.effect_noise((200, 200), 80)
    write_image(image, path)
    limit_files(path.stat().st_size - 100)
    path.unlink()
    try:
        write_image(image, path)
    except OSError as error:
        print(f"told: {error}", flush=True)
        os._exit(2)


def train_with_little_disk(folder: Path, largest: int | None) -> None:
    torch.set_num_threads(1)
    if largest is not None:
        limit_files(largest)
    try:
        small_loop(folder, small_config(LENGTH, trackers=())).run(resume=True)
    except OSError as error:
        print(f"told: {error}", flush=True)
        os._exit(2)


class DeadlyImages(NoiseImages):
    """Reading the sixth image kills the process that reads it."""

    def __getitem__(self, index):
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def train_with_a_dying_reader(folder: Path) -> None:
    torch.set_num_threads(1)
    small = small_loop(folder, small_config(LENGTH, trackers=()))
    dataset = AugmentedPoseDataset(DeadlyImages(), PoseAugmentation([ResizeShortSide((48, 64), 96)]), seed=5)
    config = small_config(LENGTH, num_workers=1, save_every=1, trackers=())
    try:
        TrainingLoop(small.model, dataset, small.image_processor, config, folder).run()
    except OSError as error:
        print(f"told: {error}", flush=True)
        os._exit(2)


def train_beside_one_that_dies(folder: Path) -> None:
    """One of two processes; the second is killed at the fifth step."""
    torch.set_num_threads(1)
    loop = small_loop(folder, small_config(LENGTH, trackers=()))

    def die(module, args):
        if loop.accelerator.process_index == 1 and loop.step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    loop.model.register_forward_pre_hook(die)
    loop.run()
