"""People in the types of other libraries: supervision, FiftyOne, pandas, and what reads Transformers' detections.

For COCO results see `querypose_hf.evaluation`: `coco_results_from_people` and `write_coco_results`.

Every function takes the people of one image, as `post_process_pose_estimation` or the pipeline returns them, and
imports the other library when it is called.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class PeopleArrays:
    """The n people of an image as arrays.

    Attributes:
        scores (`np.ndarray` of shape `(n,)`): of the people, float32.
        labels (`np.ndarray` of shape `(n,)`): class indices.
        names (`list[str]`): class names.
        boxes (`np.ndarray` of shape `(n, 4)`): xyxy in pixels, continuous, float32.
        keypoints (`np.ndarray` of shape `(n, K, 2)`): x, y as pixel indices, float32.
        keypoint_scores (`np.ndarray` of shape `(n, K)`): float32.
        keypoint_names (`list[str]`): K names.
    """

    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    boxes: np.ndarray
    keypoints: np.ndarray
    keypoint_scores: np.ndarray
    keypoint_names: list[str]

    @classmethod
    def from_people(cls, people: Sequence[Mapping[str, Any]], config: Any) -> "PeopleArrays":
        """Reads the people of one image.

        Args:
            people (`Sequence[Mapping]`): of `post_process_pose_estimation` or of the pipeline.
            config ([`QueryPoseConfig`]): the model's, for the names of classes and keypoints.

        Raises:
            ValueError: the people are not those of one image, or have another number of keypoints than the model.
        """
        people = list(people)
        if not all(isinstance(person, Mapping) for person in people):
            raise ValueError(
                "`people` must be the people of one image, but holds "
                f"{next(type(one).__name__ for one in people if not isinstance(one, Mapping))}; take one image's list."
            )
        if people and "box" in people[0]:
            people = [_from_pipeline(person, config) for person in people]
        count, num_keypoints = len(people), config.num_keypoints
        shapes: dict[str, tuple[int, ...]] = {
            "score": (),
            "label": (),
            "bbox": (4,),
            "keypoints": (num_keypoints, 2),
            "scores": (num_keypoints,),
        }
        fields = {name: _stacked(people, name, (count, *shape)) for name, shape in shapes.items()}
        labels = fields["label"].astype(int)
        return cls(
            scores=fields["score"],
            labels=labels,
            names=[str(config.id2label[label]) for label in labels.tolist()],
            boxes=fields["bbox"],
            keypoints=fields["keypoints"],
            keypoint_scores=fields["scores"],
            keypoint_names=list(config.keypoint_names),
        )


def _from_pipeline(person: Mapping[str, Any], config: Any) -> dict[str, Any]:
    return {
        "score": person["score"],
        "label": config.label2id[person["label"]],
        "bbox": [person["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")],
        "keypoints": [[point["x"], point["y"]] for point in person["keypoints"]],
        "scores": [point["score"] for point in person["keypoints"]],
    }


def _stacked(people: Sequence[Mapping[str, Any]], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if not people:
        return np.zeros(shape, dtype=np.float32)
    values = [person[name] for person in people]
    try:
        if isinstance(values[0], torch.Tensor):  # from a device at once
            array = torch.stack(values).detach().float().cpu().numpy()
        else:
            array = np.asarray(values, dtype=np.float32)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"`people` differ in the shape of `{name}`: {error}") from error
    if array.shape != shape:
        raise ValueError(f"`{name}` of a person has shape {array.shape[1:]}; expected {shape[1:]}.")
    return array


def to_transformers_keypoints(people: Sequence[Mapping[str, Any]], config: Any) -> list[dict[str, torch.Tensor]]:
    """The people as Transformers' pose estimators give them, for `supervision.KeyPoints.from_transformers`.

    People of `post_process_pose_estimation` are like this already; the pipeline's are not.

    Returns:
        `list[dict[str, torch.Tensor]]`: see [`~QueryPoseImageProcessor.post_process_pose_estimation`].
    """
    arrays = PeopleArrays.from_people(people, config)
    return [
        {
            "score": torch.tensor(arrays.scores[index]),
            "label": torch.tensor(arrays.labels[index]),
            "bbox": torch.from_numpy(arrays.boxes[index]),
            "keypoints": torch.from_numpy(arrays.keypoints[index]),
            "scores": torch.from_numpy(arrays.keypoint_scores[index]),
            "labels": torch.arange(config.num_keypoints),
        }
        for index in range(len(arrays.scores))
    ]


def to_transformers_detections(people: Sequence[Mapping[str, Any]], config: Any) -> dict[str, torch.Tensor]:
    """The people's boxes as Transformers' object detectors give them.

    `supervision.Detections.from_transformers` takes them, and torchmetrics' `MeanAveragePrecision`.

    Returns:
        `dict[str, torch.Tensor]`: `scores` (n,), `labels` (n,), int64, and `boxes` (n, 4), corners in pixels.
    """
    arrays = PeopleArrays.from_people(people, config)
    return {
        "scores": torch.from_numpy(arrays.scores),
        "labels": torch.from_numpy(arrays.labels),
        "boxes": torch.from_numpy(arrays.boxes),
    }


def to_supervision_keypoints(people: Sequence[Mapping[str, Any]], config: Any) -> Any:
    """The people as `supervision.KeyPoints`.

    Unlike `supervision.KeyPoints.from_transformers` it keeps the people's classes and scores.

    Returns:
        `supervision.KeyPoints` with `xy`, `keypoint_confidence`, `detection_confidence`, `class_id` and, as data,
        `class_name`.

    Example:

    ```python
    >>> key_points = to_supervision_keypoints(people, model.config)
    >>> supervision.VertexAnnotator().annotate(scene=image, key_points=key_points)
    ```
    """
    import supervision

    arrays = PeopleArrays.from_people(people, config)
    if not len(arrays.scores):
        return supervision.KeyPoints.empty()
    return supervision.KeyPoints(
        xy=arrays.keypoints,
        class_id=arrays.labels,
        keypoint_confidence=arrays.keypoint_scores,
        detection_confidence=arrays.scores,
        data={"class_name": np.array(arrays.names)},
    )


def to_supervision_detections(people: Sequence[Mapping[str, Any]], config: Any) -> Any:
    """The people's boxes as `supervision.Detections`, such as its trackers take.

    The boxes are the model's, not those around the keypoints (`KeyPoints.as_detections`).

    Returns:
        `supervision.Detections` with `xyxy`, `confidence`, `class_id` and, as data, `class_name`, `keypoints` (K, 2)
        and `keypoint_confidence` (K,) of each person, which stay with them when detections are selected.
    """
    import supervision

    arrays = PeopleArrays.from_people(people, config)
    return supervision.Detections(
        xyxy=arrays.boxes,
        confidence=arrays.scores,
        class_id=arrays.labels,
        data={
            "class_name": np.array(arrays.names, dtype=str),
            "keypoints": arrays.keypoints,
            "keypoint_confidence": arrays.keypoint_scores,
        },
    )


def to_fiftyone_labels(
    people: Sequence[Mapping[str, Any]], config: Any, image_size: tuple[int, int]
) -> tuple[Any, Any]:
    """The people as FiftyOne's labels, whose coordinates are relative to the image.

    A pixel index x, as keypoints are given, lies at x + 0.5; boxes are continuous already.

    Args:
        people, config: see [`PeopleArrays.from_people`].
        image_size (`tuple[int, int]`): the image's height and width in pixels.

    Returns:
        `fiftyone.Detections`, `fiftyone.Keypoints`: of the same people in the same order, with the same `index`.
    """
    import fiftyone.core.labels as labels

    arrays = PeopleArrays.from_people(people, config)
    height, width = image_size
    extent = np.array([width, height], dtype=np.float64)
    corners = arrays.boxes.astype(np.float64) / np.tile(extent, 2)
    points = (arrays.keypoints.astype(np.float64) + 0.5) / extent
    detections, keypoints = [], []
    for index, name in enumerate(arrays.names):
        left, top, right, bottom = corners[index].tolist()
        score = float(arrays.scores[index])
        box = [left, top, right - left, bottom - top]
        detections.append(labels.Detection(label=name, bounding_box=box, confidence=score, index=index))
        keypoints.append(
            labels.Keypoint(
                label=name,
                points=points[index].tolist(),
                confidence=arrays.keypoint_scores[index].tolist(),
                index=index,
            )
        )
    return labels.Detections(detections=detections), labels.Keypoints(keypoints=keypoints)


def to_fiftyone_sample(
    path: str | os.PathLike,
    people: Sequence[Mapping[str, Any]],
    config: Any,
    image_size: tuple[int, int],
    field: str = "people",
) -> Any:
    """A `fiftyone.Sample` of an image with its people in the fields `{field}_boxes` and `{field}_keypoints`.

    To see limbs, give the dataset the skeleton: `fiftyone_skeleton(config)` as its `default_skeleton`.
    """
    import fiftyone.core.sample as sample

    detections, keypoints = to_fiftyone_labels(people, config, image_size)
    fields = {f"{field}_boxes": detections, f"{field}_keypoints": keypoints}
    return sample.Sample(filepath=os.fspath(path), **fields)


def fiftyone_skeleton(config: Any) -> Any:
    """The model's skeleton as a `fiftyone.KeypointSkeleton`: names and limbs."""
    import fiftyone.core.odm as odm

    edges = [list(edge) for edge in config.keypoint_edges]
    return odm.KeypointSkeleton(labels=list(config.keypoint_names), edges=edges)


