"""A check of a dataset before a model is trained on it: counts, likely mistakes, and a page of drawn samples."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..files import write_json
from ..model.annotations_querypose import usable_boxes
from .annotated_image import AnnotatedImage
from .data_report import FACE, VISIBILITIES, DataReport
from .pose_dataset import PoseDataset
from .sample import PoseSample, UnusableImageError
from .sample_page import NUM_DRAWN, draw_sample, save_page


_SIDED = ("eye", "ear", "shoulder", "hip")
# pixels by which annotations may differ or reach out of the image, since many are rounded
_TOLERANCE = 1.0
# a keypoint is far outside its box beyond this share of the box's longer side
_FAR = 0.25

# adds to a list of mistakes the people that a mask chooses, and what is wrong with them
_Note = Callable[[list[str], Any, str], None]


def check_data(
    dataset: PoseDataset,
    output_dir: str | os.PathLike | None = None,
    *,
    max_images: int | None = None,
    strict: bool = False,
) -> DataReport:
    """Reads all images and annotations of a dataset, counts them, and looks for likely mistakes.

    Left and right are examined in upright people who face the camera: nose, eyes and shoulders are labelled, nose and
    eyes are visible, and the nose is above the shoulders. Except for a few who turn, their left side lies to the right
    in the image; a share below half means that the labels have been exchanged.

    Args:
        dataset ([`PoseDataset`]): its unusable images are named whatever its `on_error`.
        output_dir (`str` or `os.PathLike`, *optional*): where to write `report.json` and `samples.png`, a page of 16
            images with their annotations, chosen at random but the same each time. Hidden keypoints are drawn like
            visible ones.
        max_images (`int`, *optional*): check only the first so many images.
        strict (`bool`, *optional*, defaults to `False`): stop at the first image that cannot be used.

    Raises:
        UnusableImageError: an image cannot be used, and `strict` is set.

    Example:

    ```python
    >>> report = check_data(CocoPoseDataset("annotations.json", "images"), output_dir="check")
    >>> print(report.to_text())
    ```
    """
    if max_images is not None and max_images < 1:
        raise ValueError(f"`max_images` is {max_images!r}; expected at least 1.")
    total = len(dataset) if max_images is None else min(len(dataset), max_images)
    report = DataReport(left_out=dict(dataset.left_out), remarks=dict(dataset.remarks))
    checks = _Checks(report, dataset)
    drawn: set[int] = set()
    if output_dir is not None:
        drawn.update(np.random.default_rng(0).permutation(total)[:NUM_DRAWN].tolist())
    drawings = []
    for index in tqdm(range(total), desc="checking data", unit=" images"):
        sample = _sample(dataset, index, report, strict)
        if sample is None:
            continue
        checks.add(dataset.image_name(index), sample)
        if index in drawn:
            drawings.append(draw_sample(sample, dataset.edges, dataset.keypoint_names))
    checks.finish()
    report.boxes_without_area = [*dataset.mended_people, *report.boxes_without_area]
    if output_dir is not None:
        write_json(report.to_dict(), Path(output_dir) / "report.json", indent=2)
        save_page(drawings, Path(output_dir) / "samples.png")
    return report


def _sample(dataset: PoseDataset, index: int, report: DataReport, strict: bool) -> PoseSample | None:
    """A sample; `None` if its image cannot be used, which goes into the report."""
    report.num_images += 1
    try:
        image = dataset.read_image(index)
    except UnusableImageError as error:
        if strict:
            raise
        report.unusable_images.append(str(error))
        return None
    return {"image": image, "image_id": dataset.image_id(index), "annotations": dataset.annotations(index)}


class _Checks:
    """Examines samples one by one and fills in the report."""

    def __init__(self, report: DataReport, dataset: PoseDataset):
        self.report = report
        self.names = dataset.keypoint_names or [f"keypoint {i}" for i in range(dataset.num_keypoints)]
        self.visibility = np.zeros((dataset.num_keypoints, len(VISIBILITIES)), dtype=np.int64)
        self.categories: Counter = Counter()
        self.labelled: Counter = Counter()
        self.images_by_digest: dict[bytes, list[str]] = defaultdict(list)
        self.faced: Counter = Counter()
        self.in_order: Counter = Counter()

    def add(self, name: str, sample: PoseSample) -> None:
        digest = hashlib.blake2b(sample["image"].tobytes(), digest_size=16)
        digest.update(repr(sample["image"].size).encode())
        self.images_by_digest[digest.digest()].append(name)

        places = [i for i, entry in enumerate(sample["annotations"]) if not entry.get("iscrowd")]
        self.report.num_crowd_regions += len(sample["annotations"]) - len(places)
        people = AnnotatedImage.from_sample({**sample, "annotations": [sample["annotations"][i] for i in places]})
        if not places:
            return
        self._count_people(people)

        def note(found: list[str], which: np.ndarray, what: str) -> None:
            found.extend(f"{name}, object {places[i]}: {what}" for i in np.flatnonzero(which).tolist())

        self._examine_boxes(people, note)
        self.report.duplicate_people.extend(
            f"{name}, objects {places[first]} and {places[second]}"
            for first, second in np.argwhere(self._alike(people)).tolist()
        )
        with_keypoints = people.visibility[(people.visibility > 0).any(axis=1)]
        self.visibility += (with_keypoints[..., None] == np.arange(len(VISIBILITIES))).sum(axis=0)
        self._examine_sides(people, note)

    def _count_people(self, people: AnnotatedImage) -> None:
        self.report.num_images_with_people += 1
        self.report.num_people += len(people.boxes)
        self.categories.update(entry.get("category_id", 0) for entry in people.objects)
        counts = (people.visibility > 0).sum(axis=1)
        self.labelled.update(counts.tolist())
        self.report.num_people_without_keypoints += int((counts == 0).sum())

    def _examine_boxes(self, people: AnnotatedImage, note: _Note) -> None:
        report, (width, height) = self.report, people.image.size
        low, high = people.boxes[:, :2], people.boxes[:, 2:]
        extent = np.tile(people.image.size, 2)
        outside = ((people.boxes < -_TOLERANCE) | (people.boxes > extent + _TOLERANCE)).any(axis=1)
        note(report.boxes_outside_images, outside, f"reaches out of {width} x {height} pixels")
        given = np.array([entry["bbox"] for entry in people.objects], dtype=np.float64)
        points = np.concatenate([people.keypoints - 0.5, people.visibility[..., None]], axis=2)
        _, replaced, lost = usable_boxes(given, points, np.array(people.image.size))
        note(report.boxes_without_area, replaced, "no area in the image; the box is taken from its keypoints")
        note(report.boxes_without_area, lost, "no area in the image; training leaves it out")
        beyond = np.maximum(low[:, None] - people.keypoints, people.keypoints - high[:, None]).max(axis=2)
        # hidden keypoints are often estimated outside a box that was drawn around what is visible
        far = (people.visibility == 2) & (beyond > _FAR * (high - low).max(axis=1, keepdims=True))
        note(report.keypoints_outside_boxes, far.any(axis=1), "a keypoint lies far outside the box")

    def _alike(self, people: AnnotatedImage) -> np.ndarray:
        """(n, n): pairs of people, each once, that differ by a pixel at most."""
        points = np.where(people.visibility[..., None] > 0, people.keypoints, 0).reshape(len(people.boxes), -1)
        values = np.concatenate([people.boxes, points, people.visibility], axis=1)
        return np.triu((np.abs(values[:, None] - values[None]) <= _TOLERANCE).all(axis=2), k=1)

    def _examine_sides(self, people: AnnotatedImage, note: _Note) -> None:
        index = {name: i for i, name in enumerate(self.names)}
        if not index.keys() >= set(FACE):
            return
        x, y = people.keypoints[..., 0], people.keypoints[..., 1]
        nose, left_eye, right_eye, left_shoulder, right_shoulder = (index[name] for name in FACE)
        facing = (people.visibility[:, [nose, left_eye, right_eye]] == 2).all(axis=1)
        facing &= (people.visibility[:, [left_shoulder, right_shoulder]] > 0).all(axis=1)
        facing &= y[:, nose] < np.minimum(y[:, left_shoulder], y[:, right_shoulder])
        for part in _SIDED:
            left, right = index.get(f"left_{part}"), index.get(f"right_{part}")
            if left is None or right is None:
                continue
            both = facing & (people.visibility[:, [left, right]] > 0).all(axis=1)
            self.faced[part] += int(both.sum())
            self.in_order[part] += int((both & (x[:, left] > x[:, right])).sum())
        exchanged = facing & (x[:, left_eye] < x[:, right_eye]) & (x[:, left_shoulder] < x[:, right_shoulder])
        note(self.report.people_with_sides_exchanged, exchanged, "faces the camera, but left and right are exchanged")

    def finish(self) -> None:
        """Fills in what is known after the last sample."""
        report = self.report
        report.people_by_category = dict(sorted(self.categories.items()))
        report.people_by_labelled_keypoints = dict(sorted(self.labelled.items()))
        report.duplicate_images = [names for names in self.images_by_digest.values() if len(names) > 1]
        report.keypoint_visibility = {
            name: dict(zip(VISIBILITIES, counts, strict=True))
            for name, counts in zip(self.names, self.visibility.tolist(), strict=True)
        }
        report.left_right_order = {
            part: {"people": people, "share": self.in_order[part] / people if people else 0.0}
            for part, people in self.faced.items()
        }
