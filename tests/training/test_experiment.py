import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from small_data import relabelled_for_crowdpose, small_experiment, write_rendered_coco
from tiny import tiny_config

from querypose_hf import COCO_17, CROWDPOSE_14, QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.data import image_sizes
from querypose_hf.evaluation.scoring import score_keypoints
from querypose_hf.training.experiment import Experiment, ModelSettings, with_assignments
from querypose_hf.training.experiment_model import build_config, build_image_processor, build_model
from querypose_hf.training.sources import DataDescription, Validation, describe_sources, open_source


PERSON = {1: "person"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_rendered_coco(tmp_path_factory.mktemp("rendered"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    QueryPoseForPoseEstimation(tiny_config()).half().save_pretrained(folder)
    QueryPoseImageProcessor(size={"shortest_edge": 40}, image_mean=[0.5] * 3).save_pretrained(folder)
    return str(folder)


class TestDescription:
    def test_yaml_and_back(self, source, tmp_path):
        values = small_experiment(source, variant="r50", light=True, num_queries=50, query_feedback="never")
        values["augmentation"]["mosaic"] = {"size": 64, "probability": 0.25}
        values["training"]["recipe"] = "paper_3x"
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(values))
        experiment = Experiment.from_yaml(path)
        assert experiment.model.overrides == {"num_queries": 50, "query_feedback": "never"}
        assert experiment.augmentation.mosaic.build().probability == 0.25
        assert experiment.augmentation.build(None).steps[1].window == (32, 48)
        assert experiment.training.evaluate_every == 2
        path.write_text(experiment.to_yaml())
        assert Experiment.from_yaml(path) == experiment

    def test_assignments(self, source, tmp_path):
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(small_experiment(source)))
        assignments = [
            "training.learning_rate=1e-4",
            "data.train.0.repeat=2",
            "data.validation=null",
            "augmentation.mosaic.size=32",
        ]
        experiment = Experiment.from_yaml(path, assignments)
        assert experiment.training.learning_rate == 1e-4
        assert experiment.data.train[0].repeat == 2
        assert experiment.data.validation is None
        assert experiment.augmentation.mosaic.size == 32

    @pytest.mark.parametrize(
        ("assignment", "message"),
        [("training", "expected FIELD=VALUE"), ("data.train.1.repeat=2", "there is no '1' in"), ("a=[", "not YAML")],
    )
    def test_bad_assignments(self, assignment, message):
        values = {"data": {"train": [{"repeat": 1}]}}
        with pytest.raises(ValueError, match=message):
            with_assignments(values, [assignment])
        assert values == {"data": {"train": [{"repeat": 1}]}}

    def test_length(self, source):
        values = small_experiment(source)
        values["training"] = {"recipe": "paper_1x"}
        experiment = Experiment.from_mapping(values)
        schedule = experiment.with_length(1400, "step").training.schedule
        assert (schedule.length, schedule.milestones, schedule.warmup_steps) == (1400, (1100, 1300), 140)
        schedule = experiment.with_length(12, "epoch").training.schedule
        assert (schedule.unit, schedule.length, schedule.milestones) == ("epoch", 12, (9, 11))
        assert experiment.with_length(1, "epoch").training.schedule.milestones == ()
        with pytest.raises(ValueError, match="expected at least 1"):
            experiment.with_length(0, "step")

    @pytest.mark.parametrize(
        ("assignment", "message"),
        [
            ("model.variant=r50", "`checkpoint`, `variant` and `config`: variant and config given"),
            ("model.config=null", "`checkpoint`, `variant` and `config`: none given"),
            ("model.light=true", "`light` is True; expected it with `variant`"),
            ("model.num_queries=3", r"\['num_queries'\] beside `config`"),
            ("model.config.num_query=3", "unknown field `num_query` .value 3. of `config`"),
            ("model.chekpoint=x", "unknown field `model.chekpoint` .value 'x'."),
            ("model=3", "`model` is 3; expected fields with values"),
            ("data.train=[]", "`train` is ..; expected at least one source"),
            ("data.train=x", "`data.train` is 'x'; expected a list"),
            ("data.train.0.repeat=0", r"in `data.train\[0\]`: `repeat` is 0.0; expected above 0"),
            ("data.train.0.repeats=2", r"unknown field `data.train\[0\].repeats`"),
            ("data.train.0.split=val", r"in `data.train\[0\]`: `split` is 'val'; format 'coco' does not have it"),
            ("data.train.0.format=voc", r"`data.train\[0\].format` is 'voc'; expected one of"),
            ("data.train.0.annotations=null", r"in `data.train\[0\]`: `annotations` is None; expected a value"),
            ("data.train.0={format: synthetic}", "`length` is None; expected the number of pictures"),
            ("data.train.0.max_images=0", "`max_images` is 0; expected at least 1"),
            ("data.validation.metric=crowdpose", "in `data.validation`: `metric` is 'crowdpose'; expected 'coco'"),
            ("data.validation.metric=voc", "`data.validation.metric` is 'voc'; expected one of .*, or nothing"),
            ("data.validation.batch_size=0", "`batch_size` is 0; expected at least 1"),
            ("augmentation.rotation=200", "in `augmentation`: `rotation` is 200.0; expected an angle"),
            ("augmentation.flip_probability=2", "`flip_probability` is 2.0; expected from 0 to 1"),
            ("augmentation.crop_window=[9, 3]", "in `augmentation`: `window` is .9, 3."),
            ("augmentation.mosaic={}", "`augmentation.mosaic.size` is missing"),
            (
                "augmentation.mosaic={size: 64, center: [0.1]}",
                "in `augmentation.mosaic`: `center` is .0.1,.; expected",
            ),
            ("image_processor.num_keypoints=3", "unknown field `image_processor.num_keypoints` .value 3."),
            ("training.batch_size=0", "in `training`: `batch_size` is 0; expected at least 1"),
            ("trainnig.batch_size=1", "unknown field `trainnig`"),
        ],
    )
    def test_bad_values_are_named(self, source, tmp_path, assignment, message):
        path = tmp_path / "bad.yaml"
        path.write_text(yaml.safe_dump(small_experiment(source)))
        with pytest.raises(ValueError, match=message) as error:
            Experiment.from_yaml(path, [assignment])
        assert str(error.value).startswith(str(path))

    def test_what_a_resumed_run_may_change(self, source):
        values = small_experiment(source)
        experiment = Experiment.from_mapping(values)
        for change in ("data.train.0.images=elsewhere", "data.validation.batch_size=3", "training.log_every=7"):
            Experiment.from_mapping(with_assignments(values, [change])).check_continues(experiment, "run")
        for change, message in (
            ("data.train.0.repeat=2", "run: `data.train.0.repeat` was 1.0 in this run and is 2.0 now"),
            ("augmentation.rotation=3", "`augmentation.rotation` was 0.0"),
            ("model.config.d_model=64", "`model.config.d_model` was 32"),
            ("data.train=[{format: synthetic, length: 3}]", "`data.train.0.format` was 'coco'"),
        ):
            with pytest.raises(ValueError, match=message):
                Experiment.from_mapping(with_assignments(values, [change])).check_continues(experiment, "run")


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
        assert any("`keypoint_sigmas` of tail not given" in str(warning.message) for warning in caught)

    def test_checkpoint_with_other_settings(self, checkpoint):
        settings = ModelSettings(checkpoint=checkpoint, overrides={"dropout": 0.2, "num_queries": 5, "part_dim": 8})
        config = build_config(settings, description(COCO_17.keypoint_names))
        assert (config.dropout, config.num_queries, config.part_dim, config.d_model) == (0.2, 5, 8, 32)
        model, reports = build_model(settings, config)
        assert "fresh: model.decoder.part_queries" in reports[0] and "instance_queries" not in reports[0]
        assert model.dtype == torch.float32  # though saved as float16
        settings = dataclasses.replace(settings, overrides={})
        model, reports = build_model(settings, build_config(settings, description(COCO_17.keypoint_names)))
        assert reports == [f"Weights of {checkpoint}: all carried over"]
        for name, value in QueryPoseForPoseEstimation.from_pretrained(checkpoint).state_dict().items():
            assert torch.equal(model.state_dict()[name], value.to(model.state_dict()[name].dtype)), name

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"num_keypoints": 3}, "3 keypoints are given, and the data has 17"),
            ({"keypoint_names": ["a"] * 17}, "`model.keypoint_names` is .* and the data's are"),
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


