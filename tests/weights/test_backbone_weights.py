"""Pretrained weights for backbones, from files and by download, and frozen layers."""

import socket
from pathlib import Path

import goldens
import pytest
import timm
import torch
from places import SHARED
from safetensors.torch import load_file, save_file
from tiny import BACKBONES, people, tiny_config
from transformers import SwinConfig, SwinForImageClassification

from querypose_hf import QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseModel
from querypose_hf.weights import backbone_weights as backbone_weights_module
from querypose_hf.weights.backbone_weights import load_backbone_weights, load_heatmap_pretrained_hrnet
from querypose_hf.weights.original_names import place


MOBILENET = SHARED / "data" / "weights" / "mobilenetv2_100_imagenet.safetensors"
HRNET = {"neck_type": "hrfpn", "backbone_kwargs": {"feature_location": ""}}


def is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def classifier(name: str, seed: int = 1) -> torch.nn.Module:
    """A classifier of timm with random weights, batch statistics included."""
    torch.manual_seed(seed)
    network = timm.create_model(name)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
    return network


def network_of(model: QueryPoseForPoseEstimation) -> torch.nn.Module:
    return model.model.backbone.model._backbone


def write(path: Path, state: dict[str, torch.Tensor]) -> Path:
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("file", ["weights.safetensors", "weights.pth"])
def test_file_for_a_timm_backbone(tmp_path, file):
    source = classifier("test_resnet")
    state = source.state_dict()
    model = QueryPoseForPoseEstimation(tiny_config("resnet"))
    report = load_backbone_weights(model, write(tmp_path / file, state))
    places = network_of(model).state_dict()
    assert sorted(report.unused) == ["fc.bias", "fc.weight"]
    assert report.missing == []
    assert sorted(report.used) == sorted(name for name in places if not is_counter(name))
    for name in report.used:
        assert torch.equal(places[name], state[name]), name


def test_frozen_batch_norms_take_a_files_statistics(tmp_path):
    state = classifier("test_resnet").state_dict()
    backbone = {**BACKBONES["resnet"], "freeze_batch_norm_2d": True}
    model = QueryPoseModel(tiny_config(backbone_config=backbone))
    report = load_backbone_weights(model, write(tmp_path / "weights.pth", state))
    assert report.missing == []
    assert sorted(report.unused) == ["fc.bias", "fc.weight"]
    places = model.backbone.model._backbone.state_dict()
    assert torch.equal(places["layer1.0.bn1.running_var"], state["layer1.0.bn1.running_var"])


def test_partial_files_leave_the_rest_as_it_was(tmp_path):
    state = {name: t for name, t in classifier("test_resnet").state_dict().items() if not name.startswith("layer4")}
    model = QueryPoseForPoseEstimation(tiny_config("resnet"))
    before = {name: tensor.clone() for name, tensor in network_of(model).state_dict().items()}
    report = load_backbone_weights(model, write(tmp_path / "weights.safetensors", state))
    assert report.missing
    assert all(name.startswith("layer4") for name in report.missing)
    for name in report.missing:
        assert torch.equal(network_of(model).state_dict()[name], before[name])


