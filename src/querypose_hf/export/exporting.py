"""Writing a model for another engine."""

import contextlib
import copy
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import filling_folder, write_json, write_text
from ..model.fusion_querypose import fuse_for_inference
from ..model.modeling_querypose import STRIDES, QueryPoseForPoseEstimation
from .formats import FORMATS, METADATA_FILE
from .graphs import PeopleGraph, RawOutputsGraph
from .options import ExportOptions


#: Of COCO's protocol: an image's best 20 people count.
DEFAULT_TOP_K = 20
# The image processor pads images to multiples of this many pixels.
_DIVISOR = STRIDES[-1]


def export_model(
    model: QueryPoseForPoseEstimation,
    image_processor: Any,
    output_dir: str | os.PathLike,
    options: ExportOptions | None = None,
    on_step: Callable[[str], Any] = lambda step: None,
) -> Path:
    """Writes a model's graph, its configuration and its image processor's settings.

    Batch size and image size stay open; images must be padded to multiples of 32, as the image processor does. Batch
    norms are folded. RoIAlign is the operator of each format, with `half_pixel` coordinates (torchvision's `aligned`).

    Args:
        model: a QueryPose model with its pose estimation head; it is not changed.
        image_processor: its image processor.
        output_dir (`str` or `os.PathLike`): the folder; made if it does not exist. Its files are replaced once the
            export is complete.
        options ([`ExportOptions`], *optional*): format and outputs; by default the model's tensors in ONNX.
        on_step (`Callable`, *optional*): is told what begins, such as "tracing the model".

    Returns:
        `Path`: the graph's file.

    Raises:
        ImportError: the format needs a package that is not installed; the message names the extra.
        ValueError: more queries or people are asked for than there are.
    """
    options = options or ExportOptions()
    chosen = FORMATS[options.format]
    graph = _build_graph(model, image_processor, options)
    metadata = {
        "model_type": model.config.model_type,
        "format": options.format,
        "outputs": options.outputs,
        "keypoint_top_k": graph.keypoint_top_k,
        "num_people": graph.num_people if isinstance(graph, PeopleGraph) else None,
        "input_names": list(_example_inputs(options)),
        "output_names": list(graph.output_names),
        "size_divisor": _DIVISOR,
        "id2label": {str(index): label for index, label in (model.config.id2label or {}).items()},
        **{name: getattr(model.config, name) for name in _SKELETON},
        "preprocessing": json.loads(image_processor.to_json_string()),
    }
    # the description comes last: it says that the rest is there
    with filling_folder(output_dir, last=METADATA_FILE, alone=True) as folder:
        with torch.no_grad(), _silence():
            on_step("tracing the model")
            program = _trace(graph, options)
            on_step(f"writing {chosen.file}")
            chosen.write(program, folder / chosen.file, metadata)
        write_json(metadata, folder / METADATA_FILE, indent=2)
        model.config.to_json_file(folder / "config.json", use_diff=False)
        write_text(image_processor.to_json_string(), folder / "preprocessor_config.json")
    return Path(output_dir) / chosen.file


_SKELETON = ("keypoint_names", "keypoint_edges", "keypoint_flip_indices", "keypoint_sigmas")


def _build_graph(
    model: QueryPoseForPoseEstimation, image_processor: Any, options: ExportOptions
) -> RawOutputsGraph | PeopleGraph:
    """A copy of the model with everything settled that a graph of fixed shapes cannot choose."""
    most = model.config.num_queries
    for name in ("keypoint_top_k", "num_people"):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= most:
            raise ValueError(f"`{name}` is {value}; expected 1 to {most}, the number of queries.")
    keypoint_top_k = options.keypoint_top_k or model.config.keypoint_top_k or min(DEFAULT_TOP_K, most)
    if options.num_people is not None and options.num_people > keypoint_top_k:
        raise ValueError(
            f"`num_people` is {options.num_people}, but the keypoints of {keypoint_top_k} queries are decoded."
        )
    exported = copy.deepcopy(model).float().cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if exported.training:  # one whose batch norms are folded already refuses, in the name of the model that was copied
        exported.eval()
    # a threshold makes the number of decoded queries depend on the image, which a graph of fixed shapes cannot follow
    fuse_for_inference(exported, channels_last=False)
    for name, module in list(exported.named_modules()):
        if isinstance(module, nn.Hardtanh):
            exported.set_submodule(name, _Clamp(module))
    graph: RawOutputsGraph | PeopleGraph
    if options.outputs == "raw":
        graph = RawOutputsGraph(exported, keypoint_top_k)
    else:
        graph = PeopleGraph(
            exported, keypoint_top_k, options.num_people or keypoint_top_k, image_processor.nms_threshold
        )
    return graph.eval()


class _Clamp(nn.Module):
    """`nn.ReLU6` and its like as one operator of ONNX; torch.onnx takes them apart, which takes it seconds."""

    def __init__(self, like: nn.Hardtanh):
        super().__init__()
        self.low, self.high = like.min_val, like.max_val

    def forward(self, values: Tensor) -> Tensor:
        return values.clamp(self.low, self.high)


def _example_inputs(options: ExportOptions) -> dict[str, torch.Tensor]:
    # of two images, because sizes of 1 are taken as fixed; of no square size, so that sides are not taken as equal
    pixel_values = torch.zeros(2, 3, 4 * _DIVISOR, 5 * _DIVISOR)
    inputs = {"pixel_values": pixel_values, "pixel_mask": torch.ones(pixel_values[:, 0].shape, dtype=torch.int64)}
    if options.outputs == "people":
        inputs["target_sizes"] = torch.tensor([[96, 160], [100, 120]])
    return inputs


def _trace(graph: nn.Module, options: ExportOptions) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    height = _DIVISOR * torch.export.Dim("height_in_32", min=1, max=1024)
    width = _DIVISOR * torch.export.Dim("width_in_32", min=1, max=1024)
    shapes: dict[str, Any] = {
        "pixel_values": {0: batch, 2: height, 3: width},
        "pixel_mask": {0: batch, 1: height, 2: width},
        "target_sizes": {0: batch},
    }
    inputs = _example_inputs(options)
    return torch.export.export(graph, (), inputs, dynamic_shapes={name: shapes[name] for name in inputs}, strict=False)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Leaves out what exporters warn of and log below errors: it is about their own code."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
