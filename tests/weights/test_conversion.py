"""Conversion of the authors' checkpoints, from tensors to a folder for `from_pretrained`.

`tests/model/test_goldens.py` shows that a converted model computes what the original does.
"""

import runpy
import warnings
from pathlib import Path

import pytest
import torch
from original_checkpoints import KINDS, SMALLER, TOLD, small_config, small_state
from places import PROJECT
from tiny import tiny_config

from querypose_hf import CROWDPOSE_14, QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.cli import main
from querypose_hf.model.configuration_querypose import VARIANTS
from querypose_hf.model.skeletons import COCO_PARTS, DEFAULT_SIGMA
from querypose_hf.weights import conversion
from querypose_hf.weights.conversion import config_from_original, convert_checkpoint, convert_state_dict


def save(path: Path, state: dict[str, torch.Tensor], **kwargs) -> Path:
    # as detectron2 writes them
    torch.save({"model": state, "optimizer": {"state": {}, "param_groups": []}, "iteration": 269999}, path, **kwargs)
    return path


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("light", [False, True], ids=["full", "light"])
@pytest.mark.parametrize("variant", KINDS)
def test_every_tensor_finds_its_place(variant, light):
    state = small_state(variant, light=light)
    config = config_from_original(state, variant, **KINDS[variant])
    assert {field: getattr(config, field) for field in TOLD} == TOLD
    assert config.pose_query_interaction == ("none" if light else "dynamic")
    assert config.query_feedback == "training"
    model = QueryPoseForPoseEstimation(config).eval()
    converted, report = convert_state_dict(state, model)
    model.load_state_dict(converted)

    assert sorted(report.used + report.unused) == sorted(state)
    unused = {"criterion.flow.flow.mask"}
    for stage in range(2):
        updater = f"head.pose_head_series.{stage}.updater"
        unused |= {f"{updater}.fc3.weight", f"{updater}.norm_fc3.weight", f"{updater}.norm_fc3.bias"}
    if variant == "hrnet_w32":
        unused |= {"backbone.fpn_conv.4.weight", "backbone.fpn_conv.4.bias"}
    if variant == "hrnet_w48":
        unused |= {"backbone.fpn_conv.4.weight", "backbone.lateral_conv.0.weight"}
    if variant == "swin_t":
        unused |= {name for name in state if name.endswith("relative_position_index")}
    assert set(report.unused) == unused

    # no number is lost, none appears twice
    final_norm = {name for name in converted if ".swin.layernorm." in name}
    assert len(final_norm) == (2 if variant == "swin_t" else 0)
    floats = [tensor for tensor in converted.values() if tensor.is_floating_point()]
    assert all(tensor.isfinite().all() for tensor in floats)
    theirs = torch.cat([state[name].double().flatten() for name in report.used]).sort().values
    ours = torch.cat([t.double().flatten() for name, t in converted.items() if name not in final_norm]).sort().values
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize("grouping", COCO_PARTS)
def test_groupings_of_the_paper_are_recognised(grouping):
    parts = COCO_PARTS[grouping]
    config = config_from_original(small_state("r50", keypoint_parts=parts), "r50", **KINDS["r50"])
    assert config.keypoint_parts == [list(part) for part in parts]
    assert config.keypoint_names[0] == "nose"


def test_number_of_classes_is_recognised():
    state = small_state("r50", num_labels=3)
    assert config_from_original(state, "r50", **KINDS["r50"]).num_labels == 3


def test_crowdpose_checkpoints_need_parts_and_names():
    state = small_state("r50", skeleton="crowdpose")
    with pytest.raises(ValueError, match=r"\[2, 2, 2, 2, 2, 2, 2\].*expected `keypoint_parts`"):
        config_from_original(state, "r50", **KINDS["r50"])
    parts = CROWDPOSE_14.parts
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # CrowdPose's sigmas are known
        config = config_from_original(
            state, "r50", parts, keypoint_names=list(CROWDPOSE_14.keypoint_names), **KINDS["r50"]
        )
    assert config.skeleton == CROWDPOSE_14
    with pytest.warns(UserWarning, match="keypoint_sigmas"):
        unnamed = config_from_original(state, "r50", parts, **KINDS["r50"])
    assert unnamed.keypoint_names == [f"keypoint_{index}" for index in range(14)]
    assert unnamed.keypoint_sigmas == [DEFAULT_SIGMA] * 14
    model = QueryPoseForPoseEstimation(config)
    converted, _ = convert_state_dict(state, model)
    expected = state["head.pose_head_series.0.fc_coord.0.linear.weight"].unflatten(0, (2, 2))
    assert torch.equal(converted["model.decoder.keypoint_layers.0.keypoint_head.weight"][[12, 13]], expected)


