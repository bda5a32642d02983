"""Scores against pycocotools as it comes, and against figures worked out by hand."""

import contextlib
import copy
import dataclasses
import io
import math
import sys

import numpy as np
import pytest

from querypose_hf.evaluation import (
    BOX_METRICS,
    KEYPOINT_METRICS,
    KeypointGroundTruth,
    read_coco_results,
    score_boxes,
    score_keypoints,
    scoring,
)
from querypose_hf.model.skeletons import COCO_17, CROWDPOSE_14


pytest.importorskip("pycocotools")

HORSE_SIGMAS = [0.05, 0.1, 0.05]


def score(dataset, results, metric="coco", sigmas=None, backend="pycocotools", image_ids=None):
    ground_truth = KeypointGroundTruth.read(dataset, metric, image_ids)
    checked = read_coco_results(
        results, ground_truth.num_keypoints, ground_truth.known_image_ids, ground_truth.category_ids
    )
    return score_keypoints(ground_truth, checked, sigmas, backend, progress=False)


def plain_pycocotools(dataset, results, iou_type, sigmas=None, image_ids=None):
    """COCOeval by the book, without anything of ours."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(dataset)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), iou_type)
        if sigmas is not None:
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        if image_ids is not None:
            evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def found(person, offset=0.0, score=0.9, image_id=5):
    """A result at a person's keypoints, moved to the right."""
    points = np.array(person["keypoints"], dtype=float).reshape(-1, 3)
    points[:, 0] += offset
    return {"image_id": image_id, "category_id": 1, "keypoints": points.flatten().tolist(), "score": score}


def test_coco_figures_are_those_of_pycocotools_to_the_last_bit(coco_cases):
    dataset, results = coco_cases
    expected = plain_pycocotools(dataset, results, "keypoints").stats.tolist()

    metrics = score(dataset, results).metrics

    assert tuple(metrics) == KEYPOINT_METRICS["coco"]
    assert list(metrics.values()) == expected


def test_every_oks_is_that_of_pycocotools_to_the_last_bit(coco_cases):
    dataset, results = coco_cases
    expected = plain_pycocotools(dataset, results, "keypoints", COCO_17.sigmas).ious

    actual = score(dataset, results)._scorer._evaluation.ious

    assert actual.keys() == expected.keys()
    assert sum(np.size(oks) for oks in expected.values()) > 100
    for key, oks in expected.items():
        assert np.array_equal(actual[key], oks)


def test_results_without_boxes_get_their_size_from_the_keypoints(coco_case):
    dataset, results = coco_case
    results = [{field: value for field, value in result.items() if field != "bbox"} for result in results]
    expected = plain_pycocotools(dataset, results, "keypoints").stats.tolist()
    assert list(score(dataset, results).metrics.values()) == expected


def test_crowdpose_figures_are_those_of_its_protocol(crowdpose_cases):
    """The reference follows CrowdPose's tool: each group is scored anew, with the box's area times 0.53."""
    dataset, results = crowdpose_cases
    with_areas = copy.deepcopy(dataset)
    for annotation in with_areas["annotations"]:
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3] * 0.53
    expected = (
        plain_pycocotools(with_areas, results, "keypoints", CROWDPOSE_14.sigmas).stats[[0, 1, 2, 5, 6, 7]].tolist()
    )
    for is_in_group in (lambda c: c < 0.2, lambda c: 0.2 <= c < 0.8, lambda c: c >= 0.8):
        chosen = [image["id"] for image in dataset["images"] if is_in_group(image["crowdIndex"])]
        evaluation = plain_pycocotools(with_areas, results, "keypoints", CROWDPOSE_14.sigmas, chosen)
        expected.append(evaluation.eval["precision"][:, :, :, 0, :].mean())

    metrics = score(dataset, results, "crowdpose").metrics

    assert tuple(metrics) == KEYPOINT_METRICS["crowdpose"]
    assert list(metrics.values()) == pytest.approx(expected, abs=1e-12)


def test_crowdpose_ignores_an_area_that_is_given(crowdpose_case):
    dataset, results = crowdpose_case
    expected = score(dataset, results, "crowdpose").metrics
    for annotation in dataset["annotations"]:
        annotation["area"] = 1.0
    assert score(dataset, results, "crowdpose").metrics == expected


def test_a_crowdpose_group_without_images_has_no_figure(crowdpose_case):
    dataset, results = crowdpose_case
    for image in dataset["images"]:
        image["crowdIndex"] = 0.2
    metrics = score(dataset, results, "crowdpose").metrics
    assert (metrics["AP_easy"], metrics["AP_hard"]) == (None, None)
    assert metrics["AP_medium"] == metrics["AP"] > 0


