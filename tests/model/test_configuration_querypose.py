"""The configuration: published defaults, checks, other skeletons, and what a saved one carries."""

import ast
import importlib
import json
import os
import warnings
from pathlib import Path

import goldens
import pytest
from huggingface_hub.errors import StrictDataclassError
from tiny import tiny_config
from transformers import AutoConfig, SwinConfig

import querypose_hf
from querypose_hf import COCO_17, CROWDPOSE_14, QueryPoseConfig, QueryPoseForPoseEstimation, Skeleton
from querypose_hf.data import DataDescription
from querypose_hf.model.code_files_querypose import HUB_ENTRIES, HUB_FILES
from querypose_hf.model.configuration_querypose import VARIANTS
from querypose_hf.model.skeletons import COCO_PARTS, DEFAULT_SIGMA


def test_defaults_are_the_published_r50_full_model():
    config = QueryPoseConfig()
    expected = {
        "frozen_backbone_stages": 2,
        "neck_type": "fpn",
        "backbone_kwargs": {},
        "d_model": 256,
        "num_queries": 100,
        "decoder_layers": 6,
        "decoder_attention_heads": 8,
        "decoder_ffn_dim": 2048,
        "activation_function": "relu",
        "dropout": 0.0,
        "dynamic_dim": 64,
        "num_cls_layers": 1,
        "num_reg_layers": 3,
        "box_pooler_resolution": 7,
        "pose_pooler_resolution": 14,
        "pooler_sampling_ratio": 2,
        "num_keypoints": 17,
        "part_dim": 128,
        "num_pose_convs": 6,
        "pose_query_interaction": "dynamic",
        "query_feedback": "always",
        "feedback_threshold": 0.1,
        "class_cost": 2.0,
        "bbox_cost": 5.0,
        "giou_cost": 2.0,
        "class_loss_coefficient": 2.0,
        "bbox_loss_coefficient": 5.0,
        "giou_loss_coefficient": 2.0,
        "keypoint_loss_coefficient": 1.0,
        "heatmap_loss_coefficient": 0.0,
        "keypoint_coordinates": "regression",
        "class_target": "person",
        "focal_alpha": 0.25,
        "focal_gamma": 2.0,
        "prior_prob": 0.01,
        "auxiliary_loss": True,
        "keypoint_top_k": None,
    }
    assert {field: getattr(config, field) for field in expected} == expected
    assert config.model_type == "querypose"
    assert config.skeleton == COCO_17
    assert config.keypoint_parts == [list(part) for part in COCO_PARTS["c"]]
    assert config.num_parts == 7
    assert config.backbone_config.model_type == "timm_backbone"
    assert config.backbone_config.backbone == "resnet50"
    assert config.backbone_config.out_indices == [1, 2, 3, 4]
    assert config.backbone_config.freeze_batch_norm_2d is True
    assert (config.num_labels, config.id2label, config.label2id) == (1, {0: "person"}, {"person": 0})
    assert config.to_dict() == QueryPoseConfig.from_variant("r50").to_dict()


def test_defaults_are_what_the_references_were_made_with():
    original = goldens.manifest("r50_full")["config"]
    box, pose = original["MODEL.SparseRCNN"], original["MODEL.QueryPose"]
    config = QueryPoseConfig()
    assert config.decoder_attention_heads == box["NHEADS"]
    assert config.decoder_ffn_dim == box["DIM_FEEDFORWARD"]
    assert config.d_model == box["HIDDEN_DIM"] == original["MODEL.FPN.OUT_CHANNELS"]
    assert config.dynamic_dim == box["DIM_DYNAMIC"]
    assert (config.num_cls_layers, config.num_reg_layers) == (box["NUM_CLS"], box["NUM_REG"])
    assert config.decoder_layers == box["NUM_HEADS"]
    assert config.dropout == box["DROPOUT"]
    assert config.activation_function == box["ACTIVATION"]
    assert config.num_labels == box["NUM_CLASSES"]
    assert config.class_cost == config.class_loss_coefficient == box["CLASS_WEIGHT"]
    assert config.bbox_cost == config.bbox_loss_coefficient == box["L1_WEIGHT"]
    assert config.giou_cost == config.giou_loss_coefficient == box["GIOU_WEIGHT"]
    assert (config.focal_alpha, config.focal_gamma, config.prior_prob) == (
        box["ALPHA"],
        box["GAMMA"],
        box["PRIOR_PROB"],
    )
    assert (config.num_parts, config.part_dim, config.num_keypoints) == (
        pose["NUM_PART"],
        pose["PART_DIM"],
        pose["NUM_KPS"],
    )
    assert config.num_pose_convs == pose["NUM_CONVS"]
    assert config.box_pooler_resolution == original["MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION"]
    assert config.pose_pooler_resolution == original["MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION"]
    assert config.pooler_sampling_ratio == original["MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO"]
    assert config.frozen_backbone_stages == original["MODEL.BACKBONE.FREEZE_AT"]


