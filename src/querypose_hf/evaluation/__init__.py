"""COCO and CrowdPose scoring of multi-person keypoints, from results or from a model.

Everything but the scoring itself (reading and writing COCO results) works without pycocotools.
"""

from .coco_results import coco_results_from_people, read_coco_results, write_coco_results
from .evaluate import evaluate_predictions
from .ground_truth import KeypointGroundTruth
from .model_evaluation import evaluate_model
from .prediction import predict_dataset, unsqueeze_annotations
from .protocols import BOX_METRICS, KEYPOINT_METRICS
from .report import write_report
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
    "evaluate_model",
    "evaluate_predictions",
    "predict_dataset",
    "read_coco_results",
    "score_boxes",
    "score_keypoints",
    "unsqueeze_annotations",
    "write_coco_results",
    "write_report",
]
