"""The pictures of a training experiment: its sources opened, compared, joined and augmented, and what it scores on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Subset

from ..checks import shown
from ..data import (
    AugmentedPoseDataset,
    CocoPoseDataset,
    CrowdPoseDataset,
    HubPoseDataset,
    JoinedPoseDataset,
    PersonCropDataset,
    PoseColumns,
    PoseDataset,
    SyntheticPasses,
    YoloPoseDataset,
)
from ..data.synthetic import SyntheticPeople
from ..model.skeletons import COCO_17
from .experiment import AugmentationSettings, SourceSettings, TrainingSource


@dataclass(frozen=True)
class DataDescription:
    """What the sources say about their people.

    Attributes:
        num_keypoints (`int`): K.
        keypoint_names (`tuple[str, ...]` or `None`): where a source tells.
        edges (`tuple[tuple[int, int], ...]`): limbs; empty where no source tells.
        flip_indices (`tuple[int, ...]` or `None`): where a source tells.
        category_names (`dict[int, str]`): the first source's categories, in the order of the model's classes.
    """

    num_keypoints: int
    keypoint_names: tuple[str, ...] | None
    edges: tuple[tuple[int, int], ...]
    flip_indices: tuple[int, ...] | None
    category_names: dict[int, str]

    @classmethod
    def of_source(cls, dataset: Any) -> "DataDescription":
        """What one opened source says."""
        if isinstance(dataset, Subset):
            dataset = dataset.dataset
        if isinstance(dataset, SyntheticPasses):
            return cls(COCO_17.num_keypoints, COCO_17.keypoint_names, (), COCO_17.flip_indices, {1: "person"})
        return cls(
            dataset.num_keypoints,
            dataset.keypoint_names,
            dataset.edges,
            dataset.flip_indices,
            dict(dataset.category_names),
        )


def open_source(settings: SourceSettings, place: str) -> Any:
    """Opens a source: reads its annotations, and no pictures.

    Args:
        settings ([`SourceSettings`]): the source.
        place (`str`): where it is described, such as `"data.train[0]"`, for messages.

    Returns:
        A map-style data set, or a `Subset` of one.

    Raises:
        FileNotFoundError, ValueError: a file is missing or wrong.
    """
    try:
        dataset = _open(settings)
        if isinstance(settings, TrainingSource) and settings.person_crops is not None and len(dataset):
            dataset = PersonCropDataset(dataset, settings.person_crops)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"`{place}`: {error}") from error
    except ValueError as error:
        raise ValueError(f"`{place}`: {error}") from error
    if not len(dataset):
        raise ValueError(f"`{place}`: none of its images shows anybody; expected at least one that does.")
    if settings.max_images is not None and settings.max_images < len(dataset):
        return Subset(dataset, range(settings.max_images))
    return dataset


def _open(settings: SourceSettings) -> Any:
    if settings.format == "synthetic":
        people = SyntheticPeople(
            settings.seed,
            settings.size,  # type: ignore[arg-type]
            settings.layouts,
            settings.people,  # type: ignore[arg-type]
        )
        return SyntheticPasses(people, settings.length)
    options: dict[str, Any] = {}
    exhaustive = True
    if isinstance(settings, TrainingSource):
        options = {"only_with_people": settings.only_with_people, "on_error": settings.on_error}
        exhaustive = settings.exhaustive
    annotations, images = settings.annotations or "", settings.images or ""
    dataset: PoseDataset
    if settings.format == "coco":
        dataset = CocoPoseDataset(
            annotations,
            images,
            category_ids=settings.category_ids,
            undo_squeeze=settings.undo_squeeze,
            exhaustive=exhaustive,
            **options,
        )
    elif settings.format == "crowdpose":
        dataset = CrowdPoseDataset(annotations, images, **options)
        dataset.exhaustive = exhaustive
    elif settings.format == "yolo":
        dataset = YoloPoseDataset(annotations, settings.split or "train", exhaustive=exhaustive, **options)
    else:
        try:
            columns = PoseColumns(**(settings.columns or {}))  # type: ignore[arg-type]
        except TypeError as error:
            message = f"`columns` is {shown(settings.columns)}; expected fields of PoseColumns: {error}"
            raise ValueError(message) from None
        dataset = HubPoseDataset(
            annotations,
            settings.split or "train",
            columns=columns,
            keypoint_names=settings.keypoint_names,
            exhaustive=exhaustive,
            **options,
        )
    return dataset


def describe_sources(sources: Sequence[Any]) -> DataDescription:
    """What opened sources say together.

    Raises:
        ValueError: they differ in keypoints or in categories.
    """
    each = [DataDescription.of_source(source) for source in sources]
    first = each[0]
    for number, other in enumerate(each):
        if other.num_keypoints != first.num_keypoints:
            raise ValueError(
                f"`data.train[{number}]` has {other.num_keypoints} keypoints and `data.train[0]` "
                f"{first.num_keypoints}; expected the same of every source."
            )
        if len(other.category_names) != len(first.category_names):
            raise ValueError(
                f"`data.train[{number}]` has the categories {shown(other.category_names)} and `data.train[0]` "
                f"{shown(first.category_names)}; expected as many, in the same order. For COCO files `category_ids` "
                "chooses them."
            )
    named = [(number, one.keypoint_names) for number, one in enumerate(each) if one.keypoint_names is not None]
    for number, names in named:
        if names != named[0][1]:
            raise ValueError(
                f"`data.train[{number}]` has the keypoints {list(names)} and `data.train[{named[0][0]}]` "
                f"{list(named[0][1] or ())}; expected the same of every source, in the same order."
            )
    return DataDescription(
        num_keypoints=first.num_keypoints,
        keypoint_names=named[0][1] if named else None,
        edges=next((one.edges for one in each if one.edges), ()),
        flip_indices=next((one.flip_indices for one in each if one.flip_indices is not None), None),
        category_names=first.category_names,
    )


def join_sources(
    sources: Sequence[Any],
    settings: Sequence[TrainingSource],
    augmentation: AugmentationSettings,
    flip_indices: Sequence[int] | None,
    seed: int,
) -> AugmentedPoseDataset:
    """The data set to train on.

    Args:
        sources (`Sequence[Dataset]`): opened by [`open_source`].
        settings (`Sequence[TrainingSource]`): of the sources.
        augmentation ([`AugmentationSettings`]): what is done to every sample.
        flip_indices (`Sequence[int]` or `None`): of the model's skeleton.
        seed (`int`): of everything random about the data.
    """
    joined = JoinedPoseDataset(
        sources,
        [one.repeat for one in settings],
        category_ids=[list(DataDescription.of_source(source).category_names) for source in sources],
        seed=seed,
    )
    mosaic = None if augmentation.mosaic is None else augmentation.mosaic.build()
    return AugmentedPoseDataset(joined, augmentation.build(flip_indices), seed=seed, mosaic=mosaic)
