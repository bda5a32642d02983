"""The training loop, on Accelerate."""

import contextlib
import dataclasses
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object, set_seed
from timm.utils import ModelEmaV3

from ..files import write_text
from ..model.modeling_querypose import QueryPoseForPoseEstimation
from .checkpoints import (
    find_checkpoints,
    load_checkpoint,
    random_state,
    save_checkpoint,
    save_model_folder,
    set_random_state,
)
from .fast_convolutions import restore_convolutions, speed_up_convolutions
from .loaders import build_loader
from .log import Length, TrainingLog, choose_trackers
from .optimizer import build_optimizer
from .recipe import TrainingConfig


logger = logging.getLogger(__name__)

#: Scores a model: figures by name, such as `{"AP": 0.68}`.
Evaluate = Callable[[QueryPoseForPoseEstimation], Mapping[str, float]]

# Settings that a resumed run must not change: they change the training, or what its best model is. The schedule is not
# one of them: it may become longer.
_SETTINGS_OF_THE_WHOLE_RUN = (
    "flow_learning_rate_factor",
    "weight_decay",
    "max_gradient_norm",
    "batch_size",
    "gradient_accumulation_steps",
    "mixed_precision",
    "ema_decay",
    "best_metric",
    "seed",
)


# Optimizer steps between checkpoints of a stream, which has no epochs.
_STREAM_SAVES_EVERY = 5000


def check_stop_after(stop_after: int | None) -> None:
    """Raises `ValueError` unless `stop_after` is a step or `None`."""
    if stop_after is not None and stop_after < 1:
        raise ValueError(f"`stop_after` is {stop_after}; expected a step of at least 1.")


