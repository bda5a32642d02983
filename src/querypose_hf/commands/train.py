"""`querypose train`: trains or fine-tunes a model."""

import argparse
from pathlib import Path
from typing import Any

from ..data.formats import COMMAND_LINE_FORMATS, FORMATS, annotations_help, formats_with
from ..settings import add_options, given_options, read_yaml, set_field, with_assignments
from ..training.recipe import RECIPES, TrainingConfig
from .options import VARIANTS, without_weights_bar


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train or fine-tune a model",
        description="Trains a model as a YAML file and flags describe it; flags come after the file. Several "
        "processes: accelerate launch scripts/train.py, with the same flags. Paths are relative to where it is run.",
    )
    parser.add_argument("--config", type=Path, help="YAML with model, data, augmentation, image_processor, training")
    parser.add_argument("--output", type=Path, default=Path("runs/train"), help="folder of the run (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output, if any")
    parser.add_argument(
        "--stop-after", type=int, metavar="STEP", help="write a checkpoint after this step and stop, to --resume later"
    )
    parser.add_argument("--check", action="store_true", help="stop after everything has been checked")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="assignments",
        metavar="FIELD=VALUE",
        help="set any field, such as training.ema_decay=0.999 or data.train.0.repeat=2; may be repeated",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        help="checkpoint to start from (folder, Hub id or querypose-nano, the default), or a variant such as r50, "
        "which has random weights",
    )
    data = parser.add_argument_group("data, in place of the file's")
    data.add_argument("--format", choices=COMMAND_LINE_FORMATS, default="coco", help="(%(default)s)")
    data.add_argument("--annotations", help=annotations_help())
    data.add_argument("--images", help=f"folder of the images ({formats_with('images')})")
    data.add_argument(
        "--streaming", action="store_true", help=f"read data as it is needed ({formats_with('streaming')})"
    )
    data.add_argument("--val-annotations", help="what to score on, in the same format (yolo: val of --annotations)")
    data.add_argument("--val-images", help="folder of its images")
    recipe = RECIPES["fine_tuning"]
    training = parser.add_argument_group(
        "training", "In parentheses are the defaults from a checkpoint. From a variant they are the paper's."
    )
    length = training.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="length of training in optimizer steps")
    length.add_argument("--epochs", type=int, help=f"length of training in epochs ({recipe.schedule.length})")
    add_options(training, TrainingConfig, changes=recipe)
    hub = parser.add_argument_group("Hub")
    hub.add_argument("--push-to-hub", metavar="REPO_ID", help="upload the best model, or the last, at the end")
    hub.add_argument("--private", action="store_true", help="as a private repository, if it is a new one")
    parser.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    from ..processes import this_process
    from ..training.experiment import Experiment
    from ..training.run import run_experiment

    values: Any = {}
    source = "command line"
    if options.config is not None:
        values, source = read_yaml(options.config) or {}, str(options.config)
        if not isinstance(values, dict):
            raise ValueError(f"{source}: expected fields with values, such as `model` and `data`.")
    _apply_model(values, options.model)
    _apply_data(values, options)
    for field, value in given_options(TrainingConfig, options).items():
        set_field(values, f"training.{field}", value)
    units: dict[Any, int | None] = {"step": options.steps, "epoch": options.epochs}
    length = next(((given, unit) for unit, given in units.items() if given is not None), None)
    experiment = Experiment.from_mapping(with_assignments(values, options.assignments), source, length)
    with without_weights_bar():
        metrics = run_experiment(
            experiment,
            options.output,
            resume=options.resume,
            stop_after=options.stop_after,
            push_to_hub=options.push_to_hub,
            private=options.private,
            only_check=options.check,
        )
    if this_process().is_main_process:
        for name, value in metrics.items():
            print(f"{name:<10} {value:.4f}")


def _apply_model(values: dict[str, Any], model: str | None) -> None:
    if model is None:
        values.setdefault("model", {"checkpoint": "querypose-nano"})
        return
    kept = {
        name: value
        for name, value in (values.get("model") or {}).items()
        if name not in ("checkpoint", "variant", "config", "light")
    }
    start = {"variant": model} if model in VARIANTS else {"checkpoint": model}
    values["model"] = {**start, **kept}


def _apply_data(values: dict[str, Any], options: argparse.Namespace) -> None:
    from ..data.yolo_pose import validation_split

    def described(annotations: str, images: str | None) -> dict[str, Any]:
        source = {"format": options.format, "annotations": annotations}
        return source if images is None else {**source, "images": images}

    for flag in ("images", "val_images"):
        if getattr(options, flag) is not None and getattr(options, flag.replace("images", "annotations")) is None:
            name = flag.replace("_", "-")
            raise ValueError(f"--{name} is given without --{name.replace('images', 'annotations')}.")
    if options.annotations is not None:
        source = described(options.annotations, options.images)
        split = {"split": "train"} if "split" in FORMATS[options.format].takes else {}
        values["data"] = {"train": [{**source, **split}]}
        scored = validation_split(options.annotations) if options.format == "yolo" else None
        if scored is not None:
            values["data"]["validation"] = {**source, "split": scored}
    if options.streaming:
        if not (values.get("data") or {}).get("train"):
            raise ValueError("--streaming is given without a source; expected --annotations, or a file with one.")
        set_field(values, "data.train.0.streaming", True)
    if options.val_annotations is not None:
        set_field(values, "data.validation", described(options.val_annotations, options.val_images))
