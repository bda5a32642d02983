"""QueryPose training losses: matching people to queries, the residual log-likelihood flow, and the loss terms.

Boxes and keypoints are relative to each image's own unpadded size throughout; every term here is the same in pixels.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers.image_transforms import center_to_corners_format

from .boxes_querypose import AREA_OF_BOX, box_area, generalized_box_iou, intersection_and_union


class Targets(NamedTuple):
    """The people of a batch, one after the other.

    Attributes:
        class_labels (`LongTensor` of shape `(num_people,)`)
        boxes (`Tensor` of shape `(num_people, 4)`): corners x1, y1, x2, y2.
        keypoints (`Tensor` of shape `(num_people, num_keypoints, 3)`): x, y and visibility.
        people_per_image (`list[int]`)
        exhaustive (`BoolTensor` of shape `(num_images,)`): whether everybody in the image is annotated. Where not,
            what was matched to nobody may be a person, and says nothing.
    """

    class_labels: Tensor
    boxes: Tensor
    keypoints: Tensor
    people_per_image: list[int]
    exhaustive: Tensor

    @classmethod
    def from_labels(
        cls,
        labels: Sequence[dict[str, Any]],
        *,
        batch_size: int,
        num_labels: int,
        num_keypoints: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> "Targets":
        """Checks and joins the labels of a batch, as the image processor makes them.

        A label may also hold `exhaustive`, whether everybody in the image is annotated; without it everybody is.

        Raises:
            ValueError: if a field is missing or does not have the shape or the range that the model expects.
        """
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

        def join(name: str, shape: tuple[int, ...], to: torch.dtype) -> Tensor:
            values = [torch.as_tensor(label[name]).reshape(-1, *shape) for label in labels if len(label["boxes"])]
            if not values:
                return torch.zeros(0, *shape, device=device, dtype=to)
            return torch.cat(values).to(device=device, dtype=to)

        class_labels = join("class_labels", (), torch.long)
        boxes = join("boxes", (4,), dtype)
        keypoints = join("keypoints", (num_keypoints, 3), dtype)
        if len(class_labels):
            # one transfer for both checks, before any work of the step is queued
            finite, lowest, highest = torch.stack(
                [
                    (boxes.isfinite().all() & keypoints.isfinite().all()).long(),
                    class_labels.min(),
                    class_labels.max(),
                ]
            ).tolist()
            if not finite:
                raise ValueError("`labels` holds boxes or keypoints that are not finite numbers.")
            if lowest < 0 or highest >= num_labels:
                raise ValueError(
                    f"`labels` holds class labels from {lowest} to {highest}, but the model's `num_labels` is "
                    f"{num_labels}: they must be from 0 to {num_labels - 1}."
                )
        exhaustive = torch.tensor([bool(label.get("exhaustive", True)) for label in labels]).to(device)
        people_per_image = [len(label["class_labels"]) for label in labels]
        return cls(class_labels, center_to_corners_format(boxes), keypoints, people_per_image, exhaustive)


class Matches(NamedTuple):
    """Which query stands for which person in one stage, ordered by image and rising query index.

    Attributes:
        query_rows (`LongTensor` of shape `(num_matches,)`): image index * num_queries + query index.
        target_rows (`LongTensor` of shape `(num_matches,)`): index into [`Targets`].
    """

    query_rows: Tensor
    target_rows: Tensor


def focal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sigmoid focal loss (Lin et al., 2017) of every entry, without reduction."""
    probability = logits.sigmoid()
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    probability_of_truth = probability * targets + (1 - probability) * (1 - targets)
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * (1 - probability_of_truth) ** gamma * cross_entropy


