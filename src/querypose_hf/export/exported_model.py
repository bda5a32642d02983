"""Running an exported model."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..files import read_json
from ..model.configuration_querypose import QueryPoseConfig
from ..model.modeling_querypose import QueryPosePoseEstimationOutput
from .formats import FORMATS, METADATA_FILE, Arrays


class ExportedPoseEstimator(PreTrainedModel):
    """A model that `querypose export` wrote, with the interface of [`QueryPoseForPoseEstimation`] in inference.

    The pipeline takes it, and `post_process_pose_estimation` takes its outputs. How many queries are decoded was
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
    def from_export(cls, folder: str | os.PathLike, num_threads: int | None = None) -> Self:
        """Reads an exported model.

        Args:
            folder (`str` or `os.PathLike`): what [`export_model`] wrote.
            num_threads (`int`, *optional*): threads of ONNX Runtime or OpenVINO; by default the engine's choice.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the description is not JSON, or names an unknown format.
            ImportError: the format's engine is not installed; the message names the extra.
        """
        folder = Path(folder)
        description = folder / METADATA_FILE
        if not description.is_file():
            raise FileNotFoundError(f"`folder` is {str(folder)!r}; expected an exported model with {METADATA_FILE}.")
        metadata = read_json(description)
        if metadata.get("format") not in FORMATS:
            raise ValueError(
                f"{description}: `format` is {metadata.get('format')!r}; expected one of {list(FORMATS)}."
            )
        chosen = FORMATS[metadata["format"]]
        path = folder / chosen.file
        if not path.is_file():
            raise FileNotFoundError(f"{description}: `format` is {metadata['format']!r}, but there is no {path}.")
        run = chosen.read(path, metadata["output_names"], num_threads)
        return cls(QueryPoseConfig.from_json_file(folder / "config.json"), run, metadata)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def to(self, *args: Any, **kwargs: Any) -> "ExportedPoseEstimator":  # type: ignore[override]
        """Accepts the CPU and float32 alone: an exported model runs nowhere else."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if (device is not None and device.type != "cpu") or dtype not in (None, torch.float32):
            raise ValueError(f"An exported model runs on the CPU in float32, but {args or kwargs} was asked for.")
        return self

    def forward(
        self, pixel_values: Tensor, pixel_mask: Tensor | None = None, **kwargs: Any
    ) -> QueryPosePoseEstimationOutput:
        """The model's outputs of a batch.

        Args:
            pixel_values (`Tensor` of shape `(B, 3, height, width)`): images padded to multiples of 32.
            pixel_mask (`Tensor` of shape `(B, height, width)`, *optional*): 1 in the images, 0 in the padding.
            kwargs: `keypoint_top_k` must be what the model was exported with; `person_threshold` and `max_people`,
                which save work without a change of results, have no effect.

        Raises:
            ValueError: sizes do not fit, the model was exported with people as outputs, or another number of decoded
                queries is asked for.
        """
        self._require("raw", "`find_people`")
        wanted, exported = kwargs.get("keypoint_top_k"), self.metadata["keypoint_top_k"]
        if wanted not in (None, exported):
            raise ValueError(f"`keypoint_top_k` is {wanted!r}, but the model was exported with {exported!r}.")
        found = self.run_graph(self._arrays(pixel_values, pixel_mask))
        # copied, because an engine may write its next results into the same arrays
        tensors: dict[str, Any] = {name: torch.from_numpy(np.array(array)) for name, array in found.items()}
        return QueryPosePoseEstimationOutput(**tensors)

    def find_people(
        self, pixel_values: Tensor, target_sizes: Tensor, pixel_mask: Tensor | None = None
    ) -> dict[str, np.ndarray]:
        """The people of a model that was exported with `outputs="people"`, see [`PeopleGraph`].

        Args:
            pixel_values, pixel_mask: see [`forward`].
            target_sizes (`Tensor` of shape `(B, 2)`): the images' heights and widths that coordinates refer to.
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
