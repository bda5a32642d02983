"""Tests of what the demo does with images, the webcam and videos, without its page."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from tiny import save_tiny_checkpoint

from querypose_hf.assets import SAMPLE_IMAGE
from querypose_hf.inference.demo_actions import DRAWINGS, PoseDemo
from querypose_hf.inference.loading import load_pipeline


EVERYTHING = [*DRAWINGS]
VISITOR = "../a1"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny_checkpoint(folder, class_bias=0.0)
    return PoseDemo(load_pipeline(folder, device="cpu"), max_frames=4)


@pytest.fixture(scope="module")
def image():
    return PIL.Image.open(SAMPLE_IMAGE).convert("RGB")


def test_threshold_and_drawing_need_no_second_look(demo, image):
    seen = demo.look_at(image)
    threshold = float(np.mean([person["score"] for person in seen.people]))
    expected = demo.pose_estimator(image, threshold=threshold)
    assert 0 < len(expected) < len(seen.people)
    drawn, text, people, people_file, image_file = demo.show(seen, threshold, EVERYTHING, False, "", VISITOR)
    assert [person["score"] for person in people] == pytest.approx([person["score"] for person in expected])
    assert people[0]["box"] == pytest.approx(expected[0]["box"], abs=0.01)
    assert text.startswith(f"{len(expected)} ")
    assert json.loads(Path(people_file).read_text()) == people
    with PIL.Image.open(image_file) as saved:
        assert saved.tobytes() == drawn.tobytes()
    nothing = demo.show(seen, threshold, [], False, "", VISITOR)[0]
    assert nothing.tobytes() == image.tobytes()
    assert demo.show(seen, threshold, [], True, "shoulder", VISITOR)[0].tobytes() != image.tobytes()


def test_a_visitors_files_are_forgotten(demo, image):
    files = demo.show(demo.look_at(image), 0.3, EVERYTHING, False, "", VISITOR)[3:]
    assert all(".." not in file and Path(file).is_file() for file in files)
    demo.forget(VISITOR)
    assert not any(Path(file).exists() for file in files)


def test_no_image_shows_nothing(demo):
    assert demo.look_at(None) is None
    assert demo.show(None, 0.3, EVERYTHING, False, "", VISITOR) == (None, "", None, None, None)
    assert demo.follow(None, None, 0.3, EVERYTHING) == (None, None)


def test_webcam_and_video(demo, tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    pytest.importorskip("trackers", reason="trackers is not installed")
    from clips import panned_scene, write_clip

    tracker = None
    for image in panned_scene(2):
        before = tracker
        drawn, tracker = demo.follow(image, tracker, 0.05, EVERYTHING)
        assert drawn.size == image.size and drawn.tobytes() != image.tobytes()
    assert tracker is before
    assert demo.follow(image, tracker, 0.06, EVERYTHING)[1] is not tracker  # a new threshold starts anew

    progress = []
    clip = write_clip(tmp_path / "clip.mp4", panned_scene(6))
    video, text, lines = demo.watch(str(clip), 0.05, EVERYTHING, lambda *numbers: progress.append(numbers), VISITOR)
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert Path(video).is_file() and text.startswith("4 frames, ")
    assert [json.loads(line)["index"] for line in Path(lines).read_text().splitlines()] == [0, 1, 2, 3]
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"text\.mp4 cannot be opened as a video"):
        demo.watch(str(tmp_path / "text.mp4"), 0.3, [], print, VISITOR)
    broken = write_clip(tmp_path / "broken.mkv", panned_scene(60))
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    patient = PoseDemo(demo.pose_estimator)
    video, text, lines = patient.watch(str(broken), 0.05, EVERYTHING, lambda *numbers: None, VISITOR)
    count = len(Path(lines).read_text().splitlines())
    assert 0 < count < 50 and text.startswith(f"{count} frames, ") and "damaged in 1 places: it breaks off" in text
