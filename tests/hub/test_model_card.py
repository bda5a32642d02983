"""Model cards: what they say of whose weights, and the published ones."""

import json
import warnings
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from places import PROJECT
from tiny import tiny_config

from querypose_hf import QueryPoseConfig, QueryPoseImageProcessor
from querypose_hf.cli import main
from querypose_hf.hub.model_card import (
    build_model_card,
    check_model_card,
    fields_of_start,
    find_variant,
    write_published_cards,
)
from querypose_hf.model.configuration_querypose import VARIANTS


# AP in % as the paper and the authors' repository report it
COCO_FULL = {"r50": "68.7", "hrnet_w32": "72.4", "hrnet_w48": "73.6", "swin_l": "73.3"}
COCO_LIGHT = {"hrnet_w32": "69.8", "hrnet_w48": "71.0"}
CROWDPOSE_FULL = {"hrnet_w48": "72.1", "swin_l": "72.7"}


def converted(variant: str, **fields) -> ModelCard:
    """The card of a converted checkpoint, read from its text."""
    config = QueryPoseConfig.from_variant(variant, **fields)
    return ModelCard(str(build_model_card(config, "converted", variant=variant)))


def figures(card: ModelCard) -> list[str]:
    """The AP in the card's table."""
    rows = [line.split("|") for line in card.text.splitlines() if line.startswith("|") and " AP " in line]
    return [row[2].strip() for row in rows]


def test_metadata():
    card = converted("hrnet_w32", light=True, num_queries=37)
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
def test_figures_are_the_published_ones_and_marked_so(variant, light):
    card = converted(variant, light=light)
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
def test_crowdpose_figures_are_not_cocos(variant):
    card = converted(variant, skeleton="crowdpose")
    assert figures(card) == ([CROWDPOSE_FULL[variant]] if variant in CROWDPOSE_FULL else [])
    assert "COCO" not in card.text
    assert "datasets" not in card.data.to_dict()
    assert "14 keypoints" in card.text


def test_other_skeletons_have_no_figures():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = [f"left_{i}" for i in range(8)] + [f"right_{i}" for i in range(8)] + ["tail"]
        card = converted("r50", skeleton=names)
    assert figures(card) == []
    assert "68.7" not in card.text
    assert "datasets" not in card.data.to_dict()


PUBLISHED = {
    "r50": {"COCO val2017": "68.7"},
    "hrnet_w32": {"COCO val2017": "72.4"},
    "hrnet_w32_light": {"COCO val2017": "69.8"},
    "hrnet_w48": {
        "COCO val2017": "73.6",
        "COCO test-dev": "72.3",
        "CrowdPose test": "72.1",
        "CrowdPose test, easy": "79.8",
        "CrowdPose test, medium": "73.3",
        "CrowdPose test, hard": "63.0",
    },
    "hrnet_w48_light": {"COCO val2017": "71.0"},
    "swin_l": {
        "COCO val2017": "73.3",
        "COCO test-dev": "72.2",
        "CrowdPose test": "72.7",
        "CrowdPose test, easy": "79.5",
        "CrowdPose test, medium": "73.4",
        "CrowdPose test, hard": "65.4",
    },
}
CARDS = PROJECT / "model_cards"


def test_the_repository_holds_the_published_cards(tmp_path):
    written = write_published_cards(tmp_path)
    assert {path.stem for path in written} == set(PUBLISHED)
    assert {path.name for path in CARDS.iterdir()} == {path.name for path in written}
    for path in written:
        assert (CARDS / path.name).read_text() == path.read_text(), path.name


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_cards(name):
    card = ModelCard.load(CARDS / f"{name}.md")
    check_model_card(card)
    rows = [line.split("|") for line in card.text.splitlines() if "as published by the authors" in line]
    found = {}
    for row in rows:
        if "AP" in row[1]:
            found[row[1].split(" keypoint AP")[0].split(", AP in %")[0].strip()] = row[2].strip()
    assert found == PUBLISHED[name]
    assert "None has been measured again" in card.text
    variant = name.removesuffix("_light")
    assert f"querypose convert --checkpoint-path model.pth --variant {variant} " in card.text
    released = "The authors released a checkpoint of this light version"
    assert (released in card.text) == name.endswith("_light")
    assert "MIT licence" in card.text and "## Limits" in card.text
    data = card.data.to_dict()
    assert (data["license"], data["pipeline_tag"], data["library_name"]) == (
        "mit",
        "keypoint-detection",
        "transformers",
    )
    [result] = card.data.eval_results
    assert f"{result.metric_value:.1f}" == PUBLISHED[name]["COCO val2017"]
    assert result.source_name == "published by the authors; not measured with this file"
    assert "{{" not in card.content and "{%" not in card.content and "None |" not in card.content


@pytest.mark.parametrize(
    ("fields", "version", "system", "feeds_back"),
    [
        ({}, "full", None, True),
        ({"query_feedback": "selected"}, "full", None, True),
        ({"query_feedback": "training"}, "full", None, False),
        ({"query_feedback": "never"}, "full", None, False),
        ({"pose_query_interaction": "none"}, "light", None, False),
        ({"part_iteration": "sum"}, None, "part, spatial_attention, sum", True),
        ({"keypoint_query": "instance"}, None, "instance, spatial_attention", True),
        ({"keypoint_query": "instance", "query_feedback": "never"}, None, "instance, spatial_attention", False),
        ({"keypoint_query": "none"}, None, "none, pooling", False),
    ],
)
def test_systems_of_the_paper(fields, version, system, feeds_back):
    text = build_model_card(tiny_config(**fields), "own").text
    assert text.strip().splitlines()[0] == "# QueryPose test_convnext" + (f", {version} version" if version else "")
    assert (" version" in text) == bool(version)
    rows = [row.split("|")[2].strip() for row in text.splitlines() if row.startswith("| keypoint query")]
    assert rows == ([system] if system else [])
    assert ("In inference the keypoints do not feed back" in text) != feeds_back


