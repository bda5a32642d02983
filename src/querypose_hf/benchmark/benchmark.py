"""One run of all measurements."""

import copy
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
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
from ..model.configuration_querypose import QueryPoseConfig
from ..model.fusion_querypose import fuse_for_inference
from ..model.image_decoding_querypose import decode_image
from ..model.image_processing_querypose import QueryPoseImageProcessor
from ..model.modeling_querypose import QueryPoseForPoseEstimation
from . import rivals
from .measuring import describe_device, measure_peaks, measure_side_by_side, seconds_of, threads
from .settings import BenchmarkSettings
from .steps import MODEL_STEPS, count_multiply_adds, time_steps
from .training_step import measure_training_step


@dataclass(frozen=True)
class _Subject:
    """What everything is compared at.

    Attributes:
        settings ([`BenchmarkSettings`]): their queries are the model's.
        plain: the model as it is built or given.
        fused: a copy with folded batch norms.
        pixel_values (`Tensor` of shape `(B, 3, height, width)`): the images.
    """

    settings: BenchmarkSettings
    plain: Any
    fused: Any
    pixel_values: Tensor

    @classmethod
    def build(cls, settings: BenchmarkSettings, model: QueryPoseForPoseEstimation | None) -> "_Subject":
        plain: Any = model if model is not None else _random_model(settings, settings.queries[0])
        plain = _placed(plain, settings)
        fused = fuse_for_inference(copy.deepcopy(plain))
        return cls(settings, plain, fused, _images(settings, settings.batch_sizes[0], settings.image_sizes[0]))

    @property
    def people(self) -> int:
        return self.settings.people[0]

    @property
    def base(self) -> dict[str, Any]:
        return {
            "people": self.people,
            "queries": self.settings.queries[0],
            "image_size": list(self.settings.image_sizes[0]),
            "batch_size": self.settings.batch_sizes[0],
        }


def run_benchmark(settings: BenchmarkSettings, model: QueryPoseForPoseEstimation | None = None) -> dict[str, Any]:
    """Measures everything in one run.

    Args:
        model (*optional*): by default one of random weights; a model that is given keeps its number of queries.

    Returns:
        `dict`: `device`, `versions`, `settings`, `peaks_multiply_adds_per_s`, `steps`, `image_path`, `comparison` and,
        where asked for, `training` at the first settings, and `variations`.
    """
    if model is not None:
        settings = replace(settings, queries=(model.config.num_queries,))
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    with threads(settings.num_threads):
        subject = _Subject.build(settings, model)
        peaks = measure_peaks(device, dtype, settings.rounds)
        results: dict[str, Any] = {
            "device": describe_device(device),
            "dtype": settings.dtype,
            "versions": {
                "querypose_hf": __version__,
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "transformers": transformers.__version__,
            },
            # folders by their names: a record is to be shared
            "settings": {**asdict(settings), "exported": [Path(folder).name for folder in settings.exported]},
            "peaks_multiply_adds_per_s": peaks,
            "base": subject.base,
            "steps": _steps(subject, peaks["convolution"]),
            "image_path": _image_path(subject),
            "comparison": _comparison(subject),
        }
        if settings.training:
            results["training"] = measure_training_step(
                subject.plain, subject.pixel_values, subject.people, settings.rounds, settings.full_rounds
            )
        results["variations"] = [*_variations(subject), *_other_queries(subject)]
    return results


def _variations(subject: _Subject) -> Iterator[dict[str, Any]]:
    """People, image sizes and batch sizes, one varied at a time."""
    settings, base = subject.settings, subject.base
    variations = [{**base, "people": value} for value in settings.people[1:]]
    variations += [{**base, "image_size": list(value)} for value in settings.image_sizes[1:]]
    variations += [{**base, "batch_size": value} for value in settings.batch_sizes[1:]]
    for varied in variations:
        pixel_values = _images(settings, varied["batch_size"], varied["image_size"])
        label = f"{varied['people']} people, {tuple(pixel_values.shape)}"
        work = _forward(subject.fused, pixel_values, varied["people"])
        found = measure_side_by_side({"": work}, {"": settings.rounds}, pixel_values.device, label)
        yield {**varied, **found[""]}


