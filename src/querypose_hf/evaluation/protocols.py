"""The keypoint protocols as data: keypoints, figures, a person's area, groups of images.

Both are COCO's OKS protocol (cocodataset.org, "Keypoint Evaluation"). CrowdPose's own tool changes three things: it
has 14 keypoints with sigmas of their own; it takes 0.53 times the box's area as a person's, whether or not the
annotation has an `area`; and it groups images by `crowdIndex` in place of people by size.

A new protocol is an entry of [`PROTOCOLS`] and a word of [`Metric`].
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ..checks import is_finite_number
from ..model.skeletons import COCO_17, CROWDPOSE_14, Skeleton


#: The keypoint protocols, by the word that `--metric`, YAML and Python have for them.
Metric = Literal["coco", "crowdpose"]


@dataclass(frozen=True)
class KeypointProtocol:
    """What tells one keypoint protocol from another.

    Attributes:
        skeleton ([`Skeleton`]): the keypoints it was made for, and their OKS sigmas.
        box_area_ratio (`float`, *optional*): a person's area is so many times its box's; without it, the annotation's.
        size_ranges (`bool`): people are also scored by size, medium and large.
        image_field (`str`, *optional*): the number in an image's record by which images are grouped.
        image_groups (`dict[str, float]`): for each group of images the upper bound of that number, not included, in
            rising order.
    """

    skeleton: Skeleton
    box_area_ratio: float | None = None
    size_ranges: bool = False
    image_field: str | None = None
    image_groups: dict[str, float] = field(default_factory=dict)

    @property
    def figures(self) -> dict[str, str]:
        """What each figure is, by its name, in the order they are reported."""
        precision = {"AP": "mean over OKS 0.50 to 0.95", "AP50": "at OKS 0.50", "AP75": "at OKS 0.75"}
        recall = {
            "AR": "recall, mean over OKS 0.50 to 0.95",
            "AR50": "recall at OKS 0.50",
            "AR75": "recall at OKS 0.75",
        }
        if self.size_ranges:
            precision |= {"APM": "medium people, 32² to 96² pixels", "APL": "large people, above 96² pixels"}
            recall |= {"ARM": "recall, medium people", "ARL": "recall, large people"}
        groups, low = {}, ""
        for name, bound in self.image_groups.items():
            high = "" if bound == float("inf") else f" below {bound:g}"
            groups[f"AP_{name}"] = f"images with {self.image_field}{low}{high}"
            low = f" from {bound:g}"
        return {**precision, **recall, **groups}

    def image_group(self, value: float) -> str:
        """The group of an image whose `image_field` has this value."""
        return next(name for name, bound in self.image_groups.items() if value < bound)


PROTOCOLS: dict[str, KeypointProtocol] = {
    "coco": KeypointProtocol(COCO_17, size_ranges=True),
    "crowdpose": KeypointProtocol(
        CROWDPOSE_14,
        box_area_ratio=0.53,
        image_field="crowdIndex",
        image_groups={"easy": 0.2, "medium": 0.8, "hard": float("inf")},
    ),
}

#: Names of the figures of each keypoint protocol, in the order they are reported.
KEYPOINT_METRICS: dict[str, tuple[str, ...]] = {name: tuple(protocol.figures) for name, protocol in PROTOCOLS.items()}

#: Names of the figures of COCO's box protocol; ARn is the recall of the n best boxes of each image.
BOX_METRICS: tuple[str, ...] = (
    *("AP", "AP50", "AP75", "APS", "APM", "APL"),
    *("AR1", "AR10", "AR100", "ARS", "ARM", "ARL"),
)


def protocol_of(metric: str) -> KeypointProtocol:
    """The protocol of that name.

    Raises:
        ValueError: there is none.
    """
    if metric not in PROTOCOLS:
        raise ValueError(f"`metric` is {metric!r}; expected one of {', '.join(map(repr, PROTOCOLS))}")
    return PROTOCOLS[metric]


def resolve_sigmas(
    metric: str, num_keypoints: int, sigmas: Sequence[float] | None, skeleton: Skeleton | None = None
) -> np.ndarray:
    """The OKS sigmas to score with: those given, or else the protocol's own, or else the model's.

    Args:
        metric (`str`): one of [`PROTOCOLS`].
        num_keypoints (`int`): the number of keypoints of the annotations.
        sigmas (`Sequence[float]`, *optional*): one per keypoint.
        skeleton ([`Skeleton`], *optional*): of the model that is scored. Its sigmas count if its keypoints are other
            ones than the protocol's.

    Returns:
        `np.ndarray` of shape (num_keypoints,).

    Raises:
        ValueError: there is not one positive sigma for each keypoint.
    """
    own = protocol_of(metric).skeleton
    if sigmas is None and skeleton is not None and skeleton.keypoint_names != own.keypoint_names:
        sigmas = skeleton.sigmas
    if sigmas is None:
        if num_keypoints != own.num_keypoints:
            raise ValueError(
                f"`sigmas` not given: the annotations have {num_keypoints} keypoints, and metric {metric!r} knows the "
                f"sigmas of its own {own.num_keypoints} only; give {num_keypoints}, one per keypoint"
            )
        sigmas = own.sigmas
    if len(sigmas) != num_keypoints:
        raise ValueError(f"`sigmas` has {len(sigmas)} values; the annotations have {num_keypoints} keypoints")
    for index, sigma in enumerate(sigmas):
        if not is_finite_number(sigma) or sigma <= 0:
            raise ValueError(f"`sigmas[{index}]` is {sigma!r}; expected a number above 0")
    return np.asarray(sigmas, dtype=np.float64)