@pytest.mark.parametrize(
    ("variant", "network", "neck", "frozen"),
    [
        ("r50", "resnet50", "fpn", 2),
        ("hrnet_w32", "hrnet_w32", "hrfpn", 0),
        ("hrnet_w48", "hrnet_w48", "hrfpn_lateral", 0),
    ],
)
def test_convolutional_variants(variant, network, neck, frozen):
    config = QueryPoseConfig.from_variant(variant)
    assert config.backbone_config.backbone == network
    assert config.neck_type == neck
    assert config.frozen_backbone_stages == frozen
    assert config.backbone_kwargs == ({"feature_location": ""} if "hrnet" in variant else {})
    assert config.backbone_config.freeze_batch_norm_2d is (variant == "r50")


@pytest.mark.parametrize(
    ("variant", "width", "third", "heads"),
    [("swin_t", 96, 6, 3), ("swin_b", 128, 18, 4), ("swin_l", 192, 18, 6)],
)
def test_swin_variants(variant, width, third, heads):
    config = QueryPoseConfig.from_variant(variant)
    backbone = config.backbone_config
    assert isinstance(backbone, SwinConfig)
    assert backbone.embed_dim == width
    assert backbone.depths == [2, 2, third, 2]
    assert backbone.num_heads == [heads, 2 * heads, 4 * heads, 8 * heads]
    assert (backbone.patch_size, backbone.window_size, backbone.drop_path_rate) == (4, 7, 0.2)
    assert backbone.out_features == ["stage1", "stage2", "stage3", "stage4"]
    assert (config.neck_type, config.frozen_backbone_stages) == ("fpn", 0)


def test_light_version_skeleton_and_other_fields():
    light = QueryPoseConfig.from_variant("hrnet_w32", light=True)
    assert light.pose_query_interaction == "none"
    assert QueryPoseConfig.from_variant("hrnet_w32").pose_query_interaction == "dynamic"
    config = QueryPoseConfig.from_variant("r50", skeleton="crowdpose", num_queries=50)
    assert config.skeleton == CROWDPOSE_14
    assert (config.num_keypoints, config.num_parts, config.num_queries) == (14, 7, 50)


def test_unknown_variant_and_skeleton():
    with pytest.raises(ValueError, match=r"`variant`.*hrnet_w32.*'r101'"):
        QueryPoseConfig.from_variant("r101")
    with pytest.raises(ValueError, match=r"`skeleton`.*crowdpose.*'horse'"):
        QueryPoseConfig.from_variant("r50", skeleton="horse")


def test_configurations_share_nothing():
    for make in (QueryPoseConfig, lambda: QueryPoseConfig.from_variant("swin_t")):
        config = make()
        before = make().to_dict()
        backbone = config.backbone_config
        (backbone.depths if backbone.model_type == "swin" else backbone.out_indices).append(7)
        config.backbone_kwargs["pretrained"] = True
        config.keypoint_parts[0].append(99)
        assert make().to_dict() == before
    assert VARIANTS["swin_t"]["backbone_config"]["depths"] == [2, 2, 6, 2]


def test_common_names():
    config = QueryPoseConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=3)
    assert (config.d_model, config.decoder_attention_heads, config.decoder_layers) == (64, 4, 3)
    config.d_model = 32
    assert config.hidden_size == 32


def test_labels():
    assert QueryPoseConfig(num_labels=1).id2label == {0: "person"}
    assert QueryPoseConfig(num_labels=3).num_labels == 3
    config = QueryPoseConfig(id2label={0: "horse", 1: "rider"}, label2id={"horse": 0, "rider": 1})
    assert (config.num_labels, config.id2label) == (2, {0: "horse", 1: "rider"})