def test_perfect_results_score_one(coco_case):
    dataset, _ = coco_case
    people = [person for person in dataset["annotations"] if person["num_keypoints"]]
    results = [found(person, image_id=person["image_id"]) for person in people]
    metrics = score(dataset, results).metrics
    assert all(value == pytest.approx(1.0, abs=1e-9) for value in metrics.values())


def test_oks_by_hand(one_person):
    # The keypoints are 20 px off, so e = 400 / (2 * area * (2 * sigma)^2) = 4 at sigma 0.05 and 1 at 0.1.
    person = one_person["annotations"][0]
    expected = (2 * math.exp(-4) + math.exp(-1)) / 3
    loose = (2 * math.exp(-4 / 100) + math.exp(-1 / 100)) / 3  # sigmas ten times as large

    ground_truth = KeypointGroundTruth.read(one_person)
    missed = score_keypoints(ground_truth, [found(person, 20)], HORSE_SIGMAS, progress=False)
    matched = score_keypoints(ground_truth, [found(person, 20)], [0.5, 1.0, 0.5], progress=False)

    assert expected < 0.5
    assert (missed.metrics["AP"], missed.worst_images()[0].missed) == (0, 1)
    assert 0.95 < loose and matched.metrics["AP"] == pytest.approx(1.0)
    assert matched.worst_images()[0].mean_oks == pytest.approx(loose, abs=1e-12)
    assert missed._scorer._evaluation.ious[5, 1][0, 0] == pytest.approx(expected, abs=1e-12)


def test_average_precision_by_hand(one_person):
    """A false detection ranked above the true one: precision is 1/2 at every recall, recall is 1."""
    person = one_person["annotations"][0]
    results = [found(person, 300, score=0.9), found(person, 0, score=0.5)]
    metrics = score(one_person, results, sigmas=HORSE_SIGMAS).metrics
    assert metrics["AP"] == pytest.approx(0.5)
    assert metrics["AR"] == 1
    assert metrics["APM"] == pytest.approx(0.5)
    assert metrics["APL"] is None and metrics["ARL"] is None


def test_the_order_of_the_files_does_not_matter(either_case):
    # Only without ties: pycocotools settles equal scores, and people in two unlabelled boxes at once, by their order.
    metric, dataset, results = either_case
    dataset["annotations"] = [person for person in dataset["annotations"] if person["num_keypoints"]]
    for index, result in enumerate(results):
        result["score"] += index * 1e-6
    expected = score(dataset, results, metric).metrics
    rng = np.random.default_rng(0)
    for records in (results, dataset["images"], dataset["annotations"]):
        records[:] = [records[index] for index in rng.permutation(len(records))]
    assert score(dataset, results, metric).metrics == expected


def test_only_the_twenty_best_of_an_image_count(one_person):
    person = one_person["annotations"][0]
    wrong = [found(person, 300, score=0.9) for _ in range(20)]
    last = found(person, 0, score=0.5)
    assert score(one_person, [*wrong[:19], last], sigmas=HORSE_SIGMAS).metrics["AR"] == 1
    assert score(one_person, [*wrong, last], sigmas=HORSE_SIGMAS).metrics["AR"] == 0


def test_no_results_score_zero(coco_case):
    dataset, _ = coco_case
    evaluation = score(dataset, [])
    assert set(evaluation.metrics.values()) == {0.0}
    assert all(error.missed == error.people and error.mean_oks == 0 for error in evaluation.worst_images())


def test_a_person_whose_annotation_id_is_zero_is_found(one_person):
    one_person["annotations"][0]["id"] = 0
    results = [found(one_person["annotations"][0])]
    assert plain_pycocotools(one_person, results, "keypoints", HORSE_SIGMAS).stats[0] == 0
    assert score(one_person, results, sigmas=HORSE_SIGMAS).metrics["AP"] == pytest.approx(1.0)


def test_people_without_keypoints_and_crowds_are_neither_wanted_nor_an_error(one_person):
    person = one_person["annotations"][0]
    nobody = {**person, "keypoints": [0] * 9, "num_keypoints": 0}
    one_person["annotations"] += [
        {**nobody, "id": 2, "bbox": [300.0, 100.0, 50.0, 50.0]},
        {**nobody, "id": 3, "bbox": [400.0, 300.0, 150.0, 150.0], "iscrowd": 1},
    ]
    inside = [
        {**found(person), "keypoints": [x, y, 1] * 3, "score": 0.95} for x, y in ((320, 120), (450, 350), (500, 400))
    ]
    evaluation = score(one_person, [found(person), *inside], sigmas=HORSE_SIGMAS)
    assert evaluation.metrics["AP"] == pytest.approx(1.0)
    assert evaluation.protocol["people"] == 1


