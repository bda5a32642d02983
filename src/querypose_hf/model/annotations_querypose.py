"""COCO annotations to the labels that QueryPose is trained on."""

import logging
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np


logger = logging.getLogger(__name__)

#: Used when neither the image processor nor any annotation tells the number of keypoints: COCO's.
DEFAULT_NUM_KEYPOINTS = 17
#: Coordinates, widths and heights beyond are mistakes, and would become infinite in float32.
MOST_PIXELS = 10_000_000


def labels_from_annotations(
    annotations: Sequence[Mapping[str, Any]],
    sizes: Sequence[tuple[int, int]],
    resized_sizes: Sequence[tuple[int, int]],
    category_ids: Sequence[int] = (1,),
    num_keypoints: int | None = None,
) -> list[dict[str, np.ndarray]]:
    """Turns COCO annotations into the labels that QueryPose is trained on.

    Crowd regions are left out. A box that has no area once clipped to the image is taken from the labelled keypoints,
    see [`usable_boxes`]; a person without such a box and such keypoints is left out, and a warning says so. People
    without labelled keypoints stay, as box targets. COCO's keypoints are pixel indices: index x lies at the continuous
    coordinate x + 0.5. Keypoints are not clipped.

    Args:
        annotations (`Sequence[Mapping]`): per image `{"image_id": int, "annotations": [COCO objects]}`. Of an object
            are read: `bbox` (x, y, width, height in pixels), `keypoints` (3 K numbers, or K triples of x, y,
            visibility; may be left out), `category_id` (the first of `category_ids` when left out), `area` (width
            times height when left out), `num_keypoints` (checked only) and `iscrowd` (0 when left out). Null is as
            good as left out.
        sizes (`Sequence[tuple[int, int]]`): per image height and width of the upright image, which annotations refer
            to.
        resized_sizes (`Sequence[tuple[int, int]]`): per image height and width after resizing, before padding.
        category_ids (`Sequence[int]`, *optional*, defaults to `(1,)`): the category id at position `i` becomes class
            label `i`.
        num_keypoints (`int`, *optional*): number of keypoints K. Taken from the annotations when not given, and 17
            when none of them tells.

    Returns:
        `list[dict[str, np.ndarray]]`: per image, for its n people,
        - `class_labels` (n,), int64;
        - `boxes` (n, 4), float32: centre x, centre y, width, height relative to the image;
        - `keypoints` (n, K, 3), float32: continuous x and y relative to the image, and visibility 0 (not labelled; x
          and y are 0 too), 1 (hidden) or 2 (visible);
        - `area` (n,), float32: in pixels of the resized image;
        - `size` and `orig_size` (2,), int64: height and width after and before resizing;
        - `image_id` (1,), int64.

    Raises:
        `TypeError`, `ValueError`: naming image, object, field, value and what is expected.
    """
    if len(annotations) != len(sizes):
        raise ValueError(
            f"`annotations` has {len(annotations)} entries for {len(sizes)} images; expected one for each."
        )
    people = []
    for index, entry in enumerate(annotations):
        place, objects = _check_annotation(index, entry)
        for number, obj in enumerate(objects):
            if not isinstance(obj, Mapping):
                raise TypeError(f"{place}, object {number}: expected a COCO object (a dict), got {type(obj)}.")
        people.append(
            [
                _read_person(f"{place}, object {number}", obj, category_ids)
                for number, obj in enumerate(objects)
                if not _is_crowd(f"{place}, object {number}", obj)
            ]
        )
    num_keypoints = _count_keypoints([person for group in people for person in group], num_keypoints)
    return [
        _labels_of_image(int(entry["image_id"]), group, size, resized_size, num_keypoints)
        for entry, group, size, resized_size in zip(annotations, people, sizes, resized_sizes, strict=True)
    ]


def _check_annotation(index: int, entry: Any) -> tuple[str, Sequence[Any]]:
    expectation = 'expected {"image_id": int, "annotations": [COCO objects]}'
    if not isinstance(entry, Mapping):
        raise TypeError(f"annotations[{index}] is of {type(entry)}; {expectation}.")
    for field in ("image_id", "annotations"):
        if field not in entry:
            raise ValueError(f"annotations[{index}] has no `{field}` but {sorted(map(str, entry))}; {expectation}.")
    image_id, objects = entry["image_id"], entry["annotations"]
    is_number = isinstance(image_id, Real) and not isinstance(image_id, bool)
    if not is_number or not -(2**63) <= image_id < 2**63 or image_id % 1 != 0:
        raise TypeError(f"annotations[{index}]: `image_id` is {image_id!r}; expected an integer.")
    place = f"annotations[{index}] (image_id {image_id})"
    if not isinstance(objects, list | tuple):
        raise TypeError(f"{place}: `annotations` is of {type(objects)}; expected a list of COCO objects.")
    return place, objects


