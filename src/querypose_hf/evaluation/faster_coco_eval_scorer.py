"""Scoring by faster-coco-eval. Importing this module imports faster_coco_eval."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from .coco_objects import index_ground_truth, index_results
from .ground_truth import KeypointGroundTruth


class FasterCocoEvalScorer:
    """The same as [`PycocotoolsScorer`], with the same arguments, by faster-coco-eval.

    Its matches stay in C++, so every set of images is matched again. It shows no progress bar.
    """

    def __init__(
        self,
        ground_truth: KeypointGroundTruth,
        results: Sequence[Mapping[str, Any]],
        iou_type: str,
        sigmas: np.ndarray | None,
        size_ranges: bool,
        progress: bool,
    ) -> None:
        self._image_ids = [image["id"] for image in ground_truth.images]
        self._image_of_person = {
            record["id"]: record["image_id"]
            for record in ground_truth.annotations
            if record["num_keypoints"] > 0 and not record["iscrowd"]
        }
        self._ground_truth = index_ground_truth(COCO, ground_truth)
        self._results = index_results(COCO, ground_truth, results)
        self._iou_type = iou_type
        self._sigmas = sigmas
        self._size_ranges = size_ranges
        self._category_ids = ground_truth.category_ids

    def accumulate(self, image_ids: Collection[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """See [`PycocotoolsScorer.accumulate`]."""
        evaluation = self._run(image_ids)
        return np.asarray(evaluation.eval["precision"]), np.asarray(evaluation.eval["recall"])

    def results(self) -> tuple[np.ndarray, np.ndarray]:
        """See [`PycocotoolsScorer.results`]."""
        evaluation = self._run(None, lowest_threshold_only=True)
        person_of = {int(found): int(person) for found, person in map(_pair, evaluation.eval["matched"])}
        groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for result in self._results.dataset["annotations"]:
            groups.setdefault((result["image_id"], result["category_id"]), []).append(result)
        most = evaluation.params.maxDets[-1]
        scores, right = [], []
        for group in groups.values():
            for result in sorted(group, key=lambda result: -result["score"])[:most]:
                person = person_of.get(result["id"])
                if person is None or person in self._image_of_person:  # matched with anybody else it does not count
                    scores.append(result["score"])
                    right.append(person is not None)
        return np.asarray(scores, dtype=np.float64), np.asarray(right, dtype=bool)

    def matches(self) -> list[tuple[int, float]]:
        """See [`PycocotoolsScorer.matches`]."""
        evaluation = self._run(None, lowest_threshold_only=True)
        found = []
        for pair, oks in evaluation.eval["matched"].items():
            person = int(pair.split("_")[1])
            if person in self._image_of_person:
                found.append((self._image_of_person[person], float(oks)))
        return found

    def _run(self, image_ids: Collection[int] | None, lowest_threshold_only: bool = False) -> COCOeval_faster:
        evaluation = COCOeval_faster(
            self._ground_truth,
            self._results,
            self._iou_type,
            print_function=_print_nothing,
            kpt_oks_sigmas=self._sigmas,
        )
        evaluation.params.catIds = list(self._category_ids)
        evaluation.params.imgIds = self._image_ids if image_ids is None else list(image_ids)
        if lowest_threshold_only:
            evaluation.params.iouThrs = evaluation.params.iouThrs[:1]
        if lowest_threshold_only or not self._size_ranges:
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation


def _pair(matched: str) -> list[str]:
    return matched.split("_")[:2]


def _print_nothing(*args: Any) -> None:
    pass
