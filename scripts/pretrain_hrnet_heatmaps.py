#!/usr/bin/env python
"""Pretrains an HRNet on the keypoint heatmaps of single people; the paper's HRNet models start from such a network.

The defaults are the recipe of the public HRNet pose models: 128 crops of 288 x 384 pixels per step, 210 epochs.
`model.heatmap_pretrained` of `querypose train` takes the result, OUTPUT/last/pose_hrnet.safetensors.

    accelerate launch --num_processes 4 scripts/pretrain_hrnet_heatmaps.py --variant hrnet_w32 \
        --annotations data/coco/annotations/person_keypoints_train2017.json --images data/coco/train2017 \
        --output runs/hrnet_w32_heatmaps
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from querypose_hf.data.formats import COMMAND_LINE_FORMATS, annotations_help, formats_with
from querypose_hf.settings import add_options, changed, given_options, with_assignments
from querypose_hf.training.experiment import TrainingSource
from querypose_hf.training.hrnet_heatmaps import HRNET_HEATMAPS, pretrain_hrnet
from querypose_hf.training.recipe import TrainingConfig


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=("hrnet_w32", "hrnet_w48"), default="hrnet_w32", help="(%(default)s)")
    parser.add_argument("--format", choices=COMMAND_LINE_FORMATS, default="coco", help="(%(default)s)")
    parser.add_argument("--annotations", required=True, help=annotations_help())
    parser.add_argument("--images", help=f"folder of the images ({formats_with('images')})")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run")
    parser.add_argument("--size", type=int, nargs=2, default=(288, 384), help="width and height of crops (288 384)")
    parser.add_argument(
        "--backbone-weights", default="imagenet", help="what to start from: imagenet, none, a file, a name of timm's"
    )
    parser.add_argument("--epochs", type=int, help="length of training; milestones move along")
    parser.add_argument("--steps", type=int, help="the same in optimizer steps")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output, if any")
    parser.add_argument(
        "--stop-after", type=int, metavar="STEP", help="write a checkpoint and stop, to --resume later"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of `training`, as learning_rate=5e-4",
    )
    add_options(parser, TrainingConfig, changes=HRNET_HEATMAPS)
    options = parser.parse_args(arguments)
    try:
        given = with_assignments(given_options(TrainingConfig, options), options.set)
        training = changed(HRNET_HEATMAPS, given, "command line")
        for length, unit in ((options.epochs, "epoch"), (options.steps, "step")):
            if length is not None:
                training = replace(training, schedule=training.schedule.with_length(length, unit))
        weights = pretrain_hrnet(
            TrainingSource(format=options.format, annotations=options.annotations, images=options.images),
            options.output,
            variant=options.variant,
            size=tuple(options.size),
            backbone_weights=options.backbone_weights,
            training=training,
            resume=options.resume,
            stop_after=options.stop_after,
        )
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"Written to {weights}.")


if __name__ == "__main__":
    main()
