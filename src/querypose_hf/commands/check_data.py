"""`querypose check-data`: looks a data set over before it is trained on."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "check-data",
        help="look a data set over",
        description="Reads a data set and reports counts, broken pictures, and boxes and labels likely to be wrong.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--annotations", type=Path, help="COCO keypoints JSON; needs --images")
    source.add_argument("--data", type=Path, help="data.yaml of a YOLO-pose data set")
    parser.add_argument("--images", type=Path, help="folder of the pictures that --annotations is about")
    parser.add_argument("--format", choices=("coco", "crowdpose"), default="coco", help="of --annotations (coco)")
    parser.add_argument("--split", default="train", help="of --data (%(default)s)")
    parser.add_argument("--max_images", type=int, help="look at so many pictures only")
    parser.add_argument("--output", type=Path, help="folder for report.json and samples.png, a page of drawn pictures")
    parser.set_defaults(run=_check_data)


def _check_data(options: argparse.Namespace) -> None:
    from ..data import CocoPoseDataset, CrowdPoseDataset, PoseDataset, YoloPoseDataset, check_data

    if options.annotations is not None and options.images is None:
        raise ValueError("--images must name the folder of the pictures that --annotations is about.")
    dataset: PoseDataset
    if options.data is not None:
        dataset = YoloPoseDataset(options.data, options.split)
    elif options.format == "crowdpose":
        dataset = CrowdPoseDataset(options.annotations, options.images)
    else:
        dataset = CocoPoseDataset(options.annotations, options.images)
    print(check_data(dataset, output_dir=options.output, max_images=options.max_images).to_text())
