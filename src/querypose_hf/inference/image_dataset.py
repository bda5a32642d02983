"""Opening datasets of images, of the Hub or of this machine, with the library `datasets` (extra `data`)."""

import importlib
import os
from pathlib import Path
from typing import Any

from ..checks import telling
from .sources import image_files


def open_image_dataset(source: str | os.PathLike, split: str | None = None, image_column: str | None = None) -> Any:
    """Opens a folder of images, a saved dataset, or one of the Hub, without decoding anything.

    Args:
        source (`str` or `os.PathLike`): a folder of images (folders in it included, in order of their paths), a
            folder that `Dataset.save_to_disk` wrote, or what `datasets.load_dataset` takes.
        split (`str`, *optional*): such as `train`; needed where there are several.
        image_column (`str`, *optional*): the column of the images; by default the first one that holds images.

    Returns:
        `datasets.Dataset`: one column `image`, of `{"bytes", "path"}`.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: there is no such dataset, split or column, or no image.
    """
    datasets = import_from_data_extra("datasets")
    data = _pick_split(_open(datasets, source), split)
    columns = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    if not columns:
        raise ValueError(f"{source} has the columns {list(data.features)}; expected one of images.")
    if image_column is not None and image_column not in columns:
        raise ValueError(f"`image_column` is {image_column!r}; expected one of {columns}.")
    if not len(data):
        raise ValueError(f"{source} is empty; expected images.")
    column = image_column or columns[0]
    data = data.select_columns([column])
    if column != "image":
        data = data.rename_column(column, "image")
    return data.cast_column("image", datasets.Image(decode=False))


def _open(datasets: Any, source: str | os.PathLike) -> Any:
    folder = Path(source)
    damaged = f"{source} cannot be opened; expected a folder of images or a dataset"
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        with telling(damaged):
            return datasets.load_from_disk(str(folder))
    if folder.is_dir():
        files = image_files(folder.rglob("*"))
        if files:
            return datasets.Dataset.from_dict({"image": files}).cast_column("image", datasets.Image())
        if not any(folder.rglob("*.parquet")):
            raise ValueError(f"the folder {folder} holds no images.")
    with telling(damaged):
        return datasets.load_dataset(str(source))


def _pick_split(data: Any, split: str | None) -> Any:
    if not isinstance(data, dict):
        return data
    names = list(data)
    if split is None and len(names) == 1:
        return data[names[0]]
    if split not in names:
        raise ValueError(f"`split` is {split!r}; expected one of {names}.")
    return data[split]


def import_from_data_extra(name: str) -> Any:
    """Imports a package that comes with the extra `data`."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f'whole datasets need {name}: pip install "querypose-hf[data]".') from error
