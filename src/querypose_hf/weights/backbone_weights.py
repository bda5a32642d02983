"""Pretrained weights for a model's backbone, from a file or by download. Nothing here runs by itself."""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..model.modeling_querypose import QueryPoseForPoseEstimation, QueryPoseModel
from .tensor_files import WeightsReport, read_tensors


def _backbone(model: QueryPoseModel | QueryPoseForPoseEstimation) -> torch.nn.Module:
    model = model.model if isinstance(model, QueryPoseForPoseEstimation) else model
    return model.backbone.model


def _refuse(wrong: Sequence[str]) -> None:
    if wrong:
        raise ValueError(f"The weights are those of another backbone; {len(wrong)} tensors differ in shape: {wrong}.")


def _fill(network: torch.nn.Module, state: Mapping[str, Tensor], unused: Sequence[str] = ()) -> WeightsReport:
    places = network.state_dict()
    wrong = [
        f"{name} {tuple(tensor.shape)} (expected {tuple(places[name].shape)})"
        for name, tensor in state.items()
        if name in places and places[name].shape != tensor.shape
    ]
    _refuse(wrong)
    unused = [*unused, *(name for name in state if name not in places)]
    used = [name for name in state if name in places]
    if not used:
        raise ValueError(
            f"The weights are those of another backbone: none of its {len(places)} tensors is among them. The "
            f"first of theirs is {next(iter(unused), None)!r}, the backbone's {next(iter(places))!r}."
        )
    network.load_state_dict({name: state[name] for name in used}, strict=False)
    missing = [name for name in places if name not in state]
    # counters of batches say nothing about the weights
    return WeightsReport(
        *([name for name in names if not name.endswith("num_batches_tracked")] for names in (used, unused, missing))
    )


def _fill_from_pretrained(
    backbone: PreTrainedModel, checkpoint: str | None = None, state: Mapping[str, Tensor] | None = None
) -> WeightsReport:
    # transformers knows the names under which its models were saved over the years
    loaded: tuple[PreTrainedModel, dict[str, Any]] = type(backbone).from_pretrained(
        checkpoint,
        config=copy.deepcopy(backbone.config),
        state_dict=None if state is None else dict(state),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    source, found = loaded
    wrong = [f"{name} {tuple(got)} (expected {tuple(expected)})" for name, got, expected in found["mismatched_keys"]]
    _refuse(wrong)
    # transformers does not say whether the checkpoint had the layers that the class has and does not use
    idle = re.compile("|".join(backbone._keys_to_ignore_on_load_missing or ()) or "(?!)")
    absent = {name for name in source.state_dict() if name in found["missing_keys"] or idle.search(name)}
    state = {name: tensor for name, tensor in source.state_dict().items() if name not in absent}
    report = _fill(backbone, state, unused=sorted(found["unexpected_keys"]))
    return replace(report, missing=[name for name in report.missing if not idle.search(name)])


def load_backbone_weights(
    model: QueryPoseModel | QueryPoseForPoseEstimation, file: str | Path | None = None, checkpoint: str | None = None
) -> WeightsReport:
    """Loads pretrained weights, such as ImageNet's, into the backbone, from a file or by download.

    Args:
        model: the model whose backbone is filled in place.
        file (`str` or `Path`, *optional*): a local `.safetensors` or `.pth` file. Its names are timm's for a timm
            backbone, and those of checkpoints on the Hub for one of transformers. Without it the weights are
            downloaded.
        checkpoint (`str`, *optional*): what to download. For a timm backbone: a timm model name with a pretraining
            tag, such as `"resnet50.a1_in1k"`; timm's default for the architecture if it is not given. For a backbone
            of transformers: a Hub id or folder, which has no default.

    Returns:
        [`WeightsReport`]

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the weights do not fit the backbone, or nothing says which to download.
    """
    backbone = _backbone(model)
    timm_network = getattr(backbone, "_backbone", None)
    if file is not None:
        state = read_tensors(file)
        return _fill_from_pretrained(backbone, state=state) if timm_network is None else _fill(timm_network, state)
    if timm_network is None:
        if checkpoint is None:
            raise ValueError(
                f"`checkpoint` is None; expected a Hub id to load into a {type(backbone).__name__}, such as "
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
) -> WeightsReport:
    """Loads an HRNet trained on keypoint heatmaps into the backbone (worth 1.5 AP in the paper, Section 4.3).

    Args:
        model: a model with an HRNet backbone.
        file (`str` or `Path`): a checkpoint with the names of the public HRNet pose models (`conv1`, `bn1`, `layer1`,
            `transition1`, `stage2`, ..., `final_layer`), with or without `backbone.` before them.

    Returns:
        [`WeightsReport`]. The heatmap layer `final_layer` is unused. The last fusions into the three coarser branches
        are missing, because pose models do not have them; they keep their initial weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the backbone is not an HRNet, or the file holds one of another width.
    """
    backbone = _backbone(model)
    network = getattr(backbone, "_backbone", None)
    name = getattr(backbone.config, "backbone", None) or backbone.config.model_type
    if network is None or "hrnet" not in name:
        raise ValueError(f"`model` has the backbone {name!r}; expected an HRNet.")
    state = {key.removeprefix("backbone."): tensor for key, tensor in read_tensors(file).items()}
    return _fill(network, state)


__all__ = ["load_backbone_weights", "load_heatmap_pretrained_hrnet"]