def test_another_skeleton_of_seventeen_keypoints():
    names = [f"left_{i}" for i in range(8)] + [f"right_{i}" for i in range(8)] + ["tail"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = config_from_original(
            small_state("r50"), "r50", keypoint_names=names, keypoint_sigmas=[0.05] * 17, **KINDS["r50"]
        )
    assert config.keypoint_names == names
    assert config.keypoint_sigmas == [0.05] * 17
    assert config.keypoint_edges == []
    assert config.keypoint_flip_indices == [*range(8, 16), *range(8), 16]


@pytest.mark.parametrize(
    ("parts", "overrides", "message"),
    [
        ([[0, 1], [2]], {}, r"`keypoint_parts`.*\[2, 1\].*\[5, 2, 2, 2, 2, 2, 2\]"),
        (None, {"keypoint_names": ["nose", "tail"], "keypoint_sigmas": [0.1, 0.1]}, "`keypoint_names` has 2 names"),
        ([[0, 1, 2, 3, 3], [5, 6], [7, 9], [8, 10], [11, 12], [13, 15], [14, 16]], {}, "`keypoint_parts`.*once"),
        (None, {"num_querys": 5}, "`num_querys`"),
    ],
)
def test_fields_that_do_not_fit_the_checkpoint(parts, overrides, message):
    with pytest.raises(ValueError, match=message):
        config_from_original(small_state("r50"), "r50", parts, **KINDS["r50"], **overrides)


@pytest.mark.parametrize(
    "name",
    [
        "head.head_series.0.class_logits.weight",
        "part_query.weight",
        "init_proposal_features.weight",
        "head.pose_head_series.0.fc_coord.3.linear.weight",
    ],
)
def test_checkpoint_without_what_tells(name):
    state = small_state("r50")
    del state[name]
    with pytest.raises(ValueError, match=rf"no tensor '{name}'"):
        config_from_original(state, "r50", **KINDS["r50"])


@pytest.fixture(scope="module")
def small_model():
    return QueryPoseForPoseEstimation(config_from_original(small_state("r50"), "r50", **KINDS["r50"]))


@pytest.mark.parametrize(
    "name",
    [
        "teacher.weight",
        "backbone.bottom_up.res9.0.conv1.weight",
        "backbone.bottom_up.res2.7.conv1.weight",
        "backbone.bottom_up.fc.weight",
        "backbone.reduction_conv.0.weight",
        "head.head_series.2.norm1.weight",
        "head.head_series.0.norm4.weight",
        "head.pose_head_series.0.inst_convs.4.weight",
        "head.pose_head_series.0.fc_coord.7.linear.weight",
        "head.pose_head_series.0.updater.fc4.weight",
        "init_proposal_features.weight.ema",
    ],
)
def test_unknown_tensors_are_named(small_model, name):
    state = {**small_state("r50"), name: torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=rf"1 tensors .* no place .*'{name}'"):
        convert_state_dict(state, small_model)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.bottom_up.res3.0.conv2.norm.running_var", "layer2.0.bn2.running_var"),
        ("init_proposal_boxes.weight", "model.decoder.initial_boxes"),
        ("head.pose_head_series.1.fc_sigma.6.linear.bias", "model.decoder.keypoint_layers.1.sigma_head.bias"),
        ("head.pose_head_series.1.residual_filter.2.weight", "keypoint_layers.1.query_projection.projection.weight"),
        ("criterion.flow.flow.s.0.0.bias", "flow.scale.0.0.bias"),
    ],
)
def test_missing_tensors_are_named(small_model, theirs, ours):
    state = small_state("r50")
    del state[theirs]
    with pytest.raises(ValueError, match=rf"does not fill 1 tensors .*{ours}'"):
        convert_state_dict(state, small_model)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("init_proposal_features.weight", (6, 32), r"\(5, 32\)"),
        ("backbone.fpn_output2.weight", (32, 32, 1, 9), r"\(32, 32, 3, 3\)"),
        ("head.head_series.0.self_attn.in_proj_weight", (32, 96), r"\(96, 32\)"),
        # as many numbers, laid out otherwise
        ("head.pose_head_series.0.fc_coord.0.linear.weight", (16, 10), r"\(10, 16\)"),
        ("head.pose_head_series.0.residual_filter.0.weight", (32, 16), r"\(16, 32\)"),
        ("head.pose_head_series.0.residual_filter.0.bias", (32,), r"\(16,\)"),
    ],
)
def test_wrong_shapes_are_named(small_model, name, shape, expected):
    state = {**small_state("r50"), name: torch.zeros(shape)}
    given = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"1 tensors .*shape.*{name} {given} \(expected {expected}\)"):
        convert_state_dict(state, small_model)


