"""Runs a training experiment: from its description to a folder of models."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id
from torch.utils.data import Subset

from ..data import AugmentedPoseDataset, AugmentedPoseStream, PoseDataset
from ..files import write_text
from ..hub.options import CommitOptions
from ..hub.push import push_checkpoint
from ..model.image_processing_querypose import QueryPoseImageProcessor
from ..model.modeling_querypose import QueryPoseForPoseEstimation
from ..processes import this_process
from .card import TrainedModelCard
from .checkpoints import find_checkpoints
from .experiment import Experiment
from .initial_boxes import start_from_typical_boxes
from .log import choose_trackers
from .loop import TrainingLoop, check_stop_after
from .report import TrainingReport
from .sources import describe_sources, join_sources, open_source
from .starting_model import about_names, build_config, build_image_processor, build_model
from .validation import Validation


logger = logging.getLogger(__name__)

EXPERIMENT_FILE = "experiment.yaml"


@dataclass(frozen=True)
class _Parts:
    """What an experiment is made of, checked and ready to train."""

    model: QueryPoseForPoseEstimation
    dataset: AugmentedPoseDataset | AugmentedPoseStream
    image_processor: QueryPoseImageProcessor
    validation: Validation | None
    report: list[str]


def run_experiment(
    experiment: Experiment,
    output_dir: str | Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    only_check: bool = False,
) -> dict[str, float]:
    """Trains as described, on as many processes as the program was started with (`accelerate launch`).

    First it checks everything that can be checked without training: the description, the annotations, whether the
    images are there, whether the keypoints and classes of all sources and the model agree, the weights, and, with
    `push_to_hub`, whether the user is logged in. `output_dir` gets what [`TrainingLoop`] writes, `report.html`
    (curves, and validation images with the people found in them, see [`TrainingReport`]), and `experiment.yaml`, the
    description with all defaults.

    Args:
        experiment ([`Experiment`]): the description.
        output_dir (`str` or `Path`): made if it does not exist.
        resume (`bool`): go on from the newest checkpoint in `output_dir`, if there is one.
        stop_after (`int`, *optional*): the step after which a checkpoint is written and training stops, to be resumed.
        push_to_hub (`str`, *optional*): the repository to which the best model, or without a validation the last one,
            is uploaded at the end of the schedule.
        private (`bool`): whether that repository is private, if it is new.
        only_check (`bool`): stop after the checks.

    Returns:
        `dict[str, float]`: the figures of the last evaluation.

    Raises:
        FileNotFoundError, ValueError, ImportError: something is wrong with the description or what it names.
        FloatingPointError: the loss became NaN or infinite.
        KeyboardInterrupt: the run was interrupted, and has written a checkpoint; see [`TrainingLoop`].

    Example:

    ```python
    >>> run_experiment(Experiment.from_yaml("configs/r50.yaml"), "runs/r50", resume=True)
    ```
    """
    check_stop_after(stop_after)
    folder = Path(output_dir)
    resumes = _check_output(experiment, folder, resume)
    choose_trackers(experiment.training.trackers)
    if push_to_hub is not None:
        check_push(push_to_hub)
    parts = _build_parts(experiment, folder, with_weights=not resumes)
    if this_process().is_main_process:
        print(*parts.report, sep="\n")
    if only_check:
        return {}
    loop = TrainingLoop(
        parts.model,
        parts.dataset,
        parts.image_processor,
        experiment.training,
        folder,
        evaluate=parts.validation,
        report=TrainingReport(folder, parts.validation, parts.model.config.skeleton),
        card=TrainedModelCard(experiment.model, parts.image_processor, parts.validation),
    )
    if loop.accelerator.is_main_process:
        write_text(experiment.to_yaml(), folder / EXPERIMENT_FILE)
    metrics = loop.run(resume, stop_after)
    loop.accelerator.wait_for_everyone()
    if loop.accelerator.is_main_process:
        stream = parts.dataset.stream if isinstance(parts.dataset, AugmentedPoseStream) else None
        print(*_doubts("the stream", stream), loop.account(), sep="\n")
    if push_to_hub is not None and loop.is_over and loop.accelerator.is_main_process:
        upload(folder, push_to_hub, private)
    return metrics


def _build_parts(experiment: Experiment, folder: Path, with_weights: bool) -> _Parts:
    """The parts of an experiment; the weights are left out where a checkpoint brings them."""
    settings, seed = experiment.model, experiment.training.seed
    sources = [open_source(one, f"data.train[{n}]") for n, one in enumerate(experiment.data.train)]
    data = describe_sources(sources)
    config = build_config(settings, data)
    image_processor = build_image_processor(settings, experiment.image_processor, data)
    validation = None
    if experiment.data.validation is not None:
        validation = Validation(experiment.data.validation, image_processor, folder / "validation_images")
    dataset = join_sources(sources, experiment.data.train, experiment.augmentation, config.keypoint_flip_indices, seed)
    torch.manual_seed(seed)  # new weights are drawn
    model, reports = build_model(settings, config, weights=with_weights)
    if settings.initial_boxes == "training_people" and with_weights:
        start_from_typical_boxes(model, _annotated(sources), seed)
    if validation is not None:
        validation.check(model)
    rate = experiment.training.describe_learning_rate(this_process().num_processes)
    report = [*_summary(sources, dataset, model), rate, *about_names(settings, data, config), *reports]
    return _Parts(model, dataset, image_processor, validation, report)


def _check_output(experiment: Experiment, folder: Path, resume: bool) -> bool:
    """Whether there is a run to resume; raises `ValueError` if there is one that must not be changed."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`output` is {os.fspath(folder)!r}, which is a file; expected a folder.")
    if not find_checkpoints(folder / "checkpoints"):
        return False
    if not resume:
        raise ValueError(
            f"`output` is {os.fspath(folder)!r}, which holds checkpoints of a run; expected an empty folder, or "
            "`--resume`."
        )
    description = folder / EXPERIMENT_FILE
    if description.is_file():
        experiment.check_continues(Experiment.from_yaml(description), str(description))
    return True