def _is_crowd(place: str, obj: Mapping[str, Any]) -> bool:
    value = obj.get("iscrowd")
    if value is None:
        return False
    array = np.asarray(value)
    if array.shape != () or array.dtype.kind not in "biuf" or array not in (0, 1):
        raise ValueError(f"{place}: `iscrowd` is {value!r}; expected 0 or 1.")
    return bool(array)


def _read_person(place: str, obj: Mapping[str, Any], category_ids: Sequence[int]) -> dict[str, Any]:
    def numbers(
        field: str, expectation: str, fits: Callable[[tuple[int, ...]], bool], most: float = MOST_PIXELS
    ) -> np.ndarray:
        value = obj[field]
        try:
            array = np.asarray(value)  # without a type: NumPy would read text as numbers
        except (OverflowError, TypeError, ValueError):
            array = None
        if array is None or array.dtype.kind not in "iuf" or not fits(array.shape) or _holds_truths(value):
            raise ValueError(f"{place}: `{field}` is {value!r}; expected {expectation}.")
        if not np.isfinite(array).all():
            raise ValueError(f"{place}: `{field}` is {value!r}; expected finite numbers.")
        if (np.abs(array) > most).any():
            raise ValueError(f"{place}: `{field}` is {value!r}; expected at least {-most:g} and at most {most:g}.")
        return array.astype(np.float64)

    if obj.get("bbox") is None:
        raise ValueError(f"{place}: `bbox` is missing; expected x, y, width and height in pixels.")
    bbox = numbers("bbox", "4 numbers: x, y, width, height", lambda shape: shape == (4,))
    if (bbox[2:] < 0).any():
        raise ValueError(f"{place}: `bbox` is {obj['bbox']!r}; expected a width and a height of at least 0.")

    category_id = category_ids[0] if obj.get("category_id") is None else obj["category_id"]
    if isinstance(category_id, bool) or category_id not in category_ids:
        raise ValueError(
            f"{place}: `category_id` is {category_id!r}; expected one of {list(category_ids)}. Set `category_ids` of "
            "the image processor to the dataset's ids, in the order of the model's classes."
        )

    area = bbox[2] * bbox[3]
    if obj.get("area") is not None:
        area = numbers("area", "a number of pixels", lambda shape: shape == (), MOST_PIXELS**2).item()
        if area < 0:
            raise ValueError(f"{place}: `area` is {area}; expected at least 0 pixels.")

    if obj.get("num_keypoints") is not None:
        expectation = "the number of labelled keypoints"
        number = numbers("num_keypoints", expectation, lambda shape: shape == ()).item()
        if number < 0 or number != int(number):
            raise ValueError(f"{place}: `num_keypoints` is {obj['num_keypoints']!r}; expected {expectation}.")

    keypoints = None
    if obj.get("keypoints") is not None:
        keypoints = numbers(
            "keypoints",
            "3 numbers for each keypoint: x, y, visibility",
            lambda shape: (len(shape) == 1 and shape[0] % 3 == 0) or (len(shape) == 2 and shape[1] == 3),
        ).reshape(-1, 3)
        strange = ~np.isin(keypoints[:, 2], (0, 1, 2))
        if strange.any():
            first = int(strange.argmax())
            raise ValueError(
                f"{place}: `keypoints` has visibility {keypoints[first, 2]:g} at keypoint {first}; expected 0 (not "
                "labelled), 1 (hidden) or 2 (visible)."
            )
    return {
        "place": place,
        "label": list(category_ids).index(category_id),
        "bbox": bbox,
        "area": area,
        "keypoints": None if keypoints is None or len(keypoints) == 0 else keypoints,
    }


def _holds_truths(value: Any) -> bool:
    """Whether a number or nested list has `True` or `False` in it, which NumPy takes for 1 and 0 among numbers."""
    if isinstance(value, list | tuple):
        return any(map(_holds_truths, value))
    return isinstance(value, bool | np.bool_)


