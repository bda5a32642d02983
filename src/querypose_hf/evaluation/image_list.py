"""The images of a COCO file that a model is to look at, and what it is to find in them."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checks import require_records, unique_ids
from ..files import read_json


@dataclass(frozen=True)
class ImageList:
    """Images, and the keypoints and categories that people in them have; made by [`read_image_list`].

    Attributes:
        source (`str`): the file, for messages.
        images (`list[dict]`): the images' records.
        categories (`list[dict]`): as in the file; empty if it does not tell.
        num_keypoints (`int` or `None`): keypoints of a person; `None` if the file does not tell.
    """

    source: str
    images: list[Mapping[str, Any]]
    categories: list[Mapping[str, Any]]
    num_keypoints: int | None

    @property
    def category_ids(self) -> list[int]:
        """Ids of the categories, in the order of the file."""
        return [category["id"] for category in self.categories]


def read_image_list(
    annotations: str | os.PathLike | Mapping[str, Any], image_ids: Iterable[int] | None = None
) -> ImageList:
    """Reads `images` and `categories` of a COCO file, which is all that COCO publishes of its test sets.

    Args:
        annotations: a COCO JSON file, or what one holds.
        image_ids (`Iterable`, *optional*): these images only.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a field is missing or wrong; the message names file, record, field and value.
    """
    source, dataset = read_coco(annotations, ("images",))
    images = require_records(dataset["images"], f"{source}: `images`", "image")
    categories = require_records(dataset.get("categories") or [], f"{source}: `categories`", "category")
    unique_ids(categories, source, "category")
    names = next((category["keypoints"] for category in categories if category.get("keypoints")), None)
    return ImageList(
        source, choose_images(images, image_ids, source), categories, None if names is None else len(names)
    )


def read_coco(
    annotations: str | os.PathLike | Mapping[str, Any], fields: Sequence[str]
) -> tuple[str, Mapping[str, Any]]:
    """The name of a COCO file for messages, and its content, in which `fields` are present."""
    if isinstance(annotations, Mapping):
        source, dataset = "annotations", annotations
    else:
        source, dataset = os.fspath(annotations), read_json(annotations)
    if not isinstance(dataset, Mapping):
        raise ValueError(f"{source}: expected COCO annotations, an object with `images`, `annotations`, `categories`")
    for field in fields:
        if field not in dataset:
            raise ValueError(f"{source}: `{field}` is missing; COCO annotations have it")
    return source, dataset


def choose_images(
    images: list[Mapping[str, Any]], image_ids: Iterable[int] | None, source: str
) -> list[Mapping[str, Any]]:
    """The images of these ids, or all of them, in the order of the file."""
    known = frozenset(unique_ids(images, source, "image"))
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
