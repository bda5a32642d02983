"""Model cards of converted checkpoints."""

import warnings
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from querypose_hf import QueryPoseConfig
from querypose_hf.configuration_querypose import VARIANTS
from querypose_hf.model_card import write_model_card


# AP in % as the paper and the authors' repository report it
COCO_FULL = {"r50": "68.7", "hrnet_w32": "72.4", "hrnet_w48": "73.6", "swin_l": "73.3"}
COCO_LIGHT = {"hrnet_w32": "69.8", "hrnet_w48": "71.0"}
CROWDPOSE_FULL = {"hrnet_w48": "72.1", "swin_l": "72.7"}


def write(folder: Path, variant: str, **fields) -> ModelCard:
    path = write_model_card(folder, QueryPoseConfig.from_variant(variant, **fields), variant=variant)
    assert path == folder / "README.md"
    return ModelCard.load(path)


def figures(card: ModelCard) -> list[str]:
    """What the card gives as AP."""
    rows = [line.split("|") for line in card.text.splitlines() if line.startswith("|") and " AP " in line]
    return [row[2].strip() for row in rows]


def test_metadata(tmp_path):
    card = write(tmp_path, "hrnet_w32", light=True, num_queries=37)
    data = card.data.to_dict()
    assert data["license"] == "mit"
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "keypoint-detection"
    assert set(data["tags"]) == {"pose-estimation", "querypose"}
    assert data["datasets"] == ["detection-datasets/coco"]
    assert "# QueryPose hrnet_w32, light version" in card.text
    assert "17 keypoints" in card.text
    assert "| instance queries | 37 |" in card.text
    assert "left_shoulder" in card.text
    assert "{{" not in card.content and "{%" not in card.content


@pytest.mark.parametrize("light", [False, True], ids=["full", "light"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_figures_are_the_published_ones_and_marked_so(tmp_path, variant, light):
    card = write(tmp_path, variant, light=light)
    published = (COCO_LIGHT if light else COCO_FULL).get(variant)
    assert figures(card) == ([] if published is None else [published])
    if published is None:
        assert "published no figure for this variant" in card.text
        everywhere = {*COCO_FULL.values(), *COCO_LIGHT.values(), *CROWDPOSE_FULL.values()}
        assert not any(figure in card.text for figure in everywhere)
    else:
        assert "COCO val2017" in card.text
        assert "has not been measured again with this file" in card.text


@pytest.mark.parametrize("variant", VARIANTS)
def test_crowdpose_figures_are_not_cocos(tmp_path, variant):
    card = write(tmp_path, variant, skeleton="crowdpose")
    assert figures(card) == ([CROWDPOSE_FULL[variant]] if variant in CROWDPOSE_FULL else [])
    assert "COCO" not in card.text
    assert "datasets" not in card.data.to_dict()
    assert "14 keypoints" in card.text


def test_other_skeletons_have_no_figures(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = [f"left_{i}" for i in range(8)] + [f"right_{i}" for i in range(8)] + ["tail"]
        card = write(tmp_path, "r50", skeleton=names)
    assert figures(card) == []
    assert "68.7" not in card.text
    assert "datasets" not in card.data.to_dict()


def test_a_card_is_replaced_whole(tmp_path, monkeypatch):
    write(tmp_path, "r50")
    before = (tmp_path / "README.md").read_bytes()
    real_write = Path.write_text

    def half_write(path, text, **kwargs):
        real_write(path, text[: len(text) // 2], **kwargs)
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", half_write)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, "hrnet_w32")
    assert (tmp_path / "README.md").read_bytes() == before
