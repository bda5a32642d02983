"""People in a dataset of any size, as Parquet files. Processes share the work, and a run can be resumed.

The dataset is cut into shards of consecutive rows, one Parquet file each. A file appears once it is whole, so a run
that was stopped goes on with the shards that have no file.
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.Image
from tqdm.auto import tqdm

from ..files import read_json, replacing_file, write_json
from ..model.image_decoding_querypose import decode_pil_image
from ..processes import rank, world_size
from .image_dataset import import_from_data_extra
from .loading import fingerprint
from .options import BulkOptions


_SETTINGS = "settings.json"
_LISTED = 3  # reasons why images could not be read


@dataclass(frozen=True)
class BulkReport:
    """What one process did.

    Attributes:
        images (`int`): images that this run looked at.
        skipped (`int`): rows of shards that an earlier run wrote.
        unreadable (`int`): images that could not be read, now or in those shards; their rows say why.
        empty (`int`): images without people, now or in those shards.
        reasons (`tuple[str, ...]`): why the first images could not be read.
        seconds (`float`): how long it took, without loading the model.
    """

    images: int
    skipped: int
    unreadable: int
    empty: int
    reasons: tuple[str, ...]
    seconds: float

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0


def predict_to_parquet(
    pose_estimator: Any,
    dataset: Any,
    output_dir: str | os.PathLike,
    options: BulkOptions | None = None,
    *,
    model_name: str,
    progress: bool = True,
) -> BulkReport:
    """Finds the people of all images of a dataset and writes them to `output_dir/people-*.parquet`.

    Under `accelerate launch` or `torchrun` process r of n does every n-th shard. Each row has `index` (in the
    dataset), `path` (or null), `width`, `height`, `people` (a list of `score`, `label`, `box` as x1, y1, x2, y2, and
    `keypoints` as K times x, y, score) and `error`, null unless the image could not be read.

    Args:
        pose_estimator ([`PoseEstimationPipeline`]): of this process.
        dataset (`datasets.Dataset`): from [`open_image_dataset`].
        output_dir (`str` or `os.PathLike`): a run with the same arguments takes up what is there.
        options ([`BulkOptions`], *optional*): threshold, batch size and rows per shard.
        model_name (`str`): written to `settings.json`; another name needs another folder.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

    Raises:
        ImportError: PyArrow is not installed.
        ValueError: `output_dir` holds results of other settings; or an image cannot be read and `strict` is set.

    Example:

    ```python
    >>> predict_to_parquet(pose_estimator, open_image_dataset("photos"), "people", model_name="my-model")
    >>> people = datasets.load_dataset("parquet", data_files="people/people-*.parquet")
    ```
    """
    options = options or BulkOptions()
    import_from_data_extra("pyarrow")
    output_dir = Path(output_dir)
    _check_settings(
        output_dir,
        {
            "model": model_name,
            "weights": fingerprint(pose_estimator.model),
            "dataset": _dataset_fingerprint(dataset),
            "rows": len(dataset),
            "rows_per_shard": options.rows_per_shard,
            "threshold": options.threshold,
        },
    )
    shards = [
        range(first, min(first + options.rows_per_shard, len(dataset)))
        for first in range(0, len(dataset), options.rows_per_shard)
    ]
    number, count = rank(), world_size()
    own = list(enumerate(shards))[number::count]
    images = skipped = 0
    tally = _Tally()
    start = time.perf_counter()
    title = "Finding people" if count == 1 else f"Finding people, process {number + 1} of {count}"
    total = sum(len(rows) for _, rows in own)
    with tqdm(total=total, desc=title, unit="image", disable=not progress or number > 0) as bar:
        for shard, rows in own:
            path = output_dir / f"people-{shard:05d}-of-{len(shards):05d}.parquet"
            if path.exists():
                tally.add_file(path)
                skipped += len(rows)
                bar.update(len(rows))
                continue
            _write_shard(path, _found_people(pose_estimator, dataset, rows, options), bar, tally)
            images += len(rows)
    seconds = time.perf_counter() - start
    return BulkReport(images, skipped, tally.unreadable, tally.empty, tuple(tally.reasons), seconds)


@dataclass
class _Tally:
    """How many images could not be read, or have no people."""

    unreadable: int = 0
    empty: int = 0
    reasons: list[str] = field(default_factory=list)

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            if row["error"] is None:
                self.empty += not row["people"]
                continue
            self.unreadable += 1
            if len(self.reasons) < _LISTED:
                self.reasons.append(_reason(row))

    def add_file(self, path: Path) -> None:
        """Counts the rows of a shard."""
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["index", "path", "people.list.element.score", "error"]):
                self.add(batch.to_pylist())


def _reason(row: dict[str, Any]) -> str:
    name = f"row {row['index']}" if row["path"] is None else row["path"]
    return row["error"] if name in row["error"] else f"{name}: {row['error']}"


def _write_shard(path: Path, batches: Iterator[list[dict[str, Any]]], bar: Any, tally: _Tally) -> None:
    """Writes the rows of one shard, batch by batch."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = _schema()
    with replacing_file(path) as temporary, ParquetWriter(temporary, schema, compression="zstd") as writer:
        for rows in batches:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            tally.add(rows)
            bar.update(len(rows))


