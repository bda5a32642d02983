"""The number type `auto`: bfloat16 where the device is fast in it and the model finds the same people in it."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..assets import SAMPLE_IMAGE
from ..model.image_decoding_querypose import decode_image


logger = logging.getLogger(__name__)

#: Keypoints in bfloat16 may be so many pixels, of the image as the model sees it, from those in float32.
TOLERANCE = 1.0


def choose_dtype(model: Any, image_processor: Any) -> torch.dtype:
    """bfloat16, if the model's device has units for it and the sample photograph's people stay the same, else float32.

    The same are as many people with a score above the image processor's `score_threshold`, each with keypoints that
    are at most [`TOLERANCE`] apart. One line in the log says why it is float32.

    Args:
        model ([`QueryPoseForPoseEstimation`]): in evaluation mode and float32; it is not changed.
        image_processor ([`QueryPoseImageProcessor`]): the model's.
    """
    if has_bfloat16_units(model.device):
        reason = _difference(model, image_processor)
    else:
        reason = f"the {model.device.type} has no units for bfloat16"
    if reason is None:
        return torch.bfloat16
    logger.warning("dtype auto: float32 is used, because %s", reason)
    return torch.float32


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 numbers faster than float32, as far as torch can tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    # private names of torch: where one is gone, the CPU counts as one without
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check() for check in checks if check is not None)


@torch.inference_mode()
def _difference(model: Any, image_processor: Any) -> str | None:
    """What is different in bfloat16, or `None`."""
    inputs = image_processor(decode_image(SAMPLE_IMAGE), input_data_format="channels_first", return_tensors="pt")
    exact = _find_people(model, image_processor, inputs)
    if not exact:
        return "nobody is found in the sample photograph, on which bfloat16 is checked"
    rounded = _find_people(copy.deepcopy(model).to(torch.bfloat16), image_processor, inputs)
    if len(exact) != len(rounded):
        return f"{len(rounded)} people are found in the sample photograph in bfloat16, not {len(exact)}"
    distance = max(_distance(person, rounded) for person in exact)
    return None if distance <= TOLERANCE else f"keypoints in bfloat16 are up to {distance:.1f} pixels apart"


def _find_people(model: Any, image_processor: Any, inputs: Any) -> list[Tensor]:
    """The keypoints `(K, 2)` of each person, in pixels of the resized image."""
    mask = inputs["pixel_mask"]
    outputs = model(
        inputs["pixel_values"].to(model.device, model.dtype),
        pixel_mask=mask.to(model.device),
        **image_processor.query_selection(),
    )
    size = (int(mask[0, :, 0].sum()), int(mask[0, 0].sum()))
    people = image_processor.post_process_pose_estimation(outputs, target_sizes=[size])[0]
    return [person["keypoints"] for person in people]


def _distance(person: Tensor, others: Sequence[Tensor]) -> float:
    """The largest distance between keypoints of a person and of the nearest of others."""
    return min(float((person - other).norm(dim=-1).max()) for other in others)
