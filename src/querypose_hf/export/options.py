"""What an exported model computes."""

from dataclasses import dataclass
from typing import Literal

from ..settings import option, require
from .formats import FORMATS, FormatName


@dataclass(frozen=True)
class ExportOptions:
    """What an exported model computes, and in which format it is written.

    Attributes:
        format (`str`): a key of [`FORMATS`].
        outputs (`str`): `"raw"` gives the model's tensors, which [`ExportedPoseEstimator`] and the pipeline take;
            `"people"` gives people, best first, in pixels of a further input, `target_sizes`, without duplicates where
            the image processor has an `nms_threshold`.
        keypoint_top_k (`int`, *optional*): the keypoints of so many queries of the highest class scores are decoded.
            By default the configuration's, else 20.
        num_people (`int`, *optional*): people per image with `outputs="people"`; by default as many as are decoded.
    """

    format: FormatName = option("onnx", "the engine's format")
    outputs: Literal["raw", "people"] = option(
        "raw", "the model's tensors, as the pipeline takes them, or people in pixels, best first"
    )
    keypoint_top_k: int | None = option(
        None,
        "decode keypoints of the N queries of the highest class scores (20)",
        metavar="N",
    )
    num_people: int | None = option(None, "people per image with --outputs people", metavar="N")

    def __post_init__(self) -> None:
        require(self, "format", self.format in FORMATS, f"one of {sorted(FORMATS)}")
        require(self, "outputs", self.outputs in ("raw", "people"), "'raw' or 'people'")
        allowed = self.num_people is None or self.outputs == "people"
        require(self, "num_people", allowed, "none unless `outputs` is 'people'")
