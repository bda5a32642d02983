"""COCO keypoint annotations and CrowdPose's, which are written the same way."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..checks import is_identifier, require_numbers, require_records, shown
from ..files import read_json
from ..model.skeletons import CROWDPOSE_14
from .pose_dataset import OnError, PoseFileDataset, check_on_error
from .pose_table import PoseTable


logger = logging.getLogger(__name__)


#: Where annotations have no `area`, CrowdPose takes this share of the box's.
CROWDPOSE_AREA_RATIO = 0.53


class CocoPoseDataset(PoseFileDataset):
    """COCO keypoint annotations, of any number of keypoints and classes, and the folder of their pictures.

    Everything in the file is checked when the data set is made; pictures are only looked for, and opened when asked
    for. Crowd regions are in the samples, marked by `iscrowd`; the image processor leaves them out. People without
    labelled keypoints are kept. An annotation's `iscrowd` counts as 0, its `keypoints` as not labelled, and its `area`
    as `area_ratio` times the box's, where the file does not give them.

    Args:
        annotations (`str` or `os.PathLike`): a COCO keypoints JSON file. Its images need `id`, `file_name`, `width`
            and `height`, its annotations `image_id`, `category_id` and `bbox`.
        images (`str` or `os.PathLike`): the folder that `file_name` is relative to.
        category_ids (`Sequence[int]`, *optional*): the categories wanted, in the order of the model's classes. By
            default those that name keypoints, or all where none does.
        only_with_people (`bool`, *optional*, defaults to `False`): whether to leave out pictures without an object
            that is no crowd region, as the paper's recipe does in training.
        undo_squeeze (`bool`, *optional*, defaults to `False`): whether pictures that were squeezed to another aspect
            ratio are given their own again: they are resized to `orig_width` and `orig_height`, which each image of
            the file must have. All coordinates are multiplied, because keypoint indices were when they were squeezed.
        exhaustive (`bool`, *optional*, defaults to `True`): whether everybody in the pictures is annotated.
        area_ratio (`float`, *optional*, defaults to 1): see above.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`): whether a picture that is missing, broken
            or of another size than the file says stops the run, or is named and skipped.

    Raises:
        FileNotFoundError: there is no such file or folder, or pictures are missing and `on_error` is `"raise"`.
        ValueError: a field is missing or wrong; the message names file, record, field and value.

    Example:

    ```python
    >>> train = CocoPoseDataset("person_keypoints_train2017.json", "train2017", only_with_people=True)
    >>> train[0]["annotations"][0]["bbox"]
    [359.17, 146.17, 112.45, 213.57]
    ```
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        *,
        category_ids: Sequence[int] | None = None,
        only_with_people: bool = False,
        undo_squeeze: bool = False,
        exhaustive: bool = True,
        area_ratio: float = 1.0,
        on_error: OnError = "raise",
    ):
        on_error = check_on_error(on_error)
        source, folder = os.fspath(annotations), Path(images)
        content = read_json(source)
        if not isinstance(content, Mapping):
            raise ValueError(f"{source}: expected an object with `images`, `annotations` and `categories`.")
        for field in ("images", "annotations", "categories"):
            if field not in content:
                raise ValueError(f"{source}: `{field}` is missing; COCO annotations have it.")
        image_records = require_records(content["images"], f"{source}: `images`", "image")
        objects = require_records(content["annotations"], f"{source}: `annotations`", "annotation")
        categories = require_records(content["categories"], f"{source}: `categories`", "category")
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of images.")

        chosen = _chosen_categories(categories, category_ids, source)
        keypoint_names, edges = self._skeleton(chosen, source)
        table, left_out = _read_table(
            image_records,
            objects,
            [category["id"] for category in chosen],
            None if keypoint_names is None else len(keypoint_names),
            area_ratio,
            source,
        )
        for edge in edges:
            if not all(0 <= end < table.num_keypoints for end in edge):
                raise ValueError(
                    f"{source}: `skeleton` holds the limb {[end + 1 for end in edge]}; expected numbers from 1 to "
                    f"{table.num_keypoints}, the number of keypoints."
                )
        if undo_squeeze:
            sizes = [
                require_numbers(image_records, field, "the width or height before squeezing", source, "image")
                for field in ("orig_width", "orig_height")
            ]
            table = table.resized_to(_positive(np.stack(sizes, axis=1), "orig_width or orig_height", source))

        files = [str(folder / record["file_name"]) for record in image_records]
        present = np.array([os.path.isfile(file) for file in files], dtype=bool)
        if not present.all():
            missing = [file for file, there in zip(files, present, strict=True) if not there]
            message = (
                f"{source}: {len(missing)} of {len(files)} images are not in {folder}, the first of them "
                f"{os.path.relpath(missing[0], folder)}"
            )
            if on_error == "raise":
                raise FileNotFoundError(f'{message}; with `on_error="skip"` they are left out.')
            logger.warning("skipped: %s", message)
            table = table.with_images(present)
            files = [file for file, there in zip(files, present, strict=True) if there]
            left_out["missing_images"] = len(missing)
        super().__init__(
            table,
            files,
            category_names={category["id"]: str(category.get("name", category["id"])) for category in chosen},
            keypoint_names=keypoint_names,
            edges=edges,
            flip_indices=None,
            exhaustive=exhaustive,
            on_error=on_error,
            only_with_people=only_with_people,
            left_out=left_out,
        )

    def _skeleton(
        self, categories: Sequence[Mapping[str, Any]], source: str
    ) -> tuple[tuple[str, ...] | None, list[tuple[int, int]]]:
        """Keypoint names, if the categories have them, and limbs as pairs of indices from 0."""
        skeletons = []
        for category in categories:
            names, limbs = category.get("keypoints") or None, category.get("skeleton") or []
            if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise ValueError(
                    f"{source}: category {category['id']}: `keypoints` is {shown(names)}; expected a list of names."
                )
            if not isinstance(limbs, list) or not all(
                isinstance(limb, list) and len(limb) == 2 and all(map(is_identifier, limb)) for limb in limbs
            ):
                raise ValueError(
                    f"{source}: category {category['id']}: `skeleton` is {shown(limbs)}; expected pairs of keypoint "
                    "numbers, counted from 1."
                )
            skeletons.append((None if names is None else tuple(names), [(a - 1, b - 1) for a, b in limbs]))
        for category, skeleton in zip(categories, skeletons, strict=True):
            if skeleton[0] != skeletons[0][0]:
                raise ValueError(
                    f"{source}: category {category['id']} has the keypoints {shown(skeleton[0])} and category "
                    f"{categories[0]['id']} {shown(skeletons[0][0])}; expected the same for all categories. Choose "
                    "those wanted with `category_ids`."
                )
        return skeletons[0]


class CrowdPoseDataset(CocoPoseDataset):
    """CrowdPose's annotations and the folder of its pictures.

    As [`CocoPoseDataset`], with CrowdPose's 14 keypoints and an area of 0.53 times the box's, which its evaluation
    takes. The skeleton in CrowdPose's files is COCO's, so ours is used. The paper trains on train and val together:
    join them with `torch.utils.data.ConcatDataset`.

    Args:
        annotations (`str` or `os.PathLike`): `crowdpose_train.json`, `crowdpose_val.json` or `crowdpose_test.json`.
        images (`str` or `os.PathLike`): the folder of all pictures.
        only_with_people (`bool`, *optional*, defaults to `False`): whether to leave out pictures without an object
            that is no crowd region, as the paper's recipe does in training.
        on_error (`"raise"` or `"skip"`, *optional*, defaults to `"raise"`): what to do about unusable pictures.

    Example:

    ```python
    >>> train = CrowdPoseDataset("crowdpose_train.json", "images", only_with_people=True)
    >>> train.keypoint_names[-2:]
    ('head', 'neck')
    ```
    """

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        *,
        only_with_people: bool = False,
        on_error: OnError = "raise",
    ):
        super().__init__(
            annotations,
            images,
            only_with_people=only_with_people,
            area_ratio=CROWDPOSE_AREA_RATIO,
            on_error=on_error,
        )

    def _skeleton(
        self, categories: Sequence[Mapping[str, Any]], source: str
    ) -> tuple[tuple[str, ...] | None, list[tuple[int, int]]]:
        return CROWDPOSE_14.keypoint_names, list(CROWDPOSE_14.edges)


def _chosen_categories(
    categories: Sequence[Mapping[str, Any]], category_ids: Sequence[int] | None, source: str
) -> list[Mapping[str, Any]]:
    by_id = dict(zip(_unique_ids(categories, source, "category"), categories, strict=True))
    if not by_id:
        raise ValueError(f"{source}: `categories` is empty; expected at least one category.")
    if category_ids is None:
        return [category for category in categories if category.get("keypoints")] or list(categories)
    if not category_ids or len(set(category_ids)) != len(category_ids) or not set(category_ids) <= by_id.keys():
        raise ValueError(
            f"`category_ids` is {category_ids!r}; {source} has {shown(list(by_id))}, expected some of them."
        )
    return [by_id[category_id] for category_id in category_ids]


def _read_table(
    images: Sequence[Mapping[str, Any]],
    objects: Sequence[Mapping[str, Any]],
    category_ids: Sequence[int],
    num_keypoints: int | None,
    area_ratio: float,
    source: str,
) -> tuple[PoseTable, dict[str, int]]:
    row_of_image = {image_id: row for row, image_id in enumerate(_unique_ids(images, source, "image"))}
    for index, record in enumerate(images):
        if not isinstance(record.get("file_name"), str):
            raise ValueError(
                f"{source}: image {index}: `file_name` is {shown(record.get('file_name'))}; expected a file's name."
            )
    sizes = np.stack(
        [require_numbers(images, side, "a number of pixels", source, "image") for side in ("width", "height")], axis=1
    )
    sizes = _positive(sizes, "width or height", source)

    for index, record in enumerate(objects):
        for field in ("image_id", "category_id"):
            if not is_identifier(record.get(field)):
                raise ValueError(
                    f"{source}: annotation {index}: `{field}` is {shown(record.get(field))}; expected a whole number."
                )
    in_image = np.array([record["image_id"] in row_of_image for record in objects], dtype=bool)
    wanted = in_image & np.array([record["category_id"] in category_ids for record in objects], dtype=bool)

    boxes = _numbers(objects, wanted, "bbox", "4 numbers: x, y, width, height", source, length=4)
    if (boxes[:, 2:] < 0).any():
        index = int(np.flatnonzero(wanted)[(boxes[:, 2:] < 0).any(axis=1).argmax()])
        raise ValueError(
            f"{source}: annotation {index}: `bbox` is {objects[index]['bbox']}; expected a width and a height of at "
            "least 0."
        )
    areas = _numbers(objects, wanted, "area", "a number of pixels", source, optional=True)
    chosen = [record for record, keep in zip(objects, wanted, strict=True) if keep]
    without_area = np.array([record.get("area") is None for record in chosen], dtype=bool)
    areas[without_area] = boxes[without_area, 2:].prod(axis=1) * area_ratio
    table = PoseTable.from_rows(
        image_ids=np.array(list(row_of_image), dtype=np.int64),
        sizes=sizes,
        image_rows=np.array([row_of_image[record["image_id"]] for record in chosen], dtype=np.int64),
        ids=np.array([_object_id(record, index, source) for index, record in enumerate(objects)], dtype=np.int64)[
            wanted
        ],
        boxes=boxes,
        keypoints=_read_keypoints(objects, wanted, num_keypoints, source),
        areas=areas,
        category_ids=np.array([record["category_id"] for record in chosen], dtype=np.int64),
        iscrowd=np.array([bool(record.get("iscrowd")) for record in chosen], dtype=bool),
    )
    left_out = {
        "annotations_of_unknown_images": int((~in_image).sum()),
        "annotations_of_other_categories": int((in_image & ~wanted).sum()),
    }
    return table, left_out


def _object_id(record: Mapping[str, Any], index: int, source: str) -> int:
    object_id = record.get("id", index)
    if not is_identifier(object_id):
        raise ValueError(f"{source}: annotation {index}: `id` is {shown(object_id)}; expected a whole number.")
    return object_id


def _read_keypoints(
    objects: Sequence[Mapping[str, Any]], wanted: np.ndarray, num_keypoints: int | None, source: str
) -> np.ndarray:
    """(m, K, 3): the keypoints of the objects that are `wanted`."""
    if num_keypoints is None:
        first = next((i for i in np.flatnonzero(wanted).tolist() if objects[i].get("keypoints")), None)
        if first is None:
            raise ValueError(
                f"{source}: neither a category nor an annotation has `keypoints`; expected keypoint annotations."
            )
        values = objects[first]["keypoints"]
        if not isinstance(values, list) or len(values) % 3:
            raise ValueError(
                f"{source}: annotation {first}: `keypoints` is {shown(values)}; expected 3 numbers for each keypoint."
            )
        num_keypoints = len(values) // 3
    expected = f"{3 * num_keypoints} numbers: x, y and visibility of {num_keypoints} keypoints"
    keypoints = _numbers(objects, wanted, "keypoints", expected, source, length=3 * num_keypoints, optional=True)
    keypoints = keypoints.reshape(-1, num_keypoints, 3)
    strange = ~np.isin(keypoints[..., 2], (0, 1, 2))
    if strange.any():
        row, keypoint = np.argwhere(strange)[0].tolist()
        raise ValueError(
            f"{source}: annotation {np.flatnonzero(wanted)[row]}: `keypoints` has visibility "
            f"{keypoints[row, keypoint, 2]:g} at keypoint {keypoint}; expected 0 (not labelled), 1 (hidden) or 2 "
            "(visible)."
        )
    return keypoints


def _numbers(
    objects: Sequence[Mapping[str, Any]],
    wanted: np.ndarray,
    field: str,
    expected: str,
    source: str,
    length: int | None = None,
    optional: bool = False,
) -> np.ndarray:
    """One field of the objects that are `wanted`; zeros where it is `optional` and missing."""
    # objects that are not wanted keep their places, because messages count by them
    filler = {field: 0 if length is None else [0] * length}
    records = [
        filler if not keep or (optional and record.get(field) in (None, [])) else record
        for record, keep in zip(objects, wanted, strict=True)
    ]
    return require_numbers(records, field, expected, source, "annotation", length)[wanted]


def _positive(sizes: np.ndarray, fields: str, source: str) -> np.ndarray:
    if not (sizes >= 1).all():
        row = int((sizes < 1).any(axis=1).argmax())
        raise ValueError(f"{source}: image {row}: {fields} is {sizes[row].min():g}; expected at least 1 pixel.")
    return sizes.astype(np.int64)


def _unique_ids(records: Sequence[Mapping[str, Any]], source: str, kind: str) -> list[int]:
    seen: dict[int, None] = {}
    for index, record in enumerate(records):
        value: Any = record.get("id")
        if not is_identifier(value):
            raise ValueError(f"{source}: {kind} {index}: `id` is {shown(value)}; expected a whole number.")
        if value in seen:
            raise ValueError(f"{source}: {kind} {index}: `id` {value} occurs twice; expected one {kind} per id.")
        seen[value] = None
    return list(seen)
