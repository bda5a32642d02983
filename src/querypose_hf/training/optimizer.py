"""AdamW with the paper's parameter groups."""

from typing import Any

import torch
from torch import nn

from .recipe import TrainingConfig


def parameter_groups(model: nn.Module, config: TrainingConfig) -> list[dict[str, Any]]:
    """AdamW's parameter groups: everything but the flow (`model.flow`), and the flow, with its own learning rate.

    The first group's rate is the one that is logged. Frozen parameters are in neither.
    """
    rates = {"model": config.learning_rate, "flow": config.learning_rate * config.flow_learning_rate_factor}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups["flow" if name.startswith("flow.") else "model"].append(parameter)
    return [
        {"name": name, "params": parameters, "lr": rates[name], "weight_decay": config.weight_decay}
        for name, parameters in groups.items()
        if parameters
    ]


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over [`parameter_groups`], with the fused kernel where the device has one."""
    fused = next(model.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(parameter_groups(model, config), fused=fused)
