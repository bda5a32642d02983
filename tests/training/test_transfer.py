import pytest
import torch
from tiny import people, tiny_config

from querypose_hf import QueryPoseConfig, QueryPoseForPoseEstimation
from querypose_hf.model.skeletons import Skeleton
from querypose_hf.training.transfer import transfer_weights


def model_of(skeleton, seed, **fields):
    torch.manual_seed(seed)
    return QueryPoseForPoseEstimation(tiny_config(**{**QueryPoseConfig.skeleton_fields(skeleton), **fields}))


def by_part(tensor, num_parts):
    return tensor.unflatten(0, (num_parts, -1))


@pytest.fixture(scope="module")
def coco():
    return model_of("coco", seed=1)


class TestToCrowdPose:
    @pytest.fixture(scope="class")
    def models(self):
        source, target = model_of("coco", seed=1), model_of("crowdpose", seed=2)
        start = {name: value.clone() for name, value in target.state_dict().items()}
        return source, target, start, transfer_weights(source, target)

    def test_keypoints_by_name(self, models):
        source, target, start, report = models
        coco_names = source.config.keypoint_names
        for head in ("keypoint_head", "sigma_head"):
            for field in ("weight", "bias"):
                key = f"model.decoder.keypoint_layers.1.{head}.{field}"
                for row, name in enumerate(target.config.keypoint_names):
                    expected = start[key][row]
                    if name in coco_names:
                        expected = source.state_dict()[key][coco_names.index(name)]
                    assert torch.equal(target.state_dict()[key][row], expected), (key, name)
                assert key in report.carried_in_part
        assert [name for name, origin in report.keypoints.items() if origin is None] == ["head", "neck"]
        assert report.keypoints["left_knee"] == "left_knee"

    def test_parts_by_the_names_of_their_keypoints(self, models):
        source, target, start, report = models
        # CrowdPose's parts: head, shoulders, left and right lower arm, hips, left and right lower leg
        origins = [None, 1, 2, 3, 4, 5, 6]
        for key in (
            "model.decoder.part_queries",
            "model.decoder.keypoint_layers.0.query_projection.projection.weight",
            "model.decoder.keypoint_layers.0.query_projection.projection.bias",
            "model.decoder.keypoint_layers.1.part_embedding.attention_conv.weight",
            "model.decoder.keypoint_layers.1.part_embedding.attention_conv.bias",
        ):
            found, own, learned = (by_part(w[key], 7) for w in (target.state_dict(), start, source.state_dict()))
            for part, origin in enumerate(origins):
                expected = own[part] if origin is None else learned[origin]
                assert torch.equal(found[part], expected), (key, part)
            assert key in report.carried_in_part
        assert report.parts["head", "neck"] is None
        assert report.parts["left_elbow", "left_wrist"] == ("left_elbow", "left_wrist")

    def test_everything_else_whole(self, models):
        source, target, _, report = models
        assert len(report.carried) > 100
        for name in report.carried:
            assert torch.equal(target.state_dict()[name], source.state_dict()[name]), name
        assert {name.split(".")[0] for name in report.carried} == {"model", "flow"}
        assert report.fresh == report.left_behind == ()
        everything = {*report.carried, *report.carried_in_part}
        assert everything == set(target.state_dict())

    def test_report_as_text(self, models):
        text = str(models[3])
        assert "keypoints carried over: 12 of 14; newly initialised: head, neck" in text
        assert "parts carried over: 6 of 7; newly initialised: head+neck" in text
        assert len(text.splitlines()) == 3

    def test_it_trains(self, models):
        output = models[1].train()(torch.randn(1, 3, 64, 64), labels=[people(2, num_keypoints=14)])
        output.loss.backward()
        assert output.loss.isfinite()


def test_unrelated_names(coco):
    horse = Skeleton.from_names(["withers", "croup", "poll", "tail_base", "hock"], sigmas=[0.05] * 5)
    target = model_of(horse, seed=2)
    start = {name: value.clone() for name, value in target.state_dict().items()}
    report = transfer_weights(coco, target)
    assert set(report.keypoints.values()) == {None} and set(report.parts.values()) == {None}
    assert "model.decoder.part_queries" in report.fresh
    assert "model.backbone.model._backbone.stem_0.weight" in report.carried
    assert all(torch.equal(target.state_dict()[name], start[name]) for name in report.fresh)
    assert sorted(report.fresh) == sorted(report.left_behind)
    text = str(report)
    assert "keypoints carried over: 0 of 5; newly initialised: withers, croup, poll, tail_base, hock" in text
    assert "so all keypoints are newly initialised" in text
    # tensors are counted, a few of them named; parts of one keypoint each are not named again
    assert len(report.fresh) > 10 and len(text.splitlines()) == 5


