"""The people of images and frames as records: one schema for JSON lines, Parquet files and videos. Also in words."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def image_record(
    source: str | None,
    index: int,
    size: tuple[int, int] | None,
    people: Sequence[Mapping[str, Any]],
    *,
    time: float | None = None,
    error: str | None = None,
    drawn: str | None = None,
) -> dict[str, Any]:
    """The record of one image or frame.

    Args:
        source (`str`, *optional*): file, URL or stream.
        index (`int`): of the image among the sources, of the row in the dataset, or of the frame in the video.
        size (`tuple[int, int]`, *optional*): width and height in pixels; `None` if it could not be read.
        people (`Sequence[Mapping]`): as the pipeline returns them, with a `track_id` where they were followed.
        time (`float`, *optional*): of a frame, in seconds.
        error (`str`, *optional*): why the image could not be read, or its people not be found.
        drawn (`str`, *optional*): the file that it was drawn to.

    Returns:
        `dict`: `source`, `index`, `time`, `width`, `height`, `people`, `error` and `drawn`. Each of the people has
        `score`, `label`, `track_id` (`None` unless followed), `box` and `keypoints`.
    """
    width, height = size or (None, None)
    return {
        "source": source,
        "index": index,
        "time": None if time is None else round(time, 6),
        "width": width,
        "height": height,
        "people": [
            {name: person.get(name) for name in ("score", "label", "track_id", "box", "keypoints")}
            for person in people
        ],
        "error": error,
        "drawn": drawn,
    }


def record_schema() -> Any:
    """The `pyarrow.Schema` of [`image_record`]."""
    import pyarrow as pa

    number = pa.float32()
    box = pa.struct([(side, number) for side in ("xmin", "ymin", "xmax", "ymax")])
    keypoint = pa.struct([("name", pa.string()), ("x", number), ("y", number), ("score", number)])
    person = pa.struct(
        [
            ("score", number),
            ("label", pa.string()),
            ("track_id", pa.int64()),
            ("box", box),
            ("keypoints", pa.list_(keypoint)),
        ]
    )
    return pa.schema(
        [
            ("source", pa.string()),
            ("index", pa.int64()),
            ("time", pa.float64()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("people", pa.list_(person)),
            ("error", pa.string()),
            ("drawn", pa.string()),
        ]
    )


def find_people_in_batch(
    pose_estimator: Any, images: Sequence[Any], threshold: float | None = None, top_k: int | None = None
) -> list[list[dict[str, Any]] | Exception]:
    """The people of each image of a batch, or the error that keeps them from being found.

    One image, such as one that is too large for the memory, does not cost the others: where a batch fails, its images
    are looked at one by one.
    """
    try:
        return list(pose_estimator(list(images), threshold=threshold, top_k=top_k, batch_size=len(images)))
    except (OSError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        if len(images) == 1:
            return [error]
    return [found for image in images for found in find_people_in_batch(pose_estimator, [image], threshold, top_k)]


def count_people(labels: Sequence[str], class_names: Sequence[str]) -> str:
    """What was found in words: `1 horse`, `5 people`, `2 cats and 1 dog`.

    Args:
        labels (`Sequence[str]`): the class of each.
        class_names (`Sequence[str]`): all classes of the model; what was found is told in their order.
    """
    counts = Counter(labels)
    told = [name for name in class_names if counts[name]] or (class_names if len(class_names) == 1 else [])
    return " and ".join(f"{counts[name]} {name if counts[name] == 1 else plural(name)}" for name in told) or "nothing"


def plural(name: str) -> str:
    """The name of a class for several: `horses`, `people`."""
    if name.endswith("person"):
        return f"{name.removesuffix('person')}people"
    return f"{name}es" if name.endswith(("s", "x", "ch", "sh")) else f"{name}s"
