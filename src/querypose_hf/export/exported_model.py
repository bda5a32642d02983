"""Running an exported model."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..model.configuration_querypose import QueryPoseConfig
from ..model.modeling_querypose import QueryPosePoseEstimationOutput
from .exporting import FORMATS, METADATA_FILE


Arrays = dict[str, np.ndarray]


class ExportedPoseEstimator(PreTrainedModel):
    """A model that `querypose export` wrote, with the interface of [`QueryPoseForPoseEstimation`] in inference.

    It serves in the pipeline, and its outputs go to `post_process_pose_estimation`. How many queries are decoded was
    settled when the model was exported.

    Example:

    ```python
    >>> from transformers import AutoImageProcessor, pipeline
    >>> from querypose_hf.export import ExportedPoseEstimator

    >>> model = ExportedPoseEstimator.from_export("exported")
    >>> image_processor = AutoImageProcessor.from_pretrained("exported")
    >>> pose_estimator = pipeline("pose-estimation", model=model, image_processor=image_processor)
    >>> people = pose_estimator("photo.jpg")
    ```
    """

    config_class = QueryPoseConfig
    main_input_name = "pixel_values"
    base_model_prefix = ""

    def __init__(self, config: QueryPoseConfig, run: Callable[[Arrays], Arrays], metadata: dict[str, Any]):
        super().__init__(config)
        self.run_graph = run
        self.metadata = metadata
        self.eval()

    @classmethod
    def from_export(cls, folder: str | os.PathLike, num_threads: int | None = None) -> "ExportedPoseEstimator":
        """Reads an exported model.

        Args:
            folder (`str` or `os.PathLike`): what [`export_model`] wrote.
            num_threads (`int`, *optional*): threads of ONNX Runtime or OpenVINO; by default as many as they like.

        Raises:
            FileNotFoundError: a file is missing.
            ImportError: the format's engine is not installed; the message names the extra.
        """
        folder = Path(folder)
        description = folder / METADATA_FILE
        if not description.is_file():
            raise FileNotFoundError(f"`folder` is {str(folder)!r}; expected an exported model with {METADATA_FILE}.")
        metadata = json.loads(description.read_text(encoding="utf-8"))
        path = folder / FORMATS[metadata["format"]]
        if not path.is_file():
            raise FileNotFoundError(f"{description}: `format` is {metadata['format']!r}, but there is no {path}.")
        run = _READERS[metadata["format"]](path, metadata["output_names"], num_threads)
        return cls(QueryPoseConfig.from_json_file(folder / "config.json"), run, metadata)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def to(self, *args: Any, **kwargs: Any) -> "ExportedPoseEstimator":  # type: ignore[override]
        """Takes the CPU and float32 alone, where an exported model runs."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if (device is not None and device.type != "cpu") or dtype not in (None, torch.float32):
            raise ValueError(f"An exported model runs on the CPU in float32, but {args or kwargs} was asked for.")
        return self

    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, **kwargs: Any
    ) -> QueryPosePoseEstimationOutput:
        """Images `(B, 3, height, width)`, padded to multiples of 32, and where they are, to the model's outputs.

        Of further arguments `person_threshold` and `max_people` are without effect, since they change no result.

        Raises:
            ValueError: sizes do not fit, the model was exported with people as outputs, or another number of decoded
                queries is asked for.
        """
        self._require("raw", "`find_people`")
        for name in ("keypoint_top_k", "keypoint_score_threshold"):
            if kwargs.get(name) is not None and kwargs[name] != self.metadata.get(name):
                raise ValueError(
                    f"`{name}` is {kwargs[name]!r}, but the model was exported with {self.metadata.get(name)!r}."
                )
        found = self.run_graph(self._arrays(pixel_values, pixel_mask))
        # an engine may use its arrays again at the next call
        tensors: dict[str, Any] = {name: torch.from_numpy(np.array(array)) for name, array in found.items()}
        return QueryPosePoseEstimationOutput(**tensors)

    def find_people(
        self, pixel_values: Tensor, target_sizes: Tensor, pixel_mask: Tensor | None = None
    ) -> dict[str, np.ndarray]:
        """People of a model that was exported with `outputs="people"`, see [`PeopleGraph`].

        Args:
            target_sizes (`Tensor` of shape `(B, 2)`): heights and widths that coordinates are wanted for.
        """
        self._require("people", "`forward`")
        return self.run_graph(
            {**self._arrays(pixel_values, pixel_mask), "target_sizes": np.asarray(target_sizes, dtype=np.int64)}
        )

    def _require(self, outputs: str, other: str) -> None:
        if self.metadata["outputs"] != outputs:
            raise ValueError(f"The model was exported with `outputs={self.metadata['outputs']!r}`: use {other}.")

    def _arrays(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> Arrays:
        divisor = self.metadata["size_divisor"]
        if pixel_values.ndim != 4 or any(side % divisor for side in pixel_values.shape[-2:]):
            raise ValueError(
                f"`pixel_values` has shape {tuple(pixel_values.shape)}; expected (batch, 3, height, width) with sides "
                f"that are multiples of {divisor}, as the image processor pads them."
            )
        if pixel_mask is None:
            pixel_mask = torch.ones(pixel_values[:, 0].shape, dtype=torch.int64)
        return {
            "pixel_values": pixel_values.detach().float().cpu().contiguous().numpy(),
            "pixel_mask": pixel_mask.long().cpu().contiguous().numpy(),
        }


def _read_onnx(path: Path, output_names: list[str], num_threads: int | None) -> Callable[[Arrays], Arrays]:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(f"An ONNX model needs onnxruntime: install querypose-hf[export] ({error}).") from error
    options = onnxruntime.SessionOptions()
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: dict(zip(output_names, session.run(output_names, inputs), strict=True))


def _read_openvino(path: Path, output_names: list[str], num_threads: int | None) -> Callable[[Arrays], Arrays]:
    try:
        import openvino
    except ImportError as error:
        raise ImportError(f"An OpenVINO model needs openvino: install querypose-hf[export] ({error}).") from error
    # float32 throughout: the default takes bfloat16 where the processor has it
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if num_threads is not None:
        settings["INFERENCE_NUM_THREADS"] = num_threads
    compiled = openvino.Core().compile_model(path, "CPU", settings)

    def run(inputs: Arrays) -> Arrays:
        found = compiled(inputs)
        return {name: found[name] for name in output_names}

    return run


def _read_torch_export(path: Path, output_names: list[str], num_threads: int | None) -> Callable[[Arrays], Arrays]:
    graph = torch.export.load(path).module()

    def run(inputs: Arrays) -> Arrays:
        with torch.no_grad():
            found = graph(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return {name: tensor.numpy() for name, tensor in zip(output_names, found, strict=True)}

    return run


_READERS = {"onnx": _read_onnx, "openvino": _read_openvino, "torch-export": _read_torch_export}
