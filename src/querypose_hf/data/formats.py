"""The formats of annotated data: what each is called, the fields that describe a source of it, and its reader.

To add a format, write its reader and an entry of [`FORMATS`]; fields that no other format has go into
[`SourceSettings`]. YAML files and commands follow. Readers are imported when a source is opened, so that importing
this module is fast.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..checks import shown
from ..settings import require
from .reading_options import ReadingOptions


@dataclass(frozen=True)
class SourceSettings:
    """A source of annotated images. Which fields it may have depends on its format, see [`FORMATS`].

    Args:
        format (`str`): a name in [`FORMATS`].
        annotations (`str`, *optional*): the JSON file; for `yolo` the `data.yaml`; for `hub` the name or folder of the
            dataset.
        images (`str`, *optional*): the folder of the images.
        split (`str`, *optional*): the split. By default `"train"`, and for validation the first there is of
            `"validation"`, `"val"` and `"test"`.
        max_images (`int`, *optional*): only the first so many images.
        category_ids (`tuple[int, ...]`, *optional*): the categories wanted, in the order of the model's classes.
        category_names (`tuple[str, ...]`, *optional*): names of the categories 0, 1, ..., if the data has none.
        keypoint_names (`tuple[str, ...]`, *optional*): names of the keypoints.
        columns (`dict[str, str]`, *optional*): fields of [`PoseColumns`].
        streaming (`bool`): read rows as they are needed, in place of everything before training starts.
        shuffle_buffer (`int`): with `streaming`, the number of rows held back in each worker, from which the next is
            drawn.
        length, size, people, seed: `generated`: the arguments of [`GeneratedPeople`]; `length` is the number of images
            in an epoch.
    """

    format: str = "coco"
    annotations: str | None = None
    images: str | None = None
    split: str | None = None
    max_images: int | None = None
    category_ids: tuple[int, ...] | None = None
    category_names: tuple[str, ...] | None = None
    keypoint_names: tuple[str, ...] | None = None
    columns: dict[str, str] | None = None
    streaming: bool = False
    shuffle_buffer: int = 1000
    length: int | None = None
    size: tuple[int, ...] | None = None
    people: tuple[int, ...] = (1, 4)
    seed: int = 0

    def __post_init__(self) -> None:
        require(self, "format", self.format in FORMATS, f"one of {list(FORMATS)}")
        takes, needs = FORMATS[self.format].takes, FORMATS[self.format].needs
        special = {name for data_format in FORMATS.values() for name in (*data_format.needs, *data_format.takes)}
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            if part.name in special.difference(takes, needs) and value != part.default:
                raise ValueError(
                    f"`{part.name}` is {shown(value)}; format {self.format!r} does not have it, expected some of "
                    f"{sorted((*needs, *takes))}."
                )
        for name in needs:
            require(self, name, getattr(self, name) is not None, f"a value: format {self.format!r} needs it")
        if self.max_images is not None:
            require(self, "max_images", self.max_images >= 1, "at least 1")
        require(self, "shuffle_buffer", self.shuffle_buffer >= 1, "at least 1")

    @property
    def splits(self) -> Sequence[str]:
        """The splits to look for; the first that there is counts."""
        return (self.split,) if self.split is not None else ("train",)


@dataclass(frozen=True)
class DataFormat:
    """One format of annotated data.

    Attributes:
        open (`Callable`): opens a source, given [`SourceSettings`] and [`ReadingOptions`]: reads its annotations, but
            no images.
        needs (`tuple[str, ...]`): the fields that a source of this format must have.
        takes (`tuple[str, ...]`): the fields that it may have, of those that not every format has.
        annotations (`str`): what `annotations` names, for `--help`; empty for a format that is not for the command
            line.
        metric (`str`): the protocol that models are scored by.
        is_coco_file (`bool`): whether `annotations` is a COCO file, which scoring reads itself.
    """

    open: Callable[[SourceSettings, ReadingOptions], Any]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    annotations: str = ""
    metric: str = "coco"
    is_coco_file: bool = False


def open_source(settings: SourceSettings, options: ReadingOptions) -> Any:
    """Opens a source of any format: reads its annotations, but no images.

    Returns:
        [`PoseDataset`], or with `streaming` a [`HubPoseStream`].

    Raises:
        FileNotFoundError, ValueError: a file is missing or wrong.
    """
    return FORMATS[settings.format].open(settings, options)


def annotations_help() -> str:
    """What `--annotations` names, by format, for `--help`."""
    formats: dict[str, list[str]] = {}
    for name in COMMAND_LINE_FORMATS:
        formats.setdefault(FORMATS[name].annotations, []).append(name)
    return ", ".join(f"{what} ({', '.join(names)})" for what, names in formats.items())


def formats_with(field: str) -> str:
    """The formats of the command line that have a field, for `--help`."""
    return ", ".join(name for name in COMMAND_LINE_FORMATS if field in (*FORMATS[name].needs, *FORMATS[name].takes))


def _open_coco(settings: SourceSettings, options: ReadingOptions) -> Any:
    from .coco import CocoPoseDataset

    assert settings.annotations is not None and settings.images is not None
    return CocoPoseDataset(settings.annotations, settings.images, category_ids=settings.category_ids, options=options)


def _open_crowdpose(settings: SourceSettings, options: ReadingOptions) -> Any:
    from .coco import CrowdPoseDataset

    assert settings.annotations is not None and settings.images is not None
    return CrowdPoseDataset(settings.annotations, settings.images, options=options)


def _open_yolo(settings: SourceSettings, options: ReadingOptions) -> Any:
    from .yolo_pose import YoloPoseDataset

    assert settings.annotations is not None
    return YoloPoseDataset(settings.annotations, settings.splits, options=options)


def _open_hub(settings: SourceSettings, options: ReadingOptions) -> Any:
    from .hub_dataset import HubPoseDataset
    from .hub_rows import PoseColumns
    from .hub_stream import HubPoseStream

    assert settings.annotations is not None
    kind = HubPoseStream if settings.streaming else HubPoseDataset
    return kind(
        settings.annotations,
        settings.splits,
        columns=PoseColumns.from_mapping(settings.columns),
        category_names=settings.category_names,
        keypoint_names=settings.keypoint_names,
        options=options,
    )


def _open_generated(settings: SourceSettings, options: ReadingOptions) -> Any:
    from .generated import GeneratedPeople

    return GeneratedPeople(
        settings.length,  # type: ignore[arg-type]
        seed=settings.seed,
        size=settings.size,  # type: ignore[arg-type]
        people=settings.people,  # type: ignore[arg-type]
    )


_READING = ("only_with_people", "exhaustive", "on_error")

FORMATS: dict[str, DataFormat] = {
    "coco": DataFormat(
        open=_open_coco,
        needs=("annotations", "images"),
        takes=("category_ids", *_READING),
        annotations="JSON file",
        is_coco_file=True,
    ),
    "crowdpose": DataFormat(
        open=_open_crowdpose,
        needs=("annotations", "images"),
        takes=_READING,
        annotations="JSON file",
        metric="crowdpose",
        is_coco_file=True,
    ),
    "yolo": DataFormat(open=_open_yolo, needs=("annotations",), takes=("split", *_READING), annotations="data.yaml"),
    "hub": DataFormat(
        open=_open_hub,
        needs=("annotations",),
        takes=("split", "columns", "category_names", "keypoint_names", "streaming", "shuffle_buffer", *_READING),
        annotations="name or folder of a dataset",
    ),
    "generated": DataFormat(open=_open_generated, takes=("length", "size", "people", "seed")),
}

#: The formats that the command line offers.
COMMAND_LINE_FORMATS = tuple(name for name, data_format in FORMATS.items() if data_format.annotations)
