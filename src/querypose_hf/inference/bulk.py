"""People in a dataset of any size, as Parquet files. Processes share the work, and a run can be resumed.

The dataset is cut into shards of consecutive rows, one Parquet file each. A file appears once it is whole, so a run
that was stopped goes on with the shards that have no file.
"""

import dataclasses
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import PIL.Image
from tqdm.auto import tqdm

from ..files import remove_unfinished, replacing_file
from ..model.image_decoding_querypose import decode_pil_image, refuse_programs
from ..processes import rank, world_size
from .image_dataset import import_from_data_extra
from .loading import fingerprint
from .options import BulkOptions
from .reading_ahead import read_ahead
from .records import find_people_in_batch, image_record, record_schema


_SETTINGS = "querypose"  # under this name the metadata of each file has the settings as JSON
_LISTED = 3  # reasons why images could not be read
_ROWS_PER_GROUP = 256  # of a Parquet file, written at once; a batch on a CPU is one image


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


def predict_to_parquet(
    pose_estimator: Any,
    dataset: Any,
    output_dir: str | os.PathLike,
    options: BulkOptions | None = None,
    *,
    model_name: str,
    progress: bool = True,
    timed: Callable[[str], Any] = nullcontext,
) -> BulkReport:
    """Finds the people of all images of a dataset and writes them to `output_dir/people-*.parquet`.

    Under `accelerate launch` or `torchrun` process r of n does every n-th shard. Each row is an [`image_record`]. The
    files' metadata has the settings, so that `output_dir` holds nothing but the table.

    Args:
        pose_estimator ([`PoseEstimationPipeline`]): of this process.
        dataset (`datasets.Dataset`): from [`open_image_dataset`].
        output_dir (`str` or `os.PathLike`): a run with the same arguments takes up what is there.
        options ([`BulkOptions`], *optional*): threshold, people per image, batch size and rows per shard.
        model_name (`str`): written into the files' metadata; another name needs another folder.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.
        timed (`Callable`, *optional*): makes a context manager of "reading", "model" or "writing", such as
            `TimeSpent.of`.

    Raises:
        ImportError: PyArrow is not installed.
        ValueError: `output_dir` holds results of other settings; or an image cannot be read and `strict` is set.

    Example:

    ```python
    >>> predict_to_parquet(pose_estimator, open_image_dataset("photos"), "people", model_name="my-model")
    >>> people = pandas.read_parquet("people")
    ```
    """
    options = options or BulkOptions()
    import_from_data_extra("pyarrow")
    output_dir = Path(output_dir)
    if options.threshold is None:
        options = dataclasses.replace(options, threshold=pose_estimator.score_threshold)
    settings = {
        "model": model_name,
        "weights": fingerprint(pose_estimator.model),
        "dataset": _dataset_fingerprint(dataset),
        "rows": len(dataset),
        "rows_per_shard": options.rows_per_shard,
        "threshold": options.threshold,
        "top_k": options.top_k,
    }
    _check_settings(output_dir, settings)
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
            found = _found_people(pose_estimator, dataset, rows, options, timed)
            _write_shard(path, found, settings, bar, tally, timed)
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
            for batch in file.iter_batches(columns=["index", "source", "people.list.element.score", "error"]):
                self.add(batch.to_pylist())


def _reason(row: dict[str, Any]) -> str:
    name = f"row {row['index']}" if row["source"] is None else row["source"]
    return row["error"] if name in row["error"] else f"{name}: {row['error']}"


def _write_shard(
    path: Path,
    batches: Iterator[list[dict[str, Any]]],
    settings: dict[str, Any],
    bar: Any,
    tally: _Tally,
    timed: Callable[[str], Any],
) -> None:
    """Writes the records of one shard."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = record_schema().with_metadata({_SETTINGS: json.dumps(settings)})
    remove_unfinished(path.parent, path.name)
    with replacing_file(path) as temporary, ParquetWriter(temporary, schema, compression="zstd") as writer:
        for group in _groups(batches, bar, tally):
            with timed("writing"):
                writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def _groups(batches: Iterable[list[dict[str, Any]]], bar: Any, tally: _Tally) -> Iterator[list[dict[str, Any]]]:
    """The records, [`_ROWS_PER_GROUP`] or a few more at a time. A shard counts once it is whole: they may wait."""
    group: list[dict[str, Any]] = []
    for records in batches:
        tally.add(records)
        bar.update(len(records))
        group += records
        if len(group) >= _ROWS_PER_GROUP:
            yield group
            group = []
    if group:
        yield group


def _found_people(
    pose_estimator: Any, dataset: Any, rows: Sequence[int], options: BulkOptions, timed: Callable[[str], Any]
) -> Iterator[list[dict[str, Any]]]:
    """The records of each batch of the dataset's rows; the images of the next one are read meanwhile."""
    reading = read_ahead(partial(_read_image, dataset), rows, options.batch_size)
    while True:
        with timed("reading"):
            read = [(index, *image.result()) for index, image in islice(reading, options.batch_size)]
        if not read:
            return
        images = [image for _, _, image, _ in read if image is not None]
        with timed("model"):
            found = iter(
                find_people_in_batch(pose_estimator, images, options.threshold, options.top_k) if images else []
            )
        records = []
        for index, source, image, error in read:
            people: Any = [] if image is None else next(found)
            if isinstance(people, Exception):
                people, error = [], f"its people cannot be found: {people}"
            size = None if image is None else image.size
            records.append(image_record(source, index, size, people, error=error))
            if options.strict and error is not None:
                raise ValueError(_reason(records[-1]))
        yield records


def _read_image(dataset: Any, index: int) -> tuple[str | None, PIL.Image.Image | None, str | None]:
    """A row's file, if it has one, its image, or why that cannot be read."""
    path = None
    try:
        entry = dataset[index]["image"] or {}
        path = source = entry.get("path")
        if entry.get("bytes") is not None:
            source = PIL.Image.open(io.BytesIO(entry["bytes"]))
            refuse_programs(source)
        return path, decode_pil_image(source), None
    except Exception as error:  # one bad file must not end a run of days
        return path, None, str(error) or type(error).__name__


def _check_settings(output_dir: Path, settings: dict[str, Any]) -> None:
    """Raises `ValueError` if there are shards of other settings, which each shard's metadata has."""
    from pyarrow.parquet import read_schema

    shard = next(iter(sorted(output_dir.glob("people-*.parquet"))), None)
    if shard is None:
        return
    before = json.loads((read_schema(shard).metadata or {}).get(_SETTINGS.encode(), b"{}"))
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
