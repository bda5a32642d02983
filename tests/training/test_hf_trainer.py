import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import write_rendered_coco
from tiny import tiny_config
from transformers import EvalPrediction, TrainingArguments

from querypose_hf import QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.data import CocoPoseDataset, PoseCollator
from querypose_hf.evaluation import PredictionOptions, predict_dataset
from querypose_hf.training.hf_trainer import PoseMetrics, build_trainer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_rendered_coco(tmp_path_factory.mktemp("rendered"), count=5)


@pytest.fixture(scope="module")
def dataset(source):
    return CocoPoseDataset(source["annotations"], source["images"])


@pytest.fixture
def image_processor():
    return QueryPoseImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}, num_keypoints=17)


def small_model(**fields):
    torch.manual_seed(0)
    return QueryPoseForPoseEstimation(tiny_config(**fields))


def small_arguments(folder, **changes):
    settings = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 1,
        "learning_rate": 1e-3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "eval_do_concat_batches": False,
        **changes,
    }
    return TrainingArguments(**settings)


def test_training_and_figures(dataset, source, image_processor, tmp_path):
    model = small_model()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = build_trainer(model, image_processor, small_arguments(tmp_path), dataset, dataset, source["annotations"])
    groups = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert groups["flow"] == pytest.approx(10 * groups["model"])
    trainer.train()
    assert any(not torch.equal(value, start[name]) for name, value in model.state_dict().items())
    evaluations = [record for record in trainer.state.log_history if "eval_AP" in record]
    assert [record["step"] for record in evaluations] == [2, 3]
    assert evaluations[0]["eval_loss"] > 0

    # the results are those of `predict_dataset`, image by image
    predictions = trainer.predict(dataset).predictions
    found = trainer.compute_metrics.results(predictions)
    expected = predict_dataset(
        model,
        source["annotations"],
        source["images"],
        PredictionOptions(batch_size=1, num_workers=0),
        image_processor=image_processor,
        progress=False,
    )
    key = lambda result: (result["image_id"], -result["score"])  # noqa: E731
    assert len(found) == len(expected) > 30  # empty boxes are left out
    for one, other in zip(sorted(found, key=key), sorted(expected, key=key), strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        for name in ("score", "bbox", "keypoints"):
            assert one[name] == pytest.approx(other[name], abs=1e-3, rel=1e-4), name

    trainer.save_model(tmp_path / "saved")
    QueryPoseForPoseEstimation.from_pretrained(tmp_path / "saved")
    assert QueryPoseImageProcessor.from_pretrained(tmp_path / "saved").size.shortest_edge == 48


def outputs_of(labels, queries=12):
    """The outputs of a perfect model: first the people, then queries on nobody."""
    logits = torch.full((len(labels), queries, 1), -9.0)
    boxes, points = torch.rand(len(labels), queries, 4) * 0.1, torch.rand(len(labels), queries, 17, 2)
    for number, label in enumerate(labels):
        count = len(label["boxes"])
        logits[number, :count], boxes[number, :count] = 9.0, label["boxes"]
        points[number, :count] = label["keypoints"][..., :2]
    decoded = torch.ones(len(labels), queries, dtype=torch.bool)
    return logits, boxes, points, torch.ones(len(labels), queries, 17), decoded


def test_a_perfect_model_has_an_ap_of_1(dataset, source, image_processor):
    metrics = PoseMetrics(source["annotations"], image_processor, top_k=4)
    collate = PoseCollator(image_processor)
    kept = []
    for rows in ([0, 1], [2, 3], [4, 0]):  # an image comes twice where processes need equal numbers
        labels = collate([dataset[row] for row in rows])["labels"]
        kept.append(tuple(value.numpy() for value in metrics.keep_people(outputs_of(labels), labels)))
        assert all(set(label) == {"image_id"} for label in labels)
    assert [people.shape for _, people in kept] == [(2, 4, 6 + 51)] * 3
    figures = metrics(EvalPrediction(predictions=kept, label_ids=None))
    assert figures["AP"] == pytest.approx(1) and figures["F1"] == 1
    # half-way between the people's score and that of queries on nobody
    assert figures["score_threshold"] == image_processor.score_threshold == pytest.approx(0.5, abs=1e-3)
    missing = metrics(EvalPrediction(predictions=kept[:1], label_ids=None))
    assert missing["AR"] < 0.9  # people of images that never came count as missed


def test_loss_under_gradient_accumulation(dataset, image_processor, tmp_path):
    """An optimizer step sees the mean of its micro batches' gradients, not their sum."""
    fields = {"dropout": 0.0}
    arguments = small_arguments(
        tmp_path,
        max_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=3,
        max_grad_norm=0.0,
        eval_strategy="no",
    )
    model = small_model(**fields)
    trainer = build_trainer(model, image_processor, arguments, dataset)
    batches, gradients = [], {}
    model.register_forward_pre_hook(lambda module, args, kwargs: batches.append(kwargs), with_kwargs=True)
    step = trainer.optimizer.step

    def step_and_note(*args, **kwargs):
        gradients.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        return step(*args, **kwargs)

    trainer.optimizer.step = step_and_note
    trainer.train()
    assert len(batches) == 3
    reference = small_model(**fields).train()
    losses = []
    for batch in batches:
        loss = reference(**{name: batch[name] for name in ("pixel_values", "pixel_mask", "labels")}).loss
        (loss / 3).backward()
        losses.append(loss.item())
    for name, parameter in reference.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5)
    assert trainer.state.log_history[-1]["train_loss"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_other_keypoints_have_their_own_sigmas(source, image_processor, tmp_path):
    names = ["a", "b", "c"]
    content = json.loads(Path(source["annotations"]).read_text())
    content["categories"][0]["keypoints"] = names
    for person in content["annotations"]:
        person["keypoints"] = person["keypoints"][:9]
    path = tmp_path / "three.json"
    path.write_text(json.dumps(content))
    dataset = CocoPoseDataset(path, source["images"])
    model = small_model(
        **QueryPoseConfig.skeleton_fields("coco")
        | {
            "num_keypoints": 3,
            "keypoint_names": names,
            "keypoint_parts": [[0], [1, 2]],
            "keypoint_edges": [],
            "keypoint_flip_indices": None,
            "keypoint_sigmas": [0.03, 0.04, 0.05],
        }
    )
    trainer = build_trainer(model, image_processor, small_arguments(tmp_path), dataset, dataset, path)
    assert trainer.compute_metrics.sigmas == (0.03, 0.04, 0.05)


class TestErrors:
    @pytest.mark.parametrize("name", ["remove_unused_columns", "eval_do_concat_batches"])
    def test_arguments(self, name, dataset, image_processor, tmp_path):
        with pytest.raises(ValueError, match=f"`{name}` is True; expected"):
            build_trainer(small_model(), image_processor, small_arguments(tmp_path, **{name: True}), dataset)

    def test_concatenated_batches(self, source, image_processor):
        metrics = PoseMetrics(source["annotations"], image_processor)
        with pytest.raises(ValueError, match="`eval_do_concat_batches` is True"):
            metrics(EvalPrediction(predictions=(np.zeros(1), np.zeros(1)), label_ids=None))

    def test_images_of_another_file(self, source, image_processor):
        metrics = PoseMetrics(source["annotations"], image_processor)
        with pytest.raises(ValueError, match="there is no image 77, which is in the evaluation dataset"):
            metrics.results([(np.array([77]), np.zeros((1, 20, 57)))])