def test_full_checkpoint_in_a_light_model():
    light = QueryPoseForPoseEstimation(small_config("r50", light=True))
    with pytest.raises(ValueError, match=r"no place.*pose_decoder_inst_interact"):
        convert_state_dict(small_state("r50"), light)


@pytest.mark.parametrize(
    ("variant", "told"), [("hrnet_w32", r"no place"), ("swin_t", r"no place"), ("r50", r"no place")]
)
def test_checkpoint_of_another_variant(variant, told):
    other = "hrnet_w48" if variant == "r50" else "r50"
    model = QueryPoseForPoseEstimation(small_config(variant))
    with pytest.raises(ValueError, match=told):
        convert_state_dict(small_state(other), model)


@pytest.mark.parametrize("variant", KINDS)
def test_converted_folder_gives_the_same_model(tmp_path, variant):
    state = small_state(variant)
    folder = tmp_path / "converted"
    report = convert_checkpoint(save(tmp_path / "model.pth", state), variant, folder, **KINDS[variant])
    model = QueryPoseForPoseEstimation(config_from_original(state, variant, **KINDS[variant])).eval()
    converted, expected_report = convert_state_dict(state, model)
    model.load_state_dict(converted)
    assert report == expected_report

    loaded, info = QueryPoseForPoseEstimation.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_tensors(
        {name: t for name, t in loaded.state_dict().items() if ".swin.layernorm." not in name},
        {name: t for name, t in converted.items() if ".swin.layernorm." not in name},
    )
    fields = [*TOLD, *SMALLER, "neck_type", "backbone_kwargs", "pose_query_interaction", "query_feedback"]
    assert {name: getattr(loaded.config, name) for name in fields} == {
        name: getattr(model.config, name) for name in fields
    }
    assert loaded.config.skeleton == model.config.skeleton
    # in float64: kernels for float32 round differently by where in memory the weights lie
    pixel_values = torch.randn(1, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = model.double()(pixel_values), loaded.double()(pixel_values)
    for name in ("logits", "pred_boxes", "pred_keypoints", "keypoint_scores"):
        assert torch.equal(found[name], expected[name]), name
    assert QueryPoseImageProcessor.from_pretrained(folder).num_keypoints == 17
    assert (folder / "README.md").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"model.pth", "converted"}


def test_checkpoints_of_the_first_published_code(tmp_path, monkeypatch, capsys):
    """Tensors do not tell them from those of the released code: one says so, and configuration, report and card do."""
    monkeypatch.setitem(VARIANTS, "r50", {**VARIANTS["r50"], **KINDS["r50"]})
    checkpoint = save(tmp_path / "model.pth", small_state("r50"))
    arguments = ["convert", "--checkpoint-path", str(checkpoint), "--variant", "r50"]
    for given, expected, said in (
        (["--query-feedback", "always"], "always", 'first published code (`query_feedback` is `"always"`)'),
        ([], "training", 'released code (`query_feedback` is `"training"`)'),
    ):
        folder = tmp_path / expected
        assert main([*arguments, "--output-dir", str(folder), *given]) == 0
        assert QueryPoseConfig.from_pretrained(folder).query_feedback == expected
        assert said in (folder / "README.md").read_text()
        assert ("  query feedback, which tensors do not tell: always, as given" in capsys.readouterr().out) == bool(
            given
        )
    with pytest.raises(SystemExit):  # the authors' code has two rules, this is neither
        main([*arguments, "--output-dir", str(tmp_path / "never"), "--query-feedback", "never"])
    script = runpy.run_path(str(PROJECT / "scripts" / "convert_querypose_original_to_hf.py"))
    assert script["main"] is main


