"""One run of all measurements."""

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import torchvision
import transformers
from torch import Tensor
from tqdm.auto import tqdm

from .. import __version__
from ..assets import SAMPLE_IMAGE
from ..model.image_decoding_querypose import decode_image
from ..model.image_processing_querypose import QueryPoseImageProcessor
from ..model.modeling_querypose import QueryPoseForPoseEstimation
from . import rivals
from .engines import measure_engines
from .measuring import describe_device, measure_peaks, measure_side_by_side, seconds_of, threads
from .settings import BenchmarkSettings
from .steps import MODEL_STEPS, count_multiply_adds, multiply_adds_of_all_queries, time_steps
from .subject import Subject, forward_of
from .training_step import measure_fine_tuning, measure_training_step


def run_benchmark(settings: BenchmarkSettings, model: QueryPoseForPoseEstimation | None = None) -> dict[str, Any]:
    """Measures everything in one run.

    Args:
        model (*optional*): by default one of random weights; a model that is given keeps its number of queries.

    Returns:
        `dict`: `model`, `device`, `versions`, `settings`, `peaks_multiply_adds_per_s`, `steps`, `image_path`,
        `comparison`, `arithmetic_at_peak_s` (of the model's multiply-adds, at the peak of convolutions) and, where
        asked for, `engines`, `training` and `fine_tuning`; all at the first settings.
    """
    name = settings.variant_name
    if model is not None:
        name = Path(model.name_or_path or type(model).__name__).name
        settings = replace(settings, queries=(model.config.num_queries,), people=settings.people[:1])
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    with threads(settings.num_threads[0] if settings.num_threads else None):
        subject = Subject.build(settings, model)
        peaks = measure_peaks(device, dtype, settings.rounds)
        results: dict[str, Any] = {
            "model": name,
            "device": describe_device(device),
            "dtype": settings.dtype,
            "versions": {
                "querypose_hf": __version__,
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "transformers": transformers.__version__,
            },
            "settings": asdict(settings),
            "peaks_multiply_adds_per_s": peaks,
            "base": subject.base,
            "steps": _steps(subject, peaks["convolution"]),
            "image_path": _image_path(subject),
            "comparison": _comparison(subject),
        }
        multiply_adds = sum(step["multiply_adds"] for step in results["steps"].values())
        results["arithmetic_at_peak_s"] = multiply_adds / peaks["convolution"]
        if settings.engines:
            results["engines"] = measure_engines(subject.plain, subject.fused, subject.pixel_values, settings)
        if settings.training:
            results["training"] = measure_training_step(
                subject.plain, subject.pixel_values, subject.people, settings.rounds, settings.full_rounds
            )
            results["fine_tuning"] = measure_fine_tuning(subject.plain, settings)
    return results


def _steps(subject: Subject, peak: float) -> dict[str, Any]:
    """The model's steps, and what share of the convolution peak each reaches."""
    model, pixel_values, people = subject.fused, subject.pixel_values, subject.people
    multiply_adds = count_multiply_adds(model, pixel_values, people)
    passes = [
        time_steps(model, pixel_values, people, pixel_values.device)
        for _ in tqdm(range(subject.settings.rounds + 1), desc="Steps", unit="run", leave=False)
    ][1:]
    steps: dict[str, Any] = {}
    for name in MODEL_STEPS:
        median = statistics.median(each[name] for each in passes)
        steps[name] = {
            "median_s": median,
            "multiply_adds": multiply_adds[name],
            "share_of_convolution_peak": multiply_adds[name] / median / peak,
        }
    steps["keypoints"]["multiply_adds_of_all_queries"] = multiply_adds_of_all_queries(model, pixel_values)
    return steps


def _image_path(subject: Subject) -> dict[str, Any]:
    """What comes before and after the model, for a JPEG of 640 pixels on its long side."""
    settings = subject.settings
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    height, width = settings.image_sizes[0]
    processor = QueryPoseImageProcessor(size={"height": height, "width": width})
    outputs = _random_outputs(subject)
    with tempfile.TemporaryDirectory() as folder, PIL.Image.open(SAMPLE_IMAGE) as image:
        path = Path(folder) / "image.jpg"
        scale = 640 / max(height, width)
        image.resize((round(width * scale), round(height * scale))).save(path, quality=92)
        pixels = decode_image(path)
        work: dict[str, Callable[[], Any]] = {
            "decode": lambda: decode_image(path),
            "preprocess": lambda: processor(pixels, return_tensors="pt")["pixel_values"].to(device, dtype),
            "post-process": lambda: processor.post_process_pose_estimation(
                outputs, threshold=0.0, target_sizes=[(height, width)]
            ),
        }
        return {
            name: {"median_s": statistics.median([seconds_of(each, device) for _ in range(3 * settings.rounds)][1:])}
            for name, each in work.items()
        }


def _random_outputs(subject: Subject) -> dict[str, Tensor]:
    """A model's outputs for one image, with the keypoints of as many queries as there are people."""
    generator = torch.Generator().manual_seed(0)
    config = subject.fused.config
    keypoints = len(config.keypoint_names or ())

    def rand(*shape: int) -> Tensor:
        return torch.rand(1, config.num_queries, *shape, generator=generator).to(subject.settings.device)

    outputs = {
        "logits": rand(1),
        "pred_boxes": rand(4),
        "pred_keypoints": rand(keypoints, 2),
        "keypoint_scores": rand(keypoints),
    }
    mask = torch.arange(config.num_queries, device=subject.settings.device)[None] < subject.people
    return {**outputs, "keypoint_query_mask": mask}


def _comparison(subject: Subject) -> dict[str, Any]:
    """The model with keypoints of the people alone, side by side with other ways."""
    settings, plain, fused = subject.settings, subject.plain, subject.fused
    pixel_values, people = subject.pixel_values, subject.people
    ways: dict[str, Callable[[], Any]] = {
        "selective": forward_of(fused, pixel_values, people),
        "selective, nothing folded": forward_of(plain, pixel_values, people),
    }
    if "keypoint-rcnn" in settings.compare:
        ways["torchvision Keypoint R-CNN R50-FPN"] = rivals.keypoint_rcnn(pixel_values, people)
    if "top-down" in settings.compare:
        ways["RT-DETR R50 + ViTPose-B"] = rivals.top_down(pixel_values, people)
    rounds = dict.fromkeys(ways, settings.rounds)
    full = {"full": ("full decoding", fused), "plain": ("full decoding, nothing folded", plain)}
    for name, model in (full[each] for each in ("full", "plain") if each in settings.compare):
        ways[name], rounds[name] = forward_of(model, pixel_values, None), settings.full_rounds
    found = measure_side_by_side(ways, rounds, pixel_values.device, "Side by side")
    for each in found.values():
        each["times_of_selective"] = each["median_s"] / found["selective"]["median_s"]
    return found