def _annotated(sources: list[Any]) -> PoseDataset:
    for source in sources:
        dataset = source.dataset if isinstance(source, Subset) else source
        if isinstance(dataset, PoseDataset):
            return dataset
    raise ValueError(
        "`model.initial_boxes` is 'training_people', but `data.train` has only generated images; expected "
        "a source with annotated images."
    )


def _summary(sources: list[Any], dataset: Any, model: Any) -> list[str]:
    config = model.config
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    lines = ["a stream of images"]
    if not isinstance(dataset, AugmentedPoseStream):
        lines = [f"{len(dataset)} images in an epoch, of {sum(map(len, sources))} in {len(sources)} sources"]
    for number, source in enumerate(sources):
        lines += _doubts(f"  source {number}", source.dataset if isinstance(source, Subset) else source)
    lines.append(
        f"{config.num_keypoints} keypoints in {config.num_parts} parts, {config.num_labels} "
        f"class{'es' if config.num_labels > 1 else ''}, {trained / 1e6:.1f} million trained parameters"
    )
    return lines


def _doubts(name: str, source: Any) -> list[str]:
    """What a source leaves out and what it doubts, in words; of a stream, as far as it was read."""
    lines = []
    for field, verb in (("left_out", "leaves out"), ("remarks", "has")):
        counts = {kind.replace("_", " "): count for kind, count in getattr(source, field, {}).items() if count}
        if counts:
            lines.append(f"{name} {verb}: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")
    return lines


def check_push(repo_id: str) -> None:
    """Raises `ValueError` unless `repo_id` is a valid name and the user is logged in to the Hub."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"`--push-to-hub` is {repo_id!r}: {error}") from error
    try:
        HfApi().whoami()
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        raise ValueError(
            f"`--push-to-hub` is {repo_id!r}, but you are not logged in to the Hub; run `hf auth login` first: {error}"
        ) from error


def upload(folder: Path, repo_id: str, private: bool = False) -> str:
    """Uploads a run's best model, or the last one where there is no best, see [`~hub.push_checkpoint`].

    Returns:
        `str`: the URL of the commit.
    """
    kind = "best" if (folder / "best" / "config.json").is_file() else "last"
    message = f"QueryPose, the {kind} model of a training run"
    commit = push_checkpoint(folder / kind, repo_id, commit=CommitOptions(private=private, message=message))
    logger.info("uploaded %s to %s", folder / kind, commit.commit_url)
    return commit.commit_url