def varifocal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Varifocal loss (Zhang et al., 2021) of every entry, without reduction: scores that say how good something is.

    Entries whose target is above 0 have the cross-entropy with it, weighted by it; the others are down-weighted as in
    the focal loss, by `1 - alpha`, as there.
    """
    weight = torch.where(targets > 0, targets, (1 - alpha) * logits.detach().sigmoid() ** gamma)
    return weight * nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def object_keypoint_similarity(
    prediction: Tensor, keypoints: Tensor, boxes: Tensor, predicted_boxes: Tensor, sigmas: Sequence[float]
) -> Tensor:
    """COCO's OKS of people's predicted keypoints, with a share of the box for the area, `(num_matches,)`.

    Where no keypoint is labelled it is the IoU of the boxes.

    Args:
        prediction (`Tensor` of shape `(num_matches, num_keypoints, 2)`): x, y in pixels.
        keypoints (`Tensor` of shape `(num_matches, num_keypoints, 3)`): x, y in pixels, visibility.
        boxes, predicted_boxes (`Tensor` of shape `(num_matches, 4)`): corners in pixels.
        sigmas (`Sequence[float]`): OKS constants.
    """
    labelled = keypoints[..., 2] > 0
    tiny = torch.finfo(boxes.dtype).tiny
    variance = (2 * torch.tensor(sigmas, device=boxes.device, dtype=boxes.dtype)).square()
    distance = (prediction - keypoints[..., :2]).square().sum(-1)
    scale = (2 * AREA_OF_BOX * box_area(boxes)[:, None] * variance).clamp(min=tiny)
    similarity = torch.where(labelled, torch.exp(-distance / scale), 0).sum(-1) / labelled.sum(-1).clamp(min=1)
    intersection, union = intersection_and_union(boxes, predicted_boxes)
    return torch.where(labelled.any(-1), similarity, intersection / union.clamp(min=tiny))


class NoisyBoxes(NamedTuple):
    """Copies of people's boxes with noise, as many for each person of an image.

    Attributes:
        boxes (`Tensor` of shape `(R, 4)`): corners relative to the image.
        images (`LongTensor` of shape `(R,)`): the image of each.
        target_rows (`LongTensor` of shape `(R,)`): index into [`Targets`].
        weights (`Tensor` of shape `(R,)`): one divided by the number of the person's copies.
        refined (`Tensor` of shape `(num_stages, R, 4)`, *optional*): corners that the box decoder made of them.
    """

    boxes: Tensor
    images: Tensor
    target_rows: Tensor
    weights: Tensor
    refined: Tensor | None = None

    @classmethod
    def from_targets(cls, targets: Targets, count: int, scale: float) -> "NoisyBoxes":
        """Copies with noise: some hardly moved, others as far from their person as the learned boxes start.

        Args:
            targets ([`Targets`])
            count (`int`): copies per image, shared among its people, at least one for each.
            scale (`float`): the most by which they are moved, in halves of their sides, and scaled, as a power of 2.
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


class HungarianMatcher:
    """Assigns people to queries one to one, at least cost (Section 3.4).

    The cost of a pair is the weighted sum of a focal class cost, the L1 distance between boxes relative to the image,
    and the negative generalised IoU.
    """

    def __init__(self, config):
        self.class_cost = config.class_cost
        self.bbox_cost = config.bbox_cost
        self.giou_cost = config.giou_cost
        self.focal_alpha = config.focal_alpha
        self.focal_gamma = config.focal_gamma

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, targets: Targets) -> list[Matches]:
        """Matches every stage on its own, with one transfer to the host for all of them.

        Args:
            logits (`Tensor` of shape `(num_stages, batch_size, num_queries, num_labels)`)
            boxes (`Tensor` of shape `(num_stages, batch_size, num_queries, 4)`): corners.
            targets ([`Targets`])

        Returns:
            `list[Matches]`: one per stage. Of more people than queries the most fitting ones are matched.
        """
        num_stages, _, num_queries, _ = logits.shape
        device = logits.device
        counts = targets.people_per_image
        if not sum(counts):
            empty = torch.zeros(0, dtype=torch.long, device=device)
            return [Matches(empty, empty)] * num_stages

        dtype = torch.promote_types(logits.dtype, torch.float32)
        # people padded to (batch_size, most people in an image), so that no pair across images is computed
        slots = torch.tensor(
            [image * max(counts) + person for image, count in enumerate(counts) for person in range(count)]
        ).to(device, non_blocking=True)
        class_labels = targets.class_labels.new_zeros(len(counts) * max(counts)).index_copy(
            0, slots, targets.class_labels
        )
        target_boxes = targets.boxes.new_zeros(len(counts) * max(counts), 4).index_copy(0, slots, targets.boxes)
        class_labels = class_labels.view(len(counts), max(counts))
        target_boxes = target_boxes.view(len(counts), 1, max(counts), 4).to(dtype)
        boxes = boxes.to(dtype).unsqueeze(-2)

        probability = logits.to(dtype).sigmoid()
        positive = self.focal_alpha * (1 - probability) ** self.focal_gamma * -(probability + 1e-8).log()
        negative = (1 - self.focal_alpha) * probability**self.focal_gamma * -(1 - probability + 1e-8).log()
        index = class_labels[None, :, None, :].expand(num_stages, -1, num_queries, -1)
        cost = self.class_cost * (positive - negative).gather(-1, index)
        cost = cost + self.bbox_cost * (boxes - target_boxes).abs().sum(-1)
        cost = cost - self.giou_cost * generalized_box_iou(boxes, target_boxes)
        # scipy refuses NaN and infinity, which a diverging model predicts
        largest = torch.finfo(torch.float32).max
        cost = cost.nan_to_num(nan=largest, posinf=largest, neginf=-largest).cpu().numpy()

        offsets = [sum(counts[:image]) for image in range(len(counts))]
        stages = []
        for stage_cost in cost:
            queries, people = [], []
            for image, count in enumerate(counts):
                query_index, person_index = linear_sum_assignment(stage_cost[image, :, :count])
                queries.append(torch.as_tensor(query_index + image * num_queries))
                people.append(torch.as_tensor(person_index + offsets[image]))
            stages.append(torch.stack([torch.cat(queries), torch.cat(people)]))
        matched = torch.stack(stages).to(device, non_blocking=True)
        return [Matches(query_rows, target_rows) for query_rows, target_rows in matched]


