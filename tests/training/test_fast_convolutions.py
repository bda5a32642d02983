import copy

import pytest
import torch
from tiny import BACKBONES, tiny_config
from torch import nn

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.training.fast_convolutions import restore_convolutions, speed_up_convolutions


MOBILENET = {"model_type": "timm_backbone", "backbone": "mobilenetv2_050", "out_indices": [1, 2, 3, 4]}


def build_backbone(settings, frozen=True, dtype=torch.float64):
    torch.manual_seed(0)
    config = tiny_config(backbone_config={**settings, "freeze_batch_norm_2d": frozen}, frozen_backbone_stages=2)
    backbone = QueryPoseForPoseEstimation(config).model.backbone.to(dtype).train()
    backbone.to(memory_format=torch.channels_last)  # as it will be, so that results can be compared bit by bit
    generator = torch.Generator().manual_seed(1)
    for module in norms_of(backbone):  # statistics of a trained network
        module.weight.data.uniform_(0.5, 1.5, generator=generator)
        module.bias.data.uniform_(-0.5, 0.5, generator=generator)
        module.running_mean.uniform_(-0.5, 0.5, generator=generator)
        module.running_var.uniform_(0.5, 1.5, generator=generator)
    return backbone


def norms_of(backbone):
    return [module for module in backbone.modules() if hasattr(module, "running_var")]


def changed_norms(backbone):
    """The norms that pass on their input, up to the activation within them."""
    changed = []
    for norm in norms_of(backbone):
        features = torch.rand(1, len(norm.bias), 2, 2).to(norm.bias) + 0.1
        if torch.equal(norm(features), features):
            changed.append(norm)
    return changed


def gradients(backbone, image):
    backbone.zero_grad()
    outputs = backbone(image)
    sum(feature_map.square().mean() for feature_map in outputs).backward()
    return list(outputs), {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("settings", [BACKBONES["resnet"], MOBILENET], ids=["resnet", "mobilenet"])
def test_outputs_gradients_and_names_stay(settings):
    backbone = build_backbone(settings)
    image = torch.rand(2, 3, 96, 64, dtype=torch.float64)
    expected, expected_gradients = gradients(backbone, image)
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    random_numbers = torch.get_rng_state()
    assert not changed_norms(backbone)
    torch.set_rng_state(random_numbers)
    speed_up_convolutions(backbone)
    assert torch.equal(torch.get_rng_state(), random_numbers) and backbone.training
    assert changed_norms(backbone) == norms_of(backbone)
    found, found_gradients = gradients(backbone, image)
    for before, after in zip(expected, found, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    assert found_gradients.keys() == expected_gradients.keys() and len(found_gradients) > 5
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-8, atol=1e-10)
    assert list(backbone.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    restore_convolutions(backbone)
    again, _ = gradients(backbone, image)
    assert all(torch.equal(before, after) for before, after in zip(expected, again, strict=True))


def test_a_copy_has_its_own_norms():
    backbone = build_backbone(BACKBONES["resnet"])
    speed_up_convolutions(backbone)
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    copied = copy.deepcopy(backbone)
    expected = backbone(image)[0]
    for norm in norms_of(backbone):
        norm.bias.add_(1.0)
    assert torch.equal(copied(image)[0], expected)
    assert not torch.allclose(backbone(image)[0], expected)
    restore_convolutions(copied)
    torch.testing.assert_close(copied(image)[0], expected)


def test_norms_that_learn_are_left_alone():
    backbone = build_backbone(BACKBONES["resnet"], frozen=False)
    speed_up_convolutions(backbone)
    assert not changed_norms(backbone.eval())


def test_a_backbone_that_reads_an_output_elsewhere_is_left_alone():
    backbone = build_backbone(BACKBONES["resnet"])
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    seen = []
    first.register_forward_hook(lambda module, inputs, output: seen.append(output))
    original = backbone.forward
    # the first map also gets the first convolution's own output
    backbone.forward = lambda pixels: [original(pixels)[0] + seen[-1].mean(), *original(pixels)[1:]]
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    expected = backbone(image)[0]
    speed_up_convolutions(backbone)
    assert torch.equal(backbone(image)[0], expected)
    assert not changed_norms(backbone)


def test_convolutions_are_laid_out_with_channels_last():
    backbone = build_backbone(MOBILENET).to(memory_format=torch.contiguous_format)
    speed_up_convolutions(backbone)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)


def is_strided_depthwise(module):
    return isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.stride) > 1


def test_only_strided_depthwise_convolutions_leave_bfloat16():
    backbone = build_backbone(MOBILENET, dtype=torch.float32)
    image = torch.rand(2, 3, 64, 64)
    expected = backbone(image)
    speed_up_convolutions(backbone, bfloat16=True)
    copied = copy.deepcopy(backbone)
    for network in (backbone, copied):
        dtypes: dict[bool, set] = {True: set(), False: set()}
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(
                    lambda module, inputs, output: dtypes[is_strided_depthwise(module)].add(output.dtype)  # noqa: B023
                )
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(image)
        assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}
        for before, after in zip(expected, outputs, strict=True):
            assert (after - before).norm() < 0.2 * before.norm()
    sum(output.float().mean() for output in outputs).backward()
    for name, module in copied.named_modules():
        if is_strided_depthwise(module) and module.weight.requires_grad:
            assert module.weight.grad.dtype == torch.float32, name
    restore_convolutions(backbone)
    assert all(torch.equal(before, after) for before, after in zip(expected, backbone(image), strict=True))
