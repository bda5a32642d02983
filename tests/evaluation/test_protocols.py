import numpy as np
import pytest

from querypose_hf import COCO_17, CROWDPOSE_14, Skeleton
from querypose_hf.evaluation.protocols import KEYPOINT_METRICS, PROTOCOLS, protocol_of, resolve_sigmas


def test_figures_in_the_order_they_are_reported():
    assert KEYPOINT_METRICS == {
        "coco": ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL"),
        "crowdpose": ("AP", "AP50", "AP75", "AR", "AR50", "AR75", "AP_easy", "AP_medium", "AP_hard"),
    }


def test_figures_of_groups_say_their_bounds():
    figures = PROTOCOLS["crowdpose"].figures
    assert [figures[f"AP_{name}"] for name in ("easy", "medium", "hard")] == [
        "images with crowdIndex below 0.2",
        "images with crowdIndex from 0.2 below 0.8",
        "images with crowdIndex from 0.8",
    ]


@pytest.mark.parametrize(
    ("crowd_index", "group"),
    [(0, "easy"), (0.19999, "easy"), (0.2, "medium"), (0.79999, "medium"), (0.8, "hard"), (3, "hard")],
)
def test_bounds_of_the_crowd_groups(crowd_index, group):
    assert PROTOCOLS["crowdpose"].image_group(crowd_index) == group


def test_unknown_metric():
    with pytest.raises(ValueError, match="`metric` is 'mpii'; expected one of 'coco', 'crowdpose'"):
        protocol_of("mpii")


def test_sigmas_are_those_given_or_the_protocols_or_the_models():
    other = Skeleton.from_names([f"k{index}" for index in range(17)], sigmas=[0.05] * 17)
    np.testing.assert_array_equal(resolve_sigmas("coco", 17, None), COCO_17.sigmas)
    np.testing.assert_array_equal(resolve_sigmas("crowdpose", 14, None, CROWDPOSE_14), CROWDPOSE_14.sigmas)
    np.testing.assert_array_equal(resolve_sigmas("coco", 17, None, other), [0.05] * 17)
    np.testing.assert_array_equal(resolve_sigmas("coco", 17, (0.2,) * 17, other), [0.2] * 17)
