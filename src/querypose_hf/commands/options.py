"""Options that several commands have; each means the same, and has the same default, in all of them."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..assets import resolve_checkpoint
from ..settings import UsageError


if TYPE_CHECKING:
    import torch

    from ..model.pipeline_querypose import PoseEstimationPipeline


#: Names of the published variants. Their definition, `VARIANTS` of `configuration_querypose`, imports torch.
VARIANTS = ("hrnet_w32", "hrnet_w48", "r50", "swin_b", "swin_l", "swin_t")


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`; the namespace has what `from_pretrained` takes."""
    parser.add_argument(
        "--model",
        type=resolve_checkpoint,
        default="querypose-nano",
        help="checkpoint: folder, Hub id or querypose-nano, which comes with the package (%(default)s)",
    )


def add_threshold_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--threshold`, None unless it is given: the checkpoint's own."""
    parser.add_argument(
        "--threshold",
        type=score,
        help="score threshold: people with a higher score are reported; by default the checkpoint's own, which "
        "training chose",
    )


def keypoint_threshold_of(options: argparse.Namespace) -> float:
    """The value of `--keypoint-threshold`; by default it fits `--threshold`."""
    from ..inference.visualization import keypoint_threshold_for

    given = options.keypoint_threshold
    return keypoint_threshold_for(options.threshold) if given is None else given


def batch_size_of(options: argparse.Namespace) -> int:
    """The value of `--batch-size`, or 8; 1 on a CPU, which one image keeps busy."""
    if options.batch_size is not None:
        return options.batch_size
    return 1 if device_of(options).type == "cpu" else 8


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--device`; [`device_of`] reads it."""
    parser.add_argument("--device", help="such as cpu or cuda:0; the first accelerator by default")


def add_dtype_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--dtype`, None unless it is given: float32."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "auto"),
        help="float32 by default; auto is bfloat16 where it is fast and the sample photograph's people stay the same",
    )


def add_strict_option(parser: Any, what: str = "input") -> None:
    """Adds `--strict`."""
    parser.add_argument(
        "--strict",
        action="store_true",
        help=f"stop at the first {what} that cannot be read; without it the others go on, and the exit status is 1",
    )


def add_engine_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--engine`; [`load_pipeline`] reads it."""
    parser.add_argument(
        "--engine",
        choices=("torch", "auto", "onnx", "openvino"),
        default="torch",
        help="what runs the model: torch, ONNX Runtime, OpenVINO, or on a CPU the fastest that is installed; another "
        "than torch is first exported to, once for each checkpoint, which takes up to a minute (%(default)s)",
    )


def device_of(options: argparse.Namespace) -> "torch.device":
    """The device of `--device`, or the first accelerator, else the CPU.

    Raises:
        UsageError: torch cannot use the device.
    """
    from ..inference.loading import find_device

    with about("--device"):
        return find_device(options.device)


def load_pipeline(options: argparse.Namespace) -> "PoseEstimationPipeline":
    """The pipeline of `--model` on `--device` in `--dtype`, with folded batch norms, run by the `--engine`.

    Raises:
        UsageError: there is no such checkpoint, or torch or the engine cannot use the device.
    """
    from ..inference import loading

    device = device_of(options)
    with about("--model"), without_weights_bar(quiet=getattr(options, "quiet", False)):
        pose_estimator = loading.load_pipeline(options.model, device, options.dtype)
    if getattr(options, "engine", "torch") != "torch":
        _change_engine(pose_estimator, options)
    return pose_estimator


def _change_engine(pose_estimator: "PoseEstimationPipeline", options: argparse.Namespace) -> None:
    from ..export import choose_engine, load_engine

    model: Any = pose_estimator.model
    with about("--engine"):
        engine = choose_engine(options.engine, model.device, model.dtype)
    if engine != "torch":
        pose_estimator.model = load_engine(model, pose_estimator.image_processor, engine, _tell_of_export)


def _tell_of_export(folder: Path) -> None:
    print(f"Exporting the model, once, to {folder} ...", file=sys.stderr, flush=True)


def class_names(pose_estimator: "PoseEstimationPipeline") -> list[str]:
    """What the model finds, such as `["person"]`."""
    names: Any = pose_estimator.model.config.id2label
    return [str(name) for name in names.values()]


@contextlib.contextmanager
def about(flag: str) -> Iterator[None]:
    """Makes a `ValueError` in the block a `UsageError` about a flag."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from error


@contextlib.contextmanager
def without_weights_bar(quiet: bool = False) -> Iterator[None]:
    """Hides Transformers' progress bar of loading weights in the block; that of a download stays unless `quiet`."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()  # the Hub's bars, too
    if not quiet:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def require_folder(flag: str, path: Path) -> None:
    """Raises `UsageError` if the folder that a flag names is a file."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{flag} must be a folder, but {path} is a file.")


def count(text: str) -> int:
    """The `type` of an option that is a whole number of at least 1."""
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def score(text: str) -> float:
    """The `type` of an option that is a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value
