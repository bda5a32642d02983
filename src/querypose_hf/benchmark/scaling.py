"""How time and memory grow, measured point by point, each in a process of its own; and the picture of it."""

import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .. import __version__
from ..assets import SAMPLE_IMAGE
from ..evaluation.charts import chart_grid, line_chart
from ..files import read_text, write_text
from ..inference.bulk import BulkReport, predict_to_parquet
from ..inference.image_dataset import open_image_dataset
from ..inference.loading import load_model
from ..inference.options import BulkOptions
from ..model.configuration_querypose import QueryPoseConfig
from ..model.fusion_querypose import fuse_for_inference
from ..model.image_processing_querypose import QueryPoseImageProcessor
from ..model.pipeline_querypose import PoseEstimationPipeline
from .measuring import describe_device, measure_side_by_side, peak_memory_of, threads
from .settings import BenchmarkSettings
from .subject import build_images, build_model, forward_of


#: The lists of [`BenchmarkSettings`] that are varied, and what the axis of their curves is called.
AXES = {
    "people": "people in the image",
    "queries": "queries",
    "image_sizes": "long side of the image in pixels",
    "batch_sizes": "images per forward pass",
    "processes": "processes that share a dataset",
}
#: Images of a dataset for each process and round.
_IMAGES = 2


@dataclass(frozen=True)
class Point:
    """What one measurement is made at: one value of each list."""

    people: int
    queries: int
    image_sizes: tuple[int, int]
    batch_sizes: int
    processes: int | None = None  #: `None`: a forward pass is timed, in place of processes that share a dataset.


def points_of(settings: BenchmarkSettings, axis: str) -> list[Point]:
    """The points of an axis, in rising order."""
    base = Point(*(getattr(settings, name)[0] for name in AXES if name != "processes"))
    return [replace(base, **{axis: value}) for value in sorted(getattr(settings, axis))]


def measure_scaling(settings: BenchmarkSettings, path: Path, picture: Path, model: str | None = None) -> None:
    """Measures every point, and writes their records and the curves.

    The records are written after each point, so that a run that was stopped goes on with the points that are missing.
    A point whose process dies, as without enough memory, has an `error` and is tried again by the next run.

    Args:
        settings ([`BenchmarkSettings`]): each value of the lists [`AXES`] is varied alone.
        path (`Path`): JSON lines, one for each point; points of other settings in it stay.
        picture (`Path`): the curves as SVG.
        model (`str`, *optional*): a checkpoint, whose number of queries is not varied; by default random weights.
    """
    if model is not None:
        own = QueryPoseConfig.from_pretrained(model).num_queries
        settings = replace(settings, queries=(own,), people=tuple(n for n in settings.people if n <= own))
    run = _run_of(settings, model)
    axes = {axis: points_of(settings, axis) for axis in AXES}
    points = list(dict.fromkeys(point for each in axes.values() for point in each))
    records = _read(path)
    measured = {_point(record): record for record in records if record["run"] == run and "error" not in record}
    for point in tqdm(points, desc="Scaling", unit="point"):
        if point in measured:
            continue
        record = {"run": run, "point": asdict(point), **_in_own_process(settings, point, model)}
        records.append(record)
        measured[point] = record
        write_text("".join(json.dumps(each) + "\n" for each in records), path)
    write_text(draw_scaling(axes, measured), picture)


def _run_of(settings: BenchmarkSettings, model: str | None) -> dict[str, Any]:
    """What has to be the same for points to be compared."""
    with threads(settings.num_threads[0] if settings.num_threads else None):
        device = describe_device(torch.device(settings.device))
    return {
        "model": settings.variant_name if model is None else Path(model).name,
        "device": device,
        "dtype": settings.dtype,
        "rounds": settings.rounds,
        "overrides": settings.overrides if model is None else {},
        "querypose_hf": __version__,
        "torch": torch.__version__,
    }


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_text(path).splitlines()] if path.exists() else []


def _point(record: dict[str, Any]) -> Point:
    found = record["point"]
    return Point(**{**found, "image_sizes": tuple(found["image_sizes"])})


def _in_own_process(settings: BenchmarkSettings, point: Point, model: str | None) -> dict[str, Any]:
    """Measures a point where memory has not been used before."""
    count = point.processes or 1
    with tempfile.TemporaryDirectory() as name, _pool(count) as pool:
        folder = Path(name)
        if point.processes is None:
            work = [pool.submit(_measure, settings, point, model)]
        else:
            images = _IMAGES * settings.rounds * max(settings.processes)
            for number in range(images):
                shutil.copyfile(SAMPLE_IMAGE, folder / f"{number:04d}.jpg")
            work = [pool.submit(_find_people, settings, point, model, folder, rank) for rank in range(count)]
        try:
            found = [each.result() for each in work]
        except BrokenProcessPool:
            return {"error": "the process died, as without enough memory"}
    if point.processes is None:
        return found[0]
    memory = [each["peak_memory_bytes"] for each in found]
    return {
        "images_per_second": images / max(each["seconds"] for each in found),
        "peak_memory_bytes": None if None in memory else sum(memory),
    }