def _count_keypoints(people: Sequence[Mapping[str, Any]], num_keypoints: int | None) -> int:
    source = "`num_keypoints`"
    for person in people:
        if person["keypoints"] is None:
            continue
        found = len(person["keypoints"])
        if num_keypoints is None:
            num_keypoints, source = found, person["place"]
        elif found != num_keypoints:
            raise ValueError(
                f"{person['place']}: `keypoints` has {found} keypoints ({3 * found} numbers) where {source} says "
                f"{num_keypoints}; expected {3 * num_keypoints} numbers. Set `num_keypoints` of the image processor "
                "to the dataset's number."
            )
    return DEFAULT_NUM_KEYPOINTS if num_keypoints is None else num_keypoints


def usable_boxes(
    boxes: np.ndarray, keypoints: np.ndarray, extents: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes with an area inside their image, taken from the keypoints where the annotated ones have none.

    Such a box is the smallest one around the labelled keypoints inside the image, larger in each direction by a tenth
    of its longer side, but at least 2 pixels, and clipped to the image.

    Args:
        boxes (`np.ndarray` of shape (n, 4)): x, y, width, height in pixels.
        keypoints (`np.ndarray` of shape (n, K, 3)): x and y as pixel indices, and visibility.
        extents (`np.ndarray` of shape (2,) or (n, 2)): width and height of the images; infinite where not known.

    Returns:
        The boxes, (n, 4): the annotated ones, unclipped, or those of the keypoints; a mask of those taken from the
        keypoints; and a mask of those that still have no area in the image: nothing tells where that person is.
    """
    extents = np.broadcast_to(extents, (len(boxes), 2))
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    without = ~(np.minimum(high, extents) > np.maximum(low, 0)).all(axis=1)
    if not without.any():
        return boxes, without, without
    points = keypoints[without, :, :2] + 0.5
    labelled = (keypoints[without, :, 2] > 0) & ((points >= 0) & (points <= extents[without, None])).all(axis=2)
    found = labelled.any(axis=1)
    points, labelled = points[found], labelled[found][..., None]
    replaced = without.copy()
    replaced[without] = found
    low = np.where(labelled, points, np.inf).min(axis=1)
    high = np.where(labelled, points, -np.inf).max(axis=1)
    margin = np.maximum(0.1 * (high - low).max(axis=1, keepdims=True), 2)
    low, high = np.maximum(low - margin, 0), np.minimum(high + margin, extents[replaced])
    boxes = boxes.copy()
    boxes[replaced] = np.concatenate([low, high - low], axis=1)
    return boxes, replaced, without & ~replaced


def _labels_of_image(
    image_id: int,
    people: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    resized_size: tuple[int, int],
    num_keypoints: int,
) -> dict[str, np.ndarray]:
    height, width = size
    extent = np.array([width, height], dtype=np.float64)
    unlabelled = np.zeros((num_keypoints, 3))

    keypoints = np.array(
        [unlabelled if person["keypoints"] is None else person["keypoints"] for person in people], dtype=np.float64
    ).reshape(-1, num_keypoints, 3)
    annotated = np.array([person["bbox"] for person in people], dtype=np.float64).reshape(-1, 4)
    boxes, replaced, lost = usable_boxes(annotated, keypoints, extent)
    keep = ~lost
    if lost.any():
        person = people[int(lost.argmax())]
        logger.warning(
            "%s: left out %d of %d people: the box, such as %s, has no area in the image of %d x %d pixels, and no "
            "labelled keypoint lies in it.",
            *(person["place"].rpartition(",")[0], lost.sum(), len(people), person["bbox"].tolist(), width, height),
        )
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    corners = np.clip(corners, 0, np.tile(extent, 2))
    labelled = keypoints[..., 2:] > 0
    keypoints[..., :2] = np.where(labelled, (keypoints[..., :2] + 0.5) / extent, 0)

    area_scale = (resized_size[0] * resized_size[1]) / (height * width)
    area = np.array([person["area"] for person in people], dtype=np.float64)
    area = np.where(replaced & (area == 0), boxes[:, 2:].prod(axis=1), area) * area_scale
    class_labels = np.array([person["label"] for person in people], dtype=np.int64)
    top_left, bottom_right = np.split(corners[keep] / np.tile(extent, 2), 2, axis=1)
    return {
        "class_labels": class_labels[keep],
        "boxes": np.concatenate([(top_left + bottom_right) / 2, bottom_right - top_left], axis=1).astype(np.float32),
        "keypoints": keypoints[keep].astype(np.float32),
        "area": area[keep].astype(np.float32),
        "size": np.array(resized_size, dtype=np.int64),
        "orig_size": np.array(size, dtype=np.int64),
        "image_id": np.array([image_id], dtype=np.int64),
    }
