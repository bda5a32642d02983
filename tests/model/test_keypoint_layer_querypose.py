"""Keypoint layers in half precision."""

import pytest
import torch
from tiny import images, make_model


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