def to_dataframe(people: Sequence[Mapping[str, Any]], config: Any, image: Any = None) -> Any:
    """The people as a `pandas.DataFrame`, a row for each keypoint of each person.

    Args:
        people, config: see [`PeopleArrays.from_people`].
        image (*optional*): the image's name, for the first column; `pandas.concat` joins the tables of several
            images.

    Returns:
        `pandas.DataFrame`: `image`, `person` (their place in the list), `label`, `score`, `xmin`, `ymin`, `xmax`,
        `ymax`, `keypoint` (its name), `x`, `y`, `keypoint_score`.

    Example:

    ```python
    >>> table = to_dataframe(people, model.config, image="photo.jpg")
    >>> table[table.keypoint == "nose"][["person", "x", "y"]]
    ```
    """
    import pandas

    arrays = PeopleArrays.from_people(people, config)
    count, num_keypoints = arrays.keypoint_scores.shape

    def of_each_person(values: Any) -> np.ndarray:
        return np.repeat(np.asarray(values), num_keypoints)

    boxes = {side: of_each_person(arrays.boxes[:, i]) for i, side in enumerate(("xmin", "ymin", "xmax", "ymax"))}
    return pandas.DataFrame(
        {
            "image": pandas.Series([image] * (count * num_keypoints), dtype=object if image is None else None),
            "person": of_each_person(np.arange(count)),
            "label": of_each_person(np.array(arrays.names, dtype=object)),
            "score": of_each_person(arrays.scores),
            **boxes,
            "keypoint": np.tile(np.array(arrays.keypoint_names, dtype=object), count),
            "x": arrays.keypoints[..., 0].ravel(),
            "y": arrays.keypoints[..., 1].ravel(),
            "keypoint_score": arrays.keypoint_scores.ravel(),
        }
    )
