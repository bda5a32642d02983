"""Tests of the attention maps and of their drawings."""

import numpy as np
import PIL.Image
import pytest
import torch
from tiny import tiny_config

from querypose_hf import COCO_17, QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.assets import SAMPLE_IMAGE
from querypose_hf.cli import main
from querypose_hf.inference.explanation import explain_people, name_parts
from querypose_hf.inference.explanation_drawing import draw_part_attention, overlay_part_attention


@pytest.fixture(scope="module")
def model_and_processor():
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config(pose_pooler_resolution=14)).eval()
    return model, QueryPoseImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})


@pytest.fixture(scope="module")
def scene():
    return PIL.Image.open(SAMPLE_IMAGE).convert("RGB")


def test_maps_are_the_models_own(model_and_processor, scene):
    model, image_processor = model_and_processor
    people = explain_people(model, image_processor, scene, threshold=0.0, top_k=3)
    assert len(people) == 3
    with torch.no_grad():
        outputs = model(**image_processor(scene, return_tensors="pt"), output_attentions=True)
    scores = outputs.logits[0].max(-1).values.sigmoid() * outputs.keypoint_scores[0].mean(-1)
    assert [found.query for found in people] == scores.argsort(descending=True)[:3].tolist()
    for found in people:
        assert found.maps.shape == (2, 7, 28, 28)
        assert found.maps.sum(axis=(2, 3)) == pytest.approx(np.ones((2, 7)), abs=1e-4)
        for stage in range(2):
            expected = outputs.part_attentions[stage][0, found.query].numpy()
            assert found.maps[stage] == pytest.approx(expected, abs=1e-6)
        x, y, width, height = outputs.pred_boxes[0, found.query].tolist()
        corners = [(x - width / 2) * 640, (y - height / 2) * 360, (x + width / 2) * 640, (y + height / 2) * 360]
        assert found.boxes[-1] == pytest.approx(corners, abs=1e-2)
    assert explain_people(model, image_processor, scene, threshold=1.0) == []


@pytest.mark.parametrize(("wanted", "exact"), [({"threshold": 0.0, "top_k": 2}, False), ({"top_k": None}, True)])
def test_only_who_may_be_found_is_decoded(model_and_processor, scene, monkeypatch, wanted, exact):
    """No query that cannot be in the result costs the keypoint stages."""
    model, image_processor = model_and_processor
    with torch.no_grad():
        every = model(**image_processor(scene, return_tensors="pt"))
    class_scores = every.logits[0].max(-1).values.sigmoid().sort(descending=True).values
    wanted = {"threshold": float(class_scores[1:3].mean()), **wanted}
    outputs = []
    hook = model.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        explain_people(model, image_processor, scene, **wanted)
    finally:
        hook.remove()
    decoded = int(outputs[0].keypoint_query_mask.sum())
    assert decoded == 2 if exact else 2 <= decoded < model.config.num_queries


def test_the_score_threshold_of_the_image_processor(model_and_processor, scene, monkeypatch):
    model, image_processor = model_and_processor
    first, second = explain_people(model, image_processor, scene, threshold=0.0, top_k=2)
    monkeypatch.setattr(image_processor, "score_threshold", float(first.person["score"] + second.person["score"]) / 2)
    assert [one.query for one in explain_people(model, image_processor, scene)] == [first.query]


def with_one_bright_cell(found, row, column):
    maps = np.zeros((1, 7, 28, 28), dtype=np.float32)
    maps[:, :, row, column] = 1.0
    fields = {**vars(found), "maps": maps, "boxes": np.array([[100.0, 50.0, 380.0, 330.0]]), "stages": (1,)}
    return type(found)(**fields)


def test_overlay_lies_where_the_map_says(model_and_processor, scene):
    [found] = explain_people(*model_and_processor, scene, threshold=0.0, top_k=1)
    grey = PIL.Image.new("RGB", scene.size, "gray")
    drawn = overlay_part_attention(grey, [with_one_bright_cell(found, row=20, column=5)], part=2)
    assert drawn.size == scene.size
    dark = overlay_part_attention(grey, [])
    change = np.abs(np.asarray(drawn, dtype=int) - np.asarray(dark, dtype=int)).sum(axis=2)
    ys, xs = np.nonzero(change > 40)
    # cells are 10 pixels wide: the centre of cell (20, 5) of a box from (100, 50) on
    assert (xs.mean() + 0.5, ys.mean() + 0.5) == pytest.approx((155.0, 255.0), abs=1.0)
    assert xs.min() >= 144 and xs.max() <= 166 and ys.min() >= 244 and ys.max() <= 266


def test_a_map_that_looks_everywhere_is_dark(model_and_processor, scene):
    [found] = explain_people(*model_and_processor, scene, threshold=0.0, top_k=1)
    moved = with_one_bright_cell(found, row=0, column=0)
    moved.maps[:] = 1 / 784
    dark = overlay_part_attention(scene, [])
    assert np.abs(np.asarray(overlay_part_attention(scene, [moved]), int) - np.asarray(dark, int)).max() <= 6


def test_panels(model_and_processor, scene):
    [found] = explain_people(*model_and_processor, scene, threshold=0.0, top_k=1)
    every, last = (draw_part_attention(scene, found, stages=stages) for stages in (None, [-1]))
    assert every.width == last.width
    assert every.height - last.height == 226
    with pytest.raises(ValueError, match="`stages` holds 2, but there are 2 stages"):
        draw_part_attention(scene, found, stages=[2])
    moved = with_one_bright_cell(found, row=14, column=14)
    panel = np.asarray(draw_part_attention(scene, moved, stages=[0], panel_height=280), dtype=int)
    # red glow and no blue in the middle of the first part's panel, whose left edge follows margin, pose and gap
    width = (panel.shape[1] - 64) // 8 - 6
    y, x = 40 + 140, 64 + width + 6 + width // 2
    bright = panel[y - 20 : y + 20, x - 20 : x + 20]
    assert (bright[..., 0] - bright[..., 2]).max() > 80


def test_part_names():
    assert name_parts(COCO_17.keypoint_names, COCO_17.parts) == (
        "nose, eye, ear",
        "shoulder",
        "left elbow, wrist",
        "right elbow, wrist",
        "hip",
        "left knee, ankle",
        "right knee, ankle",
    )
    assert name_parts(["left_ear", "tail"], [[0], [1]]) == ("left ear", "tail")


def test_training_mode_is_refused(model_and_processor, scene):
    model, image_processor = model_and_processor
    try:
        with pytest.raises(ValueError, match="evaluation mode"):
            explain_people(model.train(), image_processor, scene)
    finally:
        model.eval()


def test_command(model_and_processor, tmp_path, capsys):
    for part in model_and_processor:
        part.save_pretrained(tmp_path / "model")
    arguments = ["explain", str(SAMPLE_IMAGE), "--model", str(tmp_path / "model"), "--threshold", "0.001"]
    arguments += ["--top-k", "2", "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "2 people, drawn to" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "sample_parts.png",
        "sample_person1_parts.png",
        "sample_person2_parts.png",
    ]
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--top-k", "0"])
    assert "--top-k: expected a whole number of at least 1, got '0'" in capsys.readouterr().err
