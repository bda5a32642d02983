"""The model in other engines, side by side with torch."""

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..export import ExportedPoseEstimator, ExportOptions, export_model
from ..model.image_processing_querypose import QueryPoseImageProcessor
from .measuring import measure_side_by_side, threads
from .settings import BenchmarkSettings


def measure_engines(plain: Any, fused: Any, pixel_values: Tensor, settings: BenchmarkSettings) -> list[dict[str, Any]]:
    """Times the engines of the settings, and torch as it is, all in turn.

    Args:
        plain: the model.
        fused: the same with folded batch norms.
        pixel_values (`Tensor` of shape `(B, 3, height, width)`): the images.

    Returns:
        For each engine and number of threads what [`measure_side_by_side`] gives, `engine`, `threads`, `prepare_s`
        (export or compilation, with the first run) and `times_of_torch` with as many threads.
    """
    people = settings.people[0]
    ways: dict[tuple[str, int], Callable[[], Any]] = {}
    prepared: dict[tuple[str, int], float] = {}
    for engine in ("torch", *settings.engines):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            if engine not in ("torch", "compile"):
                options = ExportOptions(format=engine, keypoint_top_k=people)  # type: ignore[arg-type]
                export_model(plain, QueryPoseImageProcessor(), folder, options)
            for count in settings.num_threads or (torch.get_num_threads(),):
                way = _on_threads(_work(engine, fused, Path(folder), pixel_values, people, count), count)
                with torch.no_grad():
                    way()  # compiles
                ways[engine, count] = way
                prepared[engine, count] = time.perf_counter() - start
                start = time.perf_counter()
    names = {f"{engine} {count}": (engine, count) for engine, count in ways}
    found = measure_side_by_side(
        {name: ways[key] for name, key in names.items()},
        dict.fromkeys(names, settings.rounds),
        pixel_values.device,
        "Engines",
    )
    return [
        {
            "engine": engine,
            "threads": count,
            "prepare_s": round(prepared[engine, count], 2),
            "times_of_torch": found[name]["median_s"] / found[f"torch {count}"]["median_s"],
            **found[name],
        }
        for name, (engine, count) in names.items()
    ]


def _work(
    engine: str, fused: Any, folder: Path, pixel_values: Tensor, people: int, num_threads: int
) -> Callable[[], Any]:
    if engine == "torch":
        return lambda: fused(pixel_values, keypoint_top_k=people)
    if engine == "compile":
        # of a copy: what is compiled is kept with the model, with the number of threads in it
        compiled = torch.compile(copy.deepcopy(fused), fullgraph=True, dynamic=False)
        return lambda: compiled(pixel_values, keypoint_top_k=people)
    exported = ExportedPoseEstimator.from_export(folder, num_threads=num_threads)
    return lambda: exported(pixel_values)


def _on_threads(work: Callable[[], Any], count: int) -> Callable[[], Any]:
    def run() -> Any:
        with threads(count):
            return work()

    return run