def test_as_many_keypoints_in_another_order_and_spelling(coco):
    names = [name.replace("_", " ").title() for name in reversed(coco.config.keypoint_names)]
    target = model_of(Skeleton.from_names(names, sigmas=[0.05] * 17), seed=2)
    report = transfer_weights(coco, target)
    key = "model.decoder.keypoint_layers.0.keypoint_head.weight"
    assert torch.equal(target.state_dict()[key], coco.state_dict()[key].flip(0))
    assert report.keypoints["Right Ankle"] == "right_ankle"
    # every keypoint is a part of its own here, and comes from the part that it was in
    queries = target.state_dict()["model.decoder.part_queries"]
    parts = coco.config.keypoint_parts
    for position, keypoint in enumerate(reversed(range(17))):
        part = next(index for index, part in enumerate(parts) if keypoint in part)
        assert torch.equal(queries[position], coco.state_dict()["model.decoder.part_queries"][part])


def test_same_skeleton_is_a_copy(coco):
    target = model_of("coco", seed=3)
    report = transfer_weights(coco, target)
    assert not report.carried_in_part and not report.fresh and not report.left_behind
    assert all(torch.equal(target.state_dict()[name], value) for name, value in coco.state_dict().items())


def test_other_shapes_are_newly_initialised(coco):
    target = model_of("coco", seed=3, heatmap_loss_coefficient=0.5, part_dim=8)
    report = transfer_weights(coco, target)
    assert "model.decoder.part_queries" in report.fresh
    assert "heatmap_head.predictor.weight" in report.fresh
    assert "model.decoder.part_queries" in report.left_behind
    assert "model.neck.lateral_convs.0.weight" in report.carried


@pytest.mark.parametrize("count", [9, 30])
def test_other_numbers_of_queries(count):
    origin, target = model_of("coco", seed=1), model_of("coco", seed=3, num_queries=count)
    with torch.no_grad():
        origin.model.decoder.initial_boxes.uniform_(0.1, 0.9)
    report = transfer_weights(origin, target)
    assert not report.fresh and not report.left_behind
    for table in ("instance_queries", "initial_boxes"):
        source, found = (getattr(model.model.decoder, table) for model in (origin, target))
        assert len(found) == count
        for row in range(count):
            assert torch.equal(found[row], source[row % 12])


def test_heatmap_head_by_keypoint():
    source = model_of("coco", seed=1, heatmap_loss_coefficient=0.5)
    target = model_of("crowdpose", seed=2, heatmap_loss_coefficient=0.5)
    transfer_weights(source, target)
    assert torch.equal(target.heatmap_head.predictor.weight[0], source.heatmap_head.predictor.weight[5])


def test_some_layers_are_newly_initialised(coco):
    target = model_of("coco", seed=2)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    report = transfer_weights(coco, target, fresh=r"keypoint_layers\.\d+\.(?!conv_stack)")
    assert all("keypoint_layers" in name and "conv_stack" not in name for name in report.fresh)
    assert report.left_behind == () and len(report.fresh) > 20
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name] if name in report.fresh else coco.state_dict()[name]), name
    with pytest.raises(ValueError, match="`fresh` is 'no_such_layer'; expected it in the name of a tensor"):
        transfer_weights(coco, target, fresh="no_such_layer")


def test_from_a_folder(coco, tmp_path):
    coco.save_pretrained(tmp_path)
    target = model_of("crowdpose", seed=2)
    transfer_weights(tmp_path, target)
    assert torch.equal(target.flow.scale[0][0].weight, coco.flow.scale[0][0].weight)


def test_coordinates_from_attention_have_no_layer_to_carry():
    source = model_of("coco", seed=1, keypoint_parts="a")
    target = model_of("coco", seed=2, keypoint_parts="a", keypoint_coordinates="attention")
    report = transfer_weights(source, target)
    heads = [
        f"model.decoder.keypoint_layers.{n}.keypoint_head.{field}" for n in (0, 1) for field in ("weight", "bias")
    ]
    assert not report.fresh and sorted(report.left_behind) == sorted(heads)
    # and are learned anew on the way back
    assert sorted(transfer_weights(target, source).fresh) == sorted(heads)
