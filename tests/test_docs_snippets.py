"""The Python snippets of the pages on videos and explanations run as they stand."""

import re
from pathlib import Path

import pytest
import torch
from tiny import tiny_config

from querypose_hf import QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.data.synthetic import render_sample_scene


DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.fixture
def in_a_users_folder(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config())
    with torch.no_grad():
        for layer in model.model.decoder.box_layers:
            layer.class_head.bias.fill_(5.0)
    model.save_pretrained(tmp_path / "path" / "to" / "checkpoint")
    image_processor = QueryPoseImageProcessor(size={"shortest_edge": 64, "longest_edge": 128})
    image_processor.save_pretrained(tmp_path / "path" / "to" / "checkpoint")
    render_sample_scene()["image"].save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(page):
    [snippet] = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)
    exec(compile(snippet, page, "exec"), {})


def test_explain(in_a_users_folder, capsys):
    run("explain.md")
    assert "'left elbow, wrist'" in capsys.readouterr().out
    assert (in_a_users_folder / "person1.png").is_file()


def test_video(in_a_users_folder, capsys):
    pytest.importorskip("trackers", reason="trackers is not installed", exc_type=ImportError)
    from clips import panned_scene, write_clip

    write_clip(in_a_users_folder / "clip.mp4", panned_scene(3))
    run("video.md")
    lines = capsys.readouterr().out.splitlines()
    assert [line[:2] for line in lines] == ["0 ", "1 ", "2 "]
    assert re.search(r"\(\d+, 0\.\d+\)", lines[2])
