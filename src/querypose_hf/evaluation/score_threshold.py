"""The score threshold with the best F1: whom to report, where AP says how well people are ranked."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ScoreThreshold:
    """A score threshold, and how well the people with a higher score are found, at OKS 0.5.

    Attributes:
        value (`float`): the threshold.
        f1 (`float`): harmonic mean of precision and recall.
        precision (`float`): the share of those reported who are right.
        recall (`float`): the share of the people to be found who are.
    """

    value: float
    f1: float
    precision: float
    recall: float


def best_score_threshold(scores: np.ndarray, right: np.ndarray, people: int) -> ScoreThreshold | None:
    """The score threshold with the best F1.

    The threshold lies half-way between the lowest score that is reported and the next one below, so that images that
    are a little different give the same people.

    Args:
        scores (`np.ndarray` of shape `(N,)`): of all results of all images; those of ignored people left out.
        right (`np.ndarray` of shape `(N,)`, bool): whether the result is matched with a person to be found.
        people (`int`): how many people there are to be found.

    Returns:
        [`ScoreThreshold`], or `None` if no threshold gives anybody who is right.

    Example:

    ```python
    >>> best_score_threshold(np.array([0.9, 0.6, 0.2]), np.array([True, True, False]), people=2)
    ScoreThreshold(value=0.4, f1=1.0, precision=1.0, recall=1.0)
    ```
    """
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], np.cumsum(right[order])
    reported = np.arange(1, len(scores) + 1)
    f1 = 2 * found / (reported + people)
    below = np.append(scores[1:], 0.0)
    f1[scores == below] = 0.0  # equal scores are reported together, and those of 0 never
    if not f1.any():
        return None
    last = int(f1.argmax())
    value = (scores[last] + below[last]) / 2
    return ScoreThreshold(
        float(value), float(f1[last]), float(found[last] / reported[last]), float(found[last] / people)
    )