def sources_of(*train):
    values = {"model": {"variant": "r50"}, "data": {"train": list(train)}}
    return [
        open_source(settings, f"data.train[{n}]")
        for n, settings in enumerate(Experiment.from_mapping(values).data.train)
    ]


SYNTHETIC = {"format": "synthetic", "length": 3, "size": [64, 48]}


class TestSources:
    def test_options_reach_the_readers(self, source, tmp_path):
        content = json.loads(open(source["annotations"]).read())
        for image in content["images"]:
            image.update(orig_width=96, orig_height=48)
        content["images"].append({**content["images"][0], "id": 99})  # nobody in it
        path = tmp_path / "people.json"
        path.write_text(json.dumps(content))
        fields = {"annotations": str(path), "images": source["images"]}
        (dataset,) = sources_of({**fields, "undo_squeeze": True, "exhaustive": False})
        assert len(dataset) == 6 and dataset[0]["image"].size == (96, 48)
        assert dataset[0]["exhaustive"] is False
        (few,) = sources_of({**fields, "only_with_people": False, "max_images": 2})
        assert len(few) == 2 and image_sizes(few).tolist() == [[64, 48]] * 2

    def test_together(self, source):
        data = describe_sources(sources_of(SYNTHETIC, source))
        assert data.keypoint_names == COCO_17.keypoint_names
        assert data.category_names == PERSON

    def test_differences_are_errors(self, source, tmp_path):
        path = tmp_path / "other.json"
        content = json.loads(open(source["annotations"]).read())
        path.write_text(json.dumps(relabelled_for_crowdpose(content)))
        crowdpose = {"annotations": str(path), "images": source["images"]}
        with pytest.raises(ValueError, match=r"`data.train\[1\]` has 14 keypoints and `data.train\[0\]` 17"):
            describe_sources(sources_of(source, crowdpose))
        content["categories"][0]["keypoints"][:2] = ["left_eye", "nose"]
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"`data.train\[1\]` has the keypoints \['left_eye', 'nose'"):
            describe_sources(sources_of(source, crowdpose))
        content["categories"] = [{**content["categories"][0], "id": number} for number in (1, 2)]
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"has the categories .*; expected as many"):
            describe_sources(sources_of(source, crowdpose))

    def test_missing_files_are_named_with_their_place(self, source):
        with pytest.raises(FileNotFoundError, match=r"`data.train\[1\]`: .*none.json"):
            sources_of(source, {**source, "annotations": "none.json"})
        with pytest.raises(ValueError, match=r"`data.train\[0\]`: `columns` is .*; expected fields of PoseColumns"):
            sources_of({"format": "hub", "annotations": "x", "columns": {"picture": "y"}})


