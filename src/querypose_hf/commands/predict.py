"""`querypose predict`: finds people in pictures and videos."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import PIL.Image
from safetensors import SafetensorError
from tqdm.auto import tqdm

from ..inference.sources import check_image, expand_sources, is_url, is_video
from . import add_model_option, add_threshold_option, predict_dataset, predict_video, threshold_of


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="find people in pictures and videos",
        description="Finds people in pictures, prints them, and draws them into copies of the pictures. In videos it "
        "follows them, too.",
    )
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="picture or video files, folders or patterns of them, URLs, streams such as rtsp://..., or a webcam's "
        "number; the photograph that comes with the package when left out",
    )
    add_model_option(parser)
    add_threshold_option(parser)
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for drawn pictures (%(default)s)")
    parser.add_argument(
        "--json", action="store_true", help='print JSON: for each picture "image", "drawn" and "people"'
    )
    parser.add_argument("--device", help="such as cpu or cuda:0; the first accelerator by default")
    predict_video.add_options(parser)
    predict_dataset.add_options(parser)
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> None:
    from ..assets import SAMPLE_IMAGE

    options.threshold = threshold_of(options)
    if options.dataset is not None or options.output_parquet is not None:
        predict_dataset.check_options(options)
        _check_device(options.device)
        predict_dataset.run(options)
        return
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output must be a folder, but {options.output} is a file.")
    images = expand_sources(options.images) or [str(SAMPLE_IMAGE)]
    for image in images:
        if not is_video(image):
            check_image(image)
    predict_video.check_options(options, [image for image in images if is_video(image)])
    _check_device(options.device)
    _find_people(options, images)


def _check_device(device: str | None) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # what torch raises differs between devices
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device must be one that torch can use here, but is {device!r}: {reason}") from error


def _find_people(options: argparse.Namespace, images: Sequence[str]) -> None:
    from transformers import pipeline

    from ..inference.visualization import draw_poses, keypoint_threshold_for
    from ..model.image_decoding_querypose import decode_image

    try:
        pose_estimator = pipeline(  # type: ignore[call-overload]  # Transformers' annotations know its own tasks alone
            "pose-estimation", model=options.model, device=options.device
        )
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"--model must be the folder or Hub id of a QueryPose checkpoint, but {options.model} cannot be loaded: "
            f"{error}"
        ) from error
    edges = pose_estimator.model.config.keypoint_edges
    results = []
    # drawn pictures must replace neither each other nor a picture they are made from
    taken = {Path(source).name for source in images if Path(source).resolve().parent == options.output.resolve()}
    with predict_video.json_lines(options.jsonl) as lines:
        for source in tqdm(images, desc="Finding people", unit="source", disable=len(images) == 1):
            if is_video(source):
                drawn = options.output / _drawn_name(source, taken, ".mp4") if options.save_video else None
                predict_video.predict_on_video(options, pose_estimator, source, drawn, lines)
                continue
            picture = PIL.Image.fromarray(decode_image(source).permute(1, 2, 0).numpy())
            people = pose_estimator(picture, threshold=options.threshold)
            drawn = options.output / _drawn_name(source, taken)
            keypoint_threshold = keypoint_threshold_for(options.threshold)
            _save_picture(draw_poses(picture, people, edges=edges, keypoint_threshold=keypoint_threshold), drawn)
            predict_video.write_line(lines, {"source": source, "drawn": str(drawn), "people": people})
            if options.json:
                results.append({"image": source, "drawn": str(drawn), "people": people})
            elif options.jsonl != "-":
                # a plain `print` would break the progress bar
                tqdm.write(_describe_people(source, drawn, people))
    if options.json:
        json.dump(results, sys.stdout, indent=2)
        print()


def _drawn_name(source: str, taken: set[str], suffix: str = ".jpg") -> str:
    stem, number = Path(urlsplit(source).path if is_url(source) else source).stem, 1
    name = f"{stem}_poses{suffix}"
    while name in taken:
        number += 1
        name = f"{stem}_{number}_poses{suffix}"
    taken.add(name)
    return name


def _save_picture(picture: PIL.Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}_{path.name}")
    picture.save(temporary, quality=92)
    temporary.replace(path)


def _describe_people(source: str, drawn: Path, people: Sequence[dict[str, Any]]) -> str:
    lines = [f"{source}: {len(people)} {'person' if len(people) == 1 else 'people'}, drawn to {drawn}"]
    for person in people:
        box = person["box"]
        corners = ", ".join(f"{box[side]:.0f}" for side in ("xmin", "ymin", "xmax", "ymax"))
        lines.append(f"  {person['label']} {person['score']:.2f}, box ({corners})")
        for point in person["keypoints"]:
            lines.append(f"    {point['name']:<16} ({point['x']:7.1f}, {point['y']:7.1f})  {point['score']:.2f}")
    return "\n".join(lines)
