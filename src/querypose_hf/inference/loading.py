"""Loading a checkpoint for inference: the model and its image processor, or the pipeline around both."""

import hashlib
import json
import os
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForPoseEstimation

from ..assets import resolve_checkpoint
from ..checks import telling
from ..model.fusion_querypose import fuse_for_inference
from ..model.pipeline_querypose import PoseEstimationPipeline
from ..processes import own_device
from .precision import choose_dtype


Checkpoint = str | os.PathLike


def find_device(device: str | torch.device | None = None) -> torch.device:
    """The device to run on: `device`, or by default this process's accelerator, else the CPU.

    Raises:
        ValueError: torch cannot use the device here.
    """
    if device is None:
        return own_device()
    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # what torch raises differs between devices
        reason = str(error).splitlines()[0]
        raise ValueError(f"`device` is {str(device)!r}; expected one that torch can use here: {reason}") from error
    return torch.device(device)


def load_model(
    model: Checkpoint | torch.nn.Module,
    image_processor: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    optimize: bool = True,
) -> tuple[Any, Any]:
    """Loads a QueryPose model and its image processor, ready for inference.

    Args:
        model: a checkpoint's folder or Hub id, `querypose-nano`, or a QueryPose model with its pose estimation head.
        image_processor (*optional*): by default the checkpoint's; needed with a model that is passed in.
        device (`str` or `torch.device`, *optional*): by default this process's accelerator, else the CPU; a model that
            is passed in stays where it is.
        dtype (`str` or `torch.dtype`, *optional*): such as `"bfloat16"`, or `"auto"`, see [`choose_dtype`]; by default
            float32; a model that is passed in stays as it is.
        optimize (`bool`, *optional*, defaults to `True`): fold batch norms of the model that is loaded, by
            [`fuse_for_inference`]: it is faster, and can be neither trained nor saved.

    Returns:
        `tuple`: the model, in evaluation mode if it was loaded here, and the image processor.

    Raises:
        ValueError: `model` is no QueryPose checkpoint or model, a model was passed in without an image processor, or
            torch cannot use the device, or has no such type.
    """
    if isinstance(dtype, str) and dtype != "auto":
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"`dtype` is {dtype!r}; expected a type of torch such as 'bfloat16', or 'auto'.")
        dtype = getattr(torch, dtype)
    if isinstance(model, torch.nn.Module):
        if image_processor is None:
            raise ValueError("`image_processor` is None; a model that is passed in needs its image processor.")
        _require_querypose(getattr(model, "config", None), type(model).__name__)
        if device is not None:
            model = model.to(find_device(device))
        return _cast(model, image_processor, dtype), image_processor
    place = find_device(device)
    name = resolve_checkpoint(model)
    expected = "expected a QueryPose checkpoint's folder or Hub id, or querypose-nano"
    with telling(f"`model` is {os.fspath(model)!r}; {expected}"):
        config = AutoConfig.from_pretrained(name)
        _require_querypose(config, os.fspath(model))
        loaded, report = AutoModelForPoseEstimation.from_pretrained(
            name,
            config=config,
            dtype=torch.float32 if dtype in (None, "auto") else dtype,
            output_loading_info=True,
        )
        if missing := sorted(report["missing_keys"]):  # random ones are in their place
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            raise ValueError(f"its weights lack {missing[0]}{more}")
        image_processor = image_processor or AutoImageProcessor.from_pretrained(name)
    if optimize:
        loaded = fuse_for_inference(loaded)
    return _cast(loaded.to(place), image_processor, dtype), image_processor


def _cast(model: Any, image_processor: Any, dtype: str | torch.dtype | None) -> Any:
    if dtype == "auto":
        dtype = choose_dtype(model, image_processor)
    return model if dtype is None else model.to(dtype)


def load_pipeline(
    model: Checkpoint, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> PoseEstimationPipeline:
    """Loads the `pose-estimation` pipeline of a checkpoint around a model that is ready for inference.

    Arguments and errors are those of [`load_model`]. `pipeline.model` can be neither trained nor saved.

    Example:

    ```python
    >>> pose_estimator = load_pipeline("querypose-nano", device="cpu")
    >>> people = pose_estimator("photo.jpg")
    ```
    """
    loaded, image_processor = load_model(model, device=device, dtype=dtype)
    return PoseEstimationPipeline(
        model=loaded, image_processor=image_processor, task="pose-estimation", device=loaded.device
    )


def _require_querypose(config: Any, name: str) -> None:
    model_type = getattr(config, "model_type", None)
    if model_type != "querypose":
        raise ValueError(f"{name} is of type {model_type!r}; expected a QueryPose model.")


def fingerprint(model: torch.nn.Module) -> str:
    """A digest of configuration, weights and precision: of all by which a model's results differ."""
    settings: Any = model.config
    fields = {name: value for name, value in settings.to_dict().items() if not name.startswith(("_", "transformers"))}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
