"""Pretrained weights for a model's backbone, fetched or read only when asked for."""

import copy
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from ..model.modeling_querypose import QueryPoseForPoseEstimation, QueryPoseModel


@dataclass(frozen=True)
class BackboneReport:
    """What became of a file's tensors and of the backbone's.

    Attributes:
        used (`list[str]`): tensors of the file that are in the backbone now, by the backbone's names.
        unused (`list[str]`): tensors of the file that the backbone has no place for.
        missing (`list[str]`): tensors of the backbone that the file did not have; they are as they were.

    Counters of training batches (`num_batches_tracked`) say nothing about the weights and are left out.
    """

    used: list[str]
    unused: list[str]
    missing: list[str]

    def __str__(self) -> str:
        lines = [f"{len(self.used)} tensors used, {len(self.unused)} unused, {len(self.missing)} missing"]
        lines += [f"  unused: {name}" for name in self.unused]
        lines += [f"  missing: {name}" for name in self.missing]
        return "\n".join(lines)


def _backbone(model: QueryPoseModel | QueryPoseForPoseEstimation) -> torch.nn.Module:
    model = model.model if isinstance(model, QueryPoseForPoseEstimation) else model
    return model.backbone.model


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"`file` must be a file of weights, but there is none at {path}.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"`file` must be a whole file of weights, but {path} cannot be read: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"`file` must hold tensors alone, but {path} holds something else, which is not loaded because it could "
            f"run code: {error}"
        ) from error
    except (EOFError, OSError, RuntimeError) as error:  # torch has many ways to say that a file is cut off
        raise ValueError(f"`file` must be a whole file of weights, but {path} cannot be read: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"`file` must hold a dict of tensors, but {path} does not.")
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def _fill(network: torch.nn.Module, state: Mapping[str, Tensor], unused: Sequence[str] = ()) -> BackboneReport:
    places = network.state_dict()
    wrong = [
        f"{name} {tuple(tensor.shape)} (expected {tuple(places[name].shape)})"
        for name, tensor in state.items()
        if name in places and places[name].shape != tensor.shape
    ]
    if wrong:
        raise ValueError(f"The weights are those of another backbone; {len(wrong)} tensors differ in shape: {wrong}.")
    unused = [*unused, *(name for name in state if name not in places)]
    used = [name for name in state if name in places]
    if not used:
        raise ValueError(
            f"The weights are those of another backbone: none of its {len(places)} tensors is among them. The "
            f"first of theirs is {next(iter(unused), None)!r}, the backbone's {next(iter(places))!r}."
        )
    network.load_state_dict({name: state[name] for name in used}, strict=False)
    missing = [name for name in places if name not in state]
    return BackboneReport(
        *([name for name in names if not name.endswith("num_batches_tracked")] for names in (used, unused, missing))
    )


def _fill_from_pretrained(
    backbone: PreTrainedModel, checkpoint: str | None = None, state: Mapping[str, Tensor] | None = None
) -> BackboneReport:
    # Transformers itself knows under which names its models were saved over the years
    loaded: tuple[PreTrainedModel, dict[str, Any]] = type(backbone).from_pretrained(
        checkpoint,
        config=copy.deepcopy(backbone.config),
        state_dict=None if state is None else dict(state),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    source, found = loaded
    wrong = [f"{name} {tuple(got)} (expected {tuple(expected)})" for name, got, expected in found["mismatched_keys"]]
    if wrong:
        raise ValueError(f"The weights are those of another backbone; {len(wrong)} tensors differ in shape: {wrong}.")
    # layers that the class has and does not use come without word of whether the checkpoint had them
    idle = re.compile("|".join(backbone._keys_to_ignore_on_load_missing or ()) or "(?!)")
    absent = {name for name in source.state_dict() if name in found["missing_keys"] or idle.search(name)}
    state = {name: tensor for name, tensor in source.state_dict().items() if name not in absent}
    report = _fill(backbone, state, unused=sorted(found["unexpected_keys"]))
    return replace(report, missing=[name for name in report.missing if not idle.search(name)])


def load_imagenet_weights(
    model: QueryPoseModel | QueryPoseForPoseEstimation, file: str | Path | None = None, checkpoint: str | None = None
) -> BackboneReport:
    """Loads ImageNet weights into the backbone.

    Args:
        model: the model whose backbone is filled in place.
        file (`str` or `Path`, *optional*):
            A local `.safetensors` or `.pth` file with timm's names for a timm backbone, and for one of Transformers
            the names of its checkpoints on the Hub. Without it the weights are downloaded.
        checkpoint (`str`, *optional*):
            What to download: for a timm backbone a timm model name with a pretraining tag, `"resnet50.a1_in1k"` (by
            default timm's default for the architecture); for a backbone of Transformers a Hub id or folder, which
            has no default.

    Returns:
        [`BackboneReport`]

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the weights do not fit the backbone, or nothing says which to download.
    """
    backbone = _backbone(model)
    timm_network = getattr(backbone, "_backbone", None)
    if file is not None:
        state = _read(Path(file))
        return _fill_from_pretrained(backbone, state=state) if timm_network is None else _fill(timm_network, state)
    if timm_network is None:
        if checkpoint is None:
            raise ValueError(
                f"`checkpoint` must name the Hub checkpoint to load into a {type(backbone).__name__}, such as "
                "'microsoft/swin-large-patch4-window7-224'."
            )
        return _fill_from_pretrained(backbone, checkpoint)
    config = backbone.config
    source = timm.create_model(
        checkpoint or config.backbone,
        pretrained=True,
        features_only=True,
        in_chans=config.num_channels,
        out_indices=list(config.out_indices),
        **(model.config.backbone_kwargs or {}),
    )
    return _fill(timm_network, source.state_dict())


def load_heatmap_pretrained_hrnet(
    model: QueryPoseModel | QueryPoseForPoseEstimation, file: str | Path
) -> BackboneReport:
    """Loads an HRNet trained on keypoint heatmaps into the backbone (worth 1.5 AP in the paper, Section 4.3).

    Args:
        model: a model with an HRNet backbone.
        file (`str` or `Path`):
            A checkpoint with the names of the public HRNet pose models (`conv1`, `bn1`, `layer1`, `transition1`,
            `stage2`, ..., `final_layer`), also with `backbone.` before them.

    Returns:
        [`BackboneReport`]. The heatmap layer `final_layer` is unused. Missing are the fusions into the three coarser
        branches at the very end, which pose models do not have; they keep their initial weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the backbone is no HRNet, or the file holds one of another width.
    """
    backbone = _backbone(model)
    network = getattr(backbone, "_backbone", None)
    name = getattr(backbone.config, "backbone", None) or backbone.config.model_type
    if network is None or "hrnet" not in name:
        raise ValueError(f"`model` must have an HRNet backbone, but has {name!r}.")
    state = {key.removeprefix("backbone."): tensor for key, tensor in _read(Path(file)).items()}
    return _fill(network, state)


__all__ = ["BackboneReport", "load_heatmap_pretrained_hrnet", "load_imagenet_weights"]
