import copy

import pytest
import torch
from tiny import tiny_config
from torch import nn

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.training.cpu_bfloat16 import keep_strided_depthwise_float32
from querypose_hf.training.frozen_norms import fold_frozen_norms, unfold_frozen_norms


def build_backbone():
    torch.manual_seed(0)
    backbone_config = {
        "model_type": "timm_backbone",
        "backbone": "mobilenetv2_050",
        "out_indices": [1, 2, 3, 4],
        "freeze_batch_norm_2d": True,
    }
    return QueryPoseForPoseEstimation(tiny_config(backbone_config=backbone_config)).model.backbone.train()


def is_kept(module):
    return isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.stride) > 1


@pytest.mark.parametrize("folded", [False, True], ids=["plain", "folded"])
def test_only_strided_depthwise_convolutions_leave_bfloat16(folded):
    backbone = build_backbone()
    if folded:
        assert fold_frozen_norms(backbone)
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    picture = torch.rand(2, 3, 64, 64)
    expected = backbone(picture)
    # the first block has none, and the last of the five strides
    assert keep_strided_depthwise_float32(backbone) == sum(map(is_kept, backbone.modules())) == 4
    copied = copy.deepcopy(backbone)
    dtypes = {}
    for network in (backbone, copied):
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(
                    lambda module, inputs, output, name=name: dtypes.update({name: (is_kept(module), output.dtype)})
                )
        with torch.autocast("cpu", torch.bfloat16):
            outputs = network(picture)
        for before, after in zip(expected, outputs, strict=True):
            torch.testing.assert_close(after.float(), before, rtol=0.1, atol=0.05 * before.abs().max().item())
        assert {dtype for kept, dtype in dtypes.values() if kept} == {torch.float32}
        assert {dtype for kept, dtype in dtypes.values() if not kept} == {torch.bfloat16}
        dtypes.clear()
    sum(output.float().mean() for output in outputs).backward()
    weights = [module.weight for module in copied.modules() if is_kept(module)]
    assert all(weight.grad is not None and weight.grad.dtype == torch.float32 for weight in weights)
    assert all(torch.equal(value, state[name]) for name, value in backbone.state_dict().items())
    assert [name for name, _ in backbone.named_modules()] == [name for name, _ in copied.named_modules()]


def test_outside_autocast_nothing_changes():
    backbone = build_backbone()
    picture = torch.rand(1, 3, 64, 64)
    expected = backbone(picture)
    # twice: a network may be trained again
    assert keep_strided_depthwise_float32(backbone) == keep_strided_depthwise_float32(backbone) == 4
    assert all(torch.equal(before, after) for before, after in zip(expected, backbone(picture), strict=True))


def test_norms_are_unfolded_after_it():
    backbone = build_backbone()
    picture = torch.rand(1, 3, 64, 64)
    expected = backbone(picture)
    fold_frozen_norms(backbone)
    keep_strided_depthwise_float32(backbone)
    unfold_frozen_norms(backbone)
    assert all(torch.equal(before, after) for before, after in zip(expected, backbone(picture), strict=True))
