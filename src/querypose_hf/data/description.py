"""What a dataset says about its people: classes, keypoints and how these belong together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Subset

from ..checks import is_identifier, shown
from ..model.skeletons import flip_indices_from_names, warn_of_sides


@dataclass(frozen=True)
class DataDescription:
    """The classes and keypoints of a dataset.

    Attributes:
        num_keypoints (`int`): number of keypoints K of every object.
        keypoint_names (`tuple[str, ...]` or `None`): K names, if known.
        edges (`tuple[tuple[int, int], ...]`): limbs as pairs of keypoint indices; may be empty.
        flip_indices (`tuple[int, ...]` or `None`): for each keypoint the index of its mirror image, if known. Found
            from the names where `None` is given.
        category_names (`dict[int, str]`): category names by id, in the order of the model's classes.

    Raises:
        ValueError: the names are not K, or `flip_indices` is not a list of K mirror images.
    """

    num_keypoints: int
    keypoint_names: Sequence[str] | None
    edges: Sequence[Sequence[int]]
    flip_indices: Sequence[int] | None
    category_names: Mapping[int, str]

    def __post_init__(self) -> None:
        names, flip_indices = self.keypoint_names, self.flip_indices
        if names is not None and len(names) != self.num_keypoints:
            raise ValueError(
                f"`keypoint_names` has {len(names)} names where the annotations have {self.num_keypoints} keypoints."
            )
        if flip_indices is None and names is not None:
            flip_indices = flip_indices_from_names(names)
        if flip_indices is not None:
            flip_indices = check_flip_indices(flip_indices, self.num_keypoints)
        if names is not None:
            warn_of_sides(names, flip_indices)
        object.__setattr__(self, "keypoint_names", None if names is None else tuple(names))
        object.__setattr__(self, "edges", tuple((int(a), int(b)) for a, b in self.edges))
        object.__setattr__(self, "flip_indices", flip_indices)
        object.__setattr__(self, "category_names", dict(self.category_names))

    @classmethod
    def of_source(cls, dataset: Any) -> "DataDescription":
        """The description of a dataset, or of the dataset that a `Subset` is part of."""
        whole: Any = dataset.dataset if isinstance(dataset, Subset) else dataset
        return whole.description


class Described:
    """A dataset with a [`DataDescription`], whose fields are attributes of the dataset too."""

    description: DataDescription

    @property
    def category_names(self) -> Mapping[int, str]:
        """Category names by id, in the order of the model's classes."""
        return self.description.category_names

    @property
    def category_ids(self) -> list[int]:
        """Category ids in the order of the model's classes: the image processor's `category_ids`."""
        return list(self.description.category_names)

    @property
    def num_keypoints(self) -> int:
        """Number of keypoints K of every object."""
        return self.description.num_keypoints

    @property
    def keypoint_names(self) -> Sequence[str] | None:
        """K keypoint names, if known."""
        return self.description.keypoint_names

    @property
    def edges(self) -> Sequence[Sequence[int]]:
        """Limbs as pairs of keypoint indices; may be empty."""
        return self.description.edges

    @property
    def flip_indices(self) -> Sequence[int] | None:
        """For each keypoint the index of its mirror image, if known."""
        return self.description.flip_indices


def check_flip_indices(flip_indices: Sequence[int], num_keypoints: int | None = None) -> tuple[int, ...]:
    """Returns `flip_indices` as integers if every keypoint is the mirror image of its mirror image.

    Raises:
        ValueError: it is not such a list, or not one of `num_keypoints` entries where that is given.
    """
    given: Any = flip_indices
    given = given if isinstance(given, str | Mapping) or not isinstance(given, Iterable) else list(given)
    indices: list[Any] = given if isinstance(given, list) else [given]
    length = len(indices) if num_keypoints is None else num_keypoints
    if (
        len(indices) != length
        or not all(is_identifier(index) and 0 <= index < length for index in indices)
        or any(indices[index] != keypoint for keypoint, index in enumerate(indices))
    ):
        raise ValueError(
            f"`flip_indices` is {shown(given)}; expected for each of {length} keypoints the index of its mirror "
            "image, whose mirror image in turn is that keypoint."
        )
    return tuple(map(int, indices))
