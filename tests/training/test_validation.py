import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_data import write_rendered_coco
from tiny import BACKBONES, tiny_config
from tqdm.auto import tqdm

from querypose_hf import CROWDPOSE_14, QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.evaluation.prediction import predict_dataset
from querypose_hf.evaluation.scoring import score_keypoints
from querypose_hf.model.fusion_querypose import is_batch_norm
from querypose_hf.training.experiment import Experiment
from querypose_hf.training.fast_convolutions import speed_up_convolutions
from querypose_hf.training.validation import Validation


GENERATED = {"format": "generated", "length": 3, "size": [64, 48]}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_rendered_coco(tmp_path_factory.mktemp("rendered"))


def validation_of(settings, folder, category_ids=(1,), num_keypoints=17):
    values = {"model": {"variant": "r50"}, "data": {"train": [GENERATED], "validation": settings}}
    processor = QueryPoseImageProcessor(category_ids=list(category_ids), num_keypoints=num_keypoints)
    return Validation(Experiment.from_mapping(values).data.validation, processor, folder)


def perfect_results(truth):
    return [
        {**{key: person[key] for key in ("image_id", "category_id", "bbox")}, "score": 1.0}
        | {"keypoints": np.asarray(person["keypoints"]).tolist()}
        for person in truth.annotations
    ]


def perfect_score(truth):
    results = perfect_results(truth)
    return score_keypoints(truth, results, sigmas=[0.05] * truth.num_keypoints, progress=False).metrics["AP"]


class TestValidation:
    def test_rendered_people_become_files(self, tmp_path):
        validation = validation_of({**GENERATED, "seed": 4}, tmp_path / "images")
        assert len(list((tmp_path / "images").iterdir())) == 3
        assert validation.ground_truth.num_keypoints == 17
        assert perfect_score(validation.ground_truth) == pytest.approx(1)
        before = (tmp_path / "images" / "000000.png").stat().st_mtime_ns
        validation_of({**GENERATED, "seed": 4}, tmp_path / "images")
        assert (tmp_path / "images" / "000000.png").stat().st_mtime_ns == before
        torch.manual_seed(0)
        model = QueryPoseForPoseEstimation(tiny_config())
        validation.check(model)
        figures = validation(model)
        assert figures["AP"] < 0.5
        assert "score_threshold" not in figures  # nobody is found

    def test_the_score_threshold_with_the_best_f1(self, source, tmp_path, monkeypatch):
        """The people are found with a score of 1, and as many others with one of 0.5."""

        def found(model, truth, *_, **__):
            right = perfect_results(truth)
            return right + [{**one, "score": 0.5, "keypoints": [0.0] * 51} for one in right]

        monkeypatch.setattr("querypose_hf.training.validation.predict_dataset", found)
        figures = validation_of(source, tmp_path)(QueryPoseForPoseEstimation(tiny_config()))
        assert (figures["F1"], figures["score_threshold"]) == (1, 0.75)

    def test_its_progress_bar_does_not_stay_below_that_of_training(self, source, tmp_path, capsys):
        validation = validation_of({**source, "num_workers": 0}, tmp_path)
        capsys.readouterr()
        with tqdm(total=1):
            validation(QueryPoseForPoseEstimation(tiny_config()))
            said = capsys.readouterr().err
        assert "Finding people" in said
        assert re.search(r"\r +$", said.replace("\x1b[A", ""))  # blanks cover it

    @pytest.mark.parametrize("fast", [False, True])
    def test_a_fused_copy_looks_at_the_images(self, tmp_path, monkeypatch, fast):
        """It finds the same people, and the model can be trained on as if nobody had looked."""
        torch.manual_seed(0)
        settings = {**BACKBONES["resnet"], "freeze_batch_norm_2d": fast}
        model = QueryPoseForPoseEstimation(tiny_config(backbone_config=settings, frozen_backbone_stages=0)).eval()
        for norm in filter(is_batch_norm, model.modules()):
            norm.running_mean.uniform_(-0.5, 0.5)
            norm.running_var.uniform_(0.5, 2.0)
        validation = validation_of({**GENERATED, "seed": 4, "num_workers": 0}, tmp_path / "images")
        looked, seen = predict_dataset, []

        def look(model, *arguments, **options):
            assert torch.equal(torch.get_rng_state(), numbers)
            seen.append((model, looked(model, *arguments, **options)))
            return seen[-1][1]

        arguments = (model, validation.ground_truth, validation.images, validation.settings)
        expected = looked(*arguments, image_processor=validation.image_processor, progress=False)
        monkeypatch.setattr("querypose_hf.training.validation.predict_dataset", look)
        if fast:
            speed_up_convolutions(model.model.backbone)
        forwards = [module.forward for module in model.modules()]
        assert any("forward" in vars(module) for module in model.modules()) == fast
        state = {name: value.clone() for name, value in model.state_dict().items()}
        learns = [parameter.requires_grad for parameter in model.parameters()]
        numbers = torch.get_rng_state()
        validation(model)

        (fused, found), own = seen[0], list(model.modules())
        backbone = fused.model.backbone
        assert not any(is_batch_norm(module) for module in backbone.modules())
        assert not any(module in own for module in fused.modules())
        assert len(found) == len(expected) > 0
        for one, other in zip(found, expected, strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=1e-4)
            assert one["keypoints"] == pytest.approx(other["keypoints"], abs=0.02)
        assert [module.forward for module in model.modules()] == forwards
        assert [parameter.requires_grad for parameter in model.parameters()] == learns
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert model.train().training

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
        del source["split"]  # by default it is the first there is of validation, val and test
        assert validation_of(source, tmp_path / "unused", category_ids=(4, 6), num_keypoints=3).ground_truth.images
        for number in range(2):
            (tmp_path / "labels" / "val" / f"{number}.txt").write_text("")
        with pytest.raises(ValueError, match=r"`data.validation`: none of its 1 images has a person"):
            validation_of(source, tmp_path / "unused", category_ids=(4, 6), num_keypoints=3)
        with pytest.raises(ValueError, match=r"`data.validation` has the categories .*; expected 1"):
            validation_of(source, tmp_path / "unused", num_keypoints=3)

    def test_an_image_damaged_behind_its_header(self, tmp_path, caplog):
        validation = validation_of({**GENERATED, "seed": 4}, tmp_path / "images")
        damaged = tmp_path / "images" / "000001.png"
        damaged.write_bytes(damaged.read_bytes()[:200])
        assert Image.open(damaged).size == (64, 48)
        assert validation(QueryPoseForPoseEstimation(tiny_config()))["unusable_images"] == 1
        assert "1 of 3 images cannot be used" in caplog.text and str(damaged) in caplog.text

    def test_keypoints_have_to_be_the_models(self, source, tmp_path):
        validation = validation_of({**source, "max_images": 2}, tmp_path)
        assert len(validation.ground_truth.images) == 2
        model = QueryPoseForPoseEstimation(tiny_config(**QueryPoseConfig.skeleton_fields(CROWDPOSE_14)))
        with pytest.raises(ValueError, match=r"finds 14 keypoints; `data.validation` .* has 17"):
            validation.check(model)