def test_scoring_some_images(coco_case):
    dataset, results = coco_case
    chosen = [image["id"] for image in dataset["images"][::3]]
    expected = plain_pycocotools(dataset, results, "keypoints", image_ids=chosen).stats.tolist()

    evaluation = score(dataset, results, image_ids=chosen)

    assert list(evaluation.metrics.values()) == expected
    assert evaluation.protocol["images"] == len(chosen)
    assert evaluation.protocol["results"] == sum(result["image_id"] in chosen for result in results)


def test_box_figures_are_those_of_pycocotools(coco_cases):
    dataset, results = coco_cases
    expected = plain_pycocotools(dataset, results, "bbox").stats.tolist()
    metrics = score_boxes(KeypointGroundTruth.read(dataset), results, progress=False)
    assert tuple(metrics) == BOX_METRICS
    assert [-1 if value is None else value for value in metrics.values()] == expected


def test_box_scores_need_boxes(one_person):
    results = [found(one_person["annotations"][0])]
    with pytest.raises(ValueError, match="`bbox` is missing"):
        score_boxes(KeypointGroundTruth.read(one_person), results, progress=False)


def test_precision_recall_curves_average_to_the_figures(coco_case):
    dataset, results = coco_case
    evaluation = score(dataset, results)
    curves = evaluation.precision_recall()
    assert curves.precision.shape == (len(curves.thresholds), len(curves.recall)) == (10, 101)
    assert curves.precision.mean() == pytest.approx(evaluation.metrics["AP"], abs=1e-12)
    assert curves.precision[0].mean() == pytest.approx(evaluation.metrics["AP50"], abs=1e-12)
    assert (np.diff(curves.precision, axis=1) <= 0).all()


def test_precision_recall_without_people_is_not_a_number(one_person):
    one_person["annotations"][0]["num_keypoints"] = 0
    evaluation = score(one_person, [], sigmas=HORSE_SIGMAS)
    assert evaluation.metrics["AP"] is None
    assert np.isnan(evaluation.precision_recall().precision).all()
    assert evaluation.worst_images() == []


def test_average_precision_by_people_is_that_of_the_images_alone(coco_case, monkeypatch):
    monkeypatch.setattr(scoring, "PEOPLE_GROUPS", ((1, 2), (3, None), (50, 60)))
    dataset, results = coco_case
    evaluation = score(dataset, results)
    counts = {image["id"]: 0 for image in dataset["images"]}
    for person in dataset["annotations"]:
        counts[person["image_id"]] += person["num_keypoints"] > 0 and not person["iscrowd"]

    groups = evaluation.average_precision_by_people()

    assert [(group.first, group.last) for group in groups] == [(1, 2), (3, None), (50, 60)]
    for group, chosen in zip(
        groups[:2],
        ([i for i, n in counts.items() if n in (1, 2)], [i for i, n in counts.items() if n >= 3]),
        strict=True,
    ):
        assert (group.images, group.people) == (len(chosen), sum(counts[image] for image in chosen))
        expected = plain_pycocotools(dataset, results, "keypoints", image_ids=chosen).stats[0]
        assert group.average_precision == pytest.approx(expected, abs=1e-12)
    assert (groups[2].images, groups[2].average_precision) == (0, None)
    # the scorer still has all images afterwards
    assert evaluation.precision_recall().precision.mean() == pytest.approx(evaluation.metrics["AP"], abs=1e-12)


def test_worst_images_come_first(one_person):
    person = one_person["annotations"][0]
    one_person["images"] += [{"id": 6}, {"id": 7}, {"id": 8}]
    one_person["annotations"] += [
        {**person, "id": n, "image_id": image_id} for n, image_id in ((2, 6), (3, 6), (4, 7))
    ]
    results = [found(person), found(person, image_id=6), found(person, 2, image_id=7), found(person, image_id=8)]

    worst = score(one_person, results, sigmas=HORSE_SIGMAS).worst_images()

    assert [(error.image_id, error.people, error.missed) for error in worst] == [(6, 2, 1), (7, 1, 0), (5, 1, 0)]
    assert worst[0].mean_oks == pytest.approx(0.5)
    assert worst[1].mean_oks == pytest.approx((2 * math.exp(-0.04) + math.exp(-0.01)) / 3)
    assert (worst[2].mean_oks, worst[2].file_name) == (1.0, "five.jpg")
    assert score(one_person, results, sigmas=HORSE_SIGMAS).worst_images(1) == worst[:1]


def test_the_score_threshold_with_the_best_f1(either_case):
    """Scoring only the results above it gives the recall that is told; other thresholds have no better F1."""
    metric, dataset, results = either_case
    best = score(dataset, results, metric).best_score_threshold()
    kept = [result for result in results if result["score"] > best.value]
    assert 0 < len(kept) < len(results)
    assert score(dataset, kept, metric).metrics["AR50"] == pytest.approx(best.recall)
    assert best.f1 == pytest.approx(2 / (1 / best.precision + 1 / best.recall))
    again = score(dataset, kept, metric).best_score_threshold()
    assert (again.f1, again.precision, again.recall) == pytest.approx((best.f1, best.precision, best.recall))


