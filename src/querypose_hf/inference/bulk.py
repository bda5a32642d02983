"""People in a data set of any size, as Parquet files: shared among processes, and resumable.

The data set is cut into shards of consecutive rows. A shard is one Parquet file, written under a temporary name and
renamed, so that the files that are there are whole and a run that was stopped goes on with those that are not.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..files import read_json, write_json


_SETTINGS = "settings.json"


@dataclass(frozen=True)
class BulkReport:
    """What one process did.

    Attributes:
        images (`int`): pictures that this run looked at.
        skipped (`int`): rows of shards that were there already.
        unreadable (`int`): pictures among `images` that could not be read; their rows say why.
        seconds (`float`): how long it took, without loading the model.
    """

    images: int
    skipped: int
    unreadable: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0


def open_image_dataset(source: str | os.PathLike, split: str | None = None, image_column: str | None = None) -> Any:
    """Opens a folder of pictures, a saved data set, or one of the Hub, without decoding anything.

    Args:
        source (`str` or `os.PathLike`): a folder of pictures (also within folders, sorted by their paths), a folder
            that `Dataset.save_to_disk` wrote, or what `datasets.load_dataset` takes.
        split (`str`, *optional*): such as `train`; needed where there are several.
        image_column (`str`, *optional*): which column has the pictures; by default the first of images.

    Returns:
        `datasets.Dataset`: one column `image`, of `{"bytes", "path"}`.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: there is no such data set, split or column, or no picture.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError('--dataset needs datasets: pip install "querypose-hf[data]".') from error
    folder = Path(source)
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        data = datasets.load_from_disk(str(folder))
    elif folder.is_dir() and (files := _picture_files(folder)):
        data = datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
    elif folder.is_dir() and not any(folder.rglob("*.parquet")):
        raise ValueError(f"--dataset must hold pictures, but the folder {folder} has none.")
    else:
        try:
            data = datasets.load_dataset(str(source))
        except Exception as error:  # the library raises of many kinds
            raise ValueError(
                f"--dataset must be a folder or a data set, but {source} cannot be opened: {error}"
            ) from error
    if isinstance(data, dict):
        names = list(data)
        if split is None and len(names) > 1:
            raise ValueError(f"--split must be one of {names}.")
        if split is not None and split not in names:
            raise ValueError(f"--split must be one of {names}, but is {split!r}.")
        data = data[split or names[0]]
    columns = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    if image_column is None and not columns:
        raise ValueError(f"--dataset must have a column of images, but {source} has {list(data.features)}.")
    if image_column is not None and image_column not in columns:
        raise ValueError(f"--image-column must be one of {columns}, but is {image_column!r}.")
    column = image_column or columns[0]
    data = data.select_columns([column])
    if column != "image":
        data = data.rename_column(column, "image")
    if not len(data):
        raise ValueError(f"--dataset must hold pictures, but {source} is empty.")
    return data.cast_column("image", datasets.Image(decode=False))


