"""COCO and CrowdPose scoring of multi-person keypoints.

Everything but the scoring itself (reading and writing COCO results) works without pycocotools.
"""

from .coco_results import coco_results_from_people, read_coco_results, write_coco_results
from .evaluate import evaluate_predictions
from .ground_truth import KeypointGroundTruth
from .protocols import BOX_METRICS, KEYPOINT_METRICS
from .scoring import ImageError, KeypointEvaluation, PeopleGroup, PrecisionRecall, score_boxes, score_keypoints


__all__ = [
    "BOX_METRICS",
    "KEYPOINT_METRICS",
    "ImageError",
    "KeypointEvaluation",
    "KeypointGroundTruth",
    "PeopleGroup",
    "PrecisionRecall",
    "coco_results_from_people",
    "evaluate_predictions",
    "read_coco_results",
    "score_boxes",
    "score_keypoints",
    "write_coco_results",
]
