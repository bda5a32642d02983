"""What a training run reports while it runs: a progress bar, a log file and trackers."""

import json
import math
import re
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from tqdm.auto import tqdm

from ..files import write_text


LOG_FILE = "training_log.jsonl"
_STAGE = re.compile(r"_\d+$")


def choose_trackers(names: tuple[str, ...] | None) -> list[str]:
    """The trackers to use: those named, or TensorBoard where it is installed.

    Raises:
        ValueError: a named tracker is not installed, or Accelerate does not know it.
    """
    available = [str(tracker) for tracker in get_available_trackers()]
    if names is None:
        return [name for name in ("tensorboard",) if name in available]
    for name in names:
        if name not in available:
            raise ValueError(
                f"`trackers` holds {name!r}, which is not installed; expected any of {sorted(available)}."
            )
    return list(names)


@dataclass(frozen=True)
class Length:
    """How long a run is, and how far it has come, in optimizer steps.

    Attributes:
        step (`int`): steps already taken.
        total (`int`): steps of the whole run.
        of_epoch (`int`, *optional*): steps of an epoch; a stream has none.
    """

    step: int
    total: int
    of_epoch: int | None = None


class TrainingLog:
    """Sums up the steps between two records, and writes the records.

    A record goes to the log file (`training_log.jsonl`, one JSON object per line) and the trackers. The progress bar
    shows epoch, step, loss, AP, learning rate, images per second and the time left. A record holds, since the one
    before:

    - `step` and `epoch`;
    - `loss` and its terms, each summed over the stages: means over micro batches and processes;
    - `gradient_norm`: the mean before clipping; and `learning_rate`, the model's at the last step;
    - `images_per_second` of all processes, and `data_wait`, the share of the time spent waiting for data;
    - `memory_gib`: the peak of the device's memory in use; on a CPU, of the process's.

    Args:
        accelerator (`Accelerator`): the run's.
        folder (`Path`): the folder of the log file.
        length ([`Length`]): the run's. Records of later steps, left by a killed run, are deleted.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, length: Length):
        self.accelerator = accelerator
        self.length = length
        self.path = folder / LOG_FILE
        if accelerator.is_main_process:
            self._keep_records_up_to(length.step)
        self._shown: dict[str, str] = {}
        self.progress = tqdm(
            total=length.total,
            initial=length.step,
            disable=not accelerator.is_local_main_process,
            bar_format="{desc}{remaining} left",
            smoothing=0,  # by the mean of the run, evaluations and all: the last step alone may have waited for one
        )
        self._show()
        self._clear()

    def _show(self, **values: str) -> None:
        """Shows these values in the progress bar from now on; with all of them it fits 80 columns."""
        self._shown.update(values)
        step, of_epoch = self.progress.n, self.length.of_epoch
        words = [f"step {step}/{self.length.total}"]
        if of_epoch is not None:
            epochs = -(-self.length.total // of_epoch)
            words = [f"epoch {min(max(step - 1, 0) // of_epoch + 1, epochs)}/{epochs} step {step}"]
        words += [f"{name} {self._shown[name]}" for name in ("loss", "AP", "lr") if name in self._shown]
        if "images/s" in self._shown:
            words.append(f"{self._shown['images/s']} images/s")
        self.progress.set_description_str(" ".join(words) + " ", refresh=False)

    def show_record(self, record: Mapping[str, float]) -> None:
        """Shows loss, learning rate and speed of a record in the progress bar from now on."""
        # 2e-4, not 2.0e-04
        rate = re.sub(r"e([-+])0+", r"e\1", f"{record['learning_rate']:.1e}").replace(".0e", "e")
        self._show(**{"loss": f"{record['loss']:.3g}", "lr": rate, "images/s": f"{record['images_per_second']:.3g}"})

    def show_figures(self, metrics: Mapping[str, float]) -> None:
        """Shows the AP of an evaluation in the progress bar from now on."""
        if "AP" in metrics:
            self._show(AP=f"{metrics['AP']:.3f}")

    def say(self, text: str) -> None:
        """Prints a line above the progress bar, in one process of each machine."""
        if not self.progress.disable:
            self.progress.write(text)

    def _keep_records_up_to(self, step: int) -> None:
        if not self.path.exists():
            return
        # where a process was killed while it wrote, the last line is incomplete
        lines = [line for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True) if line[-1] == "\n"]
        kept = "".join(line for line in lines if json.loads(line)["step"] <= step)
        write_text(kept, self.path)

    def _clear(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._micro_batches = self._images = self._steps = 0
        self._first_bad: torch.Tensor | None = None
        self._waited = 0.0
        self._since = time.perf_counter()

    def _add(self, name: str, value: torch.Tensor) -> None:
        # stays on the device: reading it would be a host sync in every step
        value = value.detach().double()
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def add_micro_batch(self, outputs: Any, images: int, waited: float) -> None:
        """Adds a micro batch: the model's outputs, its number of images, and the seconds spent waiting for it."""
        self._add("loss", outputs.loss)
        for name, term in outputs.loss_dict.items():
            self._add(_STAGE.sub("", name), term)
        self._micro_batches += 1
        self._images += images
        self._waited += waited

    def add_step(self, gradient_norm: torch.Tensor, step: int, may_overflow: bool = False) -> None:
        """Adds an optimizer step; with `may_overflow`, as in float16, one without a finite norm is skipped."""
        self._add("gradient_norm", gradient_norm.nan_to_num(0.0, 0.0, 0.0))
        # of each sum, the first step at which it was no finite number; on the device, as the sums are
        norm = torch.zeros_like(gradient_norm) if may_overflow else gradient_norm
        values = torch.stack([norm.detach().double(), *(v for n, v in self._sums.items() if n != "gradient_norm")])
        first = torch.where(values.isfinite(), math.inf, float(step))
        known = first[:0] if self._first_bad is None else self._first_bad
        self._first_bad = torch.cat([torch.minimum(known, first[: len(known)]), first[len(known) :]])
        self._steps += 1
        self.progress.update()
        self._show()

    def write(self, step: int, epoch: int, learning_rate: float) -> None:
        """Writes a record of everything since the last one; every process has to call it.

        Raises:
            FloatingPointError: the loss or its gradient was not a finite number in one of these steps.
        """
        elapsed = time.perf_counter() - self._since
        device = self.accelerator.device
        counts = torch.tensor([self._micro_batches, self._images, self._waited], dtype=torch.float64, device=device)
        names = list(self._sums)
        sums = torch.cat([torch.stack([self._sums[name] for name in names]), counts])
        *sums_of_all, micro_batches, images, waited = self.accelerator.reduce(sums, reduction="sum").tolist()
        record: dict[str, float] = {"step": step, "epoch": epoch}
        for name, value in zip(names, sums_of_all, strict=True):
            per = micro_batches
            if name == "gradient_norm":  # the same in every process
                per = self._steps * self.accelerator.num_processes
            record[name] = value / per
        record["learning_rate"] = learning_rate
        record["images_per_second"] = images / elapsed
        record["data_wait"] = waited / elapsed / self.accelerator.num_processes
        record["memory_gib"] = memory_in_use(device) / 2**30
        first_bad = [] if self._first_bad is None else self._first_bad.tolist()
        first = min(first_bad, default=math.inf)
        if math.isfinite(first) or not math.isfinite(record["loss"]):
            kinds = ["gradient", *(name for name in names if name != "gradient_norm")]
            bad = [name for name, since in zip(kinds, first_bad, strict=True) if since == first < math.inf]
            _raise_diverged(bad, int(first) if bad else step, record["loss"])
        self._emit(record, step)
        self.show_record(record)
        self._clear()

    def write_evaluation(self, metrics: dict[str, float], step: int, is_best: bool = False) -> None:
        """Writes the figures of an evaluation, and prints the AP."""
        figures = [f"{name} {metrics[name]:.3f}" for name in ("AP", "AP50", "AR") if name in metrics]
        if figures:
            self.say(f"step {step}: {', '.join(figures)}{' (best so far)' if is_best else ''}")
        self.show_figures(metrics)
        self._emit({"step": step, **{f"evaluation/{name}": value for name, value in metrics.items()}}, step)

    def restart_clock(self) -> None:
        """Leaves the time since the last record, such as an evaluation's, out of the next record's speed."""
        self._since = time.perf_counter()

    def _emit(self, record: dict[str, float], step: int) -> None:
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        self.accelerator.log({name: value for name, value in record.items() if name != "step"}, step=step)

    def close(self) -> None:
        """Closes the progress bar and the trackers."""
        self.progress.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _raise_diverged(bad: list[str], step: int, loss: float) -> NoReturn:
    """`bad` are the first to be no finite numbers: `loss`, its terms, `gradient`."""
    advice = "lower `learning_rate`, or train without fp16. The newest checkpoint is from before."
    if bad == ["gradient"]:
        raise FloatingPointError(f"the gradient at step {step} is not finite, though the loss is: {advice}")
    terms = [name for name in bad if name.startswith("loss_")]
    named = f" ({', '.join(terms)})" if terms else ""
    raise FloatingPointError(f"the loss at step {step} is {loss}{named}: {advice}")


def memory_in_use(device: torch.device) -> int:
    """The peak of the memory in use, in bytes: of the CUDA device, or else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
