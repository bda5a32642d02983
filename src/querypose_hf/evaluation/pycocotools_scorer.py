"""Scoring by pycocotools. Importing this module imports pycocotools."""

import contextlib
import copy
import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

from .coco_objects import index_ground_truth, index_results
from .ground_truth import KeypointGroundTruth


class _ProgressCOCOeval(COCOeval):
    """COCOeval with OKS computed for all pairs of an image at once, and a progress bar over its images."""

    def __init__(self, ground_truth: COCO, results: COCO, iou_type: str, progress: bool) -> None:
        super().__init__(ground_truth, results, iou_type)
        self._progress = progress

    def evaluate(self) -> None:
        total = len(self.params.imgIds) * len(self.params.catIds) * len(self.params.areaRng)
        with tqdm(total=total, desc="Scoring", unit="image", leave=False, disable=not self._progress) as self._bar:
            super().evaluate()

    def evaluateImg(self, imgId: Any, catId: Any, aRng: Any, maxDet: int) -> Any:
        self._bar.update()
        return super().evaluateImg(imgId, catId, aRng, maxDet)

    def computeOks(self, imgId: Any, catId: Any) -> Any:
        people, found = self._gts[imgId, catId], self._dts[imgId, catId]
        if not people or not found:
            return []
        order = np.argsort([-result["score"] for result in found], kind="mergesort")[: self.params.maxDets[-1]]
        points = np.asarray([found[index]["keypoints"] for index in order], dtype=np.float64)
        points = points.reshape(len(order), 1, -1, 3)[..., :2]
        truth = np.stack([person["keypoints"] for person in people]).reshape(1, len(people), -1, 3)
        labelled = truth[0, :, :, 2] > 0
        unlabelled = ~labelled.any(axis=1)
        offset = points - truth[..., :2]
        if unlabelled.any():
            # a person without labelled keypoints is matched by distance from its box, doubled in each direction
            boxes = np.asarray([person["bbox"] for person in people], dtype=np.float64)[unlabelled][:, None]
            low, high = boxes[..., :2] - boxes[..., 2:], boxes[..., :2] + boxes[..., 2:] * 2
            offset[:, unlabelled] = np.maximum(0, low - points) + np.maximum(0, points - high)
            labelled[unlabelled] = True
        variances = (self.params.kpt_oks_sigmas * 2) ** 2
        areas = np.asarray([person["area"] for person in people], dtype=np.float64)[:, None] + np.spacing(1)
        similarity = np.exp(-((offset**2).sum(axis=-1) / variances / areas / 2))
        # Summed person by person, over the labelled keypoints alone, as the original does: a masked sum adds in
        # another order, and the last bit of an OKS can decide a match.
        return np.stack(
            [
                np.ascontiguousarray(similarity[:, index, chosen]).sum(axis=1) / np.count_nonzero(chosen)
                for index, chosen in enumerate(labelled)
            ],
            axis=1,
        )


class PycocotoolsScorer:
    """One run of COCOeval over annotations and results, and what can be read from it.

    Args:
        ground_truth ([`KeypointGroundTruth`]): the annotations.
        results (`Sequence[Mapping]`): checked COCO results.
        iou_type (`str`): `"keypoints"` or `"bbox"`.
        sigmas (`np.ndarray` of shape (K,), *optional*): for keypoints.
        size_ranges (`bool`): also score by object size, not over all sizes alone.
        progress (`bool`): show a progress bar.
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
        with _silence():
            evaluation = _ProgressCOCOeval(
                index_ground_truth(COCO, ground_truth),
                index_results(COCO, ground_truth, results),
                iou_type,
                progress,
            )
            if sigmas is not None:
                evaluation.params.kpt_oks_sigmas = sigmas
            if not size_ranges:
                evaluation.params.areaRng = evaluation.params.areaRng[:1]
                evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
            evaluation.evaluate()
        self._evaluation = evaluation

    def accumulate(self, image_ids: Collection[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall over all images, or over some, without matching again.

        Returns:
            `precision` (T, R, C, A, D) and `recall` (T, C, A, D): T thresholds of OKS or IoU, R levels of recall, C
            categories, A size ranges, D limits of results per image; -1 where there is nothing to find.
        """
        evaluation = self._evaluation
        if image_ids is not None:
            chosen = set(image_ids)
            keep = [index for index, image_id in enumerate(evaluation.params.imgIds) if image_id in chosen]
            evaluation = copy.copy(evaluation)
            evaluation.params = copy.copy(evaluation.params)
            evaluation.params.imgIds = [evaluation.params.imgIds[index] for index in keep]
            evaluation._paramsEval = evaluation.params
            # one entry per category, size range and image, in this order
            per_image = len(self._evaluation.params.imgIds)
            evaluation.evalImgs = [
                self._evaluation.evalImgs[start + index]
                for start in range(0, len(self._evaluation.evalImgs), per_image)
                for index in keep
            ]
        with _silence():
            evaluation.accumulate()
        return evaluation.eval["precision"], evaluation.eval["recall"]

    def results(self) -> tuple[np.ndarray, np.ndarray]:
        """Score of every result that counts, and whether it finds somebody at the lowest threshold, of all sizes."""
        images, ranges = len(self._evaluation.params.imgIds), len(self._evaluation.params.areaRng)
        scores, right = [], []
        for start in range(0, len(self._evaluation.evalImgs), ranges * images):
            for entry in self._evaluation.evalImgs[start : start + images]:
                if entry is not None:
                    counts = ~np.asarray(entry["dtIgnore"][0], dtype=bool)
                    scores.append(np.asarray(entry["dtScores"], dtype=np.float64)[counts])
                    right.append(np.asarray(entry["dtMatches"][0])[counts] > 0)
        return np.concatenate([*scores, np.zeros(0)]), np.concatenate([*right, np.zeros(0, dtype=bool)])

    def matches(self) -> list[tuple[int, float]]:
        """Image id and OKS of every person that is found at the lowest threshold, people of all sizes."""
        found = []
        images = len(self._evaluation.params.imgIds)
        categories = len(self._evaluation.params.catIds)
        ranges = len(self._evaluation.params.areaRng)
        for category in range(categories):
            start = category * ranges * images
            for entry in self._evaluation.evalImgs[start : start + images]:
                if entry is None:
                    continue
                key = (entry["image_id"], entry["category_id"])
                columns = {person["id"]: column for column, person in enumerate(self._evaluation._gts[key])}
                rows = {result_id: row for row, result_id in enumerate(entry["dtIds"])}
                for person_id, result_id, ignored in zip(
                    entry["gtIds"], entry["gtMatches"][0], entry["gtIgnore"], strict=True
                ):
                    if result_id > 0 and not ignored:
                        oks = self._evaluation.ious[key][rows[result_id], columns[person_id]]
                        found.append((entry["image_id"], float(oks)))
        return found


def _silence() -> contextlib.AbstractContextManager:
    """pycocotools prints what it does."""
    return contextlib.redirect_stdout(io.StringIO())
