"""AdamW with the paper's parameter groups."""

from typing import Any

import torch
from torch import nn

from .recipe import TrainingConfig


def parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """AdamW's parameter groups: the backbone (`model.model.backbone`), the flow (`model.flow`) and everything else.

    Each has its own learning rate. The group of everything else comes first: its rate is the one that is logged.
    Frozen parameters are in none of them.
    """
    factors = {
        "model": 1.0,
        "model.backbone": config.backbone_learning_rate_factor,
        "flow": config.flow_learning_rate_factor,
    }
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in factors}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # "model" also takes the rest, such as the heatmap head
            fitting = [group for group in factors if name.startswith(f"{group}.")]
            groups[fitting[-1] if fitting else "model"].append(parameter)
    rates = {name: config.learning_rate * factor for name, factor in factors.items()}
    return [
        {"name": name, "params": parameters, "lr": rates[name], "weight_decay": config.weight_decay}
        for name, parameters in groups.items()
        if parameters
    ]


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over [`parameter_groups`], with the fused kernel where the device has one."""
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(parameter_groups(model, config), fused=fused)
