"""A model with folded batch norms gives the same outputs, and refuses to be trained or saved."""

import copy

import pytest
import torch
from tiny import BACKBONES, tiny_config
from torch import nn

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.model.keypoint_layer_querypose import QueryPosePartBatchNorm
from querypose_hf.weights.fusion import fuse_for_inference


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


def test_convolution_whose_output_is_used_twice_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, pixel_values):
            features = self.conv(pixel_values)
            return [features + self.norm(features)]

    model = make_model(backbone="resnet")
    model.model.backbone = with_statistics(Twice()).double().eval()
    with pytest.raises(ValueError, match="cannot be folded"):
        fuse_for_inference(model)
