"""Where the model looks: the spatial attention map of each part over each person (Figures 5 and 6 of the paper).

The keypoint stage pools a person's box into a grid. Each part gathers its embedding from that grid with weights that
sum to one (SPEGM, Section 3.2). These weights are the part's attention map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..model.image_decoding_querypose import decode_image


@dataclass(frozen=True)
class PersonAttention:
    """A person, and where each part looked in each stage.

    Attributes:
        person (`dict`): as [`~QueryPoseImageProcessor.post_process_pose_estimation`] returns it, in pixels.
        query (`int`): the person's instance query.
        boxes (`np.ndarray` of shape `(stages, 4)`): the box of each stage, x1, y1, x2, y2 in continuous pixel
            coordinates, not clipped.
        maps (`np.ndarray` of shape `(stages, num_parts, 28, 28)`): each part's attention map over that box. A map sums
            to 1; its rows run from top to bottom.
        stages (`tuple[int, ...]`): which decoder stages these are, counted from 0.
        part_names (`tuple[str, ...]`): such as `left elbow, wrist`.
        parts (`tuple[tuple[int, ...], ...]`): the keypoints of each part.
        edges (`tuple[tuple[int, int], ...]`): the skeleton's limbs.
    """

    person: dict[str, torch.Tensor]
    query: int
    boxes: np.ndarray
    maps: np.ndarray
    stages: tuple[int, ...]
    part_names: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    edges: tuple[tuple[int, int], ...]


@torch.inference_mode()
def explain_people(
    model: Any,
    image_processor: Any,
    image: Any,
    *,
    threshold: float | None = None,
    top_k: int | None = None,
) -> list[PersonAttention]:
    """Finds the people in an image, and where each of their parts looked in every stage.

    Args:
        model ([`QueryPoseForPoseEstimation`]): in evaluation mode.
        image_processor ([`QueryPoseImageProcessor`]): the model's.
        image: a path, URL, PIL image or array, as the image processor takes it.
        threshold (`float`, *optional*): people with a higher score are reported; by default the image processor's
            `score_threshold`.
        top_k (`int`, *optional*): at most so many people.

    Returns:
        `list[PersonAttention]`: best first. Without `auxiliary_outputs` (`config.auxiliary_loss` is off) the last
        stage alone is there, because the boxes of the others are not known.

    Raises:
        ValueError: the model is in training mode, where only matched queries have attention maps, or its system has no
            part attention maps.

    Example:

    ```python
    >>> for found in explain_people(model, image_processor, "street.jpg"):
    ...     draw_part_attention("street.jpg", found).save(f"person_{found.query}.png")
    ```
    """
    if model.training:
        raise ValueError("`model` must be in evaluation mode: call `model.eval()`.")
    if not model.config.has_part_attention:
        raise ValueError(
            f"`model` has no part attention maps: `keypoint_query` is {model.config.keypoint_query!r} and "
            f"`keypoint_interaction` {model.config.keypoint_interaction!r}; expected 'part' and 'spatial_attention'."
        )
    pixels = decode_image(image)
    height, width = pixels.shape[-2:]
    batch = image_processor(pixels, input_data_format="channels_first", return_tensors="pt")
    batch = {name: value.to(model.device) for name, value in batch.items()}
    batch["pixel_values"] = batch["pixel_values"].to(model.dtype)
    outputs = model(**batch, output_attentions=True, **image_processor.query_selection(threshold, top_k))
    people = image_processor.post_process_pose_estimation(
        outputs, threshold=threshold, target_sizes=[(height, width)], top_k=top_k
    )[0]
    if not people:
        return []

    size = torch.tensor([width, height], dtype=torch.float32)
    queries = _queries_of(people, outputs, size)
    boxes = _boxes_of_stages(outputs, queries, size)
    maps = torch.stack([stage[0, queries.to(stage.device)].float().cpu() for stage in outputs.part_attentions])
    total = len(maps)
    maps = maps[-len(boxes) :]
    config = model.config
    parts = tuple(tuple(part) for part in config.keypoint_parts)
    return [
        PersonAttention(
            person=person,
            query=int(query),
            boxes=boxes[:, index].numpy(),
            maps=maps[:, index].numpy(),
            stages=tuple(range(total - len(boxes), total)),
            part_names=name_parts(config.keypoint_names, parts),
            parts=parts,
            edges=tuple((a, b) for a, b in config.keypoint_edges),
        )
        for index, (person, query) in enumerate(zip(people, queries, strict=True))
    ]


def _queries_of(people: Sequence[dict[str, torch.Tensor]], outputs: Any, size: torch.Tensor) -> torch.Tensor:
    """The query of each person: post-processing does not say it, but the keypoints tell."""
    keypoints = outputs.pred_keypoints[0].float().cpu() * size - 0.5
    decoded = outputs.keypoint_query_mask[0].cpu()
    found = torch.stack([person["keypoints"].float() for person in people])
    distance = torch.cdist(found.flatten(1), keypoints.flatten(1)).masked_fill(~decoded, math.inf)
    return distance.argmin(dim=1)


def _boxes_of_stages(outputs: Any, queries: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Boxes `(stages, people, 4)` as corners in pixels, not clipped."""
    stages = [*(outputs.auxiliary_outputs or []), outputs]
    boxes = torch.stack([stage["pred_boxes"][0].float().cpu() for stage in stages])[:, queries]
    centers, extents = boxes.split(2, dim=-1)
    return torch.cat([centers - extents / 2, centers + extents / 2], dim=-1) * size.repeat(2)


def name_parts(keypoint_names: Sequence[str], parts: Sequence[Sequence[int]]) -> tuple[str, ...]:
    """Names each part by its keypoints; a side that they share is said once, and dropped where both are there.

    Example:

    ```python
    >>> name_parts(["nose", "left_eye", "right_eye", "left_elbow", "left_wrist"], [[0, 1, 2], [3, 4]])
    ('nose, eye', 'left elbow, wrist')
    ```
    """
    names = []
    for part in parts:
        words = [keypoint_names[index].replace("_", " ").split(" ", 1) for index in part]
        sides = {first if rest and first in ("left", "right") else "" for first, *rest in words}
        if len(words) == 1:
            names.append(" ".join(words[0]))
            continue
        plain = [
            rest[0] if rest and first in ("left", "right") else " ".join([first, *rest]) for first, *rest in words
        ]
        side = sides.pop() if len(sides) == 1 else ""
        names.append(f"{side} {', '.join(dict.fromkeys(plain))}".strip())
    return tuple(names)
