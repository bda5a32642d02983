"""How a model is trained: the learning rate schedule, all other settings, and named recipes.

The defaults are those of the paper (Section 4.1) and its released code. [`RECIPES`] also holds what fine-tuning takes.
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
from ..settings import changed, option, plain_mapping, read_yaml, require


#: The paper's learning rate, and the images of a step that it is for: 2 on each of 8 GPUs.
PAPER_LEARNING_RATE, PAPER_IMAGES_PER_STEP = 2.5e-5, 16


@dataclass(frozen=True)
class LearningRateSchedule:
    """The factor of the learning rates at each optimizer step.

    It is the product of a linear warm-up from `warmup_factor` to 1 and either a drop by `gamma` at each milestone or
    half a cosine from 1 to 0.

    Args:
        kind (`str`): `"multistep"` or `"cosine"`.
        unit (`str`): the unit of `length` and `milestones`: `"step"` (of the optimizer) or `"epoch"`.
        length (`int`): how long training lasts.
        milestones (`tuple[int, ...]`): where the learning rates drop; `"cosine"` ignores them.
        gamma (`float`): the factor of a drop.
        warmup_steps (`int`): the length of the warm-up, always in optimizer steps.
        warmup_factor (`float`): the factor at the first step.
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
        """The same schedule counted in optimizer steps; one in epochs gets a warm-up of at most a tenth of it."""
        if self.unit == "step":
            return self
        length = self.length * steps_per_epoch
        return dataclasses.replace(
            self,
            unit="step",
            length=length,
            milestones=tuple(milestone * steps_per_epoch for milestone in self.milestones),
            warmup_steps=min(self.warmup_steps, length // 10),
        )

    def with_length(self, length: int, unit: Literal["step", "epoch"]) -> "LearningRateSchedule":
        """The same schedule stretched to another length; the warm-up is at most a tenth of it, see [`in_steps`]."""
        if length < 1:
            raise ValueError(f"the length of training is {length} {unit}s; expected at least 1.")
        milestones = {round(milestone * length / self.length) for milestone in self.milestones}
        return dataclasses.replace(
            self,
            unit=unit,
            length=length,
            milestones=tuple(sorted(milestone for milestone in milestones if 0 < milestone < length)),
            warmup_steps=min(self.warmup_steps, length // 10) if unit == "step" else self.warmup_steps,
        )

    def factor(self, step: int) -> float:
        """The factor at an optimizer step, counted from 0; the schedule must be in steps."""
        if self.unit != "step":
            raise ValueError("`unit` is 'epoch'; expected 'step': convert the schedule with `in_steps` first.")
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
        learning_rate (`float`): of all parameters except those of the flow.
        scale_learning_rate (`"auto"` or `bool`): whether `learning_rate` is for the paper's 16 images per optimizer
            step and is multiplied by the actual number over 16 (the linear scaling rule; not in the paper). `"auto"`
            does so for the paper's learning rate alone: another was chosen for the batch at hand. So was one that YAML
            or the command line gives, which sets this field to `False` unless it is given, too.
        flow_learning_rate_factor (`float`): the flow's learning rate relative to `learning_rate`.
        weight_decay (`float`): AdamW's, on every parameter, including norms and biases, as in the paper.
        max_gradient_norm (`float`): a longer gradient of the whole model is scaled down to this norm.
        schedule ([`LearningRateSchedule`]): of the learning rates.
        batch_size (`int`): images per process and micro batch. The paper has 2 on each of 8 GPUs.
        gradient_accumulation_steps (`int`): micro batches per optimizer step. Each micro batch's loss is divided by
            its own number of people and the gradients are averaged, so that people in a micro batch with few of them
            weigh more than in one large batch. Over processes people are counted together and weigh the same.
        mixed_precision (`str`): `"no"`, as in the paper, `"bf16"` or `"fp16"`.
        ema_decay (`float`, *optional*): decay of an exponential moving average of the weights, which is then evaluated
            and saved. The decay grows from 0 at the start.
        gradient_checkpointing (`bool`): whether box layers and the convolutions of keypoint layers run again in the
            backward pass in place of keeping what they computed. Where every query is decoded (`query_feedback` is
            `"always"`), a full model at the paper's size then keeps 3.2 GiB for 2 images in place of 5.4, as reported.
        compile (`bool`): whether backbone and neck go through `torch.compile`. The decoder does not: its matching
            runs on the host, and its number of RoIs changes from batch to batch.
        seed (`int`): of data order, augmentation and dropout.
        num_workers (`int`): processes that prepare data, for each training process; 0 prepares it in the training
            process.
        log_every (`int`): optimizer steps between records in the log, the progress bar and the trackers.
        save_every (`int`, *optional*): optimizer steps between checkpoints; by default an epoch, or 5,000 steps of a
            stream.
        keep_checkpoints (`int`): how many of the newest checkpoints are kept.
        evaluate_every (`int`, *optional*): optimizer steps between evaluations; by default an epoch. There is always
            one at the end, with a stream by default no other.
        best_metric (`str`): the figure of the evaluation that chooses the best model; higher is better.
        patience (`int`, *optional*): training stops early after so many evaluations in a row without a better
            `best_metric`. By default it does not.
        trackers (`tuple[str, ...]`, *optional*): names of Accelerate's trackers, such as `"tensorboard"`, `"wandb"`
            and `"trackio"`. By default TensorBoard, where it is installed.

    Example:

    ```python
    >>> config = TrainingConfig.from_mapping({"recipe": "paper_2x", "mixed_precision": "bf16", "ema_decay": 0.9998})
    >>> config.schedule.milestones
    (220000, 260000)
    ```
    """

    learning_rate: float = option(PAPER_LEARNING_RATE, "of all parameters but the flow's")
    scale_learning_rate: Literal["auto", True, False] = "auto"
    flow_learning_rate_factor: float = 10.0
    weight_decay: float = 1e-4
    max_gradient_norm: float = 1.0
    schedule: LearningRateSchedule = field(default_factory=LearningRateSchedule)
    batch_size: int = option(2, "images per process and micro batch")
    gradient_accumulation_steps: int = 1
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "precision of the forward pass")
    ema_decay: float | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    seed: int = option(0, "of data order, augmentation and dropout")
    num_workers: int = option(4, "processes that prepare data, for each training process", flag="--workers")
    log_every: int = 20
    save_every: int | None = None
    keep_checkpoints: int = 2
    evaluate_every: int | None = None
    best_metric: str = "AP"
    patience: int | None = option(None, "stop after so many evaluations without a better AP")
    trackers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("learning_rate", "flow_learning_rate_factor", "max_gradient_norm"):
            require(self, name, getattr(self, name) > 0, "above 0")
        for name in ("weight_decay", "seed", "num_workers"):
            require(self, name, getattr(self, name) >= 0, "at least 0")
        for name in ("batch_size", "gradient_accumulation_steps", "log_every", "keep_checkpoints"):
            require(self, name, getattr(self, name) >= 1, "at least 1")
        if self.ema_decay is not None:
            require(self, "ema_decay", 0 < self.ema_decay < 1, "between 0 and 1, or nothing")
        for name in ("save_every", "evaluate_every", "patience"):
            require(self, name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1, or nothing")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "training configuration") -> "TrainingConfig":
        """Builds the settings from plain values; `recipe` names one of [`RECIPES`], which they change.

        A `schedule` with a `length` counts steps unless it has a `unit`; its warm-up is then at most a tenth of it
        unless it has `warmup_steps`, too.

        Raises:
            ValueError: a field is unknown, or a value has the wrong type or range.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"{source}: expected fields with values, got {shown(values)}.")
        values = dict(values)
        if "learning_rate" in values:  # chosen for the batch at hand
            values.setdefault("scale_learning_rate", False)
        schedule = values.get("schedule")
        if isinstance(schedule, Mapping) and "length" in schedule:
            values["schedule"] = {"unit": "step", **schedule}
        recipe = values.pop("recipe", "paper_1x")
        if recipe not in RECIPES:
            raise ValueError(f"{source}: `recipe` is {shown(recipe)}; expected one of {sorted(RECIPES)}.")
        config = changed(RECIPES[recipe], values, source, "")
        if isinstance(schedule, Mapping) and "length" in schedule and "warmup_steps" not in schedule:
            length, unit = config.schedule.length, config.schedule.unit
            config = dataclasses.replace(config, schedule=config.schedule.with_length(length, unit))
        return config

    @classmethod
    def from_yaml(cls, path: str | Path) -> "TrainingConfig":
        """Reads the settings from a YAML file, see [`from_mapping`]."""
        values = read_yaml(path)
        return cls.from_mapping({} if values is None else values, source=str(path))

    def images_per_step(self, num_processes: int) -> int:
        """The images of an optimizer step of all processes."""
        return self.batch_size * num_processes * self.gradient_accumulation_steps

    def scaled_learning_rate(self, num_processes: int) -> float:
        """The learning rate of a run with so many processes, see `scale_learning_rate`."""
        if self.scale_learning_rate == "auto":
            scales = self.learning_rate == PAPER_LEARNING_RATE
        else:
            scales = self.scale_learning_rate
        images = self.images_per_step(num_processes)
        return self.learning_rate * images / PAPER_IMAGES_PER_STEP if scales else self.learning_rate

    def describe_learning_rate(self, num_processes: int) -> str:
        """A line about the learning rate of a run with so many processes, and whether it was scaled."""
        rate, images = self.scaled_learning_rate(num_processes), self.images_per_step(num_processes)
        if rate == self.learning_rate:
            return f"learning rate {rate:g}, not scaled, with {images} images per step"
        given = f"{self.learning_rate:g} for {PAPER_IMAGES_PER_STEP} images per step"
        return f"learning rate {rate:g}: {given}, scaled to {images} (`scale_learning_rate`)"

    def to_mapping(self) -> dict[str, Any]:
        """The settings as plain values, for YAML or JSON."""
        return plain_mapping(self)

    def to_yaml(self) -> str:
        """The settings as YAML text."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False)


_PAPER_2X = TrainingConfig(schedule=LearningRateSchedule(length=280_000, milestones=(220_000, 260_000)))

# For a few hundred images and more, on anything from two CPU cores to a GPU. The learning rate is for 8 images a step.
_FINE_TUNING = TrainingConfig(
    learning_rate=2e-4,
    scale_learning_rate=False,
    schedule=LearningRateSchedule(kind="cosine", unit="epoch", length=15, milestones=(), warmup_steps=30),
    batch_size=8,
    ema_decay=0.999,
    num_workers=2,
    log_every=10,
    patience=5,
)
#: In fine-tuning the short side of an image becomes one of these multiples of the image processor's, and the long side
#: at most the largest multiple of its.
FINE_TUNING_SIZES = (0.8, 0.9, 1.0, 1.1, 1.2)

#: The paper's recipes: 1x (140,000 steps) of its ablations and 2x (280,000) of its final models. A step has 16 images,
#: 2 on each of 8 GPUs. `"paper_3x"` is the older name of `"paper_2x"`: the authors' files call it 3x, the paper 2x.
#: `"fine_tuning"`, ours, is what training from a checkpoint takes unless it is told another.
RECIPES: dict[str, TrainingConfig] = {
    "paper_1x": TrainingConfig(),
    "paper_2x": _PAPER_2X,
    "paper_3x": _PAPER_2X,
    "fine_tuning": _FINE_TUNING,
}