class QueryPoseFlow(nn.Module):
    """The RealNVP of residual log-likelihood estimation (Li et al., 2021): a learned density of 2-d residuals.

    Six coupling layers between the residual and a standard normal; the scale networks end in a tanh.
    """

    def __init__(self, num_layers: int = 6, hidden_dim: int = 64):
        super().__init__()

        def network(*last: nn.Module) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(2, hidden_dim),
                nn.LeakyReLU(),
                nn.Linear(hidden_dim, hidden_dim),
                nn.LeakyReLU(),
                nn.Linear(hidden_dim, 2),
                *last,
            )

        self.scale = nn.ModuleList([network(nn.Tanh()) for _ in range(num_layers)])
        self.shift = nn.ModuleList([network() for _ in range(num_layers)])
        self.mask: Tensor
        self.register_buffer("mask", self.coupling_masks(), persistent=False)

    def coupling_masks(self) -> Tensor:
        """Which of the two coordinates each layer keeps, in turns: (0, 1), (1, 0), ..."""
        return torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(len(self.scale), 1)[: len(self.scale)]

    def log_prob(self, residual: Tensor) -> Tensor:
        """Log density.

        Args:
            residual (`Tensor` of shape `(..., 2)`)

        Returns:
            `Tensor` of shape `(...)`.
        """
        latent = residual
        log_determinant = torch.zeros_like(residual[..., 0])
        for layer in reversed(range(len(self.scale))):
            mask = self.mask[layer].to(residual.dtype)
            kept = mask * latent
            scale = self.scale[layer](kept) * (1 - mask)
            shift = self.shift[layer](kept) * (1 - mask)
            latent = kept + (1 - mask) * (latent - shift) * torch.exp(-scale)
            log_determinant = log_determinant - scale.sum(-1)
        return log_determinant - 0.5 * latent.square().sum(-1) - math.log(2 * math.pi)


def residual_log_likelihood_loss(
    prediction: Tensor, sigma: Tensor, boxes: Tensor, keypoints: Tensor, flow: QueryPoseFlow
) -> Tensor:
    """Residual log-likelihood loss of matched people, summed over people, keypoints and coordinates.

    Keypoints that are not labelled or lie outside the predicted box do not count; on its edge they do.

    Args:
        prediction (`Tensor` of shape `(num_matches, num_keypoints, 2)`): relative to the box, centre 0, side 1.
        sigma (`Tensor` of shape `(num_matches, num_keypoints, 2)`): deviations in the same units.
        boxes (`Tensor` of shape `(num_matches, 4)`): predicted corners; no gradient flows into them.
        keypoints (`Tensor` of shape `(num_matches, num_keypoints, 3)`): x, y in the boxes' coordinates, visibility.
        flow ([`QueryPoseFlow`])
    """
    boxes = boxes.detach()
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    size = high - low
    position = keypoints[..., :2]
    counts = (keypoints[..., 2] > 0) & ((position >= low) & (position <= high) & (size > 0)).all(-1)
    counts = counts[..., None]
    # entries that do not count get harmless values before any arithmetic: masking a NaN afterwards leaves its gradient
    target = torch.where(counts, (position - low) / torch.where(size > 0, size, 1) - 0.5, 0)
    prediction = torch.where(counts, prediction, 0)
    sigma = torch.where(counts, sigma.clamp(min=torch.finfo(sigma.dtype).eps), 1)

    residual = (prediction - target) / sigma
    log_phi = flow.log_prob(residual.to(flow.mask.dtype)).to(residual.dtype)[..., None]
    log_sigma = sigma.log()
    laplace = (sigma * math.sqrt(2 * math.pi)).log() + (target - prediction).abs() / (math.sqrt(2) * sigma + 1e-9)
    return torch.where(counts, log_sigma - log_phi + laplace, 0).sum()


