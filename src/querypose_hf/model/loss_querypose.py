"""The training loss: the residual log-likelihood flow and the loss terms of a stage (Section 3.4).

Boxes and keypoints are relative to each image's own unpadded size; every term would be the same in pixels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from .attention_maps_querypose import part_attention_loss
from .boxes_querypose import AREA_OF_BOX, box_area, generalized_box_iou, intersection_and_union
from .configuration_querypose import QueryPoseConfig
from .matching_querypose import Matches
from .targets_querypose import QueryPoseTargets


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
        """Which of the two coordinates each layer keeps: (0, 1), (1, 0), and so on."""
        return torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(len(self.scale), 1)[: len(self.scale)]

    def log_prob(self, residual: Tensor) -> Tensor:
        """Log density `(...)` of residuals `(..., 2)`."""
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


def varifocal_loss(logits: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
    """Varifocal loss (Zhang et al., 2021) of every entry, without reduction: scores learn how good something is.

    Entries whose target is above 0 have the cross-entropy with it, weighted by it. The others are down-weighted as in
    the focal loss.
    """
    weight = torch.where(targets > 0, targets, (1 - alpha) * logits.detach().sigmoid() ** gamma)
    return weight * nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def object_keypoint_similarity(
    prediction: Tensor, keypoints: Tensor, boxes: Tensor, predicted_boxes: Tensor, oks_constants: Sequence[float]
) -> Tensor:
    """COCO's OKS of matched people, `(P,)`, with a share of the box for the area.

    A person without labelled keypoints has the IoU of the boxes instead.

    Args:
        prediction (`Tensor` of shape `(P, K, 2)`): x, y in pixels.
        keypoints (`Tensor` of shape `(P, K, 3)`): x, y in pixels, visibility.
        boxes, predicted_boxes (`Tensor` of shape `(P, 4)`): corners in pixels.
        oks_constants (`Sequence[float]`): COCO's sigmas, one per keypoint.
    """
    labelled = keypoints[..., 2] > 0
    tiny = torch.finfo(boxes.dtype).tiny
    variance = (2 * torch.tensor(oks_constants, device=boxes.device, dtype=boxes.dtype)).square()
    distance = (prediction - keypoints[..., :2]).square().sum(-1)
    scale = (2 * AREA_OF_BOX * box_area(boxes)[:, None] * variance).clamp(min=tiny)
    similarity = torch.where(labelled, torch.exp(-distance / scale), 0).sum(-1) / labelled.sum(-1).clamp(min=1)
    intersection, union = intersection_and_union(boxes, predicted_boxes)
    return torch.where(labelled.any(-1), similarity, intersection / union.clamp(min=tiny))


def keypoints_in_boxes(keypoints: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Ground truth keypoints relative to predicted boxes, and which of them count.

    Keypoints that are not labelled or lie outside the box do not count; on its edge they do. Those that do not count
    get harmless values: masking a NaN afterwards would leave its gradient.

    Args:
        keypoints (`Tensor` of shape `(P, K, 3)`): x, y in the boxes' coordinates, visibility.
        boxes (`Tensor` of shape `(P, 4)`): corners; no gradient flows into them.

    Returns:
        `tuple`: places `(P, K, 2)`, where the box's centre is 0 and its sides are 1, and a `BoolTensor` `(P, K)`.
    """
    boxes = boxes.detach()
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    size = high - low
    position = keypoints[..., :2]
    counts = (keypoints[..., 2] > 0) & ((position >= low) & (position <= high) & (size > 0)).all(-1)
    places = (position - low) / torch.where(size > 0, size, 1) - 0.5
    return torch.where(counts[..., None], places, 0), counts


def residual_log_likelihood_loss(
    prediction: Tensor, sigma: Tensor, target: Tensor, counts: Tensor, flow: QueryPoseFlow
) -> Tensor:
    """Residual log-likelihood loss, summed over the keypoints that count and their coordinates.

    Args:
        prediction, sigma (`Tensor` of shape `(P, K, 2)`): places relative to the box and their predicted deviations.
        target (`Tensor` of shape `(P, K, 2)`), counts (`BoolTensor` of shape `(P, K)`): see [`keypoints_in_boxes`].
        flow ([`QueryPoseFlow`])
    """
    counts = counts[..., None]
    prediction = torch.where(counts, prediction, 0)
    sigma = torch.where(counts, sigma.clamp(min=torch.finfo(sigma.dtype).eps), 1)
    residual = (prediction - target) / sigma
    log_phi = flow.log_prob(residual.to(flow.mask.dtype)).to(residual.dtype)[..., None]
    log_sigma = sigma.log()
    laplace = (sigma * math.sqrt(2 * math.pi)).log() + (target - prediction).abs() / (math.sqrt(2) * sigma + 1e-9)
    return torch.where(counts, log_sigma - log_phi + laplace, 0).sum()


class StagePrediction(NamedTuple):
    """What a stage predicted, as the loss takes it; P is the number of its matches.

    Attributes:
        logits (`Tensor` of shape `(B, N, num_labels)`)
        boxes (`Tensor` of shape `(B, N, 4)`): corners relative to the image.
        matched_boxes (`Tensor` of shape `(P, 4)`): those of the matched queries.
        keypoints, sigmas (`Tensor` of shape `(P, K, 2)`): of the matched queries, relative to their boxes.
        attention_maps (`Tensor` of shape `(P, M, height, width)`, *optional*): of the matched queries.
        matches ([`Matches`])
    """

    logits: Tensor
    boxes: Tensor
    matched_boxes: Tensor
    keypoints: Tensor
    sigmas: Tensor
    attention_maps: Tensor | None
    matches: Matches


