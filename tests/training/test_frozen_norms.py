import copy

import pytest
import torch
from tiny import BACKBONES, tiny_config
from torch import nn

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.training.frozen_norms import fold_frozen_norms, unfold_frozen_norms


MOBILENET = {"model_type": "timm_backbone", "backbone": "mobilenetv2_050", "out_indices": [1, 2, 3, 4]}


def build_backbone(settings, frozen=True):
    torch.manual_seed(0)
    config = tiny_config(backbone_config={**settings, "freeze_batch_norm_2d": frozen}, frozen_backbone_stages=2)
    backbone = QueryPoseForPoseEstimation(config).model.backbone.double().train()
    generator = torch.Generator().manual_seed(1)
    for module in backbone.modules():
        if hasattr(module, "running_var"):  # statistics of a network that was trained
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.5, 0.5, generator=generator)
            module.running_mean.uniform_(-0.5, 0.5, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return backbone


def gradients(backbone, picture):
    backbone.zero_grad()
    outputs = backbone(picture)
    sum(feature_map.square().mean() for feature_map in outputs).backward()
    return list(outputs), {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("settings", [BACKBONES["resnet"], MOBILENET], ids=["resnet", "mobilenet"])
def test_outputs_gradients_and_names_stay(settings):
    backbone = build_backbone(settings)
    picture = torch.rand(2, 3, 96, 64, dtype=torch.float64)
    expected, expected_gradients = gradients(backbone, picture)
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    norms = [module for module in backbone.modules() if hasattr(module, "running_var")]
    random_numbers = torch.get_rng_state()
    assert fold_frozen_norms(backbone) == len(norms)
    assert torch.equal(torch.get_rng_state(), random_numbers) and backbone.training
    ran = []
    handles = [norm.register_forward_hook(lambda module, inputs, output: ran.append(inputs[0])) for norm in norms[:1]]
    found, found_gradients = gradients(backbone, picture)
    for handle in handles:
        handle.remove()
    for before, after in zip(expected, found, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)
    assert found_gradients.keys() == expected_gradients.keys() and len(found_gradients) > 5
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-8, atol=1e-10)
    # the norm's input is normalised already
    assert not torch.allclose(
        ran[0], nn.functional.conv2d(picture, state[first_convolution(backbone)], stride=2, padding=1)
    )
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    unfold_frozen_norms(backbone)
    again, _ = gradients(backbone, picture)
    assert all(torch.equal(before, after) for before, after in zip(expected, again, strict=True))


def first_convolution(backbone):
    return next(f"{name}.weight" for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d))


def test_a_copy_has_its_own_norms():
    backbone = build_backbone(BACKBONES["resnet"])
    fold_frozen_norms(backbone)
    picture = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    copied = copy.deepcopy(backbone)
    expected = backbone(picture)[0]
    for module in backbone.modules():
        if hasattr(module, "running_var"):
            module.bias.add_(1.0)
    assert torch.equal(copied(picture)[0], expected)
    assert not torch.allclose(backbone(picture)[0], expected)
    unfold_frozen_norms(copied)
    torch.testing.assert_close(copied(picture)[0], expected)


def test_norms_that_learn_are_left_alone():
    backbone = build_backbone(BACKBONES["resnet"], frozen=False)
    classes = [type(module) for module in backbone.modules()]
    assert fold_frozen_norms(backbone) == 0
    assert [type(module) for module in backbone.modules()] == classes


def test_an_output_used_elsewhere_is_left_alone():
    backbone = build_backbone(BACKBONES["resnet"])
    network = backbone.model._backbone
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    seen = []
    first.register_forward_hook(lambda module, inputs, output: seen.append(output))
    original = backbone.forward
    # the first map also gets the first convolution's own output
    backbone.forward = lambda pixels: [original(pixels)[0] + seen[-1].mean(), *original(pixels)[1:]]
    picture = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    expected = backbone(picture)[0]
    assert fold_frozen_norms(backbone) == 0
    assert torch.equal(backbone(picture)[0], expected)