def validation_of(settings, folder, category_ids=(1,), num_keypoints=17):
    values = {"model": {"variant": "r50"}, "data": {"train": [SYNTHETIC], "validation": settings}}
    processor = QueryPoseImageProcessor(category_ids=list(category_ids), num_keypoints=num_keypoints)
    return Validation(Experiment.from_mapping(values).data.validation, processor, folder)


def perfect_score(truth):
    results = [
        {**{key: person[key] for key in ("image_id", "category_id", "bbox")}, "score": 1.0}
        | {"keypoints": np.asarray(person["keypoints"]).tolist()}
        for person in truth.annotations
    ]
    return score_keypoints(truth, results, sigmas=[0.05] * truth.num_keypoints, progress=False).metrics["AP"]


class TestValidation:
    def test_rendered_people_become_files(self, tmp_path):
        validation = validation_of({**SYNTHETIC, "seed": 4}, tmp_path / "images")
        assert len(list((tmp_path / "images").iterdir())) == 3
        assert validation.ground_truth.num_keypoints == 17
        assert perfect_score(validation.ground_truth) == pytest.approx(1)
        before = (tmp_path / "images" / "000000.png").stat().st_mtime_ns
        validation_of({**SYNTHETIC, "seed": 4}, tmp_path / "images")
        assert (tmp_path / "images" / "000000.png").stat().st_mtime_ns == before
        torch.manual_seed(0)
        model = QueryPoseForPoseEstimation(tiny_config())
        validation.check(model)
        assert validation(model)["AP"] < 0.5

    def test_yolo(self, tmp_path):
        for kind in ("images", "labels"):
            (tmp_path / kind / "val").mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (80, 40)).save(tmp_path / "images" / "val" / f"{number}.png")
            line = "1 0.5 0.5 0.25 0.5 0.5 0.5 2 0.25 0.75 1 0 0 0"
            (tmp_path / "labels" / "val" / f"{number}.txt").write_text(line)
        settings = {"path": ".", "val": "images/val", "kpt_shape": [3, 3], "names": {0: "horse", 1: "rider"}}
        (tmp_path / "data.yaml").write_text(yaml.safe_dump(settings))
        source = {"format": "yolo", "annotations": str(tmp_path / "data.yaml"), "split": "val", "max_images": 1}
        truth = validation_of(source, tmp_path / "unused", category_ids=(4, 6), num_keypoints=3).ground_truth
        (person,) = truth.annotations
        assert (person["category_id"], person["bbox"], person["area"]) == (6, [30, 10, 20, 20], 400)
        assert person["keypoints"].tolist() == [39.5, 19.5, 2, 19.5, 29.5, 1, 0, 0, 0]
        assert perfect_score(truth) == pytest.approx(1)
        with pytest.raises(ValueError, match=r"`data.validation` has the categories .*; expected 1"):
            validation_of(source, tmp_path / "unused", num_keypoints=3)

    def test_keypoints_have_to_be_the_models(self, source, tmp_path):
        validation = validation_of({**source, "max_images": 2}, tmp_path)
        assert len(validation.ground_truth.images) == 2
        model = QueryPoseForPoseEstimation(tiny_config(**QueryPoseConfig.skeleton_fields(CROWDPOSE_14)))
        with pytest.raises(ValueError, match=r"finds 14 keypoints; `data.validation` .* has 17"):
            validation.check(model)
