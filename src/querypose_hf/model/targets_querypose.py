"""The people of a batch, as matching and loss take them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.image_transforms import center_to_corners_format

from .configuration_querypose import QueryPoseConfig
from .rois_querypose import coordinate_dtype


class QueryPoseTargets(NamedTuple):
    """The people of a batch, one after the other; coordinates are relative to their image.

    Attributes:
        class_labels (`LongTensor` of shape `(num_people,)`)
        boxes (`Tensor` of shape `(num_people, 4)`): corners x1, y1, x2, y2.
        keypoints (`Tensor` of shape `(num_people, num_keypoints, 3)`): x, y and visibility.
        people_per_image (`list[int]`)
        exhaustive (`BoolTensor` of shape `(num_images,)`): whether everybody in the image is annotated. Where not, a
            query that is matched to nobody may still be on a person, so that it teaches nothing.
    """

    class_labels: Tensor
    boxes: Tensor
    keypoints: Tensor
    people_per_image: list[int]
    exhaustive: Tensor

    @classmethod
    def from_labels(
        cls, labels: Sequence[dict[str, Any]], pixel_values: Tensor, config: QueryPoseConfig
    ) -> "QueryPoseTargets":
        """Checks and joins labels as the image processor makes them.

        A label may also hold `exhaustive`, whether everybody in the image is annotated; by default everybody is.

        Args:
            labels (`Sequence[dict]`): one per image, see [`QueryPoseForPoseEstimation.forward`].
            pixel_values (`Tensor` of shape `(B, 3, height, width)`): the images, for their number, device and type.
            config ([`QueryPoseConfig`])

        Raises:
            ValueError: a field is missing, or does not have the shape or range that the model expects.
        """
        device, dtype = pixel_values.device, coordinate_dtype(pixel_values.dtype)
        _check_shapes(labels, len(pixel_values), config.num_keypoints)

        def join(name: str, shape: tuple[int, ...], to: torch.dtype) -> Tensor:
            values = [torch.as_tensor(label[name]).reshape(-1, *shape) for label in labels if len(label["boxes"])]
            return torch.cat(values).to(to) if values else torch.zeros(0, *shape, device=device, dtype=to)

        class_labels = join("class_labels", (), torch.long)
        boxes = join("boxes", (4,), dtype)
        keypoints = join("keypoints", (config.num_keypoints, 3), dtype)
        if len(class_labels):
            _check_values(class_labels, boxes, keypoints, config.num_labels)
        # where the other labels are: reading it on the host would be a host sync for each image
        exhaustive = torch.stack(
            [
                torch.as_tensor(label.get("exhaustive", True), device=torch.as_tensor(label["boxes"]).device)
                for label in labels
            ]
        ).bool()
        class_labels, boxes, keypoints, exhaustive = (
            values.to(device, non_blocking=True) for values in (class_labels, boxes, keypoints, exhaustive)
        )
        people_per_image = [len(label["class_labels"]) for label in labels]
        return cls(class_labels, center_to_corners_format(boxes), keypoints, people_per_image, exhaustive)

    def image_of_person(self) -> Tensor:
        """Index of each person's image, `(num_people,)`."""
        counts = torch.tensor(self.people_per_image, dtype=torch.long)
        index = torch.arange(len(counts)).repeat_interleave(counts)  # on the host, which knows the counts
        return index.to(self.boxes.device, non_blocking=True)

    def number_of_people(self) -> Tensor:
        """People in the whole batch over all processes, averaged per process, at least 1; a scalar tensor.

        Gradients are averaged over processes, so that every person weighs the same in whichever process it is.
        """
        count = self.boxes.new_full((), float(sum(self.people_per_image)), dtype=torch.float32)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(count)
            count = count / torch.distributed.get_world_size()
        return count.clamp(min=1)


def _check_shapes(labels: Sequence[dict[str, Any]], batch_size: int, num_keypoints: int) -> None:
    if len(labels) != batch_size:
        raise ValueError(
            f"`labels` must hold one dict per image, but there are {len(labels)} for {batch_size} images."
        )
    for index, label in enumerate(labels):
        missing = [name for name in ("class_labels", "boxes", "keypoints") if name not in label]
        if missing:
            raise ValueError(f"`labels[{index}]` has no {missing}; it has {sorted(label)}.")
        people = len(label["class_labels"])
        for name, shape in (("boxes", (people, 4)), ("keypoints", (people, num_keypoints, 3))):
            if people and tuple(label[name].shape) != shape:
                raise ValueError(
                    f"`labels[{index}]['{name}']` must have shape {shape}, but has {tuple(label[name].shape)}."
                )


def _check_values(class_labels: Tensor, boxes: Tensor, keypoints: Tensor, num_labels: int) -> None:
    # one host sync for all checks, and none where the labels are still on the host
    finite, lowest, highest = torch.stack(
        [(boxes.isfinite().all() & keypoints.isfinite().all()).long(), class_labels.min(), class_labels.max()]
    ).tolist()
    if not finite:
        raise ValueError("`labels` holds boxes or keypoints that are not finite numbers.")
    if lowest < 0 or highest >= num_labels:
        raise ValueError(
            f"`labels` holds class labels from {lowest} to {highest}, but the model's `num_labels` is {num_labels}: "
            f"they must be from 0 to {num_labels - 1}."
        )
