"""The files of a checkpoint that go to the Hub: those of its folder, and those that the package adds."""

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..files import read_json, write_json, write_text
from ..model.code_files_querypose import HUB_ENTRIES, HUB_FILES


#: `handler.py` for Inference Endpoints.
HANDLER = Path(__file__).parent / "endpoint_handler.py"
#: `requirements.txt`: what the code of a checkpoint imports, for services that install it.
REQUIREMENTS = (
    "torch",
    "torchvision",
    "transformers>=5.22,<6",
    "timm>=1.0.20,<2",
    "safetensors",
    "scipy",
    "numpy",
    "pillow",
)

_CODE = Path(__file__).parents[1] / "model"
_WEIGHTS, _WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
_SETTINGS = ("preprocessor_config.json", "processor_config.json")


def read_config_fields(folder: str | os.PathLike) -> dict[str, Any]:
    """The fields of a checkpoint's `config.json`.

    Raises:
        FileNotFoundError: there is no such folder, or no `config.json` in it.
        ValueError: it is the configuration of another kind of model.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"`folder` is {str(folder)!r}, which has no config.json; expected a checkpoint.")
    fields = read_json(file)
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if kind != "querypose":
        raise ValueError(f"{file}: `model_type` is {kind!r}; expected 'querypose'.")
    return fields


def collect_checkpoint(folder: str | os.PathLike, staging: Path) -> dict[str, Path]:
    """The files of a checkpoint to upload; those that the folder lacks are made in `staging`.

    Returns:
        `dict[str, Path]`: by path in the repository, the files.

    Raises:
        FileNotFoundError: the folder, or a file that every checkpoint has, does not exist.
        ValueError: the folder holds another kind of model, or its weights cannot be read.
    """
    folder = Path(folder)
    config = read_config_fields(folder)
    settings = [name for name in _SETTINGS if (folder / name).is_file()]
    if not settings:
        raise FileNotFoundError(
            f"{folder} has no image processor; expected {' or '.join(_SETTINGS)}, which "
            "`image_processor.save_pretrained` writes."
        )
    files = {name: folder / name for name in ("config.json", *settings, *_weights(folder))}
    if any(config.get(entry) != value for entry, value in HUB_ENTRIES.items()):
        files["config.json"] = staging / "config.json"
        write_json({**config, **HUB_ENTRIES}, files["config.json"], indent=2)
    for name in HUB_FILES:
        files[name] = folder / name if (folder / name).is_file() else _CODE / name
    files["requirements.txt"] = _write_requirements(staging)
    files["handler.py"] = HANDLER
    return files


def _weights(folder: Path) -> list[str]:
    """Names of the files of weights, each of them readable."""
    names: list[str] = []
    files = [_WEIGHTS]
    index = folder / _WEIGHTS_INDEX
    if index.is_file() and not (folder / _WEIGHTS).is_file():  # as from_pretrained, prefer the single file
        try:
            files = sorted(set(read_json(index)["weight_map"].values()))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{index}: expected a `weight_map` from tensors to files.") from error
        names = [_WEIGHTS_INDEX]
    for name in files:
        if Path(name).name != name:
            raise ValueError(f"{index}: names {name!r}; expected files of the same folder.")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}; expected a whole checkpoint.")
        try:
            with safe_open(folder / name, framework="pt") as tensors:  # reads the header and checks the file's length
                tensors.keys()
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / name} is not a whole file of weights: {error}") from error
    return names + files


def copy_handler(folder: str | os.PathLike) -> Path:
    """Puts `handler.py` for Inference Endpoints and its `requirements.txt` into a checkpoint's folder.

    Returns:
        `Path` of `handler.py`.

    Raises:
        FileNotFoundError, ValueError: the folder is not a checkpoint's.
    """
    folder = Path(folder)
    read_config_fields(folder)
    _write_requirements(folder)
    return Path(shutil.copyfile(HANDLER, folder / "handler.py"))


def _write_requirements(folder: Path) -> Path:
    write_text("\n".join(REQUIREMENTS) + "\n", folder / "requirements.txt")
    return folder / "requirements.txt"


__all__ = ["collect_checkpoint", "copy_handler", "read_config_fields"]
