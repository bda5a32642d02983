"""What a training run is made of: the settings, the optimizer's parameter groups and the learning rate schedule.

The defaults are those of the paper (Section 4.1) and its released code.
"""

import bisect
import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ..checks import shown
from ..settings import changed, plain_mapping, read_yaml, require


@dataclass(frozen=True)
class LearningRateSchedule:
    """Factor by which the learning rates are multiplied at each optimizer step.

    A linear warm-up from `warmup_factor` to 1, times either steps down by `gamma` at each milestone or half a cosine
    from 1 to 0.

    Args:
        kind (`str`): `"multistep"` or `"cosine"`.
        unit (`str`): what `length` and `milestones` count, `"step"` (of the optimizer) or `"epoch"`.
        length (`int`): how long training lasts.
        milestones (`tuple[int, ...]`): where the learning rate drops; without effect with `"cosine"`.
        gamma (`float`): factor of a drop.
        warmup_steps (`int`): optimizer steps of the warm-up, whatever the unit.
        warmup_factor (`float`): factor at the first step.
    """

    kind: Literal["multistep", "cosine"] = "multistep"
    unit: Literal["step", "epoch"] = "step"
    length: int = 140_000
    milestones: tuple[int, ...] = (110_000, 130_000)
    gamma: float = 0.1
    warmup_steps: int = 1000
    warmup_factor: float = 0.01

    def __post_init__(self) -> None:
        require(self, "length", self.length >= 1, "at least 1")
        if self.kind == "multistep":
            rising = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
            within = all(0 < milestone < self.length for milestone in self.milestones)
            require(self, "milestones", rising and within, f"rising, above 0 and below `length`, {self.length}")
        require(self, "gamma", 0 < self.gamma <= 1, "above 0 and at most 1")
        require(self, "warmup_steps", self.warmup_steps >= 0, "at least 0")
        require(self, "warmup_factor", 0 < self.warmup_factor <= 1, "above 0 and at most 1")

    def in_steps(self, steps_per_epoch: int) -> "LearningRateSchedule":
        """The same schedule counted in optimizer steps."""
        if self.unit == "step":
            return self
        return dataclasses.replace(
            self,
            unit="step",
            length=self.length * steps_per_epoch,
            milestones=tuple(milestone * steps_per_epoch for milestone in self.milestones),
        )

    def factor(self, step: int) -> float:
        """Factor of optimizer step `step`, counted from 0, of a schedule in steps."""
        if self.unit != "step":
            raise ValueError("a schedule by epochs has no factor of a step: convert it with `in_steps` first.")
        warmup = 1.0
        if step < self.warmup_steps:
            warmup = self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps
        if self.kind == "cosine":
            return warmup * 0.5 * (1 + math.cos(math.pi * min(step / self.length, 1)))
        return warmup * self.gamma ** bisect.bisect_right(self.milestones, step)


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run.

    Args:
        objective (`str`):
            `"everything"`, the model's own loss; or, before that, `"heatmaps"` ([`HeatmapPretraining`]) or `"poses"`
            ([`PosePretraining`], whose data needs `person_crops`).
        learning_rate (`float`): of all parameters but the flow's and the backbone's.
        backbone_learning_rate_factor (`float`):
            What the backbone's learning rate is multiplied by; 1, as in the paper. Less keeps more of a pretrained
            backbone where the learning rate is large.
        flow_learning_rate_factor (`float`): how much larger the flow's learning rate is.
        weight_decay (`float`): of AdamW; on every parameter, norms and biases included, as in the paper.
        max_gradient_norm (`float`): the gradient of the whole model is scaled down to this norm if it is longer.
        schedule ([`LearningRateSchedule`]): of the learning rates.
        batch_size (`int`): images per process and micro batch. The paper's is 2 on each of 8 GPUs.
        gradient_accumulation_steps (`int`):
            Micro batches per optimizer step. The loss of a micro batch is divided by its own number of people, and
            their gradients are averaged: people in a micro batch with fewer of them weigh more than in a single large
            batch. Over processes people are counted together, and weigh the same.
        mixed_precision (`str`): `"no"`, as in the paper, `"bf16"` or `"fp16"`.
        ema_decay (`float`, *optional*):
            Decay of an exponential moving average of the weights, which then is what is evaluated and saved. The
            decay grows from 0 at the start.
        channels_last (`bool`): whether images and convolutions are laid out with channels last.
        compile (`bool`): whether backbone and neck go through `torch.compile`. The decoder does not: its matching
            runs on the host, and its number of RoIs changes from batch to batch.
        seed (`int`): of data order, augmentation and dropout.
        num_workers (`int`): processes that prepare data, for each training process; 0 prepares it in between.
        log_every (`int`): optimizer steps between records in the log, the progress bar and the trackers.
        save_every (`int`): optimizer steps between checkpoints.
        keep_checkpoints (`int`): how many of the newest checkpoints are kept.
        evaluate_every (`int`, *optional*): optimizer steps between evaluations; by default at the end alone.
        best_metric (`str`): figure of the evaluation by which the best model is chosen, the greater the better.
        trackers (`tuple[str, ...]`, *optional*): names of Accelerate's trackers, such as `"tensorboard"`, `"wandb"`
            and `"trackio"`. By default TensorBoard where it is installed.

    Example:

    ```python
    >>> config = TrainingConfig.from_mapping({"recipe": "paper_3x", "mixed_precision": "bf16", "ema_decay": 0.9998})
    >>> config.schedule.milestones
    (220000, 260000)
    ```
    """

    objective: Literal["everything", "heatmaps", "poses"] = "everything"
    learning_rate: float = 2.5e-5
    backbone_learning_rate_factor: float = 1.0
    flow_learning_rate_factor: float = 10.0
    weight_decay: float = 1e-4
    max_gradient_norm: float = 1.0
    schedule: LearningRateSchedule = field(default_factory=LearningRateSchedule)
    batch_size: int = 2
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    ema_decay: float | None = None
    channels_last: bool = False
    compile: bool = False
    seed: int = 0
    num_workers: int = 4
    log_every: int = 20
    save_every: int = 5000
    keep_checkpoints: int = 2
    evaluate_every: int | None = None
    best_metric: str = "AP"
    trackers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        rates = ("learning_rate", "backbone_learning_rate_factor", "flow_learning_rate_factor")
        for name in (*rates, "max_gradient_norm"):
            require(self, name, getattr(self, name) > 0, "above 0")
        for name in ("weight_decay", "seed", "num_workers"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("batch_size", "gradient_accumulation_steps", "log_every", "save_every", "keep_checkpoints"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        if self.ema_decay is not None:
            require(self, "ema_decay", 0 < self.ema_decay < 1, "between 0 and 1, or nothing")
        if self.evaluate_every is not None:
            require(self, "evaluate_every", self.evaluate_every >= 1, "at least 1, or nothing")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "training configuration") -> "TrainingConfig":
        """Builds the settings from plain values; `recipe` names one of [`RECIPES`] that they change.

        Raises:
            ValueError: a field is not known, or its value is not of its type or range.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{source}: expected fields with values, got {shown(values)}.")
        values = dict(values)
        recipe = values.pop("recipe", "paper_1x")
        if recipe not in RECIPES:
            raise ValueError(f"{source}: `recipe` is {shown(recipe)}; expected one of {sorted(RECIPES)}.")
        return changed(RECIPES[recipe], values, source, "")

    @classmethod
    def from_yaml(cls, path: str | Path) -> "TrainingConfig":
        """Reads the settings from a YAML file, see [`from_mapping`]."""
        values = read_yaml(path)
        return cls.from_mapping({} if values is None else values, source=str(path))

    def to_mapping(self) -> dict[str, Any]:
        """The settings as plain values, for YAML or JSON."""

        return plain_mapping(self)

    def to_yaml(self) -> str:
        """The settings as YAML text."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False)


#: The paper's two recipes: "1x" of its ablations and "3x" of its final models, 16 images a step on 8 GPUs.
RECIPES: dict[str, TrainingConfig] = {
    "paper_1x": TrainingConfig(),
    "paper_3x": TrainingConfig(schedule=LearningRateSchedule(length=280_000, milestones=(220_000, 260_000))),
}