def test_variants_are_recognised():
    for variant in VARIANTS:
        assert find_variant(QueryPoseConfig.from_variant(variant)) == variant
        assert find_variant(QueryPoseConfig.from_variant(variant, light=True, skeleton="crowdpose")) == variant
    assert find_variant(tiny_config()) is None


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    tiny_config().save_pretrained(folder)
    return folder


def test_command_fills_a_card_with_measured_figures(checkpoint, tmp_path, capsys):
    metrics = tmp_path / "metrics.json"
    protocol = {"metric": "coco", "images": 5000, "people": 11004}
    metrics.write_text(json.dumps({"metrics": {"AP": 0.5125, "AP50": 0.8, "APM": None}, "protocol": protocol}))
    options = ["--base-model", "user/base", "--license", "apache-2.0", "--datasets", "user/people", "--name", "Mine"]
    assert main(["card", "--model", str(checkpoint), "--metrics", str(metrics), "--repo", "user/mine", *options]) == 0
    assert capsys.readouterr().out.strip() == str(checkpoint / "README.md")
    card = ModelCard.load(checkpoint / "README.md")
    assert card.text.strip().startswith("# Mine")
    assert "Measured with this checkpoint on COCO val2017, 5000 images with 11004 annotated people" in card.text
    assert "| AP | 51.2 |" in card.text and "APM" not in card.text
    assert 'model="user/mine"' in card.text
    assert "authors" not in card.text
    data = card.data.to_dict()
    assert (data["license"], data["base_model"], data["datasets"]) == ("apache-2.0", "user/base", ["user/people"])
    assert [(one.metric_type, one.metric_value) for one in card.data.eval_results] == [("ap", 51.2), ("ap50", 80.0)]
    assert card.data.eval_results[0].dataset_type == "detection-datasets/coco"

    assert main(["card", "--model", str(checkpoint)]) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert main(["card", "--model", str(checkpoint), "--force", "--converted", "r50"]) == 0
    card = ModelCard.load(checkpoint / "README.md")
    assert "Converted with querypose-hf" in card.text and figures(card) == ["68.7"]


def test_a_model_that_was_fine_tuned(checkpoint, tmp_path, capsys):
    """Its card has licence and name of the start, NMS and classes; a new card keeps them, and needs no --force."""
    config = tiny_config(id2label={0: "horse", 1: "dog"}, label2id={"horse": 0, "dog": 1})
    config.save_pretrained(checkpoint)
    image_processor = QueryPoseImageProcessor(nms_threshold=0.7, score_threshold=0.25)
    image_processor.save_pretrained(checkpoint)
    start = fields_of_start("querypose-nano")
    assert (start.license, start.base_model) == ("apache-2.0", "querypose-nano")
    scored = replace(start, measured="AP 35.8 %, F1 70.3 % on 8 images of `val.json`")
    first = build_model_card(config, "own", scored, image_processor=image_processor)
    first.save(checkpoint / "README.md")
    assert main(["card", "--model", str(checkpoint), "--name", "Mine"]) == 0, capsys.readouterr().err
    second = ModelCard.load(checkpoint / "README.md")
    assert second.text.strip().startswith("# Mine")
    for card in (first, second):
        assert "Trained with querypose-hf, starting from querypose-nano." in card.text
        assert card.data.license == "apache-2.0" and card.data.base_model is None  # it is not on the Hub
        assert "IoU above 0.7" in card.text and "without non-maximum" not in card.text
        assert "Finds horses and dogs in an image" in card.text and "| classes | horse, dog |" in card.text
        assert "\nTraining scored this model: AP 35.8 %, F1 70.3 % on 8 images of `val.json`.\n" in card.text
        assert "| score threshold, unless another is asked for | 0.25 |" in card.text
    assert fields_of_start(str(checkpoint)) == start  # the figures are this model's alone
    assert main(["card", "--model", str(checkpoint)]) == 2  # this one was not written by training
    hub = fields_of_start("nobody/has-this-model")
    assert (hub.license, hub.base_model) == ("unknown", "nobody/has-this-model")


def test_incomplete_metadata_is_refused():
    config = QueryPoseConfig.from_variant("r50")
    card = build_model_card(config, "converted", variant="r50")
    check_model_card(card)
    card.data.eval_results[0].dataset_name = ""
    with pytest.raises(ValueError, match="`dataset` of a result"):
        check_model_card(card)
    card = build_model_card(config, "own")
    card.data.license = None
    with pytest.raises(ValueError, match="`license`"):
        check_model_card(card)
    with pytest.raises(ValueError, match="`origin` is 'theirs'; expected"):
        build_model_card(config, "theirs")
    with pytest.raises(ValueError, match="`variant` is 'r101'; expected one of"):
        build_model_card(config, "converted", variant="r101")
