"""The formats of exported models: how each is written, and run in its engine.

A format is an entry of [`FORMATS`] and a name in `FormatName`. What an engine needs is imported where it is used.
"""

import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np


if TYPE_CHECKING:
    from torch.export import ExportedProgram


FormatName = Literal["onnx", "openvino", "torch-export"]
Metadata = dict[str, Any]
Arrays = dict[str, np.ndarray]
#: The description of an exported model, in its folder.
METADATA_FILE = "export.json"
_OPSET = 18


@dataclass(frozen=True)
class Format:
    """How a graph is kept in a file.

    Attributes:
        file (`str`): the graph's file in the folder of an exported model.
        write (`Callable`): writes a program to a file, with the model's metadata.
        read (`Callable`): of a file, the names of its outputs and a number of threads (`None`: the engine's choice),
            makes a function from named input arrays to named output arrays.

    Both raise `ImportError` where the engine is not installed; the message names the extra.
    """

    file: str
    write: Callable[["ExportedProgram", Path, Metadata], None]
    read: Callable[[Path, list[str], int | None], Callable[[Arrays], Arrays]]


def _write_onnx(program: "ExportedProgram", path: Path, metadata: Metadata) -> None:
    import torch

    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise _missing("onnx and onnxscript", error) from error
    graph = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=_OPSET,
        input_names=metadata["input_names"],
        output_names=metadata["output_names"],
        optimize=False,
        verbose=False,
    )
    assert graph is not None
    _simplify(graph.model)
    _name_axes(graph.model.graph)
    graph.model.metadata_props.update(_as_texts(metadata))
    graph.save(path)
    onnx.checker.check_model(str(path))


def _simplify(model: Any) -> None:
    """Folds constants and removes what is unused or there twice.

    torch's own optimisation also looks for patterns, for one of them in a time that grows with the square of the
    graph: nearly half of an export for ResNet-50. Results and speed in ONNX Runtime are the same without.
    """
    from onnx_ir.passes import common
    from onnxscript.optimizer import fold_constants

    common.InlinePass()(model)
    for _ in range(2):  # what is unused after the first time makes more constant
        fold_constants(model)
        common.RemoveUnusedNodesPass()(model)
    for simplification in (
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        simplification(model)


def _name_axes(graph: Any) -> None:
    """Calls the axes of inputs, and all that have their length, `batch`, `height` and `width`; torch has `32*s57`."""
    batch, _, height, width = map(str, graph.inputs[0].shape)
    names = {batch: "batch", height: "height", width: "width"}
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        for axis, length in enumerate(map(str, value.shape or ())):
            if length in names:
                value.shape[axis] = names[length]


def _read_onnx(path: Path, output_names: list[str], num_threads: int | None) -> Callable[[Arrays], Arrays]:
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing("onnxruntime", error) from error
    options = onnxruntime.SessionOptions()
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: dict(zip(output_names, session.run(output_names, inputs), strict=True))


def _write_openvino(program: "ExportedProgram", path: Path, metadata: Metadata) -> None:
    try:
        import openvino
    except ImportError as error:
        raise _missing("openvino", error) from error
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder) / FORMATS["onnx"].file
        _write_onnx(program, onnx_path, metadata)
        model = openvino.convert_model(onnx_path)
        for key, value in _as_texts(metadata).items():
            model.set_rt_info(value, ["model_info", key])
        openvino.save_model(model, path, compress_to_fp16=False)


def _read_openvino(path: Path, output_names: list[str], num_threads: int | None) -> Callable[[Arrays], Arrays]:
    try:
        import openvino
    except ImportError as error:
        raise _missing("openvino", error) from error
    # float32 throughout: the default takes bfloat16 where the processor has it
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if num_threads is not None:
        settings["INFERENCE_NUM_THREADS"] = num_threads
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    def run(inputs: Arrays) -> Arrays:
        found = compiled(inputs)
        return {name: found[name] for name in output_names}

    return run


def _write_torch_export(program: "ExportedProgram", path: Path, metadata: Metadata) -> None:
    import torch

    buffer = io.BytesIO()  # torch ends the process where it cannot write to a file, such as on a full disk
    torch.export.save(program, buffer, extra_files={METADATA_FILE: json.dumps(metadata)})
    path.write_bytes(buffer.getbuffer())


def _read_torch_export(path: Path, output_names: list[str], num_threads: int | None) -> Callable[[Arrays], Arrays]:
    import torch

    graph = torch.export.load(path).module()

    def run(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            found = graph(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return {name: tensor.numpy() for name, tensor in zip(output_names, found, strict=True)}

    return run


FORMATS: dict[str, Format] = {
    "onnx": Format("model.onnx", _write_onnx, _read_onnx),
    "openvino": Format("model.xml", _write_openvino, _read_openvino),
    "torch-export": Format("model.pt2", _write_torch_export, _read_torch_export),
}


def _missing(packages: str, error: ImportError) -> ImportError:
    return ImportError(f"this format needs {packages}: install querypose-hf[export] ({error}).")


def _as_texts(metadata: Metadata) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
