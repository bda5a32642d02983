"""COCO and CrowdPose scoring of multi-person keypoints, from results or from a model.

Everything but the scoring itself (reading and writing COCO results) works without pycocotools.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy_names


if TYPE_CHECKING:
    from .coco_results import coco_results_from_people, read_coco_results, write_coco_results
    from .evaluate import evaluate_model, evaluate_predictions, predict_test_dev
    from .ground_truth import KeypointGroundTruth
    from .image_list import ImageList, read_image_list
    from .options import PredictionOptions, ReportOptions, ScoringOptions
    from .prediction import predict_dataset
    from .protocols import BOX_METRICS, KEYPOINT_METRICS, PROTOCOLS, KeypointProtocol
    from .report import write_report
    from .scoring import ImageError, KeypointEvaluation, PeopleGroup, PrecisionRecall, score_boxes, score_keypoints
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "BOX_METRICS",
    "KEYPOINT_METRICS",
    "PROTOCOLS",
    "ImageError",
    "ImageList",
    "KeypointEvaluation",
    "KeypointGroundTruth",
    "KeypointProtocol",
    "PeopleGroup",
    "PrecisionRecall",
    "PredictionOptions",
    "ReportOptions",
    "ScoringOptions",
    "coco_results_from_people",
    "evaluate_model",
    "evaluate_predictions",
    "predict_dataset",
    "predict_test_dev",
    "read_coco_results",
    "read_image_list",
    "score_boxes",
    "score_keypoints",
    "write_coco_results",
    "write_report",
]
