"""Files of weights: reading them without running code, and the report of what a model took from them."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


@dataclass(frozen=True)
class WeightsReport:
    """Which tensors a model took from a file; `str` of it lists those that it did not.

    Attributes:
        used (`list[str]`): tensors that are in the model now.
        unused (`list[str]`): tensors of the file that the model has no place for.
        missing (`list[str]`): tensors of the model that the file lacks; they keep their values.
        remark (`str`): what else to know about the result.
    """

    used: list[str]
    unused: list[str]
    missing: list[str] = field(default_factory=list)
    remark: str = field(default="", compare=False)

    def __str__(self) -> str:
        lines = [f"{len(self.used)} tensors used, {len(self.unused)} unused, {len(self.missing)} missing"]
        lines += [f"  unused: {name}" for name in self.unused]
        lines += [f"  missing: {name}" for name in self.missing]
        return "\n".join([*lines, *([f"  {self.remark}"] if self.remark else [])])


def read_tensors(path: str | Path, argument: str = "file") -> dict[str, Tensor]:
    """Reads a `.safetensors` file, or a file of PyTorch that holds tensors alone.

    A state dict may stand under the key `"model"` or `"state_dict"`, and its names may begin with `module.`, which is
    left out.

    Args:
        path (`str` or `Path`): the file.
        argument (`str`): what messages call it.

    Returns:
        `dict[str, Tensor]`: the tensors by name, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a whole file of tensors, or holds something that could run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`{argument}` is {str(path)!r}; there is no such file.")
    expected = f"`{argument}` is {str(path)!r}; expected"
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files written before torch 1.6 cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{expected} tensors alone. It holds something else, which could run code and is not loaded: {error}"
        ) from error
    except Exception as error:  # torch raises errors of many classes for a damaged file
        raise ValueError(f"{expected} a whole file of weights: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ValueError(f"{expected} a dict of tensors by name, by itself or as 'model' or 'state_dict'.")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


__all__ = ["WeightsReport", "read_tensors"]
