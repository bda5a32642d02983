"""Checkpoints of half the size."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..files import filling_folder, read_json, write_json
from ..model.fusion_querypose import survives_cast


_SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json")
_WEIGHTS = "model.safetensors"


def store_in_float16(folder: str | os.PathLike, output: str | os.PathLike) -> Path:
    """Writes a checkpoint again with its weights in float16; it loads in the type that `config.json` says, as before.

    A tensor with values beyond the range of float16, or for the most part below it, keeps its type.

    Args:
        folder (`str` or `os.PathLike`): what `save_pretrained` of model and image processor wrote.
        output (`str` or `os.PathLike`): the folder to write; made if it does not exist. Files of the same names are
            replaced whole. Code that the checkpoint carries is not copied.

    Returns:
        `Path`: the folder written.

    Raises:
        FileNotFoundError: `folder` has no configuration or no weights in one file.

    Example:

    ```python
    >>> store_in_float16("runs/querypose_nano/last", "querypose-nano")
    ```
    """
    folder, output = Path(folder), Path(output)
    for name in (_SETTINGS[0], _WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"`folder` is {str(folder)!r}, which has no {name}.")
    halved = {}
    for name, tensor in load_file(folder / _WEIGHTS).items():
        # running variances grow as the square of their inputs and may be beyond float16
        halved[name] = tensor.half() if tensor.is_floating_point() and survives_cast(tensor, torch.float16) else tensor
    with filling_folder(output, alone=True) as temporary:
        save_file(halved, temporary / _WEIGHTS, metadata={"format": "pt"})
        for settings in _SETTINGS:
            if (folder / settings).is_file():
                fields = read_json(folder / settings)
                fields.pop("auto_map", None)  # it would ask for the code
                write_json(fields, temporary / settings, indent=2)
    return output


__all__ = ["store_in_float16"]
