"""The images of a COCO file that a model is to look at, and what it is to find in them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..data.coco_records import CocoRecords


@dataclass(frozen=True)
class ImageList:
    """Images, and the keypoints and categories that people in them have; made by [`read_image_list`].

    Attributes:
        source (`str`): the file, for messages.
        images (`list[dict]`): the images' records.
        categories (`list[dict]`): those that people are looked for in; empty if the file does not tell.
        num_keypoints (`int` or `None`): keypoints of a person; `None` if the file does not tell.
    """

    source: str
    images: list[Mapping[str, Any]]
    categories: list[Mapping[str, Any]]
    num_keypoints: int | None

    @property
    def category_ids(self) -> list[int]:
        """Ids of the categories."""
        return [category["id"] for category in self.categories]


def read_image_list(
    annotations: str | os.PathLike | Mapping[str, Any],
    image_ids: Iterable[int] | None = None,
    category_ids: Sequence[int] | None = None,
) -> ImageList:
    """Reads `images` and `categories` of a COCO file, which is all that COCO publishes of its test sets.

    Args:
        annotations: a COCO JSON file, or what one holds.
        image_ids (`Iterable`, *optional*): these images only.
        category_ids (`Sequence[int]`, *optional*): these categories only; by default those that name keypoints, or all
            if none does.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a field is missing or wrong; the message names file, record, field and value.
    """
    records = CocoRecords.read(annotations, needed=("images",))
    images, categories, names = choose_images(records, image_ids), [], None
    if records.categories or category_ids is not None:
        categories = records.choose_categories(category_ids)
        names, _ = records.skeleton_of(categories)
    return ImageList(records.source, images, categories, None if names is None else len(names))


def choose_images(records: CocoRecords, image_ids: Iterable[int] | None) -> list[Mapping[str, Any]]:
    """The images of these ids, or all of them, in the order of the file."""
    source, images = records.source, list(records.images)
    known = frozenset(image["id"] for image in images)
    if image_ids is not None:
        chosen = set(image_ids)
        if unknown := chosen - known:
            raise ValueError(
                f"`image_ids` holds {_some(unknown)}, which {source} does not have; its ids are like {_some(known)}"
            )
        images = [image for image in images if image["id"] in chosen]
    if not images:
        raise ValueError(f"{source}: there are no images")
    return images


def _some(ids: Iterable[int]) -> str:
    ids = sorted(ids, key=str)
    return ", ".join(map(repr, ids[:3])) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
