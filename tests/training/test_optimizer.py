import pytest
import torch
from tiny import tiny_config

from querypose_hf import QueryPoseForPoseEstimation
from querypose_hf.training.optimizer import build_optimizer, parameter_groups
from querypose_hf.training.recipe import TrainingConfig


class TestParameterGroups:
    def test_every_trained_parameter_once_and_the_flow_faster(self):
        model = QueryPoseForPoseEstimation(tiny_config())
        model.model.neck.requires_grad_(False)
        groups = {group["name"]: group for group in parameter_groups(model, TrainingConfig())}
        assert {id(p) for p in groups["flow"]["params"]} == {id(p) for p in model.flow.parameters()}
        grouped = [id(p) for group in groups.values() for p in group["params"]]
        assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
        assert groups["model"]["lr"] == 2.5e-5
        assert groups["flow"]["lr"] == pytest.approx(2.5e-4)
        assert {group["weight_decay"] for group in groups.values()} == {1e-4}
        assert next(iter(groups)) == "model"  # its learning rate is logged

    def test_optimizer(self):
        optimizer = build_optimizer(QueryPoseForPoseEstimation(tiny_config()), TrainingConfig())
        assert isinstance(optimizer, torch.optim.AdamW)
        assert optimizer.defaults["fused"]
