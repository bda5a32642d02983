"""Tests of following people over frames."""

import pytest

from querypose_hf.inference.tracking import PersonTracker


pytest.importorskip("trackers", reason="trackers is not installed", exc_type=ImportError)


def person(x, score=0.8, name="a"):
    box = {"xmin": x, "ymin": 10.0, "xmax": x + 40.0, "ymax": 110.0}
    return {"score": score, "label": "person", "box": box, "keypoints": [], "name": name}


def test_people_keep_their_numbers():
    tracker = PersonTracker(threshold=0.3)
    numbers = {"a": set(), "b": set()}
    for step in range(20):
        # their order changes with the frame, their numbers must not
        people = [person(10.0 + 3 * step, name="a"), person(400.0 - 3 * step, name="b")]
        followed = tracker.update(people[:: -1 if step % 2 else 1])
        assert len(followed) == 2
        for one in followed:
            numbers[one["name"]].add(one["track_id"])
    (a,), (b,) = (numbers[name] - {None} for name in "ab")
    assert a != b


def test_who_is_followed_may_be_less_sure():
    tracker = PersonTracker(threshold=0.3)
    assert tracker.lowest_score == pytest.approx(0.1)
    for step in range(3):
        [first] = tracker.update([person(10.0 + step), person(300.0, score=0.2)])
    assert first["track_id"] is not None
    [second] = tracker.update([person(13.0, score=0.15), person(300.0, score=0.2)])
    assert (second["track_id"], second["score"]) == (first["track_id"], 0.15)


def test_a_gap_is_bridged_in_seconds():
    for gap, expected in ((0.5, True), (3.0, False)):
        tracker = PersonTracker(threshold=0.3, frame_rate=10, lost_after=1)
        for step in range(5):
            [before] = tracker.update([person(10.0)], step / 10)
        missing = [0.5 + number / 10 for number in range(int(gap * 10))]
        assert all(tracker.update([], time) == [] for time in missing)
        for step in range(2):
            [after] = tracker.update([person(10.0)], 0.5 + gap + step / 10)
        assert (after["track_id"] == before["track_id"]) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 2}, "`threshold` .* 2"),
        ({"frame_rate": 0}, "`frame_rate`"),
        ({"lost_after": -1}, "`lost_after`"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        PersonTracker(**arguments)
