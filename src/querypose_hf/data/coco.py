"""COCO keypoint annotations, and CrowdPose's, which have the same form."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..files import find_file
from ..model.skeletons import CROWDPOSE_14
from .coco_records import CocoRecords, Record, recorded_file_names
from .description import DataDescription
from .pose_dataset import PoseFileDataset
from .reading_options import ReadingOptions


logger = logging.getLogger(__name__)


#: Share of the box's area that CrowdPose takes where annotations have no `area`.
CROWDPOSE_AREA_RATIO = 0.53


class CocoPoseDataset(PoseFileDataset):
    """COCO keypoint annotations with any number of keypoints and classes, and the folder of their images.

    The whole file is checked when the dataset is made, and that the images exist. Images are opened when a sample is
    asked for. Crowd regions are in the samples, marked by `iscrowd`; the image processor leaves them out. People
    without labelled keypoints are kept. If an annotation lacks them, `iscrowd` is 0, `keypoints` are not labelled, and
    `area` is `area_ratio` times the box's. A box without area in the image is taken from the labelled keypoints there.

    Args:
        annotations (`str` or `os.PathLike`): a COCO keypoints JSON file. Its images need `id`, `file_name`, `width`
            and `height`, its annotations `image_id`, `category_id` and `bbox`.
        images (`str` or `os.PathLike`): the folder that `file_name` is relative to.
        category_ids (`Sequence[int]`, *optional*): the categories wanted, in the order of the model's classes. By
            default those that name keypoints, or all if none does.
        area_ratio (`float`, *optional*, defaults to 1): see above.
        options ([`ReadingOptions`], *optional*): how images are read.

    Raises:
        FileNotFoundError: there is no such file or folder, or images are missing and `on_error` is `"raise"`.
        ValueError: a field is missing or wrong; the message names file, record, field and value.

    Example:

    ```python
    >>> options = ReadingOptions(only_with_people=True)
    >>> train = CocoPoseDataset("person_keypoints_train2017.json", "train2017", options=options)
    >>> train[0]["annotations"][0]["bbox"]
    [359.17, 146.17, 112.45, 213.57]
    ```
    """

    # whether annotations of this format have an `area`
    _area_belongs = True

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        *,
        category_ids: Sequence[int] | None = None,
        area_ratio: float = 1.0,
        options: ReadingOptions = ReadingOptions(),
    ):
        records, folder = CocoRecords.read(annotations), Path(images)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of images.")
        categories = records.choose_categories(category_ids)
        keypoint_names, edges = self._skeleton(records, categories)
        num_keypoints = None if keypoint_names is None else len(keypoint_names)
        files = [str(find_file(folder, name)) for name in recorded_file_names(records.images, records.source)]
        objects = records.objects([category["id"] for category in categories], num_keypoints)
        left_out = dict(objects.left_out)
        table = records.to_table(objects, area_ratio)
        for edge in edges:
            if not all(0 <= end < table.num_keypoints for end in edge):
                raise ValueError(
                    f"{records.source}: `skeleton` holds the limb {[end + 1 for end in edge]}; expected numbers from "
                    f"1 to {table.num_keypoints}, the number of keypoints."
                )

        present = np.array([os.path.isfile(file) for file in files], dtype=bool)
        if not present.all():
            missing = [file for file, there in zip(files, present, strict=True) if not there]
            message = (
                f"{records.source}: {len(missing)} of {len(files)} images are not in {folder}, the first of them "
                f"{os.path.relpath(missing[0], folder)}"
            )
            if options.on_error == "raise":
                raise FileNotFoundError(f'{message}; with `on_error="skip"` they are left out.')
            logger.warning("skipped: %s", message)
            table = table.with_images(present)
            files = [file for file, there in zip(files, present, strict=True) if there]
            left_out["missing_images"] = len(missing)
        category_names = {category["id"]: str(category.get("name", category["id"])) for category in categories}
        description = DataDescription(table.num_keypoints, keypoint_names, edges, None, category_names)
        remarks = objects.remarks(without_area=self._area_belongs)
        super().__init__(table, description, options, left_out, files, remarks)

    def _skeleton(
        self, records: CocoRecords, categories: Sequence[Record]
    ) -> tuple[tuple[str, ...] | None, list[tuple[int, int]]]:
        return records.skeleton_of(categories)


class CrowdPoseDataset(CocoPoseDataset):
    """CrowdPose's annotations and the folder of its images.

    As [`CocoPoseDataset`], with CrowdPose's 14 keypoints and an area of 0.53 times the box's, as in its evaluation.
    The skeleton in CrowdPose's files is COCO's, so ours is used. The paper trains on train and val together: join them
    with `torch.utils.data.ConcatDataset`.

    Args:
        annotations (`str` or `os.PathLike`): `crowdpose_train.json`, `crowdpose_val.json` or `crowdpose_test.json`.
        images (`str` or `os.PathLike`): the folder of all images.
        options ([`ReadingOptions`], *optional*): how images are read.

    Example:

    ```python
    >>> train = CrowdPoseDataset("crowdpose_train.json", "images", options=ReadingOptions(only_with_people=True))
    >>> train.keypoint_names[-2:]
    ('head', 'neck')
    ```
    """

    _area_belongs = False

    def __init__(
        self,
        annotations: str | os.PathLike,
        images: str | os.PathLike,
        *,
        options: ReadingOptions = ReadingOptions(),
    ):
        super().__init__(annotations, images, area_ratio=CROWDPOSE_AREA_RATIO, options=options)

    def _skeleton(
        self, records: CocoRecords, categories: Sequence[Record]
    ) -> tuple[tuple[str, ...] | None, list[tuple[int, int]]]:
        return CROWDPOSE_14.keypoint_names, list(CROWDPOSE_14.edges)
