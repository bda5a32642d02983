"""Keypoint layers in half precision."""

import pytest
import torch
from tiny import images, make_model

from querypose_hf.model.keypoint_layer_querypose import QueryPosePartBatchNorm


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_part_batch_norm_stays_in_float32(dtype):
    norm = QueryPosePartBatchNorm(4)
    norm.running_var.fill_(6e6)
    norm.running_mean.fill_(1e5)
    norm.to(dtype)
    assert norm.running_var.tolist() == [6e6] * 4 and norm.running_mean.tolist() == [1e5] * 4
    assert {tensor.dtype for tensor in norm.state_dict().values()} == {torch.float32, torch.int64}
    features = torch.randn(2, 4, 3, 3).to(dtype)
    for mode in (False, True):
        assert norm.train(mode)(features).dtype == dtype
    assert norm.double().running_var.dtype == torch.float64
    assert norm.half().running_var.dtype == torch.float32


def test_part_batch_norm_of_a_model_built_in_float16():
    torch.set_default_dtype(torch.float16)
    try:
        norm = QueryPosePartBatchNorm(4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert norm.weight.dtype == norm.running_var.dtype == torch.float32


@pytest.mark.parametrize("autocast", [False, True])
def test_features_beyond_float16_lose_nobody(autocast):
    model = make_model(pose_query_interaction="dynamic").float()
    with torch.no_grad():
        for layer in model.model.decoder.keypoint_layers:
            for conv in layer.conv_stack.convs:
                conv.weight *= 1e4
            layer.part_embedding.upsample_norm.running_var.fill_(1e10)
    pixel_values = images(1, 3, 64, 64).float()
    with torch.no_grad(), torch.autocast("cpu", torch.float16, enabled=autocast):
        model = model if autocast else model.half()
        found = model(pixel_values.to(model.dtype))
    for name in ("logits", "pred_boxes", "pred_keypoints", "keypoint_scores"):
        assert found[name].isfinite().all(), name
