"""QueryPose with Transformers' `Trainer`, with the figures of a protocol in its evaluations."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction, Trainer, TrainingArguments

from ..data.collation import PoseCollator
from ..evaluation.coco_results import coco_results_from_people
from ..evaluation.ground_truth import KeypointGroundTruth
from ..evaluation.protocols import resolve_sigmas
from ..evaluation.scoring import check_backend, score_keypoints
from ..model.modeling_querypose import QueryPoseForPoseEstimation
from ..model.skeletons import SKELETONS
from .optimizer import build_optimizer
from .recipe import TrainingConfig


#: The model's outputs in an evaluation, in the order in which `Trainer` gives them.
_OUTPUTS = ("logits", "pred_boxes", "pred_keypoints", "keypoint_scores", "keypoint_query_mask")


class PoseMetrics:
    """Figures of COCO's or CrowdPose's protocol for `Trainer`'s evaluations.

    Pass [`keep_people`] as `preprocess_logits_for_metrics` and the object itself as `compute_metrics`, as
    [`build_trainer`] does. Only the best people of each image are kept from batch to batch, in tensors of equal shape,
    so that the processes of a distributed evaluation can exchange them. The ground truth is read from the annotations.

    Args:
        annotations (`str`, `os.PathLike` or `Mapping`): COCO keypoint annotations of the images to score on.
        image_processor (`QueryPoseImageProcessor`): the model's.
        metric (`str`, *optional*, defaults to `"coco"`): or `"crowdpose"`.
        sigmas (`Sequence[float]`, *optional*): OKS constants; needed for keypoints other than the protocol's.
        top_k (`int`, *optional*, defaults to 20): people kept per image.

    Raises:
        FileNotFoundError, ImportError, ValueError: as [`evaluate_predictions`] raises them.
    """

    def __init__(
        self,
        annotations: str | os.PathLike | Mapping[str, Any],
        image_processor: Any,
        *,
        metric: str = "coco",
        sigmas: Sequence[float] | None = None,
        top_k: int = 20,
    ):
        check_backend("pycocotools")
        category_ids = list(image_processor.category_ids)
        self.ground_truth = KeypointGroundTruth.read(annotations, metric, category_ids=category_ids)
        resolve_sigmas(metric, self.ground_truth.num_keypoints, sigmas)
        self.image_processor = image_processor
        self.sigmas = sigmas
        self.top_k = top_k

    def keep_people(self, outputs: tuple[Tensor, ...], labels: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
        """The people of a batch.

        Args:
            outputs (`tuple[Tensor, ...]`): the model's outputs, without those that `Trainer` ignores by the model's
                configuration.
            labels (`list[dict[str, Tensor]]`): the batch's. All but the image ids are removed: processes cannot
                exchange boxes of different numbers.

        Returns:
            `tuple[Tensor, Tensor]`: image ids (batch,), int64, and people (batch, top_k, 6 + 3 K): score, label, box,
            and x, y and score of each keypoint. Rows beyond an image's people have score 0.
        """
        ids = torch.cat([label["image_id"] for label in labels])
        sizes = torch.stack([label["orig_size"] for label in labels])
        people = self.image_processor.post_process_pose_estimation(
            dict(zip(_OUTPUTS, outputs, strict=True)), threshold=0.0, target_sizes=sizes, top_k=self.top_k
        )
        for label in labels:
            for name in list(label):
                if name != "image_id":
                    del label[name]
        kept = torch.zeros(len(people), self.top_k, 6 + 3 * outputs[2].shape[2], dtype=torch.float32)
        for group, rows in zip(people, kept, strict=True):
            if group:
                rows[: len(group)] = torch.cat(
                    [
                        torch.stack([person["score"] for person in group])[:, None],
                        torch.stack([person["label"] for person in group])[:, None],
                        torch.stack([person["bbox"] for person in group]),
                        torch.stack(
                            [torch.cat([person["keypoints"], person["scores"][:, None]], dim=1) for person in group]
                        ).flatten(1),
                    ],
                    dim=1,
                )
        return ids, kept.to(ids.device)

    def results(self, predictions: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
        """COCO results of the people that [`keep_people`] kept of every batch; a repeated image counts once."""
        by_image: dict[int, list[dict[str, Any]]] = {}
        for ids, people in predictions:
            for image_id, rows in zip(ids.tolist(), people, strict=True):
                rows = rows[rows[:, 0] > 0]
                points = rows[:, 6:].reshape(len(rows), (rows.shape[1] - 6) // 3, 3)
                group = [
                    {"score": row[0], "label": int(row[1]), "bbox": row[2:6], "keypoints": p[:, :2], "scores": p[:, 2]}
                    for row, p in zip(rows, points, strict=True)
                ]
                by_image[image_id] = coco_results_from_people(group, image_id, self.image_processor.category_ids)
        unknown = by_image.keys() - self.ground_truth.known_image_ids
        if unknown:
            raise ValueError(
                f"{self.ground_truth.source}: there is no image {min(unknown)}, which is in the evaluation dataset; "
                "expected annotations of the same images."
            )
        return [result for group in by_image.values() for result in group]

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """The protocol's figures by name, without those for which there is no ground truth.

        Among them are `F1`, the best at OKS 0.5, and `score_threshold`, which has it; the image processor takes it.
        """
        if not isinstance(prediction.predictions, list):
            raise ValueError("`eval_do_concat_batches` is True; expected False: the numbers of people differ.")
        results = self.results(prediction.predictions)  # type: ignore[arg-type]
        evaluation = score_keypoints(self.ground_truth, results, self.sigmas, progress=False)
        metrics = {name: value for name, value in evaluation.metrics.items() if value is not None}
        if (best := evaluation.best_score_threshold()) is not None:
            metrics.update(F1=best.f1, score_threshold=best.value)
            self.image_processor.score_threshold = best.value  # it is saved with every checkpoint
        return metrics


def build_trainer(
    model: QueryPoseForPoseEstimation,
    image_processor: Any,
    arguments: TrainingArguments,
    train_dataset: Any,
    eval_dataset: Any = None,
    eval_annotations: str | os.PathLike | Mapping[str, Any] | None = None,
    metric: str = "coco",
) -> Trainer:
    """A `Trainer` for QueryPose, with the paper's parameter groups and AP in its evaluations.

    Args:
        model ([`QueryPoseForPoseEstimation`]): the model.
        image_processor (`QueryPoseImageProcessor`): see [`PoseCollator`]. It is saved with every checkpoint.
        arguments (`TrainingArguments`):
            `remove_unused_columns` and `eval_do_concat_batches` have to be `False`. Learning rate and weight decay
            go to AdamW; the flow's learning rate is ten times as large.
        train_dataset: map-style, such as [`AugmentedPoseDataset`].
        eval_dataset (*optional*): map-style, without augmentation.
        eval_annotations (`str`, `os.PathLike` or `Mapping`, *optional*): COCO annotations of `eval_dataset`.
        metric (`str`, *optional*, defaults to `"coco"`): or `"crowdpose"`.

    Raises:
        ValueError: an argument is not as described above.
    """
    for name in ("remove_unused_columns", "eval_do_concat_batches"):
        if getattr(arguments, name):
            raise ValueError(f"`{name}` is True; expected `TrainingArguments({name}=False)`.")
    metrics = None
    if eval_annotations is not None:
        skeleton = model.config.skeleton
        own = skeleton.keypoint_names == SKELETONS[metric].keypoint_names
        metrics = PoseMetrics(
            eval_annotations, image_processor, metric=metric, sigmas=None if own else skeleton.sigmas
        )
    settings = TrainingConfig(learning_rate=arguments.learning_rate, weight_decay=arguments.weight_decay)
    arguments.label_names = ["labels"]
    torch.nn.Module.to(model, arguments.device)  # before the optimizer gets its parameters
    return Trainer(
        model=model,
        args=arguments,
        data_collator=PoseCollator(image_processor),
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=image_processor,
        compute_metrics=metrics,
        # typed for single tensors
        preprocess_logits_for_metrics=None if metrics is None else metrics.keep_people,  # type: ignore[arg-type]
        optimizers=(build_optimizer(model, settings), None),
    )