@pytest.mark.parametrize(
    ("fields", "named", "value"),
    [
        # skeleton
        ({"num_keypoints": 0}, "num_keypoints", "0"),
        ({"num_keypoints": -2}, "num_keypoints", "-2"),
        ({"keypoint_names": ["left_eye", "right_eye"], "num_keypoints": 3}, "keypoint_names", "2 names"),
        ({"keypoint_names": ["eye", "eye"]}, "keypoint_names", "eye"),
        ({"keypoint_names": "nose"}, "keypoint_names", "nose"),
        ({"keypoint_sigmas": [0.1] * 3}, "keypoint_sigmas", "17"),
        ({"keypoint_sigmas": [0.1] * 16 + [0.0]}, "keypoint_sigmas", "positive"),
        ({"keypoint_sigmas": [float("nan")] * 17}, "keypoint_sigmas", "nan"),
        ({"keypoint_sigmas": [float("inf")] * 17}, "keypoint_sigmas", "inf"),
        ({"keypoint_sigmas": ["wide"] * 17}, "keypoint_sigmas", "wide"),
        ({"keypoint_parts": [[0, 1]]}, "keypoint_parts", r"\[\[0, 1\]\]"),
        ({"keypoint_parts": [list(range(17)), [0]]}, "keypoint_parts", "exactly once"),
        ({"keypoint_parts": [list(range(17)), []]}, "keypoint_parts", "no empty"),
        ({"keypoint_parts": list(range(17))}, "keypoint_parts", "index 0"),
        ({"keypoint_parts": [["nose"]]}, "keypoint_parts", "nose"),
        ({"keypoint_flip_indices": [0, 1]}, "keypoint_flip_indices", r"\[0, 1\]"),
        ({"keypoint_flip_indices": [1, 2, 0, *range(3, 17)]}, "keypoint_flip_indices", "involution"),
        ({"keypoint_edges": [[0, 17]]}, "keypoint_edges", r"\[0, 17\]"),
        ({"keypoint_edges": [[0, 1, 2]]}, "keypoint_edges", r"\[0, 1, 2\]"),
        ({"keypoint_edges": [0, 1]}, "keypoint_edges", r"\[0, 1\]"),
        # neck and backbone
        ({"neck_type": "bifpn"}, "neck_type", "bifpn"),
        ({"neck_type": "hrfpn"}, "neck_type", "resnet50"),
        (
            {"neck_type": "hrfpn", "backbone_config": {"model_type": "timm_backbone", "backbone": "hrnet_w32"}},
            "backbone_kwargs",
            "feature_location",
        ),
        ({"backbone_config": {"backbone": "resnet50"}}, "backbone_config", "model_type"),
        ({"backbone_config": {"model_type": "resnot"}}, "backbone_config", "resnot"),
        ({"backbone_config": "resnet50"}, "backbone_config", "resnet50"),
        ({"frozen_backbone_stages": -1}, "frozen_backbone_stages", "-1"),
        # choices
        ({"pose_query_interaction": "light"}, "pose_query_interaction", "light"),
        ({"query_feedback": "sometimes"}, "query_feedback", "sometimes"),
        ({"activation_function": "rellu"}, "activation_function", "rellu"),
        # numbers
        *(
            ({field: 0}, field, "at least 1, but is 0")
            for field in (
                "d_model",
                "num_queries",
                "decoder_layers",
                "decoder_attention_heads",
                "decoder_ffn_dim",
                "dynamic_dim",
                "box_pooler_resolution",
                "pose_pooler_resolution",
                "pooler_sampling_ratio",
                "part_dim",
                "num_labels",
            )
        ),
        *(({field: -1}, field, "at least 0, but is -1") for field in ("num_cls_layers", "num_reg_layers")),
        *(
            ({field: -0.5}, field, "at least 0, but is -0.5")
            for field in (
                "class_cost",
                "bbox_cost",
                "giou_cost",
                "class_loss_coefficient",
                "bbox_loss_coefficient",
                "giou_loss_coefficient",
                "keypoint_loss_coefficient",
                "heatmap_loss_coefficient",
                "focal_gamma",
            )
        ),
        ({"keypoint_coordinates": "corner"}, "keypoint_coordinates", "corner"),
        ({"class_target": "iou"}, "class_target", "iou"),
        ({"class_cost": float("nan")}, "class_cost", "nan"),
        ({"id2label": {0: None}}, "id2label", "None"),
        ({"class_cost": float("inf")}, "class_cost", "inf"),
        ({"giou_loss_coefficient": 1e300}, "giou_loss_coefficient", "at most 1000000"),
        ({"num_pose_convs": 1}, "num_pose_convs", "at least 2, but is 1"),
        ({"d_model": 100}, "d_model", "divisible by `decoder_attention_heads`"),
        ({"part_dim": 100}, "part_dim", "divisible by `decoder_attention_heads`"),
        ({"part_dim": 6, "decoder_attention_heads": 2}, "part_dim", "divisible by 4"),
        (
            {"d_model": 6, "part_dim": 8, "decoder_attention_heads": 2, "keypoint_interaction": "self_attention"},
            "d_model",
            "divisible by 4 for a position encoding",
        ),
        ({"dropout": 1.0}, "dropout", "1.0"),
        ({"focal_alpha": 2}, "focal_alpha", "2"),
        ({"prior_prob": 0.0}, "prior_prob", "0.0"),
        ({"keypoint_top_k": 0}, "keypoint_top_k", "0"),
        ({"feedback_threshold": 1}, "feedback_threshold", "1"),
        ({"d_model": "wide"}, "d_model", "wide"),
        ({"auxiliary_loss": "yes"}, "auxiliary_loss", "yes"),
    ],
)
def test_bad_fields_are_named(fields, named, value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises((ValueError, StrictDataclassError), match=rf"(?s)[`']{named}[`'].*{value}"):
            QueryPoseConfig(**fields)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("num_query", "num_queries"),
        ("keypoint_name", "keypoint_names"),
        ("decoder_layer", "decoder_layers"),
        ("class_loss_coeficient", "class_loss_coefficient"),
        ("backbone_kwarg", "backbone_kwargs"),
    ],
)
def test_misspelt_fields_are_refused(wrong, meant):
    with pytest.raises(ValueError, match=rf"`{wrong}` \(value 5\).*`{meant}`"):
        QueryPoseConfig(**{wrong: 5})