class QueryPoseLoss:
    """The weighted loss terms of all stages; each is summed over people and divided by their number.

    Args:
        config ([`QueryPoseConfig`]): the weights, and the options that are not the paper's.
        flow ([`QueryPoseFlow`])
    """

    def __init__(self, config: QueryPoseConfig, flow: QueryPoseFlow):
        self.config = config
        self.flow = flow
        self.terms = {
            "class": (self.class_term, config.class_loss_coefficient),
            "bbox": (self.bbox_term, config.bbox_loss_coefficient),
            "giou": (self.giou_term, config.giou_loss_coefficient),
            "keypoint": (self.keypoint_term, config.keypoint_loss_coefficient / config.num_keypoints),
        }
        if config.keypoint_coordinates == "attention":
            self.terms["part_attention"] = (self.part_attention_term, 1 / config.num_parts)

    def __call__(
        self,
        stages: Sequence[StagePrediction],
        targets: QueryPoseTargets,
        image_sizes: Tensor,
    ) -> dict[str, Tensor]:
        """The terms by name: `loss_class` and so on of the last stage, `loss_class_0`, ... of the earlier ones.

        Args:
            stages (`Sequence[StagePrediction]`)
            targets ([`QueryPoseTargets`])
            image_sizes (`Tensor` of shape `(B, 2)`): unpadded heights and widths in pixels.
        """
        people = targets.number_of_people().to(targets.boxes.dtype)
        loss: dict[str, Tensor] = {}
        with torch.autocast(device_type=people.device.type, enabled=False):
            for number, stage in enumerate(stages):
                last = number == len(stages) - 1
                if not (last or self.config.auxiliary_loss):
                    continue
                suffix = "" if last else f"_{number}"
                for name, (term, weight) in self.terms.items():
                    loss[f"loss_{name}{suffix}"] = weight * term(stage, targets, image_sizes) / people
        return loss

    def class_term(self, stage: StagePrediction, targets: QueryPoseTargets, image_sizes: Tensor) -> Tensor:
        """Focal loss of all queries, or with the class target `"oks"` varifocal loss."""
        config, (query_rows, target_rows) = self.config, stage.matches
        logits = stage.logits.flatten(0, 1).to(stage.boxes.dtype)
        classes = torch.zeros_like(logits)
        cell = (query_rows, targets.class_labels[target_rows])
        if config.class_target == "person":
            classes[cell] = 1
            loss = sigmoid_focal_loss(logits, classes, config.focal_alpha, config.focal_gamma)
        else:
            classes[cell] = self.pose_quality(stage, targets, image_sizes)
            loss = varifocal_loss(logits, classes, config.focal_alpha, config.focal_gamma)
        counts = targets.exhaustive[:, None].expand(stage.logits.shape[:2]).flatten()
        counts = counts.index_fill(0, query_rows, True)
        return torch.where(counts[:, None], loss, 0).sum()

    def bbox_term(self, stage: StagePrediction, targets: QueryPoseTargets, image_sizes: Tensor) -> Tensor:
        """L1 distance between the corners of matched boxes, relative to the image."""
        return (stage.matched_boxes - self.target_boxes(stage, targets)).abs().sum()

    def giou_term(self, stage: StagePrediction, targets: QueryPoseTargets, image_sizes: Tensor) -> Tensor:
        """1 - generalised IoU of matched boxes."""
        return (1 - generalized_box_iou(stage.matched_boxes, self.target_boxes(stage, targets))).sum()

    def keypoint_term(self, stage: StagePrediction, targets: QueryPoseTargets, image_sizes: Tensor) -> Tensor:
        """Residual log-likelihood of keypoints relative to the predicted boxes."""
        places, counts = self.target_keypoints(stage, targets)
        return residual_log_likelihood_loss(stage.keypoints, stage.sigmas, places, counts, self.flow)

    def part_attention_term(self, stage: StagePrediction, targets: QueryPoseTargets, image_sizes: Tensor) -> Tensor:
        """Cross-entropy of the part attention maps; see [`part_attention_loss`]."""
        places, counts = self.target_keypoints(stage, targets)
        assert stage.attention_maps is not None
        return part_attention_loss(stage.attention_maps, places, counts, self.config.keypoint_parts)

    def target_boxes(self, stage: StagePrediction, targets: QueryPoseTargets) -> Tensor:
        """Ground truth boxes `(P, 4)` of the matches."""
        return targets.boxes[stage.matches.target_rows].to(stage.boxes.dtype)

    def target_keypoints(self, stage: StagePrediction, targets: QueryPoseTargets) -> tuple[Tensor, Tensor]:
        """Ground truth keypoints of the matches relative to the predicted boxes; see [`keypoints_in_boxes`]."""
        keypoints = targets.keypoints[stage.matches.target_rows].to(stage.boxes.dtype)
        return keypoints_in_boxes(keypoints, stage.matched_boxes)

    @torch.no_grad()
    def pose_quality(self, stage: StagePrediction, targets: QueryPoseTargets, image_sizes: Tensor) -> Tensor:
        """OKS `(P,)` of the matches."""
        query_rows, target_rows = stage.matches
        scale = image_sizes[query_rows // stage.logits.shape[1]].flip(-1).to(stage.boxes.dtype)[:, None]  # (P, 1, 2)
        corners = scale.repeat(1, 1, 2)[:, 0]
        boxes = stage.matched_boxes
        low, high = boxes[:, None, :2], boxes[:, None, 2:]
        prediction = ((stage.keypoints + 0.5) * (high - low) + low) * scale
        truth = targets.keypoints[target_rows].to(boxes.dtype)
        truth = torch.cat([truth[..., :2] * scale, truth[..., 2:]], dim=-1)
        true_boxes = self.target_boxes(stage, targets) * corners
        return object_keypoint_similarity(prediction, truth, true_boxes, boxes * corners, self.config.keypoint_sigmas)
