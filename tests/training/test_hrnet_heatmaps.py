"""An HRNet is pretrained on heatmaps of drawn people, written, and loaded as the backbone of a model."""

import dataclasses
import runpy

import pytest
import torch
from places import PROJECT
from small_data import write_rendered_coco
from small_run import read_log
from tiny import BACKBONES, tiny_config

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.model.configuration_querypose import VARIANTS
from querypose_hf.training.experiment import TrainingSource
from querypose_hf.training.hrnet_heatmaps import HRNET_HEATMAPS, HeatmapHRNet, gaussian_heatmaps, pretrain_hrnet
from querypose_hf.weights.backbone_weights import load_heatmap_pretrained_hrnet
from querypose_hf.weights.tensor_files import read_tensors


HRNET = {"backbone_kwargs": {"feature_location": ""}, "neck_type": "hrfpn"}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Drawn people, and a published variant with a small backbone."""
    monkeypatch.setitem(VARIANTS, "hrnet_w32", {"backbone_config": dict(BACKBONES["hrnet"]), **HRNET})
    return write_rendered_coco(tmp_path / "people", count=4, size=(96, 96))


def test_from_people_to_a_backbone(source, tmp_path):
    main = runpy.run_path(str(PROJECT / "scripts" / "pretrain_hrnet_heatmaps.py"))["main"]
    output = tmp_path / "run"
    arguments = ["--annotations", source["annotations"], "--images", source["images"], "--output", str(output)]
    arguments += ["--size", "64", "96", "--backbone-weights", "none", "--steps", "4", "--batch-size", "4"]
    arguments += ["--workers", "0", "--set", "log_every=1", "--set", "trackers=[]", "--set", "schedule.milestones=[]"]
    main([*arguments, "--stop-after", "2"])
    main([*arguments, "--resume"])
    assert [record["step"] for record in read_log(output)] == [1, 2, 3, 4]

    file = output / "last" / "pose_hrnet.safetensors"
    written = read_tensors(file)
    assert written["final_layer.weight"].shape == (17, 16, 1, 1)
    model = QueryPoseForPoseEstimation(tiny_config("hrnet", **HRNET))
    report = load_heatmap_pretrained_hrnet(model, file)
    assert report.unused == ["final_layer.bias", "final_layer.weight"] and report.missing == []
    places = model.model.backbone.model._backbone.state_dict()
    assert places.keys() | set(report.unused) == written.keys()
    for name, tensor in places.items():
        assert torch.equal(tensor, written[name]), name


def test_targets():
    keypoints = torch.tensor([[[0.5, 0.25, 2.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
    nobody = torch.zeros(0, 3, 3)
    heatmaps, weights = gaussian_heatmaps([keypoints, nobody], torch.zeros(2, 3, 64, 48))
    assert weights.tolist() == [[1, 0, 1], [0, 0, 0]]
    # between four cells around (24, 16), whose centres are half a cell away on each axis; the deviation is 2 cells
    expected = torch.exp(torch.tensor(-(0.5**2 + 0.5**2) / (2 * 2**2)))
    assert torch.allclose(heatmaps[0, 0, 15:17, 23:25], expected)
    assert heatmaps[0, 0].max() == heatmaps[0, 0, 15, 23]
    assert torch.allclose(
        heatmaps[0, 0, 15, 26] / heatmaps[0, 0, 15, 24], torch.exp(torch.tensor(-(2.5**2 - 0.5**2) / 8))
    )
    assert heatmaps[0, 2].argmax() == 64 * 48 - 1


def test_the_loss_is_of_labelled_keypoints():
    torch.manual_seed(0)
    model = HeatmapHRNet(tiny_config("hrnet", **HRNET)).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    keypoints = torch.rand(1, 17, 3)
    keypoints[..., 2] = 0
    assert model(pixel_values, [{"keypoints": keypoints}]).loss == 0
    keypoints[0, 3, 2] = 2
    with torch.no_grad():
        heatmaps = model.final_layer(model.backbone(pixel_values)[0])
        targets, _ = gaussian_heatmaps([keypoints], heatmaps)
        expected = 0.5 * (heatmaps - targets)[0, 3].square().mean() / 17
    assert model(pixel_values, [{"keypoints": keypoints}]).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_fits_a_batch():
    torch.manual_seed(0)
    model = HeatmapHRNet(tiny_config("hrnet", **HRNET)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    pixel_values, keypoints = torch.randn(2, 3, 64, 64), torch.rand(2, 1, 17, 3)
    keypoints[..., 2] = 2
    losses = []
    for _ in range(40):
        loss = model(pixel_values, [{"keypoints": person} for person in keypoints]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_what_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match=r"`size` is \(64, 100\); expected .* multiples of 32"):
        pretrain_hrnet(TrainingSource(**source), tmp_path / "run", size=(64, 100))
    refused = {"gradient_checkpointing": True, "compile": True}
    for name, value in refused.items():
        training = dataclasses.replace(HRNET_HEATMAPS, **{name: value})
        with pytest.raises(ValueError, match=f"`{name}` is {value!r}; expected .*: only a whole model"):
            pretrain_hrnet(TrainingSource(**source), tmp_path / "run", training=training)
    with pytest.raises(ValueError, match="`backbone_config` is of 'test_resnet'; expected an HRNet"):
        HeatmapHRNet(tiny_config("resnet"))