def test_what_only_an_earlier_version_computes_is_refused():
    with pytest.raises(ValueError, match=r"`keypoint_origin` is 'attention'.*expected 'box'"):
        QueryPoseConfig.from_dict({"keypoint_origin": "attention"})
    assert QueryPoseConfig.from_dict({"keypoint_origin": "box"}).keypoint_coordinates == "regression"


def test_fields_of_transformers_are_not_taken_for_misspelt():
    config = QueryPoseConfig(architectures=["QueryPoseModel"], torch_dtype="float32", finetuning_task="horses")
    assert config.architectures == ["QueryPoseModel"]
    assert config.finetuning_task == "horses"


def test_other_skeletons_from_names():
    names = ["nose", "left_ear", "right_ear", "left_hoof", "right_hoof"]
    with pytest.warns(UserWarning, match="keypoint_sigmas"):
        config = QueryPoseConfig(keypoint_names=names)
    assert config.num_keypoints == config.num_parts == 5
    assert config.keypoint_parts == [[0], [1], [2], [3], [4]]
    assert config.keypoint_flip_indices == [0, 2, 1, 4, 3]
    assert config.keypoint_sigmas == [DEFAULT_SIGMA] * 5
    assert config.keypoint_edges == []
    assert config.skeleton == Skeleton.from_names(names, sigmas=[DEFAULT_SIGMA] * 5)


def test_other_skeletons_keep_what_is_given():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = QueryPoseConfig(
            keypoint_names=("a", "b", "c"),
            keypoint_parts=((0, 2), (1,)),
            keypoint_flip_indices=(2, 1, 0),
            keypoint_sigmas=(0.1, 0.2, 1),
            keypoint_edges=((0, 1), (1, 2)),
        )
    assert config.keypoint_names == ["a", "b", "c"]
    assert config.keypoint_parts == [[0, 2], [1]]
    assert config.keypoint_flip_indices == [2, 1, 0]
    assert config.keypoint_sigmas == [0.1, 0.2, 1]
    assert config.keypoint_edges == [[0, 1], [1, 2]]


