"""One run of all measurements."""

import copy
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
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
from ..model.image_decoding_querypose import decode_image
from ..model.image_processing_querypose import QueryPoseImageProcessor
from ..model.modeling_querypose import QueryPoseForPoseEstimation
from ..weights.fusion import fuse_for_inference
from . import rivals
from .measuring import describe_device, measure_peaks, measure_side_by_side, seconds_of, threads
from .steps import MODEL_STEPS, count_multiply_adds, time_steps
from .training_step import measure_training_step


@dataclass
class BenchmarkSettings:
    """What is measured. The first value of each list is the setting that everything is compared at; each of the others
    is measured with the first ones of the other lists.

    Args:
        variant, light: see [`QueryPoseConfig.from_variant`]; not used where a model is given.
        people: people in the image. With random weights that means that the keypoints of exactly so many queries are
            decoded, as they are where a trained model sees as many people.
        queries: numbers of instance queries.
        image_sizes: heights and widths of the model's input, multiples of 32.
        batch_sizes: images per forward pass.
        rounds, full_rounds: how often each is timed, and full decoding, which is slow.
        compare: of `"full"` (every query decoded, in the same build), `"plain"` (every query decoded, nothing folded),
            `"keypoint-rcnn"` and `"top-down"`, see [`rivals`].
        exported: folders that `querypose export` wrote.
        compile: also time the model compiled by torch.
        training: also time a training step.
    """

    variant: str = "r50"
    light: bool = True
    people: Sequence[int] = (8, 1, 2, 4, 20)
    queries: Sequence[int] = (100, 300)
    image_sizes: Sequence[tuple[int, int]] = ((800, 1216), (480, 640))
    batch_sizes: Sequence[int] = (1, 2)
    rounds: int = 5
    full_rounds: int = 3
    compare: Sequence[str] = ("full", "plain", "keypoint-rcnn", "top-down")
    exported: Sequence[str] = ()
    compile: bool = False
    training: bool = False
    device: str = "cpu"
    dtype: str = "float32"
    num_threads: int | None = None
    overrides: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises `ValueError` where a value is out of range."""
        for name in ("people", "queries", "batch_sizes"):
            values = getattr(self, name)
            if not values or any(value < 1 for value in values):
                raise ValueError(f"`{name}` is {list(values)}; expected one or more numbers of at least 1.")
        if max(self.people) > min(self.queries):
            raise ValueError(f"`people` is {list(self.people)}; expected at most {min(self.queries)}, the queries.")
        if not self.image_sizes or any(side < 32 or side % 32 for size in self.image_sizes for side in size):
            raise ValueError(f"`image_sizes` is {list(self.image_sizes)}; expected multiples of 32.")
        for name in ("rounds", "full_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; expected at least 1.")
        if unknown := set(self.compare) - {"full", "plain", "keypoint-rcnn", "top-down"}:
            raise ValueError(f"`compare` holds {sorted(unknown)}; expected full, plain, keypoint-rcnn or top-down.")
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"`dtype` is {self.dtype!r}; expected float32, bfloat16 or float16.")


def run_benchmark(settings: BenchmarkSettings, model: QueryPoseForPoseEstimation | None = None) -> dict[str, Any]:
    """Measures everything in one run.

    Args:
        model (*optional*): by default one of random weights; a model that is given keeps its number of queries.

    Returns:
        `dict`: `device`, `versions`, `settings`, `peaks` (multiply-adds per second), `steps`, `comparison` and, where
        asked for, `training` at the first settings, and `variations`.
    """
    settings.check()
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    with threads(settings.num_threads):
        people, queries = settings.people[0], settings.queries[0]
        size, batch_size = settings.image_sizes[0], settings.batch_sizes[0]
        plain: Any = model if model is not None else _random_model(settings, queries)
        plain = _placed(plain, device, dtype)
        queries = plain.config.num_queries
        fused: Any = fuse_for_inference(copy.deepcopy(plain))
        peaks = measure_peaks(device, dtype)
        pixel_values = _images(batch_size, size, device, dtype)
        base = {"people": people, "queries": queries, "image_size": list(size), "batch_size": batch_size}
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
            "base": base,
        }
        results["steps"] = _steps(fused, pixel_values, people, settings, peaks["convolution"])
        results["image_path"] = _image_path(fused, people, size, settings)
        results["comparison"] = _comparison(plain, fused, pixel_values, people, settings)
        if settings.training:
            results["training"] = measure_training_step(
                plain, pixel_values, people, settings.rounds, settings.full_rounds
            )
        del plain
        variations = [{**base, "people": value} for value in settings.people[1:]]
        variations += [{**base, "image_size": list(value)} for value in settings.image_sizes[1:]]
        variations += [{**base, "batch_size": value} for value in settings.batch_sizes[1:]]
        results["variations"] = []
        for varied in variations:
            pixel_values = _images(varied["batch_size"], varied["image_size"], device, dtype)
            found = _time_model(fused, pixel_values, varied["people"], settings)
            results["variations"].append({**varied, **found})
        if model is None:
            other = [
                (value, fuse_for_inference(_placed(_random_model(settings, value), device, dtype)))
                for value in settings.queries[1:]
            ]
            pixel_values = _images(batch_size, size, device, dtype)
            if other:
                # the first number of queries again, side by side
                alternatives = {
                    str(value): _forward(each, pixel_values, people) for value, each in [(queries, fused), *other]
                }
                rounds = dict.fromkeys(alternatives, settings.rounds)
                for name, found in measure_side_by_side(alternatives, rounds, device, "Queries").items():
                    results["variations"].append({**base, "queries": int(name), **found})
    return results


def _random_model(settings: BenchmarkSettings, queries: int) -> QueryPoseForPoseEstimation:
    torch.manual_seed(0)
    overrides = {**settings.overrides, "num_queries": queries}
    config = QueryPoseConfig.from_variant(settings.variant, light=settings.light, **overrides)
    model = QueryPoseForPoseEstimation(config)
    with torch.no_grad():  # new queries all look at the whole image; trained ones look at people
        boxes = model.model.decoder.initial_boxes
        boxes.copy_(torch.cat([0.1 + 0.8 * torch.rand(queries, 2), 0.1 + 0.4 * torch.rand(queries, 2)], dim=1))
        # and random deltas would move them out of the picture, where RoIAlign has nothing to do
        for layer in model.model.decoder.box_layers:
            layer.box_head.weight.zero_()
            layer.box_head.bias.zero_()
    return model


def _placed(model: Any, device: torch.device, dtype: torch.dtype) -> Any:
    return model.to(device=device, dtype=dtype).eval()


def _images(batch_size: int, size: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, 3, *size, generator=generator).to(device, dtype)


def _forward(model: Any, pixel_values: Tensor, people: int | None) -> Callable[[], Any]:
    return lambda: model(pixel_values, keypoint_top_k=people)


def _time_model(
    model: QueryPoseForPoseEstimation, pixel_values: Tensor, people: int, settings: BenchmarkSettings
) -> dict[str, Any]:
    found = measure_side_by_side(
        {"": _forward(model, pixel_values, people)},
        {"": settings.rounds},
        pixel_values.device,
        f"{people} people, {tuple(pixel_values.shape)}",
    )
    return found[""]


def _steps(
    model: QueryPoseForPoseEstimation,
    pixel_values: Tensor,
    people: int,
    settings: BenchmarkSettings,
    peak: float,
) -> dict[str, Any]:
    multiply_adds = count_multiply_adds(model, pixel_values, people)
    passes = [
        time_steps(model, pixel_values, people, pixel_values.device)
        for _ in tqdm(range(settings.rounds + 1), desc="Steps", unit="run", leave=False)
    ][1:]
    steps: dict[str, Any] = {}
    for name in MODEL_STEPS:
        median = statistics.median(each[name] for each in passes)
        steps[name] = {
            "median_s": median,
            "multiply_adds": multiply_adds[name],
            "share_of_convolution_peak": multiply_adds[name] / median / peak,
        }
    # each RoI takes the same, so that all queries' need not be run to be counted
    steps["keypoints"]["multiply_adds_of_all_queries"] = (
        multiply_adds["keypoints"] // people * model.config.num_queries
    )
    return steps


def _image_path(
    model: QueryPoseForPoseEstimation, people: int, size: Sequence[int], settings: BenchmarkSettings
) -> dict[str, Any]:
    """What comes before and after the model, of one photograph-like JPEG of 640 pixels on its long side."""
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    height, width = size
    processor = QueryPoseImageProcessor(size={"height": height, "width": width})
    generator = torch.Generator().manual_seed(0)
    queries = model.config.num_queries
    keypoints = len(model.config.keypoint_names or ())

    def rand(*shape: int) -> Tensor:
        return torch.rand(1, queries, *shape, generator=generator).to(device)

    mask = torch.zeros(1, queries, dtype=torch.bool, device=device)
    mask[:, :people] = True
    outputs = {
        "logits": rand(1),
        "pred_boxes": rand(4),
        "pred_keypoints": rand(keypoints, 2),
        "keypoint_scores": rand(keypoints),
        "keypoint_query_mask": mask,
    }
    with tempfile.TemporaryDirectory() as folder, PIL.Image.open(SAMPLE_IMAGE) as picture:
        path = Path(folder) / "picture.jpg"
        scale = 640 / max(size)
        picture.resize((round(width * scale), round(height * scale))).save(path, quality=92)
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


def _comparison(
    plain: QueryPoseForPoseEstimation,
    fused: QueryPoseForPoseEstimation,
    pixel_values: Tensor,
    people: int,
    settings: BenchmarkSettings,
) -> dict[str, Any]:
    alternatives: dict[str, Callable[[], Any]] = {}
    rounds: dict[str, int] = {}

    def add(name: str, work: Callable[[], Any], count: int = settings.rounds) -> None:
        alternatives[name], rounds[name] = work, count

    add("selective", _forward(fused, pixel_values, people))
    add("selective, nothing folded", _forward(plain, pixel_values, people))
    if settings.compile:
        add("selective, compiled", _forward(torch.compile(fused, fullgraph=True, dynamic=False), pixel_values, people))
    for folder in settings.exported:
        add(*rivals.exported(Path(folder), pixel_values, settings.num_threads))
    if "keypoint-rcnn" in settings.compare:
        add("torchvision Keypoint R-CNN R50-FPN", rivals.keypoint_rcnn(pixel_values, people))
    if "top-down" in settings.compare:
        add("RT-DETR R50 + ViTPose-B", rivals.top_down(pixel_values, people))
    if "full" in settings.compare:
        add("full decoding", _forward(fused, pixel_values, None), settings.full_rounds)
    if "plain" in settings.compare:
        add("full decoding, nothing folded", _forward(plain, pixel_values, None), settings.full_rounds)
    found = measure_side_by_side(alternatives, rounds, pixel_values.device, "Side by side")
    for each in found.values():
        each["times_of_selective"] = each["median_s"] / found["selective"]["median_s"]
    return found