def test_files_of_other_backbones_are_refused_and_change_nothing(tmp_path):
    model = QueryPoseForPoseEstimation(tiny_config("resnet"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wider = classifier("test_resnet").state_dict()
    wider["layer2.0.conv1.weight"] = torch.zeros(5, 32, 1, 1)
    with pytest.raises(ValueError, match=r"1 tensors differ in shape.*layer2\.0\.conv1\.weight \(5, 32, 1, 1\)"):
        load_backbone_weights(model, write(tmp_path / "wider.pth", wider))
    stranger = {"encoder.weight": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"another backbone: none of .*'encoder\.weight'.*'conv1\.0\.weight'"):
        load_backbone_weights(model, write(tmp_path / "stranger.safetensors", stranger))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def swin_classifier(**overrides) -> SwinForImageClassification:
    fields = {k: v for k, v in BACKBONES["swin"].items() if k not in ("model_type", "out_features")}
    torch.manual_seed(1)
    model = SwinForImageClassification(SwinConfig(**{**fields, "image_size": 32, "num_labels": 5, **overrides}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


@pytest.mark.parametrize("way", ["file", "pth", "checkpoint"])
def test_swin_from_a_checkpoint_of_transformers(tmp_path, way):
    """As on the Hub: a classifier, whose names in the file are not those in memory."""
    source = swin_classifier()
    source.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    if way == "pth":
        file = write(tmp_path / "pytorch_model.pth", load_file(file))
    model = QueryPoseForPoseEstimation(tiny_config("swin"))
    report = load_backbone_weights(model, **({"checkpoint": str(tmp_path)} if way == "checkpoint" else {"file": file}))
    expected = source.state_dict()
    places = model.model.backbone.model.state_dict()
    assert report.unused == ["classifier.bias", "classifier.weight"]
    # the norms of the four outputs are the detector's own
    assert sorted(report.missing) == sorted(name for name in places if name.startswith("hidden_states_norms"))
    # transformers' Swin has a last norm that a backbone does not use
    assert sorted(report.used + report.missing) == sorted(name for name in places if "swin.layernorm" not in name)
    for name in report.used:
        assert torch.equal(places[name], expected[name]), name
    assert all((places[name] == (1 if name.endswith("weight") else 0)).all() for name in report.missing)
    assert model.model.backbone.model.out_features == ["stage1", "stage2", "stage3", "stage4"]


def test_swin_of_another_width_is_refused(tmp_path):
    swin_classifier(embed_dim=16).save_pretrained(tmp_path)
    model = QueryPoseForPoseEstimation(tiny_config("swin"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for arguments in ({"file": tmp_path / "model.safetensors"}, {"checkpoint": str(tmp_path)}):
        with pytest.raises(ValueError, match=r"differ in shape.*\(16, 3, 4, 4\) \(expected \(8, 3, 4, 4\)\)"):
            load_backbone_weights(model, **arguments)
    with pytest.raises(ValueError, match="another backbone: none of"):
        load_backbone_weights(model, write(tmp_path / "resnet.pth", classifier("test_resnet").state_dict()))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_swin_has_no_default_checkpoint():
    with pytest.raises(ValueError, match=r"`checkpoint` is None; .*SwinBackbone"):
        load_backbone_weights(QueryPoseForPoseEstimation(tiny_config("swin")))


@pytest.mark.parametrize("checkpoint", [None, "test_resnet.r160_in1k"])
def test_download_asks_timm_once(monkeypatch, checkpoint):
    source = timm.create_model("test_resnet", features_only=True, out_indices=[1, 2, 3, 4])
    calls = []

    def create_model(*args, **kwargs):
        calls.append((args, kwargs))
        return source

    model = QueryPoseForPoseEstimation(tiny_config("resnet", backbone_kwargs={"drop_path_rate": 0.1}))
    monkeypatch.setattr(backbone_weights_module.timm, "create_model", create_model)
    report = load_backbone_weights(model, checkpoint=checkpoint)
    ((args, kwargs),) = calls
    assert args == (checkpoint or "test_resnet",)
    assert kwargs == {
        "pretrained": True,
        "features_only": True,
        "in_chans": 3,
        "out_indices": [1, 2, 3, 4],
        "drop_path_rate": 0.1,
    }
    assert report.unused == report.missing == []
    for name, tensor in network_of(model).state_dict().items():
        assert is_counter(name) or torch.equal(tensor, source.state_dict()[name]), name


class NetworkUsedError(BaseException):
    """Not an `Exception`, so that nothing catches it and tries again."""


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise NetworkUsedError(args)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    # the Hub's client must try
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("backbone", ["resnet", "swin"])
def test_models_are_made_and_loaded_without_a_network(tmp_path, no_network, backbone):
    model = QueryPoseForPoseEstimation(tiny_config(backbone))
    model.save_pretrained(tmp_path)
    loaded = QueryPoseForPoseEstimation.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_download_does_use_the_network(no_network):
    """Shows that the fixture of the test above works."""
    model = QueryPoseForPoseEstimation(tiny_config("resnet"))
    with pytest.raises(NetworkUsedError):
        load_backbone_weights(model, checkpoint="test_resnet.r160_in1k")


def pose_hrnet_state(seed: int = 1) -> dict[str, torch.Tensor]:
    """A checkpoint like those of the public HRNet pose models: the last module fuses into the finest branch alone."""
    torch.manual_seed(seed)
    network = timm.create_model("hrnet_w18_small", features_only=True, feature_location="", out_indices=[1, 2, 3, 4])
    state = network.state_dict()
    last = max(int(name.split(".")[1]) for name in state if name.startswith("stage4."))
    coarse = tuple(f"stage4.{last}.fuse_layers.{branch}." for branch in (1, 2, 3))
    assert any(name.startswith(coarse) for name in state)
    state = {name: torch.randn(t.shape) if t.is_floating_point() else t for name, t in state.items()}
    state = {name: tensor for name, tensor in state.items() if not name.startswith(coarse)}
    return {**state, "final_layer.weight": torch.randn(17, 16, 1, 1), "final_layer.bias": torch.randn(17)}


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_heatmap_pretrained_hrnet(tmp_path, prefix):
    state = pose_hrnet_state()
    file = write(tmp_path / "pose_hrnet.pth", {f"{prefix}{name}": tensor for name, tensor in state.items()})
    model = QueryPoseForPoseEstimation(tiny_config("hrnet", **HRNET))
    before = {name: tensor.clone() for name, tensor in network_of(model).state_dict().items()}
    report = load_heatmap_pretrained_hrnet(model, file)
    places = network_of(model).state_dict()
    assert sorted(report.unused) == ["final_layer.bias", "final_layer.weight"]
    assert sorted(report.used) == sorted(name for name in state if "final_layer" not in name and not is_counter(name))
    assert report.missing
    assert {name.split(".")[0] for name in report.missing} == {"stage4"}
    assert {name.split(".")[2] for name in report.missing} == {"fuse_layers"}
    assert {name.split(".")[3] for name in report.missing} == {"1", "2", "3"}
    for name in report.used:
        assert torch.equal(places[name], state[name]), name
    for name in report.missing:
        assert torch.equal(places[name], before[name]), name


def test_heatmap_pretrained_hrnet_of_another_width(tmp_path):
    with torch.device("meta"):
        other = timm.create_model("hrnet_w18_small_v2", features_only=True, feature_location="").state_dict()
    file = write(tmp_path / "pose_hrnet.pth", {name: torch.zeros(tensor.shape) for name, tensor in other.items()})
    model = QueryPoseForPoseEstimation(tiny_config("hrnet", **HRNET))
    before = {name: tensor.clone() for name, tensor in network_of(model).state_dict().items()}
    with pytest.raises(ValueError, match=r"differ in shape.*transition1\.0\.0\.weight \(18, 256, 3, 3\)"):
        load_heatmap_pretrained_hrnet(model, file)
    for name, tensor in network_of(model).state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(("backbone", "named"), [("resnet", "'test_resnet'"), ("swin", "'swin'")])
def test_heatmap_weights_need_an_hrnet(tmp_path, backbone, named):
    with pytest.raises(ValueError, match=rf"`model` has the backbone {named}; expected an HRNet"):
        load_heatmap_pretrained_hrnet(QueryPoseForPoseEstimation(tiny_config(backbone)), tmp_path / "absent.pth")


def test_heatmap_weights_need_a_file(tmp_path):
    model = QueryPoseForPoseEstimation(tiny_config("hrnet", **HRNET))
    with pytest.raises(FileNotFoundError, match="`file`"):
        load_heatmap_pretrained_hrnet(model, tmp_path / "absent.pth")


def test_mobilenet_weights_from_keras():
    """A file made elsewhere, half of it in float16, loads into timm's model as it is."""
    if not MOBILENET.is_file():
        pytest.skip(f"there is no {MOBILENET}")
    state = load_file(MOBILENET)
    backbone = {"model_type": "timm_backbone", "backbone": "mobilenetv2_100", "out_indices": [1, 2, 3, 4]}
    # trained with TensorFlow's asymmetric padding
    model = QueryPoseForPoseEstimation(
        tiny_config(backbone_config=backbone, backbone_kwargs={"pad_type": "same"})
    ).eval()
    report = load_backbone_weights(model, MOBILENET)
    assert report.missing == []
    # behind the last feature map
    assert {name.split(".")[0] for name in report.unused} == {"conv_head", "bn2", "classifier"}
    whole = timm.create_model("mobilenetv2_100", pad_type="same").eval()
    whole.load_state_dict(state)
    pixel_values = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.model.backbone(pixel_values)
        expected = whole.forward_intermediates(pixel_values, intermediates_only=True)[1:]
    assert network_of(model).conv_stem.weight.dtype == torch.float32
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def frozen(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_r50_freezes_what_the_original_freezes():
    config = QueryPoseConfig.from_variant("r50", decoder_layers=1, num_queries=2)
    with torch.device("meta"):
        model = QueryPoseForPoseEstimation(config)
    names = goldens.manifest("r50_full")["no_grad_parameters"]
    assert len(names) == 11
    assert frozen(model) == {placement.name for name in names for placement in place(name, config)}
    # and every batch norm is frozen, so that it has no parameters at all
    trained = {name for name, _ in network_of(model).named_parameters()}
    assert len(trained) == 53
    assert not any("bn" in name or "downsample.1" in name for name in trained)


def frozen_resnet(norms: bool) -> QueryPoseForPoseEstimation:
    backbone = {**BACKBONES["resnet"], "freeze_batch_norm_2d": norms}
    return QueryPoseForPoseEstimation(tiny_config(backbone_config=backbone, frozen_backbone_stages=2))


@pytest.mark.parametrize("norms", [False, True], ids=["batch_norms", "frozen_batch_norms"])
def test_frozen_stages_stay_frozen_after_loading(tmp_path, norms):
    model = frozen_resnet(norms)
    expected = frozen(model)
    assert expected
    assert {name.split("_backbone.")[1].split(".")[0] for name in expected} <= {"conv1", "bn1", "layer1"}
    model.save_pretrained(tmp_path)
    for loaded in (
        QueryPoseForPoseEstimation.from_pretrained(tmp_path),
        QueryPoseForPoseEstimation.from_pretrained(tmp_path).train(),
        QueryPoseForPoseEstimation.from_pretrained(tmp_path, dtype=torch.bfloat16),
    ):
        assert frozen(loaded) == expected
    base = QueryPoseModel.from_pretrained(tmp_path)
    assert {f"model.{name}" for name in frozen(base)} == expected
    thawed = QueryPoseForPoseEstimation.from_pretrained(tmp_path, frozen_backbone_stages=0)
    assert frozen(thawed) == set()


@pytest.mark.parametrize("loaded", [False, True], ids=["new", "loaded"])
def test_frozen_stages_are_not_trained(tmp_path, loaded):
    model = frozen_resnet(norms=False)
    if loaded:
        model.save_pretrained(tmp_path)
        model = QueryPoseForPoseEstimation.from_pretrained(tmp_path)
    model.train()
    network = network_of(model)
    assert not any(module.training for module in network["layer1"].modules())
    assert all(module.training for module in network["layer2"].modules())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    pixel_values = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model(pixel_values, labels=[people(2), people(1, seed=1)]).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    # running statistics count, too
    assert not {name for name in changed if name.split(".")[0] in ("conv1", "bn1", "layer1")}
    for layer in ("layer2", "layer3", "layer4"):
        assert {f"{layer}.0.conv1.weight", f"{layer}.0.bn1.running_mean"} <= changed