class TrainingLoop:
    """A training run and its state, on as many processes as the program was started with (`accelerate launch`).

    Ctrl-C, or a signal like it (SIGINT), ends the run after the step at hand: a checkpoint is written, then
    `KeyboardInterrupt` is raised, whose message says where the run stopped. A second one ends it at once.

    Afterwards `output_dir` holds `last/` and, with `evaluate`, `best/`, both for `from_pretrained`, their image
    processors with the `score_threshold` that the evaluation gives, if it gives one; `checkpoints/`,
    from which a stopped run goes on; `training_log.jsonl`, see [`TrainingLog`]; and `training.yaml`, the settings.

    If the evaluation fails, a checkpoint is written first, and a resumed run starts with that evaluation; not with
    several processes.

    A resumed run goes on as if it had never stopped: it sees the same data in the same order and, on a CPU, has the
    same bits in every loss and weight. For that the dataset has to give the same sample for the same index and epoch,
    whatever was read before, as [`AugmentedPoseDataset`] does.

    Gradients over several processes are those of one process with the whole batch; every person has the same weight.
    The exception is the batch norm of the part embedding: in training it sees only the people of its own process, as
    in the paper.

    Args:
        model ([`QueryPoseForPoseEstimation`]): trained in place.
        dataset: map-style, see [`AspectRatioBatchSampler`], or an [`AugmentedPoseStream`].
        image_processor (`QueryPoseImageProcessor`): see [`PoseCollator`].
        config ([`TrainingConfig`]): the settings.
        output_dir (`str` or `Path`): made if it does not exist.
        evaluate (`Callable`, *optional*): scores a model. It is called in every process, with the model in evaluation
            mode and without gradients; the main process's figures count.
        report (`Callable`, *optional*): called in the main process when the figures of an evaluation, or without
            `evaluate` of the steps up to a checkpoint, are in the log.
        card (`Callable`, *optional*): the text of `README.md` in `last/` and `best/`, given the model and its figures,
            which are empty where it was not evaluated.

    Raises:
        ValueError: the dataset is empty, or a tracker is not installed.

    Example:

    ```python
    >>> image_processor = QueryPoseImageProcessor(num_keypoints=dataset.num_keypoints)
    >>> config = TrainingConfig.from_yaml("recipe.yaml")
    >>> TrainingLoop(model, dataset, image_processor, config, "runs/first").run(resume=True)
    ```
    """

    def __init__(
        self,
        model: QueryPoseForPoseEstimation,
        dataset: Any,
        image_processor: Any,
        config: TrainingConfig,
        output_dir: str | Path,
        *,
        evaluate: Evaluate | None = None,
        report: Callable[[], None] | None = None,
        card: Callable[[QueryPoseForPoseEstimation, Mapping[str, float]], str] | None = None,
    ):
        self.config = config
        self.output_dir = Path(output_dir)
        self.image_processor = image_processor
        self.evaluate = evaluate
        self.report = report
        self.card = card
        self.accelerator = build_accelerator(config, self.output_dir)
        set_seed(config.seed, device_specific=True)

        self.model = self._place(model)
        self.average = self._start_average()
        if config.compile:
            self.model.model.backbone.compile()
            self.model.model.neck.compile()
        rate = config.scaled_learning_rate(self.accelerator.num_processes)
        optimizer = build_optimizer(self.model, dataclasses.replace(config, learning_rate=rate))
        logger.info(config.describe_learning_rate(self.accelerator.num_processes))
        self.prepared_model, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.loader = build_loader(dataset, image_processor, config, self.accelerator)
        if self.average is not None:  # only now has every process the weights of the first
            self.average.set(self.model)

        schedule = config.schedule
        self.steps_per_epoch: int | None = None
        if self.loader.batches_per_epoch is not None:
            self.steps_per_epoch = math.ceil(self.loader.batches_per_epoch / config.gradient_accumulation_steps)
        if schedule.unit == "epoch":
            if self.steps_per_epoch is None:
                raise ValueError("`schedule.unit` is 'epoch'; expected 'step' with a stream, whose length is unknown.")
            schedule = schedule.in_steps(self.steps_per_epoch)
        self.evaluate_every = config.evaluate_every or self.steps_per_epoch
        self.save_every = config.save_every or self.steps_per_epoch or _STREAM_SAVES_EVERY
        self.total_steps = schedule.length
        # not prepared: Accelerate would advance it once for each process
        self.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule.factor)
        self.step = self.epoch = self.batch = 0
        self.best: float | None = None
        self.best_step = self.evaluations_since_best = self.evaluated_step = 0
        self.unevaluated = False  # whether the evaluation after this step failed
        self.interrupts = 0  # signals that this process got
        self.interrupted = False  # whether any process got one, as all of them know it
        self.metrics: dict[str, float] = {}
        self.origin = {
            **{name: getattr(config, name) for name in _SETTINGS_OF_THE_WHOLE_RUN},
            "learning_rate": rate,
            "number of processes": self.accelerator.num_processes,
            **self.loader.origin,
        }

    def _place(self, model: QueryPoseForPoseEstimation) -> QueryPoseForPoseEstimation:
        """The model in training mode on the device, ready for it."""
        config, device = self.config, self.accelerator.device
        model = model.to(device).train()
        if config.gradient_checkpointing:
            # Transformers' name for it since 5.23, and the one before
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        if device.type == "cpu":
            speed_up_convolutions(model, bfloat16=config.mixed_precision == "bf16")
        return model

    def _start_average(self) -> ModelEmaV3 | None:
        if self.config.ema_decay is None:
            return None
        average = ModelEmaV3(self.model, decay=self.config.ema_decay, use_warmup=True)
        average.module = self.accelerator.prepare_model(average.module, evaluation_mode=True)
        return average

    @property
    def model_to_keep(self) -> QueryPoseForPoseEstimation:
        """The model that is evaluated and saved: the moving average, where there is one."""
        return self.model if self.average is None else self.average.module

    def run(self, resume: bool = False, stop_after: int | None = None) -> dict[str, float]:
        """Trains to the end of the schedule.

        Args:
            resume (`bool`): go on from the newest checkpoint in `output_dir`, if there is one.
            stop_after (`int`, *optional*): the step after which a checkpoint is written and training stops, to be
                resumed.

        Returns:
            `dict[str, float]`: the figures of the last evaluation.

        Raises:
            ValueError: `output_dir` holds checkpoints and `resume` is not set, or the run to resume had other settings
                or data.
            OSError: a checkpoint cannot be written, or a process that reads the data died.
            FloatingPointError: the loss or its gradient became NaN or infinite; the message names the step and the
                terms.
            KeyboardInterrupt: the run was interrupted.
        """
        self.stop_step = self.total_steps if stop_after is None else min(stop_after, self.total_steps)
        checkpoints = find_checkpoints(self.output_dir / "checkpoints")
        if checkpoints and not resume:
            raise ValueError(
                f"`output_dir` is {str(self.output_dir)!r}, which holds checkpoints of a run; expected an empty "
                "folder, or `resume`."
            )
        if checkpoints:
            self.load_state(checkpoints[-1])
        if self.accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            write_text(self.config.to_yaml(), self.output_dir / "training.yaml")
        self.accelerator.wait_for_everyone()
        self.accelerator.init_trackers("querypose", config=self._settings_for_trackers())
        self.log = TrainingLog(
            self.accelerator, self.output_dir, Length(self.step, self.total_steps, self.steps_per_epoch)
        )
        self.log.show_figures(self.metrics)
        try:
            with self._noticing_interrupts():
                if self.unevaluated:
                    self._evaluate_and_save(evaluates=self.evaluate is not None, saves=True)
                while not self._is_to_stop:
                    self._run_epoch()
        except RuntimeError as error:  # torch raises it by a signal, wherever the loop is
            if "DataLoader worker" not in str(error):
                raise
            raise OSError(
                "a process that reads the data died, often for lack of memory: use fewer `num_workers` than "
                f"{self.config.num_workers}. The run can be resumed: {error}"
            ) from error
        finally:
            self.log.close()
            restore_convolutions(self.model)
            if self.average is not None:
                restore_convolutions(self.average)
        if self.interrupted:
            raise KeyboardInterrupt(f"{self.account()} Run the same command with --resume to go on.")
        return self.metrics

    @property
    def stopped_early(self) -> bool:
        """Whether the run is over because `best_metric` no longer becomes better."""
        return self.config.patience is not None and self.evaluations_since_best >= self.config.patience

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to train: the schedule has ended, or the run stopped early."""
        return self.step >= self.total_steps or self.stopped_early

    @property
    def _is_to_stop(self) -> bool:
        return self.step >= self.stop_step or self.stopped_early or self.interrupted

    def account(self) -> str:
        """A line about where the run stands and what it left."""
        config, state = self.config, f"step {self.step} of {self.total_steps}"
        if self.stopped_early:
            return (
                f"Stopped early at {state}: {config.best_metric} was best at step {self.best_step}, "
                f"{self.evaluations_since_best} evaluations ago (`patience`). Models are in {self.output_dir}."
            )
        if self.is_over:
            return f"Finished at {state}. Models are in {self.output_dir}."
        return f"Stopped at {state}. The checkpoint is in {self.output_dir / 'checkpoints'}."

    @contextlib.contextmanager
    def _noticing_interrupts(self) -> Iterator[None]:
        """In the block, SIGINT is noted for the end of the step; a second one raises `KeyboardInterrupt`."""
        if threading.current_thread() is not threading.main_thread():  # others cannot handle signals
            yield
            return
        own_process = os.getpid()

        def note(signal_number: int, frame: Any) -> None:
            if os.getpid() != own_process:  # a worker that prepares data, which goes on for the step at hand
                return
            if self.interrupts:
                raise KeyboardInterrupt("Stopped at once; --resume goes on from the newest checkpoint.")
            self.interrupts += 1
            with contextlib.suppress(RuntimeError):  # where the signal came while something was printed
                self.log.say("Interrupted: a checkpoint follows this step. Ctrl-C again stops at once, without it.")

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _agree_on_interrupt(self) -> None:
        """Notes in every process that one was interrupted; all have to stop after the same step."""
        several = self.accelerator.num_processes > 1
        if several and self._is_due(self.config.log_every):  # not at every step: it waits for the device
            mine = torch.tensor([self.interrupts], device=self.accelerator.device)
            self.interrupted = bool(self.accelerator.reduce(mine).item())
        elif not several:
            self.interrupted = self.interrupts > 0

    def _settings_for_trackers(self) -> dict[str, Any]:
        # trackers take only numbers and text
        settings = self.config.to_mapping()
        schedule = settings.pop("schedule")
        settings.update({f"schedule/{name}": value for name, value in schedule.items()})
        return {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in settings.items()}

    def _run_epoch(self) -> None:
        batches = self.loader.batches(self.epoch, self.batch)
        while not self._is_to_stop:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                self.epoch, self.batch = self.epoch + 1, 0
                return
            self.batch += 1
            self._train_on(batch, time.perf_counter() - start)
            if self.accelerator.sync_gradients:
                self._after_step()

    def _train_on(self, batch: dict[str, Any], waited: float) -> None:
        with self.accelerator.accumulate(self.prepared_model):
            outputs = self.prepared_model(**batch)
            self.log.add_micro_batch(outputs, len(batch["pixel_values"]), waited)
            self.accelerator.backward(outputs.loss)
            if not self.accelerator.sync_gradients:
                return
            norm = self.accelerator.clip_grad_norm_(self.prepared_model.parameters(), self.config.max_gradient_norm)
            learning_rate = float(self.schedule.get_last_lr()[0])
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            self.log.add_step(norm, self.step, may_overflow=self.accelerator.scaler is not None)
        self.learning_rate = learning_rate
        if not self.optimizer.step_was_skipped:  # it is where float16 overflowed
            self.schedule.step()
            if self.average is not None:
                self.average.update(self.model, step=self.step)

    def _after_step(self) -> None:
        self._agree_on_interrupt()
        last = self.step == self.total_steps
        evaluates = self.evaluate is not None and (last or self._is_due(self.evaluate_every))
        saves = self.step == self.stop_step or self.interrupted or self._is_due(self.save_every)
        if saves or evaluates or self._is_due(self.config.log_every):
            # also before every checkpoint, so that no record spans one
            self.log.write(self.step, self.epoch, self.learning_rate)
        self._evaluate_and_save(evaluates, saves)

    def _evaluate_and_save(self, evaluates: bool, saves: bool) -> None:
        if evaluates:
            self._evaluate()
        if saves or self.stopped_early:
            self.save_state()
        if self.report is not None and (evaluates or (saves and self.evaluate is None)):
            if self.accelerator.is_main_process:
                self.report()
        if evaluates or saves:
            self.log.restart_clock()

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        model = self.model_to_keep
        random_numbers = random_state()  # training goes on the same with and without evaluations
        model.eval()
        self.unevaluated = True
        try:
            with torch.no_grad():
                metrics = {name: float(value) for name, value in self.evaluate(model).items()}
        except Exception:
            if self.accelerator.num_processes == 1:  # of several, the others wait in the evaluation
                set_random_state(random_numbers)
                self.save_state()
            raise
        self.unevaluated = False
        # the main process's count: all have to agree on when to stop early
        (self.metrics,) = broadcast_object_list([metrics])
        self.evaluated_step = self.step
        if self.average is None:
            model.train()
        set_random_state(random_numbers)
        self._set_score_threshold()
        name = self.config.best_metric
        figure = self.metrics.get(name)
        is_best = figure is not None and (self.best is None or figure > self.best)
        self.log.write_evaluation(self.metrics, self.step, is_best)
        if figure is None:
            given = sorted(self.metrics)
            logger.warning("`best_metric` is %r, but the evaluation gives %s: no best model is kept.", name, given)
        elif is_best:
            self.best, self.best_step, self.evaluations_since_best = figure, self.step, 0
            if self.accelerator.is_main_process:
                self._save_model("best")
        else:
            self.evaluations_since_best += 1

    def _save_model(self, kind: str) -> None:
        model = self.model_to_keep
        figures = self.metrics if self.evaluated_step == self.step else {}
        texts = {} if self.card is None else {"README.md": self.card(model, figures)}
        save_model_folder(self.output_dir / kind, model, self.image_processor, texts)

    def _set_score_threshold(self) -> None:
        """Has models be saved with the score threshold that the last evaluation chose."""
        if "score_threshold" in self.metrics:
            self.image_processor.score_threshold = self.metrics["score_threshold"]

    def save_state(self) -> None:
        """Writes a checkpoint, and the model to `last/`; every process has to call it."""
        states_of_processes = gather_object([random_state()])
        if self.accelerator.is_main_process:
            scaler = self.accelerator.scaler
            state = {
                "origin": self.origin,
                "step": self.step,
                "epoch": self.epoch,
                "batch": self.batch,
                "best": self.best,
                "best_step": self.best_step,
                "evaluations_since_best": self.evaluations_since_best,
                "unevaluated": self.unevaluated,
                "metrics": self.metrics,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "average": None if self.average is None else self.average.module.state_dict(),
                "scaler": None if scaler is None else scaler.state_dict(),
                "random_states": states_of_processes,
            }
            # `last` first: a run that is killed in between writes it again after it is resumed
            self._save_model("last")
            save_checkpoint(self.output_dir / "checkpoints", self.step, state, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def load_state(self, path: Path) -> None:
        """Puts the run back to where it was when the checkpoint was written.

        Raises:
            ValueError: the checkpoint is of a run with other settings or data.
        """
        state = load_checkpoint(path)
        for name, value in self.origin.items():
            before = state["origin"].get(name)
            if before != value:
                raise ValueError(
                    f"{path}: `{name}` was {before!r} in this run and is {value!r} now; expected the same to resume."
                )
        self.step, self.epoch, self.batch = state["step"], state["epoch"], state["batch"]
        self.best, self.metrics = state["best"], state["metrics"]
        self.unevaluated = state.get("unevaluated", False)
        self._set_score_threshold()
        self.best_step, self.evaluations_since_best = state["best_step"], state["evaluations_since_best"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        if state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        set_random_state(state["random_states"][self.accelerator.process_index])


def build_accelerator(config: TrainingConfig, output_dir: Path) -> Accelerator:
    """An `Accelerator` with the run's precision, accumulation and trackers."""
    return Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=choose_trackers(config.trackers) or None,
        project_dir=str(output_dir),
        # some backbones have unused layers; without `auxiliary_loss` the heads of earlier stages are unused, too
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
