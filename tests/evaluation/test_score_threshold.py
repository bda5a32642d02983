import numpy as np
import pytest

from querypose_hf.evaluation.score_threshold import best_score_threshold


def test_between_the_last_score_reported_and_the_next():
    best = best_score_threshold(np.array([0.2, 0.9, 0.6]), np.array([False, True, True]), people=2)
    assert best.value == pytest.approx(0.4)
    assert (best.f1, best.precision, best.recall) == (1, 1, 1)


def test_people_who_are_missed_and_results_that_are_wrong():
    scores, right = np.array([0.9, 0.8, 0.7, 0.6, 0.1]), np.array([True, False, True, True, False])
    best = best_score_threshold(scores, right, people=4)
    assert best.value == pytest.approx(0.35)
    assert (best.f1, best.precision, best.recall) == (0.75, 0.75, 0.75)


def test_equal_scores_are_reported_together():
    """The first of them alone would be better, but no threshold gives it."""
    best = best_score_threshold(np.array([0.5, 0.5, 0.5, 0.4]), np.array([True, False, False, True]), people=2)
    assert best.value == pytest.approx(0.2)
    assert best.f1 == pytest.approx(2 / 3)


def test_scores_down_to_0():
    best = best_score_threshold(np.array([0.0, 0.0]), np.array([True, True]), people=2)
    assert best is None  # people with a score above the threshold are reported, which none has
    assert best_score_threshold(np.array([0.1, 0.0]), np.array([True, True]), people=2).value == pytest.approx(0.05)


def test_nobody_is_found():
    assert best_score_threshold(np.array([0.5]), np.array([False]), people=2) is None
    assert best_score_threshold(np.zeros(0), np.zeros(0, dtype=bool), people=0) is None


@pytest.mark.parametrize("seed", range(5))
def test_no_other_threshold_is_better(seed):
    rng = np.random.default_rng(seed)
    scores, right = rng.integers(1, 30, 200) / 30, rng.random(200) < 0.4
    best = best_score_threshold(scores, right, people=100)

    def f1(threshold):
        kept = scores > threshold
        return 2 * right[kept].sum() / (kept.sum() + 100)

    assert best.f1 == pytest.approx(f1(best.value)) == pytest.approx(max(f1(t) for t in np.linspace(0, 1, 301)))
