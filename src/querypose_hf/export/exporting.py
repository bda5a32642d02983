"""Writing a model for another engine."""

import copy
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..model.modeling_querypose import STRIDES, QueryPoseForPoseEstimation
from ..weights.fusion import fuse_for_inference
from .graphs import PeopleGraph, RawOutputsGraph


#: Formats, and the file that holds the graph.
FORMATS = {"onnx": "model.onnx", "openvino": "model.xml", "torch-export": "model.pt2"}
#: Of COCO's protocol: an image's best 20 people count.
DEFAULT_TOP_K = 20
METADATA_FILE = "export.json"
_OPSET = 18
# An image of any size is written as a picture of multiples of this many pixels.
_DIVISOR = STRIDES[-1]


def export_model(
    model: QueryPoseForPoseEstimation,
    image_processor: Any,
    output_dir: str | os.PathLike,
    format: str = "onnx",
    *,
    outputs: str = "raw",
    keypoint_top_k: int | None = None,
    num_people: int | None = None,
) -> Path:
    """Writes a model's graph, its configuration and its image processor's settings.

    Batch size and image size stay open; images must be padded to multiples of 32, as the image processor does. Batch
    norms are folded. RoIAlign is the operator of each format, with `half_pixel` coordinates (torchvision's `aligned`).

    Args:
        model: a QueryPose model with its pose estimation head, on the CPU in float32; it is not changed.
        image_processor: its image processor.
        output_dir (`str` or `os.PathLike`): the folder; made if it does not exist. Its files are replaced once the
            export is complete.
        format (`str`): `"onnx"`, `"openvino"` or `"torch-export"`.
        outputs (`str`): `"raw"` gives the model's tensors, which [`ExportedPoseEstimator`] and the pipeline take;
            `"people"` gives people, best first, in pixels of a further input, `target_sizes`, without duplicates where
            the image processor has an `nms_threshold`.
        keypoint_top_k (`int`, *optional*): the keypoints of so many queries of the highest class scores are decoded.
            By default the configuration's, else 20 where keypoints do not feed back, and all queries where they do,
            because choosing there changes the results.
        num_people (`int`, *optional*): people per image with `outputs="people"`; by default as many as are decoded.

    Returns:
        `Path`: the graph's file.

    Raises:
        ImportError: the format needs a package that is not installed; the message names the extra.
        ValueError: an argument is wrong.
    """
    if format not in FORMATS:
        raise ValueError(f"`format` is {format!r}; expected one of {sorted(FORMATS)}.")
    if outputs not in ("raw", "people"):
        raise ValueError(f"`outputs` is {outputs!r}; expected 'raw' or 'people'.")
    config = model.config
    for name, value in (("keypoint_top_k", keypoint_top_k), ("num_people", num_people)):
        if value is not None and not 1 <= value <= config.num_queries:
            raise ValueError(f"`{name}` is {value}; expected 1 to {config.num_queries}, the number of queries.")
    if keypoint_top_k is None:
        keypoint_top_k = config.keypoint_top_k
    exported = copy.deepcopy(model).float().cpu().eval()
    if keypoint_top_k is None and not exported.model.decoder.feeds_back:
        keypoint_top_k = min(DEFAULT_TOP_K, config.num_queries)
    decoded = config.num_queries if keypoint_top_k is None else keypoint_top_k
    if num_people is not None and num_people > decoded:
        raise ValueError(f"`num_people` is {num_people}, but the keypoints of {decoded} queries are decoded.")
    # a threshold makes the number of decoded queries depend on the image, which a graph of fixed shapes cannot follow
    exported.config.keypoint_score_threshold = None
    fuse_for_inference(exported, channels_last=False)
    graph: nn.Module
    if outputs == "raw":
        graph = RawOutputsGraph(exported, keypoint_top_k)
    else:
        graph = PeopleGraph(exported, keypoint_top_k, num_people or decoded, image_processor.nms_threshold)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        "model_type": config.model_type,
        "format": format,
        "outputs": outputs,
        "keypoint_top_k": keypoint_top_k,
        "num_people": graph.num_people if isinstance(graph, PeopleGraph) else None,
        "input_names": list(_inputs(outputs)),
        "output_names": list(graph.output_names),
        "size_divisor": _DIVISOR,
        "id2label": {str(index): label for index, label in (config.id2label or {}).items()},
        "keypoint_names": config.keypoint_names,
        "keypoint_edges": config.keypoint_edges,
        "keypoint_flip_indices": config.keypoint_flip_indices,
        "keypoint_sigmas": config.keypoint_sigmas,
        "preprocessing": json.loads(image_processor.to_json_string()),
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export_") as name:
        temporary = Path(name)
        with torch.no_grad():
            _WRITERS[format](graph.eval(), outputs, temporary / FORMATS[format], metadata)
        (temporary / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        config.to_json_file(temporary / "config.json", use_diff=False)
        (temporary / "preprocessor_config.json").write_text(image_processor.to_json_string(), encoding="utf-8")
        # the description last, since it says that all the rest is there
        for file in sorted(temporary.iterdir(), key=lambda file: file.name == METADATA_FILE):
            target = folder / file.name
            if target.is_dir():
                shutil.rmtree(target)
            file.replace(target)
    return folder / FORMATS[format]


def _inputs(outputs: str) -> dict[str, torch.Tensor]:
    # of two images, because sizes of 1 are taken as fixed; of no square size, so that sides are not taken as equal
    pixel_values = torch.zeros(2, 3, 4 * _DIVISOR, 5 * _DIVISOR)
    inputs = {"pixel_values": pixel_values, "pixel_mask": torch.ones(pixel_values[:, 0].shape, dtype=torch.int64)}
    if outputs == "people":
        inputs["target_sizes"] = torch.tensor([[96, 160], [100, 120]])
    return inputs


def _export_program(graph: nn.Module, outputs: str) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    height = _DIVISOR * torch.export.Dim("height_in_32", min=1, max=1024)
    width = _DIVISOR * torch.export.Dim("width_in_32", min=1, max=1024)
    shapes: dict[str, Any] = {
        "pixel_values": {0: batch, 2: height, 3: width},
        "pixel_mask": {0: batch, 1: height, 2: width},
        "target_sizes": {0: batch},
    }
    inputs = _inputs(outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(
            graph, (), inputs, dynamic_shapes={name: shapes[name] for name in inputs}, strict=False
        )


def _write_torch_export(graph: nn.Module, outputs: str, path: Path, metadata: dict[str, Any]) -> None:
    torch.export.save(_export_program(graph, outputs), path, extra_files={METADATA_FILE: json.dumps(metadata)})


def _write_onnx(graph: nn.Module, outputs: str, path: Path, metadata: dict[str, Any]) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise ImportError(
            f"Export to ONNX needs onnx and onnxscript: install querypose-hf[export] ({error})."
        ) from error
    program = torch.onnx.export(
        _export_program(graph, outputs),
        dynamo=True,
        opset_version=_OPSET,
        input_names=list(_inputs(outputs)),
        output_names=list(graph.output_names),  # type: ignore[arg-type]
        optimize=True,
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    )
    program.save(path)
    onnx.checker.check_model(str(path))


def _write_openvino(graph: nn.Module, outputs: str, path: Path, metadata: dict[str, Any]) -> None:
    try:
        import openvino
    except ImportError as error:
        raise ImportError(f"Export to OpenVINO needs openvino: install querypose-hf[export] ({error}).") from error
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder) / FORMATS["onnx"]
        _write_onnx(graph, outputs, onnx_path, metadata)
        model = openvino.convert_model(onnx_path)
        for key, value in metadata.items():
            model.set_rt_info(value if isinstance(value, str) else json.dumps(value), ["model_info", key])
        openvino.save_model(model, path, compress_to_fp16=False)


_WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino, "torch-export": _write_torch_export}
