"""Carries the weights of a trained model over to one with other keypoints or other layers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checks import telling
from ..model.modeling_querypose import QueryPoseForPoseEstimation
from ..model.skeletons import Skeleton


# Tensors with a row, or a block of rows, per keypoint, instance query or part.
_BY_KEYPOINT = (
    "keypoint_head.weight",
    "keypoint_head.bias",
    "sigma_head.weight",
    "sigma_head.bias",
    "heatmap_head.predictor.weight",
    "heatmap_head.predictor.bias",
)
_BY_QUERY = ("decoder.instance_queries", "decoder.initial_boxes")
_BY_PART = (
    "query_projection.projection.weight",
    "query_projection.projection.bias",
    "attention_conv.weight",
    "attention_conv.bias",
    "decoder.part_queries",
)


@dataclass(frozen=True)
class TransferReport:
    """What [`transfer_weights`] did; as text, a summary.

    Attributes:
        keypoints (`dict[str, str | None]`): the source's keypoint by the target's, or `None` for a new one.
        parts (`dict[tuple[str, ...], tuple[str, ...] | None]`): the source's part by the target's, or `None` for a new
            one. A part is given as the names of its keypoints.
        carried (`tuple[str, ...]`): tensors carried over whole.
        carried_in_part (`tuple[str, ...]`): tensors of which the rows of known keypoints or parts were carried over.
        fresh (`tuple[str, ...]`): tensors that are newly initialised: they kept the target's own values.
        left_behind (`tuple[str, ...]`): tensors of the source without a place in the target.
    """

    keypoints: dict[str, str | None]
    parts: dict[tuple[str, ...], tuple[str, ...] | None]
    carried: tuple[str, ...]
    carried_in_part: tuple[str, ...]
    fresh: tuple[str, ...]
    left_behind: tuple[str, ...]

    def __str__(self) -> str:
        """At most six lines; the attributes have it all."""
        new_keypoints = [name for name, source in self.keypoints.items() if source is None]
        new_parts = ["+".join(part) for part, source in self.parts.items() if source is None]
        known = len(self.keypoints) - len(new_keypoints)
        lines = [
            f"{len(self.carried)} tensors carried over whole, {len(self.carried_in_part)} in part, {len(self.fresh)} "
            f"newly initialised, {len(self.left_behind)} left behind",
            f"keypoints carried over: {known} of {len(self.keypoints)}; newly initialised: "
            f"{_some(new_keypoints) or 'none'}",
        ]
        if len(self.parts) < len(self.keypoints):  # else each keypoint is a part of its own
            lines.append(
                f"parts carried over: {len(self.parts) - len(new_parts)} of {len(self.parts)}; newly initialised: "
                f"{_some(new_parts) or 'none'}"
            )
        if not known:
            lines.append("no keypoint has the name of one of the checkpoint's, so all keypoints are newly initialised")
        for verb, names in (("newly initialised", self.fresh), ("left behind", self.left_behind)):
            if names:
                lines.append(f"tensors {verb}: {_some(names, 3)}")
        return "\n".join(lines)


def _some(names: Sequence[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@torch.no_grad()
def transfer_weights(
    source: QueryPoseForPoseEstimation | str | Path, target: QueryPoseForPoseEstimation, fresh: str | None = None
) -> TransferReport:
    """Starts a model from one that was trained for other keypoints or has other layers.

    - Coordinate layers: rows by the names of keypoints, in any order (`left_eye`, `Left Eye`, `lefteye` are the same
      name).
    - Parts: rows from the source's part that shares the most keypoint names, the first of several.
    - Instance queries: a target with fewer gets the first of the source's; one with more gets some of them twice, and
      [`~training.initial_boxes.start_from_typical_boxes`] tells them apart.
    - Everything else: where name and shape agree. The rest keeps the target's own values.

    Args:
        source ([`QueryPoseForPoseEstimation`], `str` or `Path`): a model, or its folder or Hub id.
        target ([`QueryPoseForPoseEstimation`]): changed in place.
        fresh (`str`, *optional*): a regular expression; tensors in whose names it is found are newly initialised.

    Returns:
        [`TransferReport`]

    Raises:
        ValueError: no tensor of the source has a place in the target, or none has `fresh` in its name.

    Example:

    ```python
    >>> horse = Skeleton.from_names(["nose", "left_eye", "right_eye", "withers"])
    >>> model = QueryPoseForPoseEstimation(QueryPoseConfig.from_variant("r50", skeleton=horse))
    >>> print(transfer_weights("path/to/coco/checkpoint", model))
    ```
    """
    if isinstance(source, QueryPoseForPoseEstimation):
        model = source
    else:
        with telling(f"`source` is {str(source)!r}; expected a QueryPose checkpoint"):
            model = QueryPoseForPoseEstimation.from_pretrained(source)
    source_skeleton, target_skeleton = model.config.skeleton, target.config.skeleton
    keypoints = match_keypoints(source_skeleton.keypoint_names, target_skeleton.keypoint_names)
    parts = match_parts(source_skeleton, target_skeleton)
    source_weights = model.state_dict()
    if fresh is not None:
        kept = {name: value for name, value in source_weights.items() if re.search(fresh, name) is None}
        if len(kept) == len(source_weights):
            raise ValueError(
                f"`fresh` is {fresh!r}; expected it in the name of a tensor, such as {next(iter(kept))!r}."
            )
        source_weights = kept
    outcome: dict[str, list[str]] = {"whole": [], "in part": [], "new": []}
    for name, value in target.state_dict().items():
        outcome[_carry(name, source_weights.get(name), value, keypoints, parts)].append(name)
    if not outcome["whole"] and not outcome["in part"]:
        raise ValueError("`source` and `target` have no tensor of the same name and shape; expected similar models.")
    carried = {*outcome["whole"], *outcome["in part"]}
    source_names, source_parts = source_skeleton.keypoint_names, _parts_by_names(source_skeleton)
    return TransferReport(
        keypoints={
            name: None if index is None else source_names[index]
            for name, index in zip(target_skeleton.keypoint_names, keypoints, strict=True)
        },
        parts={
            part: None if index is None else source_parts[index]
            for part, index in zip(_parts_by_names(target_skeleton), parts, strict=True)
        },
        carried=tuple(outcome["whole"]),
        carried_in_part=tuple(outcome["in part"]),
        fresh=tuple(outcome["new"]),
        left_behind=tuple(name for name in source_weights if name not in carried),
    )


def _parts_by_names(skeleton: Skeleton) -> list[tuple[str, ...]]:
    return [tuple(skeleton.keypoint_names[keypoint] for keypoint in part) for part in skeleton.parts]


def match_keypoints(source_names: Sequence[str], target_names: Sequence[str]) -> list[int | None]:
    """The index of the source keypoint of the same name, for each target keypoint."""
    index = {_plain(name): position for position, name in reversed(list(enumerate(source_names)))}
    return [index.get(_plain(name)) for name in target_names]


def match_parts(source: Skeleton, target: Skeleton) -> list[int | None]:
    """The index of the source part that shares the most keypoint names, if any, for each target part."""
    source_parts = [{_plain(source.keypoint_names[keypoint]) for keypoint in part} for part in source.parts]
    matched: list[int | None] = []
    for part in target.parts:
        names = {_plain(target.keypoint_names[keypoint]) for keypoint in part}
        shared = [len(names & source_part) for source_part in source_parts]
        matched.append(shared.index(max(shared)) if max(shared) else None)
    return matched


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _carry(
    name: str, source: Tensor | None, target: Tensor, keypoints: list[int | None], parts: list[int | None]
) -> str:
    """Copies what it can of one tensor; returns how much: `"whole"`, `"in part"` or `"new"`, newly initialised."""
    if source is None:
        return "new"
    if name.endswith(_BY_QUERY) and source.shape[1:] == target.shape[1:]:
        target.copy_(source[torch.arange(len(target)) % len(source)])
        return "whole"
    rows = keypoints if name.endswith(_BY_KEYPOINT) else parts if name.endswith(_BY_PART) else None
    if rows is None:
        if source.shape != target.shape:
            return "new"
        target.copy_(source)
        return "whole"
    # a part has a block of rows
    block = len(target) // len(rows)
    if len(source) % block or source.shape[1:] != target.shape[1:]:
        return "new"
    source, target = source.unflatten(0, (-1, block)), target.unflatten(0, (-1, block))
    known = [row for row, origin in enumerate(rows) if origin is not None]
    if not known:
        return "new"
    target[known] = source[[origin for origin in rows if origin is not None]].to(target)
    return "whole" if len(known) == len(rows) else "in part"