def test_query_feedback_of_a_light_checkpoint():
    with pytest.raises(ValueError, match=r"`query_feedback` is 'always'; expected none .* light version"):
        config_from_original(small_state("r50", light=True), "r50", query_feedback="always", **KINDS["r50"])


def test_half_precision_checkpoints_stay_so(tmp_path):
    state = {name: t.half() if t.is_floating_point() else t for name, t in small_state("r50").items()}
    convert_checkpoint(save(tmp_path / "model.pth", state), "r50", tmp_path / "converted", **KINDS["r50"])
    loaded = QueryPoseForPoseEstimation.from_pretrained(tmp_path / "converted", dtype="auto")
    assert loaded.model.decoder.instance_queries.dtype == torch.float16
    assert torch.equal(loaded.model.decoder.instance_queries, state["init_proposal_features.weight"])


@pytest.mark.parametrize("variant", ["swin_t", "hrnet_w32"])
def test_saving_and_loading_keeps_every_tensor(tmp_path, variant):
    """Transformers saves Swin's tensors under older names and has to bring them back."""
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config("swin") if variant == "swin_t" else small_config(variant))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape))
    model.save_pretrained(tmp_path)
    loaded, info = QueryPoseForPoseEstimation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_tensors(loaded.state_dict(), model.state_dict())


def test_output_folder_with_content_is_refused(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep")
    # before the checkpoint is read, which is not there
    with pytest.raises(FileExistsError, match=r"mine exists; expected a new or empty folder"):
        convert_checkpoint(tmp_path / "absent.pth", "r50", folder)
    with pytest.raises(FileExistsError, match=r"notes\.txt exists"):
        convert_checkpoint(tmp_path / "absent.pth", "r50", folder / "notes.txt")
    assert (folder / "notes.txt").read_text() == "keep"
    with pytest.raises(ValueError, match=r"`variant`.*'r101'"):
        convert_checkpoint(tmp_path / "absent.pth", "r101", tmp_path / "new")
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


def test_empty_and_nested_output_folders(tmp_path, monkeypatch):
    checkpoint = save(tmp_path / "model.pth", small_state("r50"))
    (tmp_path / "empty").mkdir()
    convert_checkpoint(checkpoint, "r50", tmp_path / "empty", **KINDS["r50"])
    convert_checkpoint(str(checkpoint), "r50", str(tmp_path / "new" / "er"), **KINDS["r50"])
    monkeypatch.chdir(tmp_path)
    convert_checkpoint("model.pth", "r50", "new/../relative", **KINDS["r50"])
    for folder in ("empty", "new/er", "relative"):
        assert QueryPoseConfig.from_pretrained(tmp_path / folder).num_queries == TOLD["num_queries"]


@pytest.mark.parametrize(
    "error", [OSError("no space left on device"), KeyboardInterrupt()], ids=["error", "interrupt"]
)
def test_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch, error):
    checkpoint = save(tmp_path / "model.pth", small_state("r50"))

    def stop(*args, **kwargs):
        raise error

    monkeypatch.setattr(conversion, "build_model_card", stop)
    with pytest.raises(type(error)):
        convert_checkpoint(checkpoint, "r50", tmp_path / "converted", **KINDS["r50"])
    assert {path.name for path in tmp_path.iterdir()} == {"model.pth"}


def test_command_converts_and_reports(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(VARIANTS, "hrnet_w48", {**VARIANTS["hrnet_w48"], **KINDS["hrnet_w48"]})
    state = small_state("hrnet_w48")
    checkpoint, folder = save(tmp_path / "model.pth", state), tmp_path / "converted"
    arguments = ["--checkpoint_path", str(checkpoint), "--variant", "hrnet_w48", "--output_dir", str(folder)]
    assert main(["convert", *arguments]) == 0
    model = QueryPoseForPoseEstimation(config_from_original(state, "hrnet_w48"))
    converted, report = convert_state_dict(state, model)
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == f"{len(report.used)} tensors used, {len(report.unused)} unused, 0 missing"
    assert lines == [f"  unused: {name}" for name in report.unused]
    assert "  unused: backbone.lateral_conv.0.weight" in lines
    assert str(folder) in last
    assert_same_tensors(QueryPoseForPoseEstimation.from_pretrained(folder).state_dict(), converted)
