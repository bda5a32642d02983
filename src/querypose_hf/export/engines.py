"""Engines that run a model in place of torch. Its graph is exported once for each checkpoint, and kept."""

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from torch import Tensor

from .. import __version__
from ..files import making_folder
from ..inference.loading import fingerprint
from ..model.modeling_querypose import QueryPoseForPoseEstimation, QueryPosePoseEstimationOutput
from ..model.people_querypose import class_scores, people_of_queries
from .exported_model import ExportedPoseEstimator
from .exporting import export_model
from .formats import METADATA_FILE
from .options import ExportOptions


#: The engines besides torch, the fastest first (docs/speed.md), and the packages that they need.
ENGINES = {
    "openvino": ("openvino", "onnx", "onnxscript"),
    "onnx": ("onnxruntime", "onnx", "onnxscript"),
}


def choose_engine(engine: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The engine that `"auto"` stands for: the fastest one that is installed, and torch but on a CPU in float32.

    Raises:
        ValueError: the engine does not run on the device, or in the precision.
    """
    fits = device.type == "cpu" and dtype == torch.float32
    if engine == "auto":
        installed = (name for name, packages in ENGINES.items() if all(map(importlib.util.find_spec, packages)))
        return next(installed, "torch") if fits else "torch"
    if engine != "torch" and not fits:
        raise ValueError(
            f"`engine` is {engine!r}, which runs on the CPU in float32; expected 'torch' on {device} in {dtype}."
        )
    return engine


class EnginePoseEstimator(ExportedPoseEstimator):
    """A model that runs in another engine, with the model's results to floating-point tolerance.

    The graph decodes a fixed number of queries. Where another query could be in the result, the model itself looks at
    the batch.
    """

    original: Any  #: What the graph was exported from.

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        keypoint_top_k: int | None = None,
        max_people: int | None = None,
        person_threshold: float | None = None,
        **kwargs: Any,
    ) -> QueryPosePoseEstimationOutput:
        """See [`QueryPoseForPoseEstimation.forward`]."""
        top_k = self.config.keypoint_top_k if keypoint_top_k is None else keypoint_top_k
        if top_k in (None, self.metadata["keypoint_top_k"]):
            outputs = super().forward(pixel_values, pixel_mask)
            if top_k is not None or _are_enough(outputs, max_people, person_threshold):
                return outputs
        return self.original(
            pixel_values,
            pixel_mask=pixel_mask,
            keypoint_top_k=keypoint_top_k,
            max_people=max_people,
            person_threshold=person_threshold,
        )


def _are_enough(outputs: Any, max_people: int | None, person_threshold: float | None) -> bool:
    """Whether none of the queries that were not decoded can be a person of the result, whose score is at most its
    class score."""
    best, _ = class_scores(outputs.logits)
    left_out = best.masked_fill(outputs.keypoint_query_mask, 0.0).amax(dim=1)
    enough = left_out <= (person_threshold or 0.0)
    if max_people is not None:
        people = people_of_queries(
            outputs.logits,
            outputs.pred_boxes,
            outputs.pred_keypoints,
            outputs.keypoint_scores,
            outputs.keypoint_query_mask,
        )
        scores = people.scores.masked_fill(~people.counts, 0.0)
        enough |= scores.topk(min(max_people, scores.shape[1]), dim=1).values[:, -1] > left_out
    return bool(enough.all())


def load_engine(
    model: QueryPoseForPoseEstimation,
    image_processor: Any,
    engine: str,
    on_export: Callable[[Path], Any] = lambda folder: None,
) -> EnginePoseEstimator:
    """A model in another engine, on as many threads as torch has.

    Args:
        model: on the CPU.
        image_processor: its image processor.
        engine (`str`): a key of [`ENGINES`].
        on_export (`Callable`, *optional*): is told the folder where the graph is about to be written: it is exported
            once for these weights and this version of the package.

    Raises:
        ImportError: the engine is not installed; the message names the extra.
    """
    folder = _cache_folder(model, engine)
    if not (folder / METADATA_FILE).is_file():
        on_export(folder)
        try:
            with making_folder(folder) as temporary:
                export_model(model, image_processor, temporary, ExportOptions(format=engine))  # type: ignore[arg-type]
        except OSError:
            if not (folder / METADATA_FILE).is_file():  # else another process was faster
                raise
    found = EnginePoseEstimator.from_export(folder, num_threads=torch.get_num_threads())
    found.original = model
    return found


def _cache_folder(model: QueryPoseForPoseEstimation, engine: str) -> Path:
    key = hashlib.sha256(f"{fingerprint(model)} {__version__}".encode()).hexdigest()[:16]
    return Path(constants.HF_HOME) / "querypose" / f"{engine}-{key}"
