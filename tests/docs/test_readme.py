"""README.md shows what the shipped checkpoint does. `python scripts/write_readme.py` brings it up to date."""

import runpy

import numpy as np
import PIL.Image
import pytest
from huggingface_hub import ModelCard, ModelCardData
from places import PROJECT

from querypose_hf.hub.figures import eval_result


SCRIPT = str(PROJECT / "scripts" / "write_readme.py")
IMAGE = "docs/images/sample_poses.jpg"


def test_figures_and_image_are_those_of_the_checkpoint(tmp_path, monkeypatch):
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    monkeypatch.setattr("sys.argv", [SCRIPT, str(tmp_path)])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(SCRIPT, run_name="__main__")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == text
    drawn, shown = (np.asarray(PIL.Image.open(folder / IMAGE), dtype=float) for folder in (tmp_path, PROJECT))
    assert drawn.shape == shown.shape
    assert np.abs(drawn - shown).mean() < 0.5  # levels of 256; a person more or less is some more


def test_figures_are_in_percent():
    results = [eval_result("coco", "COCO val2017", "AP", 12.34), eval_result("coco", "COCO val2017", "AP50", 45.67)]
    card = ModelCard.from_template(
        ModelCardData(model_name="nano", eval_results=results), template_str="---\n{{ card_data }}\n---\n"
    )
    table = runpy.run_path(SCRIPT)["measured_table"](card)
    assert table.splitlines()[-1] == "| COCO val2017 | 12.3 | 45.7 |"