def _found_people(
    pose_estimator: Any, dataset: Any, rows: Sequence[int], options: BulkOptions
) -> Iterator[list[dict[str, Any]]]:
    """The table's rows of each batch of the dataset's rows."""
    for first in range(0, len(rows), options.batch_size):
        found = [_read_image(dataset, index) for index in rows[first : first + options.batch_size]]
        readable = [(row, image) for row, image in found if image is not None]
        if readable:
            _find_people(pose_estimator, readable, options.threshold)
        rows_of_batch = [row for row, _ in found]
        if options.strict:
            for row in rows_of_batch:
                if row["error"] is not None:
                    raise ValueError(_reason(row))
        yield rows_of_batch


def _find_people(
    pose_estimator: Any, images: Sequence[tuple[dict[str, Any], PIL.Image.Image]], threshold: float
) -> None:
    """Writes the people of a batch of images into their rows."""
    try:
        found = pose_estimator([image for _, image in images], threshold=threshold, batch_size=len(images))
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        if len(images) == 1:
            images[0][0]["error"] = f"its people cannot be found: {error}"
            return
        for each in images:  # one image, such as one that is too large for the memory, must not cost the others
            _find_people(pose_estimator, [each], threshold)
        return
    for (row, _), people in zip(images, found, strict=True):
        row["people"] = [_person_row(person) for person in people]


def _read_image(dataset: Any, index: int) -> tuple[dict[str, Any], PIL.Image.Image | None]:
    """The table's row of an image, without people, and the image, unless it cannot be read."""
    row: dict[str, Any] = {"index": index, "path": None}
    row.update(width=None, height=None, people=[], error=None)
    try:
        entry = dataset[index]["image"] or {}
        row["path"] = entry.get("path")
        source = entry.get("path") if entry.get("bytes") is None else PIL.Image.open(io.BytesIO(entry["bytes"]))
        image = decode_pil_image(source)
    except Exception as error:  # one bad file must not end a run of days
        row["error"] = str(error) or type(error).__name__
        return row, None
    row["width"], row["height"] = image.size
    return row, image


def _person_row(person: dict[str, Any]) -> dict[str, Any]:
    return {
        "score": person["score"],
        "label": person["label"],
        "box": [person["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")],
        "keypoints": [[point["x"], point["y"], point["score"]] for point in person["keypoints"]],
    }


def _schema() -> Any:
    import pyarrow as pa

    numbers = pa.list_(pa.float32())
    person = pa.struct(
        [("score", pa.float32()), ("label", pa.string()), ("box", numbers), ("keypoints", pa.list_(numbers))]
    )
    return pa.schema(
        [
            ("index", pa.int64()),
            ("path", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("people", pa.list_(person)),
            ("error", pa.string()),
        ]
    )


def _check_settings(output_dir: Path, settings: dict[str, Any]) -> None:
    path = output_dir / _SETTINGS
    if not path.exists():
        write_json(settings, path, indent=2)
        return
    before = read_json(path)
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(
                f"{output_dir} holds results with {name} {before.get(name)!r}, and now it is {value!r}; expected a "
                "new folder."
            )


def _dataset_fingerprint(dataset: Any) -> str:
    """A digest of the images' paths. `datasets` has one of how the table was made, which differs from run to run."""
    paths = [(entry or {}).get("path") for entry in dataset[: min(len(dataset), 1000)]["image"]]
    return hashlib.sha256(json.dumps(paths).encode()).hexdigest()[:16]