def _pool(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, multiprocessing.get_context("spawn"))


def _at(settings: BenchmarkSettings, point: Point) -> BenchmarkSettings:
    values: dict[str, Any] = {name: (value,) for name, value in asdict(point).items() if value is not None}
    return replace(settings, **{**values, "image_sizes": (point.image_sizes,)})


def _fused(settings: BenchmarkSettings, model: str | None) -> Any:
    """The folded model alone: another one beside it would count as its memory."""
    if model is not None:
        return build_model(settings, load_model(model, device="cpu")[0])
    return fuse_for_inference(build_model(settings, None))


def _measure(settings: BenchmarkSettings, point: Point, model: str | None) -> dict[str, Any]:
    """Times a forward pass."""
    with threads(settings.num_threads[0] if settings.num_threads else None):
        settings = _at(settings, point)
        images = build_images(settings)
        work = forward_of(_fused(settings, model), images, point.people)
        return measure_side_by_side({"": work}, {"": settings.rounds}, images.device, "Rounds")[""]


def _find_people(
    settings: BenchmarkSettings, point: Point, model: str | None, folder: Path, number: int
) -> dict[str, Any]:
    """Does one process's share of a dataset, as `querypose predict --dataset` does."""
    count = point.processes or 1
    os.environ.update({"RANK": str(number), "WORLD_SIZE": str(count)})
    with threads(max(1, (settings.num_threads[0] if settings.num_threads else torch.get_num_threads()) // count)):
        fused = _fused(_at(settings, point), model)
        fused.config.keypoint_top_k = point.people
        height, width = point.image_sizes
        sides = {"shortest_edge": min(height, width), "longest_edge": max(height, width)}
        pose_estimator = PoseEstimationPipeline(
            model=fused,
            image_processor=QueryPoseImageProcessor(size=sides),
            task="pose-estimation",
            device=fused.device,
        )
        dataset = open_image_dataset(folder)
        options = BulkOptions(
            threshold=0.0,
            top_k=point.people,
            batch_size=point.batch_sizes,
            rows_per_shard=len(dataset) // max(settings.processes),
        )
        # the first images take longer
        first = [str(SAMPLE_IMAGE)] * point.batch_sizes
        pose_estimator(first, threshold=0.0, top_k=point.people, batch_size=point.batch_sizes)
        # all at once: a process that is late would have the machine for itself
        (folder / f"{number}.ready").touch()
        while len([*folder.glob("*.ready")]) < count:
            time.sleep(0.01)
        reports: list[BulkReport] = []
        memory = peak_memory_of(
            lambda: reports.append(
                predict_to_parquet(
                    pose_estimator, dataset, folder / "people", options, model_name="benchmark", progress=False
                )
            ),
            fused.device,
        )
    return {"seconds": reports[0].seconds, "peak_memory_bytes": memory}


def draw_scaling(axes: dict[str, list[Point]], measured: dict[Point, dict[str, Any]]) -> str:
    """The picture: for each axis of at least two points the curves of time (or images/s) and memory, as SVG."""
    run = next(iter(measured.values()))["run"]
    charts = []
    for axis, points in axes.items():
        found = [(point, measured[point]) for point in points if "error" not in measured[point]]
        if len(points) < 2 or not found:
            continue
        y = "images_per_second" if axis == "processes" else "median_s"
        names = {y: "images/s" if axis == "processes" else "seconds", "peak_memory_bytes": "GiB"}
        for field, name in names.items():
            line = list(_curve(axis, field, found))
            if line:
                charts.append((f"{name} by {AXES[axis]}", line_chart({name: line}, name, AXES[axis])))
    # in the points of every axis but its own a value is the first of its list
    base = replace(axes["people"][0], people=axes["batch_sizes"][0].people)
    title = f"{run['model']}, {run['dtype']}, {run['device']}; {_described(base)}"
    return chart_grid(charts, title)


def _curve(axis: str, field: str, found: Sequence[tuple[Point, dict[str, Any]]]) -> Iterator[tuple[float, float]]:
    for point, record in found:
        value = getattr(point, axis)
        if record[field] is not None:
            y = record[field] / 2**30 if field == "peak_memory_bytes" else record[field]
            yield float(max(value) if axis == "image_sizes" else value), y


def _described(base: Point) -> str:
    height, width = base.image_sizes
    return f"{base.people} people, {base.queries} queries, {height}x{width}, batch {base.batch_sizes}"