def test_results_on_people_who_do_not_count_are_no_errors(one_person):
    """Of two results one is right; the other finds a crowd, who is not to be found."""
    results = [found(one_person["annotations"][0], score=0.3)]
    crowd = {**one_person["annotations"][0], "id": 99, "iscrowd": 1, "bbox": [300.0, 300.0, 100.0, 100.0]}
    crowd["keypoints"] = [310, 310, 2, 350, 350, 2, 390, 390, 1]
    results.append(found(crowd, score=0.9))
    one_person["annotations"].append(crowd)
    best = score(one_person, results, sigmas=HORSE_SIGMAS).best_score_threshold()
    assert (best.value, best.f1) == pytest.approx((0.15, 1.0))
    assert score(one_person, [], sigmas=HORSE_SIGMAS).best_score_threshold() is None


def test_faster_coco_eval_gives_the_same(either_case):
    pytest.importorskip("faster_coco_eval")
    metric, dataset, results = either_case
    expected = score(dataset, results, metric)

    actual = score(dataset, results, metric, backend="faster-coco-eval")

    assert actual.metrics == pytest.approx(expected.metrics, abs=1e-12)
    for ours, theirs in zip(actual.worst_images(), expected.worst_images(), strict=True):
        assert (ours.image_id, ours.people, ours.missed) == (theirs.image_id, theirs.people, theirs.missed)
        assert ours.mean_oks == pytest.approx(theirs.mean_oks, abs=1e-12)
    for ours, theirs in zip(actual.average_precision_by_people(), expected.average_precision_by_people(), strict=True):
        assert (ours.first, ours.images, ours.people) == (theirs.first, theirs.images, theirs.people)
        assert ours.average_precision == pytest.approx(theirs.average_precision, abs=1e-12)
    assert dataclasses.astuple(actual.best_score_threshold()) == pytest.approx(
        dataclasses.astuple(expected.best_score_threshold()), abs=1e-12
    )
    assert np.allclose(actual.precision_recall().precision, expected.precision_recall().precision, atol=1e-12)
    assert score(dataset, [], metric, backend="faster-coco-eval").metrics == score(dataset, [], metric).metrics
    if metric == "coco":
        ground_truth = KeypointGroundTruth.read(dataset)
        fast = score_boxes(ground_truth, results, "faster-coco-eval", progress=False)
        assert fast == pytest.approx(score_boxes(ground_truth, results, progress=False), abs=1e-12)


def test_scoring_prints_nothing(coco_case, capsys):
    dataset, results = coco_case
    score_keypoints(KeypointGroundTruth.read(dataset), results, progress=False)
    assert capsys.readouterr() == ("", "")


def test_progress_is_shown(coco_case, capsys):
    dataset, results = coco_case
    score_keypoints(KeypointGroundTruth.read(dataset), results, progress=True)
    assert "Scoring" in capsys.readouterr().err


def test_scoring_changes_nothing_that_it_is_given(coco_case):
    dataset, results = coco_case
    before = copy.deepcopy((dataset, results))
    ground_truth = KeypointGroundTruth.read(dataset)
    first = score_keypoints(ground_truth, results, progress=False).metrics
    assert score_keypoints(ground_truth, results, progress=False).metrics == first
    assert (dataset, results) == before


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        (None, "`sigmas` not given: the annotations have 3 keypoints.*its own 17"),
        (COCO_17.sigmas, "`sigmas` has 17 values; the annotations have 3 keypoints"),
        ([0.1, 0.0, 0.1], r"`sigmas\[1\]` is 0.0; expected a number above 0"),
        ([0.1, 0.1, math.nan], r"`sigmas\[2\]` is nan; expected a number above 0"),
    ],
)
def test_sigmas_that_do_not_fit(one_person, sigmas, message):
    with pytest.raises(ValueError, match=message):
        score_keypoints(KeypointGroundTruth.read(one_person), [], sigmas)


def test_unknown_backend(one_person):
    with pytest.raises(ValueError, match="`backend` is 'matlab'; expected one of 'pycocotools', 'faster-coco-eval'"):
        score_keypoints(KeypointGroundTruth.read(one_person), [], HORSE_SIGMAS, backend="matlab")


def test_missing_pycocotools_is_explained(one_person, monkeypatch):
    monkeypatch.delitem(sys.modules, "querypose_hf.evaluation.pycocotools_scorer", raising=False)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(ImportError, match=r"pip install querypose-hf\[evaluation\]"):
        score_keypoints(KeypointGroundTruth.read(one_person), [], HORSE_SIGMAS)
