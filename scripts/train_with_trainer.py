#!/usr/bin/env python
"""Fine-tunes a QueryPose checkpoint with Transformers' `Trainer`, with AP in its evaluations.

The data is in COCO's format, with any keypoints; weights of keypoints that the checkpoint has, too, are carried over
by name. Defaults are those of `querypose train` (the recipe `fine_tuning`), but for the moving average of the weights,
which `Trainer` does not have. Other features of `Trainer` are set by its `TrainingArguments`, below. `querypose train`
also makes batches of similar aspect ratio and joins several sources of data.

    python scripts/train_with_trainer.py --annotations train.json --images train \
        --val-annotations val.json --val-images val --output runs/trainer
"""

import argparse
import math
from dataclasses import replace

from transformers import EarlyStoppingCallback, TrainingArguments

from querypose_hf.data import AugmentedPoseDataset, CocoPoseDataset, PoseAugmentation, ReadingOptions
from querypose_hf.training.experiment import Experiment
from querypose_hf.training.hf_trainer import build_trainer
from querypose_hf.training.recipe import RECIPES
from querypose_hf.training.sources import describe_sources
from querypose_hf.training.starting_model import about_names, build_config, build_image_processor, build_model


DEFAULTS = RECIPES["fine_tuning"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="querypose-nano", help="folder or Hub id of a checkpoint (%(default)s)")
    parser.add_argument("--annotations", required=True, help="COCO keypoints JSON to train on")
    parser.add_argument("--images", required=True, help="folder of its images")
    parser.add_argument("--val-annotations", required=True, help="COCO keypoints JSON to score on")
    parser.add_argument("--val-images", required=True, help="folder of its images")
    parser.add_argument("--output", required=True, help="folder of the run")
    parser.add_argument("--epochs", type=float, default=DEFAULTS.schedule.length, help="(%(default)s)")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop after this many optimizer steps")
    parser.add_argument(
        "--batch-size", type=int, default=DEFAULTS.batch_size, help="images per device and micro batch (%(default)s)"
    )
    parser.add_argument("--gradient-accumulation-steps", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=DEFAULTS.learning_rate, help="(%(default)s)")
    parser.add_argument(
        "--short-sides", type=int, nargs="+", help="in training, pixels; by default around the image processor's size"
    )
    parser.add_argument("--workers", type=int, default=DEFAULTS.num_workers)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="use no accelerator")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    options = parser.parse_args()

    people = CocoPoseDataset(options.annotations, options.images, options=ReadingOptions(only_with_people=True))
    validation = CocoPoseDataset(options.val_annotations, options.val_images)
    data = describe_sources([people])
    source = {"annotations": options.annotations, "images": options.images}
    experiment = Experiment.from_mapping(
        {"model": {"checkpoint": options.model}, "data": {"train": [source]}}, "command line"
    )
    settings, recipe = experiment.model, experiment.augmentation
    config = build_config(settings, data)
    model, reports = build_model(settings, config)
    print(*about_names(settings, data, config), *reports, sep="\n")

    if options.short_sides is not None:
        recipe = replace(recipe, short_sides=tuple(options.short_sides))
    augmentation = PoseAugmentation.from_recipe(config.keypoint_flip_indices, recipe)
    steps = options.max_steps
    if steps < 0:
        images_per_step = options.batch_size * options.gradient_accumulation_steps
        steps = math.ceil(math.ceil(len(people) / images_per_step) * options.epochs)
    arguments = TrainingArguments(
        output_dir=options.output,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        learning_rate=options.learning_rate,
        weight_decay=DEFAULTS.weight_decay,
        max_grad_norm=DEFAULTS.max_gradient_norm,
        warmup_steps=min(DEFAULTS.schedule.warmup_steps, steps // 10),
        lr_scheduler_type="cosine",
        bf16=options.bf16,
        use_cpu=options.cpu,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="AP",
        greater_is_better=True,
        logging_steps=DEFAULTS.log_every,
        dataloader_num_workers=options.workers,
        ddp_find_unused_parameters=True,  # some backbones have unused layers
        report_to="none",
        # labels are lists of people of different lengths
        remove_unused_columns=False,
        eval_do_concat_batches=False,
    )
    trainer = build_trainer(
        model,
        build_image_processor(settings, {}, data),
        arguments,
        AugmentedPoseDataset(people, augmentation),
        validation,
        options.val_annotations,
    )
    trainer.add_callback(EarlyStoppingCallback(DEFAULTS.patience))
    trainer.train(resume_from_checkpoint=options.resume or None)
    trainer.save_model()
    trainer.log_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    main()
