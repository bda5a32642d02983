"""The reference outputs of the original implementation, and models converted to give the same.

Weights are made up: each tensor is drawn by a rule from its name, as the references' own README describes. Outputs lie
in `tests/goldens/<variant>/`.
"""

import gc
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from querypose_hf.model.configuration_querypose import QueryPoseConfig
from querypose_hf.model.modeling_querypose import QueryPoseForPoseEstimation
from querypose_hf.weights.conversion import config_from_original, convert_state_dict
from querypose_hf.weights.original_names import place


GOLDENS = Path(__file__).parent / "goldens"
# the original keeps them in float32, which 123.675 is not exactly
IMAGE_MEAN = torch.tensor([123.675, 116.28, 103.53], dtype=torch.float32).double()
IMAGE_STD = torch.tensor([58.395, 57.12, 57.375], dtype=torch.float32).double()


def weights_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_weights", GOLDENS / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def manifest(variant: str) -> dict:
    return json.loads((GOLDENS / variant / "manifest.json").read_text())


def original_state(variant: str) -> dict[str, torch.Tensor]:
    """A checkpoint of the original under its own names."""
    description = manifest(variant)
    state = weights_module().make_state(description["state_dict"], description["seed"])
    return {name: torch.from_numpy(value) for name, value in state.items()}


def batch(variant: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The references' two images, normalised in float64 and padded: `pixel_values` and `pixel_mask`."""
    images = np.load(GOLDENS / variant / "inputs.npz")
    tensors = [torch.from_numpy(images[name]).double() for name in ("image0", "image1")]
    tensors = [(image - IMAGE_MEAN[:, None, None]) / IMAGE_STD[:, None, None] for image in tensors]
    height = -(-max(image.shape[1] for image in tensors) // 32) * 32
    width = -(-max(image.shape[2] for image in tensors) // 32) * 32
    pixel_values = torch.zeros(2, 3, height, width, dtype=torch.float64)
    pixel_mask = torch.zeros(2, height, width, dtype=torch.long)
    for index, image in enumerate(tensors):
        pixel_values[index, :, : image.shape[1], : image.shape[2]] = image
        pixel_mask[index, : image.shape[1], : image.shape[2]] = 1
    return pixel_values, pixel_mask


def relative_error(actual: torch.Tensor, expected: np.ndarray | torch.Tensor) -> float:
    """Largest difference over the largest expected magnitude."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float((actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-300))


def image_sizes(variant: str) -> torch.Tensor:
    """Unpadded heights and widths of the two images, `(2, 2)`."""
    images = np.load(GOLDENS / variant / "inputs.npz")
    return torch.tensor([images[name].shape[1:] for name in ("image0", "image1")])


def convert(variant: str, name: str) -> QueryPoseForPoseEstimation:
    """The model converted from the references' weights, in float64 and eval mode."""
    gc.collect()  # these models are large, and a failed test's traceback keeps the last one
    state = original_state(variant)
    model = QueryPoseForPoseEstimation(config_from_original(state, name)).eval()
    converted, _ = convert_state_dict(state, model)
    model.load_state_dict(converted)
    return model.double()


def labels(reference: np.lib.npyio.NpzFile, sizes: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """The references' people as labels."""
    result = []
    for index, size in enumerate(sizes):
        width_height = size.flip(0).double()
        boxes = torch.from_numpy(reference[f"target/boxes{index}"]).double() / width_height.repeat(2)
        keypoints = torch.from_numpy(reference[f"target/keypoints{index}"]).double()
        keypoints[..., :2] /= width_height
        result.append(
            {
                "class_labels": torch.zeros(len(boxes), dtype=torch.long),
                "boxes": torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1),
                "keypoints": keypoints,
            }
        )
    return result


def read_back(name: str, tensors: Mapping[str, torch.Tensor], config: QueryPoseConfig) -> torch.Tensor | None:
    """What stands for a parameter of the original among tensors named as in this package, such as gradients."""
    pieces = []
    for placement in place(name, config):
        tensor = tensors.get(placement.name)
        if tensor is None:
            return None
        pieces.append((tensor if placement.rows is None else tensor[placement.rows]).flatten())
    return torch.cat(pieces)
