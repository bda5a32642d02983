"""The images of a training experiment: its sources opened, compared, joined and augmented."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Subset

from ..checks import shown
from ..data import (
    AugmentationRecipe,
    AugmentedPoseDataset,
    AugmentedPoseStream,
    DataDescription,
    JoinedPoseDataset,
    PoseAugmentation,
    ReadingOptions,
    formats,
)
from ..data.formats import SourceSettings
from ..data.pose_dataset import PoseDataset
from .experiment import TrainingSource


def open_source(settings: SourceSettings, place: str) -> Any:
    """Opens a source: reads its annotations and, of images to train on, some headers.

    Args:
        settings ([`SourceSettings`]): the source.
        place (`str`): where it is described, such as `"data.train[0]"`, for messages.

    Returns:
        A map-style dataset, a `Subset` of one, or a [`HubPoseStream`].

    Raises:
        FileNotFoundError, ValueError: a file is missing or wrong, or images have other sizes than their annotations.
    """
    options = settings if isinstance(settings, TrainingSource) else ReadingOptions()
    try:
        dataset = formats.open_source(settings, options)
        if isinstance(settings, TrainingSource) and isinstance(dataset, PoseDataset) and len(dataset):
            dataset.check_sizes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"`{place}`: {error}") from error
    except ValueError as error:
        raise ValueError(f"`{place}`: {error}") from error
    if settings.streaming:
        return dataset
    if not len(dataset):
        raise ValueError(f"`{place}`: none of its images has a person; expected at least one.")
    if settings.max_images is not None and settings.max_images < len(dataset):
        return Subset(dataset, range(settings.max_images))
    return dataset


def describe_sources(sources: Sequence[Any]) -> DataDescription:
    """The common description of opened sources.

    Raises:
        ValueError: they differ in keypoints or in categories.
    """
    each = [DataDescription.of_source(source) for source in sources]
    first = each[0]
    for number, other in enumerate(each):
        if other.num_keypoints != first.num_keypoints:
            raise ValueError(
                f"`data.train[{number}]` has {other.num_keypoints} keypoints and `data.train[0]` "
                f"{first.num_keypoints}; expected the same in every source."
            )
        if len(other.category_names) != len(first.category_names):
            raise ValueError(
                f"`data.train[{number}]` has the categories {shown(other.category_names)} and `data.train[0]` "
                f"{shown(first.category_names)}; expected the same number, in the same order. For COCO files "
                "`category_ids` chooses them."
            )
    named = [(number, one.keypoint_names) for number, one in enumerate(each) if one.keypoint_names is not None]
    for number, names in named:
        if names != named[0][1]:
            raise ValueError(
                f"`data.train[{number}]` has the keypoints {list(names)} and `data.train[{named[0][0]}]` "
                f"{list(named[0][1] or ())}; expected the same in every source, in the same order."
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
    recipe: AugmentationRecipe,
    flip_indices: Sequence[int] | None,
    seed: int,
) -> AugmentedPoseDataset | AugmentedPoseStream:
    """The dataset to train on.

    Args:
        sources (`Sequence[Dataset]`): opened by [`open_source`].
        settings (`Sequence[TrainingSource]`): of the sources.
        recipe ([`AugmentationRecipe`]): how every sample is augmented.
        flip_indices (`Sequence[int]` or `None`): of the model's skeleton.
        seed (`int`): of everything random about the data.
    """
    augmentation = PoseAugmentation.from_recipe(flip_indices, recipe)
    if settings[0].streaming:
        stream = sources[0].shuffled(seed, settings[0].shuffle_buffer)
        return AugmentedPoseStream(stream, augmentation, seed=seed)
    joined = JoinedPoseDataset(
        sources,
        [one.repeat for one in settings],
        category_ids=[list(DataDescription.of_source(source).category_names) for source in sources],
        seed=seed,
    )
    return AugmentedPoseDataset(joined, augmentation, seed=seed)
