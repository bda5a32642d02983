"""Noisy copies of people's boxes, which teach the box decoder in training (`num_denoising`). Not the paper's."""

from typing import NamedTuple

import torch
from torch import Tensor

from .targets_querypose import QueryPoseTargets


class NoisyBoxes(NamedTuple):
    """Copies of people's boxes with noise; each person of an image has as many.

    Attributes:
        boxes (`Tensor` of shape `(R, 4)`): corners relative to the image.
        images (`LongTensor` of shape `(R,)`): the image of each.
        target_rows (`LongTensor` of shape `(R,)`): index into [`QueryPoseTargets`].
        weights (`Tensor` of shape `(R,)`): one divided by the number of the person's copies.
        refined (`Tensor` of shape `(num_stages, R, 4)`, *optional*): the corners that the box decoder made of them.
    """

    boxes: Tensor
    images: Tensor
    target_rows: Tensor
    weights: Tensor
    refined: Tensor | None = None

    @classmethod
    def from_targets(cls, targets: QueryPoseTargets, count: int, scale: float = 1.0) -> "NoisyBoxes":
        """Copies with noise: some hardly moved, others as far from their person as the learned boxes start.

        Args:
            targets ([`QueryPoseTargets`])
            count (`int`): copies per image, shared among its people, at least one for each.
            scale (`float`): the largest shift in halves of a side, and the largest growth as a power of 2.
        """
        device, dtype = targets.boxes.device, targets.boxes.dtype
        copies = [max(1, count // people) if people else 0 for people in targets.people_per_image]
        people_per_image = torch.tensor(targets.people_per_image)
        copies_of_person = torch.tensor(copies).repeat_interleave(people_per_image)
        image_of_person = torch.arange(len(copies)).repeat_interleave(people_per_image)
        target_rows = torch.arange(len(copies_of_person)).repeat_interleave(copies_of_person)
        # drawn on the host, whose generator a checkpoint keeps
        noise = scale * torch.rand(len(target_rows), 1) * (2 * torch.rand(len(target_rows), 4) - 1)
        index = torch.stack([image_of_person[target_rows], target_rows]).to(device, non_blocking=True)
        noise = noise.to(device, dtype, non_blocking=True)
        weights = copies_of_person[target_rows].to(device, dtype, non_blocking=True).reciprocal()
        low, high = targets.boxes[index[1]].split(2, dim=-1)
        extents = high - low
        centers = (low + high) / 2 + noise[:, :2] * extents / 2
        extents = extents * torch.exp2(noise[:, 2:])
        boxes = torch.cat([centers - extents / 2, centers + extents / 2], dim=-1)
        return cls(boxes, index[0], index[1], weights)
