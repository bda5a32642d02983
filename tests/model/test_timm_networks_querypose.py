"""Backbones that timm has no name for, and TensorFlow's padding: as timm computes them, and in exported graphs."""

import importlib.util
import subprocess
import sys

import pytest
import timm
import torch
from places import SHARED
from timm.layers import Conv2dSame
from tiny import images, tiny_config

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.model.fusion_querypose import fuse_for_inference
from querypose_hf.model.timm_networks_querypose import EndPaddedConv2d
from querypose_hf.training.fast_convolutions import speed_up_convolutions
from querypose_hf.weights.backbone_weights import load_backbone_weights


MULTIPOSE = SHARED / "data" / "weights" / "mobilenetv2_movenet_multipose_backbone.safetensors"
PEER = SHARED / "tools" / "movenet_multipose.py"
SHAPES = ((1, 3, 64, 96), (2, 3, 96, 32))


def config(name: str = "querypose_mobilenetv2_150", pad_type: str = "same", frozen: bool = True):
    backbone = {
        "model_type": "timm_backbone",
        "backbone": name,
        "out_indices": [1, 2, 3, 4],
        "freeze_batch_norm_2d": frozen,
    }
    return tiny_config(backbone_config=backbone, backbone_kwargs={"pad_type": pad_type}, pose_query_interaction="none")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return QueryPoseForPoseEstimation(config()).eval()


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 2, 1), (5, 2, 1), (2, 2, 1), (1, 2, 1), (3, 2, 2), ((3, 5), (2, 4), 1)]
)
def test_fixed_padding_is_that_of_timm(kernel, stride, dilation):
    torch.manual_seed(0)
    theirs = Conv2dSame(4, 6, kernel, stride=stride, dilation=dilation, groups=2)
    ours = EndPaddedConv2d(theirs)
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys()
    for shape in ((1, 4, 16, 24), (2, 4, 32, 8)):
        pixels = torch.randn(shape)
        torch.testing.assert_close(ours(pixels), theirs(pixels))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_mobilenetv3_small_minimal_100"])
def test_networks_with_that_padding_are_those_of_timm(name):
    torch.manual_seed(0)
    backbone = QueryPoseForPoseEstimation(config(name, frozen=False)).eval().model.backbone
    theirs = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4), pad_type="same").eval()
    theirs.load_state_dict(backbone.model._backbone.state_dict())
    assert not any(isinstance(module, Conv2dSame) for module in backbone.modules())
    with torch.no_grad():
        for shape in SHAPES:
            pixels = torch.randn(shape)
            for found, expected in zip(backbone(pixels), theirs(pixels), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_wide_mobilenet_has_the_published_channels(model):
    backbone = model.model.backbone
    assert backbone.channels == [40, 48, 144, 480]
    assert sum(parameter.numel() for parameter in backbone.parameters()) == 3_964_176


def test_timm_has_no_weights_of_it():
    with pytest.raises(ValueError, match="`pretrained` is True, but timm has no weights"):
        timm.create_model("querypose_mobilenetv2_150", pretrained=True)


def test_multipose_weights_give_the_features_of_the_peer():
    for file in (MULTIPOSE, PEER):
        if not file.is_file():
            pytest.skip(f"there is no {file}")
    spec = importlib.util.spec_from_file_location("movenet_multipose", PEER)
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    theirs = peer.MoveNet().backbone
    model = QueryPoseForPoseEstimation(config()).eval()
    report = load_backbone_weights(model, MULTIPOSE)
    assert report.missing == []
    assert {name.split(".")[0] for name in report.unused} == {"conv_head", "bn2"}
    pixels = torch.rand(2, 3, 96, 160, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        for found, expected in zip(model.model.backbone(pixels), theirs(pixels), strict=True):
            # the peer's file rounds variances to float16
            assert (found - expected).abs().max() < 1e-3 * expected.abs().max()


def test_folding_and_fast_convolutions_keep_the_features():
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(config()).eval()
    backbone = model.model.backbone
    for norm in backbone.modules():
        if hasattr(norm, "running_var"):
            norm.running_var.uniform_(0.5, 2)
            norm.running_mean.uniform_(-0.5, 0.5)
    pixels = images(2, 3, 64, 96).float()
    with torch.no_grad():
        expected = backbone(pixels)
        norms = [module for module in backbone.modules() if "BatchNorm" in type(module).__name__]
        speed_up_convolutions(backbone)
        # every convolution, those with fixed padding too, does the work of its norm
        assert all("forward" in norm.__dict__ for norm in norms)
        faster = backbone(pixels)
        for norm in backbone.modules():
            norm.__dict__.pop("forward", None)
        fuse_for_inference(model)
        folded = backbone(pixels)
    for found in (faster, folded):
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_it_exports_with_sides_that_change(model):
    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = model.model.backbone.model._backbone

        def forward(self, pixels):
            return tuple(self.network(pixels))

    sides = {2: 32 * torch.export.Dim("rows", min=2, max=40), 3: 32 * torch.export.Dim("columns", min=2, max=40)}
    program = torch.export.export(Features(), (torch.randn(1, 3, 64, 96),), dynamic_shapes=(sides,))
    for shape in ((1, 3, 64, 96), (1, 3, 128, 64)):
        pixels = torch.randn(shape)
        with torch.no_grad():
            for found, expected in zip(program.module()(pixels), Features()(pixels), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_it_is_built_from_a_saved_model_without_this_package(model, tmp_path):
    """The code that a saved model carries registers the name, in a process that cannot import the package."""
    model.save_pretrained(tmp_path / "model")
    program = (
        "import sys; sys.modules['querypose_hf'] = None\n"
        "import torch; from transformers import AutoModel\n"
        f"model = AutoModel.from_pretrained({str(tmp_path / 'model')!r}, trust_remote_code=True)\n"
        "assert 'transformers_modules' in type(model).__module__\n"
        "print(len(model.backbone.channels), model.backbone.channels[-1])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "480"]