def part_attention_loss(
    attention_maps: Tensor, boxes: Tensor, keypoints: Tensor, parts: Sequence[Sequence[int]]
) -> Tensor:
    """Cross-entropy between part attention maps and where their parts' keypoints are, summed over people and parts.

    Not a term of the paper. The target of a part is the mean of one Gaussian for each of its keypoints that is
    labelled and inside the box, with a deviation of one cell of the map, normalised; parts without any do not count.

    Args:
        attention_maps (`Tensor` of shape `(num_matches, num_parts, height, width)`): each sums to 1.
        boxes (`Tensor` of shape `(num_matches, 4)`): the corners of what the maps cover; no gradient flows into them.
        keypoints (`Tensor` of shape `(num_matches, num_keypoints, 3)`): x, y in the boxes' coordinates, visibility.
        parts (`Sequence[Sequence[int]]`): the keypoints of each part.
    """
    boxes = boxes.detach()
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    size = high - low
    position = keypoints[..., :2]
    counts = (keypoints[..., 2] > 0) & ((position >= low) & (position <= high) & (size > 0)).all(-1)
    relative = torch.where(counts[..., None], (position - low) / torch.where(size > 0, size, 1), 0)

    def gaussian(place: Tensor, length: int) -> Tensor:
        centers = torch.arange(length, device=place.device, dtype=place.dtype) + 0.5
        values = torch.exp(-((centers - place[..., None] * length).square()) / 2)
        return values / values.sum(-1, keepdim=True)

    height, width = attention_maps.shape[-2:]
    rows, columns = gaussian(relative[..., 1], height), gaussian(relative[..., 0], width)
    loss = attention_maps.new_zeros(())
    for part, members in enumerate(parts):
        weights = counts[:, members].to(rows.dtype)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        target = torch.einsum("rk,rkh,rkw->rhw", weights, rows[:, members], columns[:, members])
        loss = loss - (target * attention_maps[:, part].to(target.dtype).clamp(min=1e-8).log()).sum()
    return loss


def centernet_radius(width: Tensor, height: Tensor, min_overlap: float = 0.7) -> Tensor:
    """Radius by which both corners of a box may move for it to keep `min_overlap` IoU (Law and Deng, 2018; CenterNet).

    The smallest of the three cases: both corners inwards, both outwards, one of each, each the root of a quadratic as
    CenterNet's released code takes it.
    """

    def root(a: float, b: Tensor, c: Tensor) -> Tensor:
        return (b + (b.square() - 4 * a * c).clamp(min=0).sqrt()) / 2

    one_of_each = root(1, height + width, width * height * (1 - min_overlap) / (1 + min_overlap))
    inwards = root(4, 2 * (height + width), (1 - min_overlap) * width * height)
    outwards = root(4 * min_overlap, -2 * min_overlap * (height + width), (min_overlap - 1) * width * height)
    return torch.minimum(torch.minimum(one_of_each, inwards), outwards)


