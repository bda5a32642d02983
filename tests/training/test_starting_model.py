import dataclasses
import json
import warnings

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_config

from querypose_hf import COCO_17, CROWDPOSE_14, QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.data import DataDescription
from querypose_hf.training.experiment import ModelSettings
from querypose_hf.training.starting_model import about_names, build_config, build_image_processor, build_model


PERSON = {1: "person"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    QueryPoseForPoseEstimation(tiny_config()).half().save_pretrained(folder)
    QueryPoseImageProcessor(size={"shortest_edge": 40}, image_mean=[0.5] * 3).save_pretrained(folder)
    return str(folder)


def description(names, num_keypoints=None, edges=(), flip_indices=None, categories=None):
    return DataDescription(num_keypoints or len(names), names, edges, flip_indices, categories or PERSON)


class TestConfig:
    def test_new_model_for_the_datas_keypoints(self):
        settings = ModelSettings(variant="r50", overrides={"keypoint_sigmas": [0.1, 0.2, 0.3]})
        data = description(("beak", "left_wing", "right_wing"), edges=((0, 1),), categories={7: "crane", 9: "owl"})
        config = build_config(settings, data)
        assert config.keypoint_names == ["beak", "left_wing", "right_wing"]
        assert config.keypoint_flip_indices == [0, 2, 1]
        assert config.keypoint_edges == [[0, 1]]
        assert config.keypoint_sigmas == [0.1, 0.2, 0.3]
        assert config.id2label == {0: "crane", 1: "owl"}
        assert build_image_processor(settings, {}, data).category_ids == [7, 9]

    def test_what_a_file_of_numbers_tells(self):
        settings = ModelSettings(variant="r50", overrides={"keypoint_sigmas": [0.1] * 3})
        config = build_config(settings, description(None, 3, flip_indices=(0, 2, 1)))
        assert config.keypoint_names == ["keypoint_0", "keypoint_1", "keypoint_2"]
        assert config.keypoint_flip_indices == [0, 2, 1]

    def test_as_many_keypoints_without_names_are_the_checkpoints(self, checkpoint):
        config = build_config(ModelSettings(checkpoint=checkpoint), description(None, 17))
        assert config.skeleton == COCO_17

    def test_keypoints_that_the_checkpoint_has_keep_parts_and_sigmas(self, checkpoint):
        names = ("right_wrist", "nose", "tail", "left_ear", "right_elbow")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config = build_config(ModelSettings(checkpoint=checkpoint), description(names))
        assert config.keypoint_parts == [[0, 4], [1, 3], [2]]
        assert config.keypoint_sigmas == pytest.approx([0.062, 0.026, 0.067, 0.035, 0.072])
        assert any("`keypoint_sigmas` of tail are not given" in str(warning.message) for warning in caught)

    def test_checkpoint_with_other_settings(self, checkpoint):
        settings = ModelSettings(checkpoint=checkpoint, overrides={"dropout": 0.2, "num_queries": 5, "part_dim": 8})
        config = build_config(settings, description(COCO_17.keypoint_names))
        assert (config.dropout, config.num_queries, config.part_dim, config.d_model) == (0.2, 5, 8, 32)
        model, reports = build_model(settings, config)
        assert "newly initialised: model.decoder.part_queries" in reports[0] and "instance_queries" not in reports[0]
        assert model.dtype == torch.float32  # though saved as float16
        settings = dataclasses.replace(settings, overrides={})
        model, reports = build_model(settings, build_config(settings, description(COCO_17.keypoint_names)))
        assert reports == [f"Weights of {checkpoint}: all carried over"]
        for name, value in QueryPoseForPoseEstimation.from_pretrained(checkpoint).state_dict().items():
            assert torch.equal(model.state_dict()[name], value.to(model.state_dict()[name].dtype)), name

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"num_keypoints": 3}, "`model` has 3 keypoints; expected 17, as in the data"),
            ({"keypoint_names": ["a"] * 17}, "`model.keypoint_names` is .*; expected those of the data"),
            ({"d_model": 30}, "`model`: .*`d_model` .30. must be divisible"),
            ({"d_model": "wide"}, "`model`: .*'d_model' expected int, got str"),
            ({"neck_type": "hrfpn"}, "`model`: .*`neck_type` 'hrfpn' joins the branches"),
        ],
    )
    def test_errors(self, fields, message):
        with pytest.raises(ValueError, match=message):
            build_config(ModelSettings(variant="r50", overrides=fields), description(COCO_17.keypoint_names))

    def test_no_checkpoint(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "detr"}))
        for folder, message in (
            (tmp_path, "of type 'detr'; expected"),
            (tmp_path / "none", "expected a folder or Hub"),
        ):
            with pytest.raises(ValueError, match=message):
                build_config(ModelSettings(checkpoint=str(folder)), description(COCO_17.keypoint_names))

    def test_keypoints_without_names(self, checkpoint):
        settings = ModelSettings(checkpoint=str(checkpoint))
        for count, message in ((17, "taken for the checkpoint's, nose, left_eye"), (9, "all 9 are newly initialised")):
            data = description(None, count)
            (line,) = about_names(settings, data, build_config(settings, data))
            assert line.startswith("The data does not name its keypoints: ") and message in line
        named = description(["nose"])
        assert about_names(settings, named, build_config(settings, named)) == []

    def test_image_processor(self, checkpoint):
        data = description(CROWDPOSE_14.keypoint_names, categories={3: "person"})
        processor = build_image_processor(ModelSettings(checkpoint=checkpoint), {"image_std": [0.5] * 3}, data)
        assert processor.size.shortest_edge == 40
        assert (list(processor.image_mean), list(processor.image_std)) == ([0.5] * 3, [0.5] * 3)
        assert (processor.num_keypoints, processor.category_ids) == (14, [3])

    def test_backbone_weights_of_a_file(self, tmp_path):
        config = tiny_config()
        torch.manual_seed(1)
        backbone = QueryPoseForPoseEstimation(config).model.backbone.model._backbone.state_dict()
        file = tmp_path / "backbone.safetensors"
        save_file(backbone, file)
        settings = ModelSettings(config={}, backbone_weights=str(file))
        torch.manual_seed(2)
        model, reports = build_model(settings, config)
        found = model.model.backbone.model._backbone.state_dict()
        assert all(torch.equal(found[name], value) for name, value in backbone.items())
        assert f"{len(backbone)} tensors used, 0 unused, 0 missing" in reports[0]
        assert build_model(settings, config, weights=False)[1] == []

    @pytest.mark.parametrize("field", ["backbone_weights", "heatmap_pretrained"])
    def test_no_such_weights(self, field):
        settings = ModelSettings(config={}, **{field: "none.pth"})
        with pytest.raises(FileNotFoundError, match=rf"`model.{field}` is 'none.pth'; there is no such file"):
            build_model(settings, tiny_config())