def _other_queries(subject: _Subject) -> Iterator[dict[str, Any]]:
    """Models of other numbers of queries, side by side with the first one."""
    settings = subject.settings
    if len(settings.queries) < 2:
        return
    models = {settings.queries[0]: subject.fused}
    for queries in settings.queries[1:]:
        models[queries] = fuse_for_inference(_placed(_random_model(settings, queries), settings))
    work = {str(queries): _forward(model, subject.pixel_values, subject.people) for queries, model in models.items()}
    rounds = dict.fromkeys(work, settings.rounds)
    for name, found in measure_side_by_side(work, rounds, subject.pixel_values.device, "Queries").items():
        yield {**subject.base, "queries": int(name), **found}


def _random_model(settings: BenchmarkSettings, queries: int) -> QueryPoseForPoseEstimation:
    torch.manual_seed(0)
    overrides = {**settings.overrides, "num_queries": queries}
    config = QueryPoseConfig.from_variant(settings.variant, light=settings.light, **overrides)
    model = QueryPoseForPoseEstimation(config)
    with torch.no_grad():  # the boxes of new queries are the whole image, those of trained ones are people
        boxes = model.model.decoder.initial_boxes
        boxes.copy_(torch.cat([0.1 + 0.8 * torch.rand(queries, 2), 0.1 + 0.4 * torch.rand(queries, 2)], dim=1))
        # random deltas would move the boxes out of the image, where RoIAlign has nothing to do
        for layer in model.model.decoder.box_layers:
            layer.box_head.weight.zero_()
            layer.box_head.bias.zero_()
    return model


def _placed(model: Any, settings: BenchmarkSettings) -> Any:
    return model.to(device=settings.device, dtype=getattr(torch, settings.dtype)).eval()


def _images(settings: BenchmarkSettings, batch_size: int, size: Sequence[int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, *size, generator=generator)
    return images.to(settings.device, getattr(torch, settings.dtype))


def _forward(model: Any, pixel_values: Tensor, people: int | None) -> Callable[[], Any]:
    return lambda: model(pixel_values, keypoint_top_k=people)


def _steps(subject: _Subject, peak: float) -> dict[str, Any]:
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
    # each query costs the same, so that all of them need not run to be counted
    steps["keypoints"]["multiply_adds_of_all_queries"] = (
        multiply_adds["keypoints"] // people * model.config.num_queries
    )
    return steps


def _image_path(subject: _Subject) -> dict[str, Any]:
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


def _random_outputs(subject: _Subject) -> dict[str, Tensor]:
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


def _comparison(subject: _Subject) -> dict[str, Any]:
    """The model with keypoints of the people alone, side by side with other ways."""
    settings, plain, fused = subject.settings, subject.plain, subject.fused
    pixel_values, people = subject.pixel_values, subject.people
    ways: dict[str, Callable[[], Any]] = {
        "selective": _forward(fused, pixel_values, people),
        "selective, nothing folded": _forward(plain, pixel_values, people),
    }
    if settings.compile:
        compiled = torch.compile(fused, fullgraph=True, dynamic=False)
        ways["selective, compiled"] = _forward(compiled, pixel_values, people)
    for folder in settings.exported:
        name, ways[name] = rivals.exported(Path(folder), pixel_values, settings.num_threads)
    if "keypoint-rcnn" in settings.compare:
        ways["torchvision Keypoint R-CNN R50-FPN"] = rivals.keypoint_rcnn(pixel_values, people)
    if "top-down" in settings.compare:
        ways["RT-DETR R50 + ViTPose-B"] = rivals.top_down(pixel_values, people)
    rounds = dict.fromkeys(ways, settings.rounds)
    full = {"full": ("full decoding", fused), "plain": ("full decoding, nothing folded", plain)}
    for name, model in (full[each] for each in ("full", "plain") if each in settings.compare):
        ways[name], rounds[name] = _forward(model, pixel_values, None), settings.full_rounds
    found = measure_side_by_side(ways, rounds, pixel_values.device, "Side by side")
    for each in found.values():
        each["times_of_selective"] = each["median_s"] / found["selective"]["median_s"]
    return found
