"""A look at a data set before a model is trained on it: counts, likely mistakes, and a page of drawn samples."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm

from ..files import write_json
from ..inference.visualization import draw_poses
from ..model.skeletons import Skeleton
from .annotated_image import AnnotatedImage
from .pose_dataset import PoseDataset
from .sample import PoseSample, UnusableImageError


_VISIBILITIES = ("not labelled", "hidden", "visible")
_FACE = ("nose", "left_eye", "right_eye", "left_shoulder", "right_shoulder")
_SIDED = ("eye", "ear", "shoulder", "hip")
# pixels by which annotations are allowed to differ or stick out, since many are rounded
_TOLERANCE = 1.0
# a keypoint is far outside its box beyond this share of the box's longer side
_FAR = 0.25
_THUMBNAIL = 320
_COLUMNS = 4
_LISTED = 5


@dataclass
class DataReport:
    """What [`check_data`] found. Every object is named by its picture and its place there, counted from 0.

    Attributes:
        num_images (`int`): pictures looked at, unusable ones included.
        num_images_with_people (`int`): pictures with an object that is no crowd region.
        num_people (`int`): objects that are no crowd regions.
        num_crowd_regions (`int`): objects that are.
        num_people_without_keypoints (`int`): people of whom no keypoint is labelled.
        people_by_category (`dict[int, int]`): people by category id.
        people_by_labelled_keypoints (`dict[int, int]`): people by how many of their keypoints are labelled.
        keypoint_visibility (`dict[str, dict[str, int]]`): for each keypoint how often it is `"not labelled"`,
            `"hidden"` and `"visible"`, in people with labelled keypoints.
        left_out (`dict[str, int]`): records that the reader left out, by reason.
        unusable_images (`list[str]`): pictures that cannot be read or have the wrong size, with the reason.
        boxes_outside_images (`list[str]`): boxes that reach out of the picture by more than a pixel.
        boxes_without_area (`list[str]`): boxes without width or height, which training leaves out.
        keypoints_outside_boxes (`list[str]`): people with a visible keypoint further from the box than a quarter of
            the box's longer side.
        duplicate_images (`list[list[str]]`): groups of pictures with equal pixels.
        duplicate_people (`list[str]`): pairs of people in one picture, alike within a pixel.
        left_right_order (`dict[str, dict[str, float]]`): for `eye`, `ear`, `shoulder` and `hip`: among upright people
            who face the camera, in how many (`people`) both are labelled, and in what `share` of them the left one
            lies to the right in the picture, as it does when one is faced. Empty where the skeleton has no such names.
        people_with_sides_exchanged (`list[str]`): of them those whose eyes and shoulders are both the other way round.
    """

    num_images: int = 0
    num_images_with_people: int = 0
    num_people: int = 0
    num_crowd_regions: int = 0
    num_people_without_keypoints: int = 0
    people_by_category: dict[int, int] = field(default_factory=dict)
    people_by_labelled_keypoints: dict[int, int] = field(default_factory=dict)
    keypoint_visibility: dict[str, dict[str, int]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    unusable_images: list[str] = field(default_factory=list)
    boxes_outside_images: list[str] = field(default_factory=list)
    boxes_without_area: list[str] = field(default_factory=list)
    keypoints_outside_boxes: list[str] = field(default_factory=list)
    duplicate_images: list[list[str]] = field(default_factory=list)
    duplicate_people: list[str] = field(default_factory=list)
    left_right_order: dict[str, dict[str, float]] = field(default_factory=dict)
    people_with_sides_exchanged: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """The report as a table for people to read."""
        lines = [
            f"{'images':32}{self.num_images:>9}",
            f"{'  with people':32}{self.num_images_with_people:>9}",
            f"{'people':32}{self.num_people:>9}",
            f"{'  without labelled keypoints':32}{self.num_people_without_keypoints:>9}",
            f"{'crowd regions':32}{self.num_crowd_regions:>9}",
        ]
        if len(self.people_by_category) > 1:
            lines += [f"{f'  of category {key}':32}{count:>9}" for key, count in self.people_by_category.items()]
        lines += [f"{'left out: ' + key.replace('_', ' '):42}{n:>9}" for key, n in self.left_out.items() if n]

        lines += ["", f"{'labelled keypoints':24}{'people':>9}"]
        lines += [f"{count:<24}{people:>9}" for count, people in self.people_by_labelled_keypoints.items()]
        lines += ["", f"{'keypoint':24}" + "".join(f"{name:>14}" for name in _VISIBILITIES)]
        for name, counts in self.keypoint_visibility.items():
            lines.append(f"{name:24}" + "".join(f"{counts[visibility]:>14}" for visibility in _VISIBILITIES))

        lines += ["", "of people who face the camera, the left one lies to the right in the picture"]
        for name, order in self.left_right_order.items():
            if order["people"]:
                doubt = "   left and right are probably exchanged" if order["share"] < 0.5 else ""
                lines.append(f"  {name:22}{order['share']:>9.1%} of {order['people']:.0f}{doubt}")
            else:
                lines.append(f"  {name:22}        nobody faces the camera with both labelled")
        if not self.left_right_order:
            lines.append("  not examined: needs keypoints named " + ", ".join(_FACE))

        lines.append("")
        for title, found in (
            ("unusable images", self.unusable_images),
            ("boxes outside their image", self.boxes_outside_images),
            ("boxes without area", self.boxes_without_area),
            ("people with a keypoint far outside the box", self.keypoints_outside_boxes),
            ("groups of equal images", [" = ".join(group) for group in self.duplicate_images]),
            ("people annotated twice", self.duplicate_people),
            ("people with left and right exchanged", self.people_with_sides_exchanged),
        ):
            lines.append(f"{title:44}{len(found):>9}")
            lines += [f"  {entry}" for entry in found[:_LISTED]]
            if len(found) > _LISTED:
                lines.append(f"  and {len(found) - _LISTED} more")
        return "\n".join(lines)


def check_data(
    dataset: Iterable[PoseSample] | PoseDataset,
    skeleton: Skeleton | None = None,
    output_dir: str | os.PathLike | None = None,
    *,
    max_images: int | None = None,
    num_drawn: int = 16,
    seed: int = 0,
) -> DataReport:
    """Reads all pictures and annotations of a data set, counts, and looks for what is likely to be wrong.

    Left and right are examined in people who face the camera, upright: nose, eyes and shoulders are labelled, nose and
    eyes are visible, and the nose is above the shoulders. Their left side is at larger x than their right, but for a
    few who turn; a share below half means that the labels have been exchanged.

    Args:
        dataset: a [`PoseDataset`], whose unusable pictures are named whatever its `on_error`, or anything that samples
            can be drawn from one after another.
        skeleton ([`Skeleton`], *optional*): names of keypoints, and limbs to draw. By default what the data set tells.
        output_dir (`str` or `os.PathLike`, *optional*): where to write `report.json` and `samples.png`, a page of
            randomly chosen pictures with their annotations drawn: hidden keypoints are drawn as visible ones are.
        max_images (`int`, *optional*): look at no more than the first so many; needed where there is no end.
        num_drawn (`int`, *optional*, defaults to 16): how many pictures to draw.
        seed (`int`, *optional*, defaults to 0): for the choice of those.

    Raises:
        ValueError: the skeleton has another number of keypoints than the annotations.

    Example:

    ```python
    >>> report = check_data(CocoPoseDataset("annotations.json", "images"), output_dir="check")
    >>> print(report.to_text())
    ```
    """
    report = DataReport(left_out=dict(getattr(dataset, "left_out", {})))
    names = skeleton.keypoint_names if skeleton is not None else getattr(dataset, "keypoint_names", None)
    edges = skeleton.edges if skeleton is not None else getattr(dataset, "edges", ())
    total = _number_of_samples(dataset, max_images)
    rng = np.random.default_rng(seed)
    page = _Page(edges, names, num_drawn, rng) if output_dir is not None else None
    checks = _Checks(report, names)
    for name, sample in tqdm(_samples(dataset, report, total), desc="checking data", unit=" images", total=total):
        checks.add(name, sample)
        if page is not None:
            page.offer(sample)
    checks.finish()
    if output_dir is not None and page is not None:
        folder = Path(output_dir)
        write_json(report.to_dict(), folder / "report.json", indent=2)
        page.save(folder / "samples.png")
    return report


def _number_of_samples(dataset: Any, max_images: int | None) -> int | None:
    """How many samples to look at; `None` for all of a stream that cannot tell."""
    if max_images is not None and max_images < 1:
        raise ValueError(f"`max_images` is {max_images!r}; expected at least 1.")
    try:
        length = len(dataset)
    except TypeError:
        if max_images is None and _is_map_style(dataset):
            raise ValueError("`max_images` is needed: this data set has no end.") from None
        return max_images
    return length if max_images is None else min(length, max_images)


def _is_map_style(dataset: Any) -> bool:
    # torch gives iterable data sets a `__getitem__` too, which only raises an error
    return hasattr(dataset, "__getitem__") and not isinstance(dataset, IterableDataset)


def _samples(dataset: Any, report: DataReport, total: int | None) -> Iterator[tuple[str, PoseSample]]:
    if isinstance(dataset, PoseDataset):
        for index in range(len(dataset) if total is None else total):
            report.num_images += 1
            try:
                image = dataset.read_image(index)
            except UnusableImageError as error:
                report.unusable_images.append(str(error))
                continue
            sample: PoseSample = {
                "image": image,
                "image_id": dataset.image_id(index),
                "annotations": dataset.annotations(index),
            }
            yield dataset.image_name(index), sample
        return
    # the iteration of a map-style data set need not end by itself
    by_index = total is not None and _is_map_style(dataset)
    for sample in map(dataset.__getitem__, range(total or 0)) if by_index else islice(dataset, total):
        report.num_images += 1
        yield f"image_id {sample['image_id']}", sample


class _Checks:
    """Looks at one sample after the other and writes into the report."""

    def __init__(self, report: DataReport, names: Sequence[str] | None):
        self.report = report
        self.names = None if names is None else list(names)
        self.visibility: np.ndarray | None = None
        self.categories: Counter = Counter()
        self.labelled: Counter = Counter()
        self.images_by_digest: dict[bytes, list[str]] = defaultdict(list)
        self.faced: Counter = Counter()
        self.in_order: Counter = Counter()

    def add(self, name: str, sample: PoseSample) -> None:
        report = self.report
        digest = hashlib.blake2b(sample["image"].tobytes(), digest_size=16)
        digest.update(repr(sample["image"].size).encode())
        self.images_by_digest[digest.digest()].append(name)

        places = [i for i, entry in enumerate(sample["annotations"]) if not entry.get("iscrowd")]
        report.num_crowd_regions += len(sample["annotations"]) - len(places)
        people = AnnotatedImage.from_sample({**sample, "annotations": [sample["annotations"][i] for i in places]})
        if not places:
            return
        report.num_images_with_people += 1
        report.num_people += len(places)
        self.categories.update(entry.get("category_id", 0) for entry in people.objects)
        labelled = people.visibility > 0
        counts = labelled.sum(axis=1)
        self.labelled.update(counts.tolist())
        report.num_people_without_keypoints += int((counts == 0).sum())

        def note(found: list[str], which: Any, what: str) -> None:
            found.extend(f"{name}, object {places[i]}: {what}" for i in np.flatnonzero(which).tolist())

        extent = np.tile(people.image.size, 2)
        low, high = people.boxes[:, :2], people.boxes[:, 2:]
        outside = ((people.boxes < -_TOLERANCE) | (people.boxes > extent + _TOLERANCE)).any(axis=1)
        note(
            report.boxes_outside_images, outside, f"reaches out of {people.image.width} x {people.image.height} pixels"
        )
        note(report.boxes_without_area, (high <= low).any(axis=1), "width or height is 0")
        pairs = np.argwhere(self._alike(people))
        report.duplicate_people.extend(
            f"{name}, objects {places[first]} and {places[second]}" for first, second in pairs.tolist()
        )
        if not people.visibility.size:
            return

        beyond = np.maximum(low[:, None] - people.keypoints, people.keypoints - high[:, None]).max(axis=2)
        # hidden keypoints are often estimated outside a box that was drawn around what can be seen
        far = (people.visibility == 2) & (beyond > _FAR * (high - low).max(axis=1, keepdims=True))
        note(report.keypoints_outside_boxes, far.any(axis=1), "a keypoint lies far outside the box")
        self._count_visibility(name, people.visibility[counts > 0])
        self._examine_sides(people, note)

    def _alike(self, people: AnnotatedImage) -> np.ndarray:
        points = np.where(people.visibility[..., None] > 0, people.keypoints, 0).reshape(len(people.boxes), -1)
        values = np.concatenate([people.boxes, points, people.visibility], axis=1)
        return np.triu((np.abs(values[:, None] - values[None]) <= _TOLERANCE).all(axis=2), k=1)

    def _count_visibility(self, name: str, visibility: np.ndarray) -> None:
        num_keypoints = visibility.shape[1]
        if self.names is None:
            self.names = [f"keypoint {i}" for i in range(num_keypoints)]
        if len(self.names) != num_keypoints:
            raise ValueError(f"{name}: objects have {num_keypoints} keypoints; expected {len(self.names)}.")
        if self.visibility is None:
            self.visibility = np.zeros((num_keypoints, len(_VISIBILITIES)), dtype=np.int64)
        self.visibility += (visibility[..., None] == np.arange(len(_VISIBILITIES))).sum(axis=0)

    def _examine_sides(self, people: AnnotatedImage, note: Any) -> None:
        assert self.names is not None
        index = {name: i for i, name in enumerate(self.names)}
        if not index.keys() >= set(_FACE):
            return
        x, y = people.keypoints[..., 0], people.keypoints[..., 1]
        nose, left_eye, right_eye, left_shoulder, right_shoulder = (index[name] for name in _FACE)
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
        report = self.report
        report.people_by_category = dict(sorted(self.categories.items()))
        report.people_by_labelled_keypoints = dict(sorted(self.labelled.items()))
        report.duplicate_images = [names for names in self.images_by_digest.values() if len(names) > 1]
        if self.names is not None and self.visibility is not None:
            report.keypoint_visibility = {
                name: dict(zip(_VISIBILITIES, counts, strict=True))
                for name, counts in zip(self.names, self.visibility.tolist(), strict=True)
            }
        report.left_right_order = {
            part: {"people": people, "share": self.in_order[part] / people if people else 0.0}
            for part, people in self.faced.items()
        }


class _Page:
    """Keeps drawings of a random choice of samples, every sample having the same chance, and lays them out."""

    def __init__(
        self,
        edges: Iterable[Sequence[int]],
        names: Sequence[str] | None,
        size: int,
        rng: np.random.Generator,
    ):
        self.edges = list(edges)
        self.names = names
        self.size = size
        self.rng = rng
        self.offered = 0
        self.drawings: list[PIL.Image.Image] = []

    def offer(self, sample: PoseSample) -> None:
        self.offered += 1
        # reservoir sampling: how many samples will come is not known of a stream
        place = len(self.drawings) if len(self.drawings) < self.size else int(self.rng.integers(self.offered))
        if place < self.size:
            self.drawings[place : place + 1] = [self._drawing(sample)]

    def _drawing(self, sample: PoseSample) -> PIL.Image.Image:
        people = AnnotatedImage.from_sample(sample)
        image = people.image.copy()
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        people = people.resized(*image.size)
        drawn = [
            {"score": 1.0, "bbox": box, "keypoints": points - 0.5, "scores": (visibility > 0).astype(float)}
            for box, points, visibility in zip(people.boxes, people.keypoints, people.visibility, strict=True)
        ]
        names = self.names if people.visibility.shape[1] else None
        edges = self.edges if people.visibility.shape[1] else ()
        return draw_poses(image, drawn, edges=edges, keypoint_names=names, draw_scores=False)

    def save(self, path: Path) -> None:
        rows = max(1, -(-len(self.drawings) // _COLUMNS))
        page = PIL.Image.new("RGB", (_COLUMNS * _THUMBNAIL, rows * _THUMBNAIL), (32, 32, 36))
        for i, drawing in enumerate(self.drawings):
            page.paste(drawing, (i % _COLUMNS * _THUMBNAIL, i // _COLUMNS * _THUMBNAIL))
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            page.save(temporary, format="PNG")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
