"""The YAML files in `configs/`: each is read, its model built without memory, the published held against the paper."""

from pathlib import Path

import pytest
import torch
from places import PROJECT

from querypose_hf import COCO_17, CROWDPOSE_14, QUERYPOSE_NANO, QueryPoseConfig, QueryPoseForPoseEstimation
from querypose_hf.data import DataDescription
from querypose_hf.hub.figures import PUBLISHED_AP
from querypose_hf.training.experiment import Experiment
from querypose_hf.training.recipe import RECIPES
from querypose_hf.training.starting_model import build_config


FOLDER = PROJECT / "configs"
#: All but the study's, which tests/training/test_study.py reads.
EXPERIMENTS = sorted(set(FOLDER.glob("*.yaml")) - {FOLDER / "study.yaml"})
#: The other is of a model of our own.
FILES = [file for file in EXPERIMENTS if Experiment.from_yaml(file).model.variant is not None]


def described(skeleton) -> DataDescription:
    return DataDescription(skeleton.num_keypoints, skeleton.keypoint_names, (), skeleton.flip_indices, {1: "person"})


def test_every_published_model_is_there():
    models = set()
    for file in FILES:
        experiment = Experiment.from_yaml(file)
        scored_on = "CrowdPose test" if experiment.data.train[0].format == "crowdpose" else "COCO val2017"
        models.add((scored_on, experiment.model.variant, "light" if experiment.model.light else "full"))
    published = {
        (scored_on, variant, version)
        for (variant, version), figures in PUBLISHED_AP.items()
        for scored_on in ("COCO val2017", "CrowdPose test")
        if scored_on in figures
    }
    assert published <= models


def test_querypose_nano_is_read_and_built():
    [file] = set(EXPERIMENTS) - set(FILES)
    assert file.name == "querypose_nano.yaml"
    config = build_config(Experiment.from_yaml(file).model, described(COCO_17))
    with torch.device("meta"):
        model = QueryPoseForPoseEstimation(config)
    shipped = QueryPoseConfig.from_pretrained(QUERYPOSE_NANO)
    # made by training, and of the saved file
    made = {"architectures", "dtype", "transformers_version", "auto_map"}
    described_fields, shipped_fields = config.to_dict(), shipped.to_dict()
    for name in made | {"class_names", "id2label", "label2id"}:
        described_fields.pop(name, None), shipped_fields.pop(name, None)
    assert described_fields == shipped_fields
    assert sum(parameter.numel() for parameter in model.model.parameters()) < 7.5e6  # 15 MB in float16


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_experiment(file):
    experiment = Experiment.from_yaml(file)
    settings = experiment.model
    crowdpose = file.stem.startswith("crowdpose")
    skeleton = CROWDPOSE_14 if crowdpose else COCO_17
    config = build_config(settings, described(skeleton))
    published = QueryPoseConfig.from_variant(
        settings.variant, light=settings.light, skeleton="crowdpose" if crowdpose else "coco"
    )
    assert config.to_dict() == published.to_dict()
    with torch.device("meta"):
        model = QueryPoseForPoseEstimation(config)
    assert sum(parameter.numel() for parameter in model.parameters()) > 50e6

    # the paper's recipe, Section 4.1: 16 images a step on 8 GPUs
    recipe = RECIPES["paper_1x" if file.stem.endswith("_1x") else "paper_2x"]
    assert experiment.training.schedule == recipe.schedule
    assert (experiment.training.learning_rate, experiment.training.batch_size) == (2.5e-5, 2)
    assert experiment.augmentation.short_sides == tuple(range(480, 801, 32))
    assert experiment.data.validation.protocol == ("crowdpose" if crowdpose else "coco")
    assert [Path(source.annotations).stem for source in experiment.data.train] == (
        ["crowdpose_train", "crowdpose_val"] if crowdpose else ["person_keypoints_train2017"]
    )

    # the weights that the authors' trainings start from, as far as their files name them
    if settings.variant == "r50":
        assert settings.backbone_weights == "resnet50.tv_in1k"
    assert (settings.heatmap_pretrained is not None) == settings.variant.startswith("hrnet")

    # the figure beside it is the one that the model card gives
    scored_on = "CrowdPose test" if crowdpose else "COCO val2017"
    figure = PUBLISHED_AP[settings.variant, "light" if settings.light else "full"][scored_on]
    comment = file.read_text().splitlines()[0]
    assert scored_on in comment
    assert f"{64.9 if file.stem == 'r50_1x' else figure} AP" in comment
