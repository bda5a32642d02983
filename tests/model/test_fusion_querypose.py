"""A model with folded batch norms gives the same outputs, and refuses to be trained or saved."""

import copy
import logging

import pytest
import torch
from tiny import BACKBONES, tiny_config
from torch import nn

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.model.fusion_querypose import FusedCopy, fuse_for_inference
from querypose_hf.model.keypoint_layer_querypose import QueryPosePartBatchNorm


RESULTS = ("logits", "pred_boxes", "pred_keypoints", "keypoint_scores", "keypoint_sigmas")


def make_model(**overrides) -> QueryPoseForPoseEstimation:
    torch.manual_seed(0)
    return QueryPoseForPoseEstimation(tiny_config(**overrides)).double().eval()


def with_statistics(model: nn.Module) -> nn.Module:
    """Gives batch norms statistics as training does; folding new ones would change nothing."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            for name, low in (("running_mean", -0.2), ("running_var", 0.5), ("weight", 0.6), ("bias", -0.2)):
                tensor = getattr(module, name).detach()
                tensor.copy_(low + 0.5 * torch.rand(tensor.shape, generator=generator))
    return model


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("backbone", ["resnet", "frozen_resnet", "hrnet", "swin"])
def test_fused_model_gives_the_same(backbone, channels_last):
    overrides = {"neck_type": "hrfpn", "backbone_kwargs": {"feature_location": ""}} if backbone == "hrnet" else {}
    if backbone == "frozen_resnet":
        overrides = {"backbone_config": {**BACKBONES["resnet"], "freeze_batch_norm_2d": True}}
        backbone = "resnet"
    model = with_statistics(make_model(backbone=backbone, **overrides))
    pixel_values = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(pixel_values)
        fused = fuse_for_inference(copy.deepcopy(model), channels_last=channels_last)
        found = fused(pixel_values)
        selected = fused(pixel_values, max_people=3)
    for name in RESULTS:
        torch.testing.assert_close(found[name], expected[name])
    mask = selected.keypoint_query_mask
    torch.testing.assert_close(selected.pred_keypoints[mask], expected.pred_keypoints[mask])
    assert not [name for name, module in fused.named_modules() if "BatchNorm" in type(module).__name__]
    # folding twice is allowed
    with torch.no_grad():
        torch.testing.assert_close(fuse_for_inference(fused)(pixel_values).logits, expected.logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """Part norms of so large a variance that folded weights would be lost in float16 stay."""
    model = with_statistics(make_model(backbone="resnet")).float()
    for layer in model.model.decoder.keypoint_layers:
        layer.part_embedding.upsample_norm.running_var.fill_(1e9)
    fused = fuse_for_inference(model.to(dtype))
    norms = [type(layer.part_embedding.upsample_norm) for layer in fused.model.decoder.keypoint_layers]
    assert norms == [QueryPosePartBatchNorm if dtype == torch.float16 else nn.Identity] * 2
    assert not [name for name, module in fused.model.backbone.named_modules() if "BatchNorm" in type(module).__name__]


def test_what_a_fused_model_refuses(tmp_path):
    model = make_model(backbone="resnet")
    with pytest.raises(ValueError, match="training mode"):
        fuse_for_inference(model.train())
    model = fuse_for_inference(model.eval())
    with pytest.raises(ValueError, match="trained"):
        model.train()
    with pytest.raises(ValueError, match="saved"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    assert not model.eval().training


class Twice(nn.Module):
    """A convolution whose output is read by more than its batch norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, pixel_values):
        features = self.conv(pixel_values)
        return [features + self.norm(features)]


def test_convolution_whose_output_is_used_twice_keeps_its_batch_norm(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    network = with_statistics(Twice()).double().eval()
    model = make_model(backbone="resnet")
    model.model.backbone = copy.deepcopy(network)
    fuse_for_inference(model)
    assert "The batch norms of Twice are not folded" in caplog.text
    found, expected = model.model.backbone.state_dict(), network.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


class TestFusedCopy:
    @pytest.fixture(scope="class")
    def pixel_values(self):
        return torch.randn(1, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    @pytest.fixture
    def model(self):
        return with_statistics(make_model(backbone="resnet"))

    @staticmethod
    @torch.no_grad()
    def assert_same(fused, model, pixel_values):
        found, expected = fused.get()(pixel_values), model.eval()(pixel_values)
        for name in RESULTS:
            torch.testing.assert_close(found[name], expected[name])

    def test_the_model_stays_as_it_is(self, model, pixel_values):
        before = {name: (tensor.clone(), tensor.stride()) for name, tensor in model.state_dict().items()}
        model.train()
        fused = FusedCopy(model)
        assert model.training and any(parameter.requires_grad for parameter in model.parameters())
        after = model.state_dict()
        assert after.keys() == before.keys()
        for name, (tensor, strides) in before.items():
            assert torch.equal(after[name], tensor) and after[name].stride() == strides, name
        self.assert_same(fused, model, pixel_values)
        assert fused.get() is fused.get()

    def test_memory_is_shared_but_for_convolutions(self, model):
        places = {tensor.data_ptr() for tensor in model.state_dict().values()}
        fused = FusedCopy(model).get()
        own = {name for name, tensor in fused.state_dict().items() if tensor.data_ptr() not in places}
        of_convolutions = {
            f"{name}.{field}"
            for name, module in fused.named_modules()
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
            for field in ("weight", "bias")
        }
        assert own and own <= of_convolutions

    @pytest.mark.parametrize("change", ["step", "load", "assign"])
    def test_it_follows_the_weights(self, model, pixel_values, change):
        fused = FusedCopy(model)
        if change == "step":
            model.train()
            model(pixel_values).pred_boxes.sum().backward()
            torch.optim.SGD(model.parameters(), lr=1.0).step()
        else:
            torch.manual_seed(1)
            other = with_statistics(QueryPoseForPoseEstimation(model.config)).double()
            model.load_state_dict(other.state_dict(), assign=change == "assign")
        self.assert_same(fused, model, pixel_values)

    def test_it_follows_the_type(self, model):
        fused = FusedCopy(model)
        model.to(torch.bfloat16)
        assert fused.get().dtype == torch.bfloat16