def keypoint_heatmaps(targets: Targets, image_sizes: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Target heatmaps of the auxiliary head: a Gaussian around every labelled keypoint, maxima merged.

    Args:
        targets ([`Targets`])
        image_sizes (`Tensor` of shape `(batch_size, 2)`): unpadded heights and widths in pixels.
        height, width (`int`): size of the maps.
        stride (`int`): pixels per map cell.

    Returns:
        `Tensor` of shape `(batch_size, num_keypoints, height, width)`, 1 at the peaks.
    """
    num_people, num_keypoints = targets.keypoints.shape[:2]
    batch_size = len(image_sizes)
    maps = targets.keypoints.new_zeros(batch_size * num_keypoints * height * width)
    if not num_people:
        return maps.view(batch_size, num_keypoints, height, width)
    device = maps.device
    image_index = torch.arange(batch_size, device=device).repeat_interleave(
        torch.tensor(targets.people_per_image, device=device)
    )
    size = image_sizes[image_index].flip(-1).to(maps.dtype)  # width, height
    cells = (targets.keypoints[..., :2] * size[:, None] / stride).floor().long()
    box_sides = (targets.boxes[:, 2:] - targets.boxes[:, :2]) * size / stride
    radius = centernet_radius(box_sides[:, 0], box_sides[:, 1]).clamp(min=0).floor().long()
    sigma = (2 * radius + 1).to(maps.dtype) / 6

    reach = int(radius.max())
    offset = torch.arange(-reach, reach + 1, device=device)
    offset_y, offset_x = torch.meshgrid(offset, offset, indexing="ij")
    x = cells[..., 0, None, None] + offset_x
    y = cells[..., 1, None, None] + offset_y
    value = torch.exp(-(offset_x**2 + offset_y**2) / (2 * sigma[:, None, None] ** 2)).to(maps.dtype)
    within = (offset_x.abs() <= radius[:, None, None]) & (offset_y.abs() <= radius[:, None, None])
    # a keypoint whose own cell is off the map has no peak there, and then no Gaussian either
    on_map = (cells >= 0).all(-1) & (cells[..., 0] < width) & (cells[..., 1] < height)
    labelled = (targets.keypoints[..., 2] > 0) & on_map
    keep = within[:, None] & labelled[..., None, None] & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    channel = image_index[:, None] * num_keypoints + torch.arange(num_keypoints, device=device)
    index = (channel[..., None, None] * height + y) * width + x
    value = value[:, None].expand_as(index)
    maps.scatter_reduce_(0, index[keep], value[keep], reduce="amax")
    return maps.view(batch_size, num_keypoints, height, width)


def heatmap_focal_loss(logits: Tensor, heatmaps: Tensor) -> Tensor:
    """CenterNet's penalty-reduced focal loss with exponents 2 and 4, over the number of peaks."""
    probability = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    peaks = heatmaps == 1
    positive = torch.where(peaks, probability.log() * (1 - probability) ** 2, 0)
    negative = torch.where(peaks, 0, (1 - probability).log() * probability**2 * (1 - heatmaps) ** 4)
    return -(positive.sum() + negative.sum()) / peaks.sum().clamp(min=1)


def number_of_people(targets: Targets, device: torch.device) -> Tensor:
    """People in the whole batch over all processes, averaged per process, at least 1.

    Gradients are averaged over processes, so that every person weighs the same wherever it was drawn.
    """
    count = torch.tensor(float(sum(targets.people_per_image)), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(count)
        count = count / torch.distributed.get_world_size()
    return count.clamp(min=1)


@torch.no_grad()
def _pose_quality(
    boxes: Tensor, keypoints: Tensor, targets: Targets, target_rows: Tensor, sizes: Tensor, sigmas: Sequence[float]
) -> Tensor:
    """OKS of matched queries, of boxes relative to images and keypoints to boxes; `sizes` are heights and widths."""
    scale = sizes.flip(-1).to(boxes.dtype)[:, None]  # (num_matches, 1, 2)
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    prediction = ((keypoints + 0.5) * (high - low) + low) * scale
    truth = targets.keypoints[target_rows].to(boxes.dtype)
    truth = torch.cat([truth[..., :2] * scale, truth[..., 2:]], dim=-1)
    corners = scale.repeat(1, 1, 2)[:, 0]
    true_boxes = targets.boxes[target_rows].to(boxes.dtype) * corners
    return object_keypoint_similarity(prediction, truth, true_boxes, boxes * corners, sigmas)


def pose_estimation_loss(
    config,
    logits: Tensor,
    boxes: Tensor,
    keypoints: Tensor,
    sigmas: Tensor,
    matches: list[Matches],
    targets: Targets,
    flow: QueryPoseFlow,
    part_attentions: Sequence[Tensor] | None = None,
    noisy_boxes: NoisyBoxes | None = None,
    image_sizes: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss terms of all stages and their sum (Section 3.4).

    Args:
        config ([`QueryPoseConfig`])
        logits (`Tensor` of shape `(num_stages, batch_size, num_queries, num_labels)`)
        boxes (`Tensor` of shape `(num_stages, batch_size, num_queries, 4)`): corners.
        keypoints, sigmas (`Tensor` of shape `(num_stages, batch_size, num_queries, num_keypoints, 2)`):
            relative to the boxes of the same stage.
        matches (`list[Matches]`): one per stage.
        targets ([`Targets`])
        flow ([`QueryPoseFlow`])
        part_attentions (`Sequence[Tensor]`, *optional*):
            Of every stage's matches, `(num_matches, num_parts, height, width)`; then there is the term
            `loss_part_attention`, see [`part_attention_loss`].
        noisy_boxes ([`NoisyBoxes`], *optional*):
            Refined by every stage; then there is the term `loss_denoising`, the two of boxes for them, of which all
            copies of a person weigh as much as the person does in those.
        image_sizes (`Tensor` of shape `(batch_size, 2)`, *optional*):
            Unpadded heights and widths in pixels, which the class target `"oks"` needs.

    Returns:
        `tuple`: the loss, and its terms by name: `loss_class`, `loss_bbox`, `loss_giou` and `loss_keypoint` of the
        last stage, and with the stage's index appended, `loss_class_0`, those of the earlier ones.
    """
    num_stages = len(logits)
    people = number_of_people(targets, logits.device).to(boxes.dtype)
    terms: dict[str, Tensor] = {}
    with torch.autocast(device_type=logits.device.type, enabled=False):
        for stage in range(num_stages):
            last = stage == num_stages - 1
            if not (last or config.auxiliary_loss):
                continue
            query_rows, target_rows = matches[stage]
            stage_logits = logits[stage].flatten(0, 1).to(boxes.dtype)
            stage_boxes = boxes[stage].flatten(0, 1)[query_rows]
            target_boxes = targets.boxes[target_rows].to(boxes.dtype)

            classes = torch.zeros_like(stage_logits)
            if config.class_target == "person":
                classes[query_rows, targets.class_labels[target_rows]] = 1
                class_loss = focal_loss(stage_logits, classes, config.focal_alpha, config.focal_gamma)
            else:
                assert image_sizes is not None
                quality = _pose_quality(
                    stage_boxes,
                    keypoints[stage].flatten(0, 1)[query_rows],
                    targets,
                    target_rows,
                    image_sizes[query_rows // logits.shape[2]],
                    config.keypoint_sigmas,
                )
                classes[query_rows, targets.class_labels[target_rows]] = quality
                class_loss = varifocal_loss(stage_logits, classes, config.focal_alpha, config.focal_gamma)
            counts = targets.exhaustive[:, None].expand(logits.shape[1:3]).flatten().index_fill(0, query_rows, True)
            class_loss = torch.where(counts[:, None], class_loss, 0).sum()
            bbox_loss = (stage_boxes - target_boxes).abs().sum()
            giou_loss = (1 - generalized_box_iou(stage_boxes, target_boxes)).sum()
            keypoint_loss = residual_log_likelihood_loss(
                keypoints[stage].flatten(0, 1)[query_rows],
                sigmas[stage].flatten(0, 1)[query_rows],
                stage_boxes,
                targets.keypoints[target_rows].to(boxes.dtype),
                flow,
            )
            suffix = "" if last else f"_{stage}"
            terms[f"loss_class{suffix}"] = config.class_loss_coefficient * class_loss / people
            terms[f"loss_bbox{suffix}"] = config.bbox_loss_coefficient * bbox_loss / people
            terms[f"loss_giou{suffix}"] = config.giou_loss_coefficient * giou_loss / people
            terms[f"loss_keypoint{suffix}"] = (
                config.keypoint_loss_coefficient * keypoint_loss / people / config.num_keypoints
            )
            if part_attentions is not None:
                attention_loss = part_attention_loss(
                    part_attentions[stage],
                    stage_boxes,
                    targets.keypoints[target_rows].to(boxes.dtype),
                    config.keypoint_parts,
                )
                terms[f"loss_part_attention{suffix}"] = (
                    config.part_attention_loss_coefficient * attention_loss / people / config.num_parts
                )
            if noisy_boxes is not None:
                assert noisy_boxes.refined is not None
                refined = noisy_boxes.refined[stage]
                true_boxes = targets.boxes[noisy_boxes.target_rows].to(refined.dtype)
                each = config.bbox_loss_coefficient * (refined - true_boxes).abs().sum(-1)
                each = each + config.giou_loss_coefficient * (1 - generalized_box_iou(refined, true_boxes))
                terms[f"loss_denoising{suffix}"] = (noisy_boxes.weights * each).sum() / people
    return torch.stack(list(terms.values())).sum(), terms