def test_seventeen_keypoints_that_are_not_cocos():
    names = [f"left_{i}" for i in range(8)] + [f"right_{i}" for i in range(8)] + ["tail"]
    for make in (
        lambda: QueryPoseConfig(keypoint_names=names),
        lambda: QueryPoseConfig.from_variant("r50", skeleton=names),
    ):
        with pytest.warns(UserWarning, match="keypoint_sigmas"):
            config = make()
        assert config.keypoint_sigmas == [DEFAULT_SIGMA] * 17
        assert config.keypoint_flip_indices == [*range(8, 16), *range(8), 16]
        assert (config.num_parts, config.keypoint_edges) == (17, [])


@pytest.mark.parametrize("skeleton", [COCO_17, CROWDPOSE_14], ids=["coco", "crowdpose"])
def test_names_of_a_known_skeleton_give_it(skeleton):
    names = list(skeleton.keypoint_names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert QueryPoseConfig(keypoint_names=names).skeleton == skeleton
        assert QueryPoseConfig.from_variant("r50", skeleton=names).skeleton == skeleton
        assert QueryPoseConfig(**QueryPoseConfig.skeleton_fields(skeleton)).skeleton == skeleton


def test_number_of_keypoints_alone():
    with pytest.warns(UserWarning, match="keypoint_sigmas"):
        config = QueryPoseConfig(num_keypoints=3)
    assert config.keypoint_names == ["keypoint_0", "keypoint_1", "keypoint_2"]
    assert config.keypoint_flip_indices is None


def test_other_parts_of_coco():
    for parts in COCO_PARTS.values():
        config = QueryPoseConfig(keypoint_parts=parts)
        assert config.skeleton == Skeleton(
            COCO_17.keypoint_names, parts, COCO_17.edges, COCO_17.flip_indices, COCO_17.sigmas
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_save_and_load(tmp_path, variant):
    config = QueryPoseConfig.from_variant(variant, light=True, skeleton="crowdpose", num_queries=30, keypoint_top_k=5)
    config.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = QueryPoseConfig.from_pretrained(tmp_path)
        by_auto_class = AutoConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert type(by_auto_class) is QueryPoseConfig
    assert by_auto_class.to_diff_dict() == config.to_diff_dict()


def test_unfrozen_default_backbone_stays_unfrozen(tmp_path):
    QueryPoseConfig(frozen_backbone_stages=0).save_pretrained(tmp_path)
    assert QueryPoseConfig.from_pretrained(tmp_path).frozen_backbone_stages == 0


def test_skeleton_without_mirror_images_survives(tmp_path):
    config = QueryPoseConfig(keypoint_names=["a", "b"], keypoint_sigmas=[0.1, 0.2])
    assert config.keypoint_flip_indices is None
    config.save_pretrained(tmp_path)
    assert QueryPoseConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_saved_folder_carries_the_code(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", *HUB_FILES}
    package = Path(querypose_hf.__file__).parent / "model"
    for name in HUB_FILES:
        assert (tmp_path / name).read_bytes() == (package / name).read_bytes()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {entry: saved[entry] for entry in HUB_ENTRIES} == HUB_ENTRIES
    assert saved["model_type"] == "querypose"


def test_entries_name_classes_that_exist():
    references = [*HUB_ENTRIES["auto_map"].values()]
    references += [entry["impl"] for entry in HUB_ENTRIES["custom_pipelines"].values()]
    for reference in references:
        module, name = reference.split(".")
        assert f"{module}.py" in HUB_FILES
        assert hasattr(importlib.import_module(f"querypose_hf.model.{module}"), name)


def test_code_files_import_nothing_that_is_not_carried():
    package = Path(querypose_hf.__file__).parent / "model"
    for name in HUB_FILES:
        for node in ast.walk(ast.parse((package / name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in HUB_FILES, f"{name}: {ast.unparse(node)}"
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                assert "querypose_hf" not in ast.unparse(node), f"{name}: {ast.unparse(node)}"


def test_package_ignores_the_copy_of_its_code(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    # would refuse, if the copy were what runs
    (tmp_path / "configuration_querypose.py").write_text("raise RuntimeError('the copy was run')")
    config = AutoConfig.from_pretrained(tmp_path)
    assert not hasattr(config, "auto_map")
    assert not hasattr(config, "custom_pipelines")
    assert type(config).__module__ == "querypose_hf.model.configuration_querypose"


def test_interrupted_save_leaves_the_former_configuration(tmp_path, monkeypatch):
    tiny_config(num_queries=3).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real_write, real_copy = Path.write_text, querypose_hf.model.code_files_querypose.shutil.copyfile

    def half_write(path, text, **kwargs):
        real_write(path, text[: len(text) // 2], **kwargs)
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", half_write)
    with pytest.raises(OSError, match="no space"):
        tiny_config(num_queries=4).save_pretrained(tmp_path)
    monkeypatch.setattr(Path, "write_text", real_write)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    def half_copy(source, target):
        if os.path.basename(source) == HUB_FILES[-1]:
            raise OSError("no space left on device")
        return real_copy(source, target)

    monkeypatch.setattr(querypose_hf.model.code_files_querypose.shutil, "copyfile", half_copy)
    with pytest.raises(OSError, match="no space"):
        tiny_config(num_queries=4).save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert QueryPoseConfig.from_pretrained(tmp_path).num_queries == 3


def test_config_json_is_replaced_whole(tmp_path, monkeypatch):
    """Nothing writes into the file itself: another process sees the former one or the new one."""
    tiny_config(num_queries=3).save_pretrained(tmp_path)
    former = (tmp_path / "config.json").open()  # keeps the former file, whatever takes its name
    tiny_config(num_queries=4).save_pretrained(tmp_path)
    with former:
        assert json.load(former)["num_queries"] == 3
    assert QueryPoseConfig.from_pretrained(tmp_path).num_queries == 4


def test_changed_to_something_bad_is_not_saved(tmp_path):
    config = tiny_config()
    config.keypoint_parts = [[0]]
    with pytest.raises((ValueError, StrictDataclassError), match="keypoint_parts"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_edited_file_is_checked(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_queries": 0}))
    with pytest.raises((ValueError, StrictDataclassError), match="num_queries"):
        QueryPoseConfig.from_pretrained(tmp_path)


BAD_OVERRIDES = [
    ({"num_keypoints": 5}, r"`keypoint_names` has 17 names, but `num_keypoints` is 5.*skeleton_fields"),
    ({"keypoint_names": ["tail"]}, "`keypoint_names` has 1 names, but `num_keypoints` is 17"),
    ({"num_queries": 0}, "`num_queries` must be at least 1, but is 0"),
    ({"hidden_size": 30}, r"`d_model` \(30\) must be divisible"),
    ({"neck_type": "bifpn"}, "`neck_type` must be one of"),
    ({"keypoint_flip_indices": [0]}, "`keypoint_flip_indices`"),
    ({"num_query": 5}, "`num_query` .*did you mean `num_queries`"),
]


class TestEveryWayIn:
    @pytest.mark.parametrize(("fields", "message"), BAD_OVERRIDES)
    def test_overrides(self, tmp_path, fields, message):
        saved = tiny_config(decoder_attention_heads=4)
        saved.save_pretrained(tmp_path)
        for load in (
            lambda: QueryPoseConfig.from_pretrained(tmp_path, **fields),
            lambda: AutoConfig.from_pretrained(tmp_path, **fields),
            lambda: QueryPoseConfig.from_pretrained(tmp_path, return_unused_kwargs=True, **fields),
            lambda: QueryPoseForPoseEstimation.from_pretrained(tmp_path, **fields),
            lambda: QueryPoseConfig.from_dict(saved.to_dict(), **fields),
            lambda: QueryPoseConfig.from_dict({**saved.to_dict(), **fields}),
        ):
            with pytest.raises((ValueError, StrictDataclassError), match=rf"(?s){message}"):
                load()

    @pytest.mark.parametrize(("fields", "message"), BAD_OVERRIDES[:-1])
    def test_changes(self, tmp_path, fields, message):
        config = tiny_config(decoder_attention_heads=4)
        before = config.to_dict()
        with pytest.raises((ValueError, StrictDataclassError), match=rf"(?s){message}"):
            config.update({"num_labels": 3, **fields})
        assert config.to_dict() == before
        for field, value in fields.items():
            setattr(config, field, value)
        for use in (lambda: config.save_pretrained(tmp_path / "new"), lambda: QueryPoseForPoseEstimation(config)):
            with pytest.raises((ValueError, StrictDataclassError), match=rf"(?s){message}"):
                use()
        assert not (tmp_path / "new").exists()

    def test_changes_as_text(self):
        config = tiny_config()
        with pytest.raises((ValueError, StrictDataclassError), match="num_queries"):
            config.update_from_string("dropout=0.5,num_queries=0")
        assert config.dropout == 0
        config.update_from_string("dropout=0.5,num_queries=7")
        assert (config.dropout, config.num_queries) == (0.5, 7)

    def test_overrides_are_completed_as_in_a_new_configuration(self, tmp_path):
        tiny_config().save_pretrained(tmp_path)
        config, unused = QueryPoseConfig.from_pretrained(
            tmp_path, return_unused_kwargs=True, keypoint_sigmas=None, keypoint_edges=((0, 1),), other=1, num_queries=3
        )
        assert config.keypoint_sigmas == list(COCO_17.sigmas)
        assert (config.keypoint_edges, config.num_queries, unused) == ([[0, 1]], 3, {"other": 1})
        config.update({"keypoint_sigmas": None, "keypoint_edges": ((2, 3),)})
        assert (config.keypoint_sigmas, config.keypoint_edges) == (list(COCO_17.sigmas), [[2, 3]])
        fields = QueryPoseConfig.skeleton_fields("crowdpose")
        assert QueryPoseConfig.from_pretrained(tmp_path, **fields).skeleton == CROWDPOSE_14
        config.keypoint_sigmas = None
        with pytest.raises((ValueError, StrictDataclassError), match="`keypoint_sigmas` is None"):
            config.save_pretrained(tmp_path)

    def test_another_keypoint_query_needs_an_interaction_that_fits(self, tmp_path):
        config = tiny_config()
        config.save_pretrained(tmp_path)
        message = (
            "`keypoint_interaction` is 'spatial_attention' .* `keypoint_interaction=None` stands for the one that"
        )
        with pytest.raises((ValueError, StrictDataclassError), match=message):
            QueryPoseConfig.from_pretrained(tmp_path, keypoint_query="none")
        fields = {"keypoint_query": "none", "keypoint_interaction": None}
        config.update(fields)
        for found in (config, QueryPoseConfig.from_pretrained(tmp_path, **fields)):
            assert found.keypoint_interaction == "pooling"

    def test_backbone_overrides_change_fields_of_it(self, tmp_path):
        tiny_config().save_pretrained(tmp_path)
        config = QueryPoseConfig.from_pretrained(tmp_path, backbone_config={"out_indices": [1, 2, 3, 4]})
        assert config.backbone_config.model_type == tiny_config().backbone_config.model_type


@pytest.mark.parametrize(
    ("names", "flip_indices", "wrong"),
    [
        (["nose", "left_eye", "right_eye"], [0, 1, 2], "left_eye, right_eye"),
        (["lefteye", "righteye", "Tail"], [0, 1, 2], "lefteye, righteye"),
        (["left_eye", "right_eye", "left_ear", "right_ear"], [1, 0, 2, 3], "left_ear, right_ear"),
        (["left_eye", "right_eye", "left_ear", "right_ear"], [3, 2, 1, 0], "left_eye"),
        (["tail", "LeftHorn"], [0, 1], "LeftHorn"),
    ],
)
def test_sides_that_are_not_exchanged_warn(names, flip_indices, wrong):
    fields = {"keypoint_names": names, "keypoint_sigmas": [0.1] * len(names)}
    with pytest.warns(UserWarning, match=f"do not exchange left and right .*{wrong}"):
        QueryPoseConfig(**fields, keypoint_flip_indices=flip_indices)
    with pytest.warns(UserWarning, match=wrong):
        DataDescription(len(names), names, (), flip_indices, {0: "person"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        QueryPoseConfig(**fields)
        QueryPoseConfig(keypoint_names=["a", "b"], keypoint_sigmas=[0.1] * 2, keypoint_flip_indices=[0, 1])
