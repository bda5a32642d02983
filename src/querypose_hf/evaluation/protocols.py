"""The two keypoint protocols as data: their figures, sigmas and groups of images.

Both are COCO's OKS protocol (cocodataset.org, "Keypoint Evaluation"). CrowdPose's own evaluation tool changes three
things: its 14 sigmas, the person's area, which it takes as 0.53 times the box's whether or not the annotation has an
`area`, and the groups of images by `crowdIndex` in place of the person sizes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ..checks import is_finite_number
from ..model.skeletons import COCO_17, CROWDPOSE_14, Skeleton


#: Names of the figures of each keypoint protocol, in the order they are reported.
KEYPOINT_METRICS: dict[str, tuple[str, ...]] = {
    "coco": ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL"),
    "crowdpose": ("AP", "AP50", "AP75", "AR", "AR50", "AR75", "AP_easy", "AP_medium", "AP_hard"),
}

#: Names of the figures of COCO's box protocol; ARn is the recall of the n best boxes of each image.
BOX_METRICS: tuple[str, ...] = (
    "AP",
    "AP50",
    "AP75",
    "APS",
    "APM",
    "APL",
    "AR1",
    "AR10",
    "AR100",
    "ARS",
    "ARM",
    "ARL",
)

#: CrowdPose's person area over box area.
CROWDPOSE_AREA_RATIO = 0.53

#: CrowdPose's groups: the upper bound of `crowdIndex`, not included, of each; the last has none.
CROWDPOSE_GROUPS: dict[str, float] = {"easy": 0.2, "medium": 0.8, "hard": float("inf")}

_SKELETONS: dict[str, Skeleton] = {"coco": COCO_17, "crowdpose": CROWDPOSE_14}


def check_metric(metric: str) -> None:
    """Raises `ValueError` if `metric` names none of [`KEYPOINT_METRICS`]."""
    if metric not in KEYPOINT_METRICS:
        raise ValueError(f"`metric` is {metric!r}; expected one of {', '.join(map(repr, KEYPOINT_METRICS))}")


def resolve_sigmas(metric: str, num_keypoints: int, sigmas: Sequence[float] | None) -> np.ndarray:
    """The OKS sigmas to score with: those given, or else the protocol's own.

    Args:
        metric (`str`): `"coco"` or `"crowdpose"`.
        num_keypoints (`int`): the number of keypoints of the annotations.
        sigmas (`Sequence[float]`, *optional*): one per keypoint.

    Returns:
        `np.ndarray` of shape (num_keypoints,).

    Raises:
        ValueError: there is not one positive sigma for each keypoint.
    """
    if sigmas is None:
        skeleton = _SKELETONS[metric]
        if num_keypoints != skeleton.num_keypoints:
            raise ValueError(
                f"`sigmas` not given: the annotations have {num_keypoints} keypoints, and metric {metric!r} knows the "
                f"sigmas of its own {skeleton.num_keypoints} only; give {num_keypoints}, one per keypoint"
            )
        sigmas = skeleton.sigmas
    if len(sigmas) != num_keypoints:
        raise ValueError(f"`sigmas` has {len(sigmas)} values; the annotations have {num_keypoints} keypoints")
    for index, sigma in enumerate(sigmas):
        if not is_finite_number(sigma) or sigma <= 0:
            raise ValueError(f"`sigmas[{index}]` is {sigma!r}; expected a number above 0")
    return np.asarray(sigmas, dtype=np.float64)


def crowd_group(crowd_index: float) -> str:
    """The CrowdPose group of an image: `"easy"` below 0.2, `"medium"` below 0.8, else `"hard"`.

    Example:

    ```python
    >>> [crowd_group(index) for index in (0.19, 0.2, 0.8)]
    ['easy', 'medium', 'hard']
    ```
    """
    return next(name for name, bound in CROWDPOSE_GROUPS.items() if crowd_index < bound)


def images_by_crowd_group(crowd_indices: Mapping[int, float]) -> dict[str, list[int]]:
    """Image ids by CrowdPose group, every group present, from the `crowdIndex` of each image."""
    groups: dict[str, list[int]] = {name: [] for name in CROWDPOSE_GROUPS}
    for image_id, crowd_index in crowd_indices.items():
        groups[crowd_group(crowd_index)].append(image_id)
    return groups