def predict_to_parquet(
    pose_estimator: Any,
    dataset: Any,
    output_dir: str | os.PathLike,
    *,
    model_name: str,
    threshold: float = 0.3,
    batch_size: int = 8,
    rows_per_shard: int = 1024,
    progress: bool = True,
) -> BulkReport:
    """Finds the people of all pictures of a data set and writes them to `output_dir/people-*.parquet`.

    Under `accelerate launch` or `torchrun` process r of n does every n-th shard. Each row has `index` (in the data
    set), `path` (or null), `width`, `height`, `people` (list of `score`, `label`, `box` of four numbers x1, y1, x2, y2
    and `keypoints`, K times x, y, score) and `error`, null unless the picture could not be read.

    Args:
        pose_estimator ([`PoseEstimationPipeline`]): of this process.
        dataset (`datasets.Dataset`): from [`open_image_dataset`].
        output_dir (`str` or `os.PathLike`): a run with the same arguments takes up what is there.
        model_name (`str`): says which results go together.
        threshold, batch_size: as for the pipeline.
        rows_per_shard (`int`, *optional*, defaults to 1024): pictures per file; what a kill can cost at most.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.

    Raises:
        ImportError: PyArrow is not installed.
        ValueError: an argument is wrong, or `output_dir` holds results of other settings.

    Example:

    ```python
    >>> predict_to_parquet(pose_estimator, open_image_dataset("photos"), "people", model_name="my-model")
    >>> people = datasets.load_dataset("parquet", data_files="people/people-*.parquet")
    ```
    """
    for name, value in (("batch_size", batch_size), ("rows_per_shard", rows_per_shard)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, but is {value}.")
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError('Parquet files need pyarrow: pip install "querypose-hf[data]".') from error
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    output_dir = Path(output_dir)
    _check_settings(
        output_dir,
        {
            "model": model_name,
            "weights": _fingerprint(pose_estimator.model),
            "dataset": _dataset_fingerprint(dataset),
            "rows": len(dataset),
            "rows_per_shard": rows_per_shard,
            "threshold": threshold,
        },
    )
    shards = -(-len(dataset) // rows_per_shard)
    schema = _schema()
    images = skipped = unreadable = 0
    mine = range(rank, shards, count)
    rows = sum(min(rows_per_shard, len(dataset) - shard * rows_per_shard) for shard in mine)
    title = "Finding people" if count == 1 else f"Finding people, process {rank + 1} of {count}"
    start = time.perf_counter()
    with tqdm(total=rows, desc=title, unit="image", disable=not progress or rank > 0) as bar:
        for shard in mine:
            place = output_dir / f"people-{shard:05d}-of-{shards:05d}.parquet"
            first, last = shard * rows_per_shard, min((shard + 1) * rows_per_shard, len(dataset))
            if place.exists():
                skipped += last - first
                bar.update(last - first)
                continue
            temporary = place.with_name(f".{place.name}.part")  # a killed run's is written over
            try:
                with parquet.ParquetWriter(temporary, schema, compression="zstd") as writer:
                    for batch_start in range(first, last, batch_size):
                        batch = list(range(batch_start, min(batch_start + batch_size, last)))
                        found = list(_find(pose_estimator, dataset, batch, threshold))
                        writer.write_table(_table(found, schema))
                        unreadable += sum(row["error"] is not None for row in found)
                        images += len(batch)
                        bar.update(len(batch))
                temporary.replace(place)
            finally:
                temporary.unlink(missing_ok=True)
    return BulkReport(images, skipped, unreadable, time.perf_counter() - start)


def _find(pose_estimator: Any, dataset: Any, batch: Sequence[int], threshold: float) -> Iterator[dict[str, Any]]:
    import io

    import PIL.Image

    from ..model.image_decoding_querypose import decode_image

    rows: list[dict[str, Any]] = []
    pictures: list[tuple[int, PIL.Image.Image]] = []
    for index in batch:
        entry = dataset[index]["image"] or {}
        row: dict[str, Any] = {"index": index, "path": entry.get("path")}
        row.update(width=None, height=None, people=[], error=None)
        try:
            source = entry.get("path") if entry.get("bytes") is None else PIL.Image.open(io.BytesIO(entry["bytes"]))
            pixels = decode_image(source)
            row["height"], row["width"] = pixels.shape[-2:]
            pictures.append((len(rows), PIL.Image.fromarray(pixels.permute(1, 2, 0).numpy())))
        except (OSError, SyntaxError, TypeError, ValueError, PIL.Image.DecompressionBombError) as error:
            row["error"] = str(error)  # one bad file must not end a run of days
        rows.append(row)
    if pictures:
        found = pose_estimator([picture for _, picture in pictures], threshold=threshold, batch_size=len(pictures))
        for (position, _), people in zip(pictures, found, strict=True):
            rows[position]["people"] = [
                {
                    "score": person["score"],
                    "label": person["label"],
                    "box": [person["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")],
                    "keypoints": [[point["x"], point["y"], point["score"]] for point in person["keypoints"]],
                }
                for person in people
            ]
    yield from rows


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


def _table(rows: list[dict[str, Any]], schema: Any) -> Any:
    import pyarrow as pa

    return pa.Table.from_pylist(rows, schema=schema)


def _check_settings(output_dir: Path, settings: dict[str, Any]) -> None:
    place = output_dir / _SETTINGS
    if place.exists():
        before = read_json(place)
        different = [name for name in settings if before.get(name) != settings[name]]
        if different:
            name = different[0]
            raise ValueError(
                f"--output-parquet must be a new folder: {output_dir} holds results with {name} {before.get(name)!r}, "
                f"and now it is {settings[name]!r}."
            )
        return
    write_json(settings, place, indent=2)


def _dataset_fingerprint(dataset: Any) -> str:
    """Of what the rows are; the library's own covers how the table was made, which may differ from run to run."""
    paths = [(entry or {}).get("path") for entry in dataset[: min(len(dataset), 1000)]["image"]]
    return hashlib.sha256(json.dumps(paths).encode()).hexdigest()[:16]


def _fingerprint(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, values in sorted(model.state_dict().items()):
        # sums tell checkpoints apart and cost little even of large models
        digest.update(f"{name} {tuple(values.shape)} {values.double().sum().item():.9e}".encode())
    return digest.hexdigest()[:16]


def _picture_files(folder: Path) -> list[str]:
    import PIL.Image

    suffixes = {suffix for suffix, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.OPEN}
    suffixes -= {".pdf", ".mpg", ".mpeg"}
    return sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
