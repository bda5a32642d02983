"""The `querypose` command."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import PIL.Image
from safetensors import SafetensorError
from tqdm.auto import tqdm

from .configuration_querypose import VARIANTS


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a `querypose` command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="querypose", description="Sparse multi-person pose estimation.")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_predict(commands)
    _add_convert(commands)
    _add_evaluate(commands)
    _add_check_data(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ImportError, OSError, ValueError) as error:
        print(f"querypose {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        help="find people in pictures",
        description="Finds people in pictures, prints them, and draws them into copies of the pictures.",
    )
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="picture files or URLs; the package's own sample scene when left out",
    )
    parser.add_argument("--model", help="folder or Hub id of a checkpoint")
    parser.add_argument("--threshold", type=float, help="least score of a person (0.3; 0.1 without --model)")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder for drawn pictures (%(default)s)")
    parser.add_argument(
        "--json", action="store_true", help='print JSON: for each picture "image", "drawn" and "people"'
    )
    parser.add_argument("--device", help="such as cpu or cuda:0; the first accelerator by default")
    parser.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> None:
    from .data.synthetic import SAMPLE_SCENE_PATH

    if options.threshold is None:  # what is fitted on the spot has had no time to learn how sure to be
        options.threshold = 0.1 if options.model is None else 0.3
    if not 0 <= options.threshold <= 1:
        raise ValueError(f"--threshold must be from 0 to 1, but is {options.threshold}.")
    if options.output.exists() and not options.output.is_dir():
        raise ValueError(f"--output must be a folder, but {options.output} is a file.")
    images = options.images or [str(SAMPLE_SCENE_PATH)]
    for image in images:
        _check_picture(image)
    if options.model is None and options.images:
        raise ValueError(
            "--model must name a checkpoint's folder or Hub id: this version of the package carries no trained one. "
            "Without IMAGE and --model a small model is fitted to the sample scene on the spot."
        )
    _check_device(options.device)
    if options.model is not None:
        _find_people(options, images, options.model)
        return
    with tempfile.TemporaryDirectory() as folder:
        _fit_to_sample_scene(folder)
        _find_people(options, images, folder)


def _is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _check_picture(source: str) -> None:
    if _is_url(source):
        return
    if not Path(source).is_file():
        raise FileNotFoundError(f"IMAGE must be a picture file or a URL, but there is no file {source}.")
    try:
        with PIL.Image.open(source):
            pass
    except (OSError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"IMAGE must be a picture file or a URL, but {source} cannot be read: {error}") from error


def _check_device(device: str | None) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # what torch raises differs between devices
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device must be one that torch can use here, but is {device!r}: {reason}") from error


def _fit_to_sample_scene(folder: str) -> None:
    from .data.synthetic import render_sample_scene
    from .training.small_fit import fit_small_model

    print(
        "No trained checkpoint comes with this version. To show the way from annotations to people, a small model is\n"
        "now fitted to the package's one sample scene (two or three minutes on two cores). It finds the people of\n"
        "that scene, with low scores, because it has learnt them by heart, and would find nobody in another picture.",
        file=sys.stderr,
    )
    fit_small_model([render_sample_scene()], folder, steps=500)


def _find_people(options: argparse.Namespace, images: Sequence[str], model: str) -> None:
    from transformers import pipeline

    from .image_decoding_querypose import decode_image
    from .visualization import draw_poses

    try:
        # Transformers' annotations know its own tasks alone
        pose_estimator = pipeline("pose-estimation", model=model, device=options.device)  # type: ignore[call-overload]
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(
            f"--model must be the folder or Hub id of a QueryPose checkpoint, but {model} cannot be loaded: {error}"
        ) from error
    edges = pose_estimator.model.config.keypoint_edges
    results = []
    # drawn pictures must replace neither each other nor a picture they are made from
    taken = {Path(source).name for source in images if Path(source).resolve().parent == options.output.resolve()}
    for source in tqdm(images, desc="Finding people", unit="picture", disable=len(images) == 1):
        picture = PIL.Image.fromarray(decode_image(source).permute(1, 2, 0).numpy())
        people = pose_estimator(picture, threshold=options.threshold)
        drawn = options.output / _drawn_name(source, taken)
        # of a person who is shown, the keypoints are shown that are as sure
        keypoint_threshold = min(0.3, options.threshold)
        _save_picture(draw_poses(picture, people, edges=edges, keypoint_threshold=keypoint_threshold), drawn)
        results.append({"image": source, "drawn": str(drawn), "people": people})
        if not options.json:
            # a plain `print` would break the progress bar
            tqdm.write(_describe_people(source, drawn, people))
    if options.json:
        json.dump(results, sys.stdout, indent=2)
        print()


def _drawn_name(source: str, taken: set[str]) -> str:
    stem, number = Path(urlsplit(source).path if _is_url(source) else source).stem, 1
    name = f"{stem}_poses.jpg"
    while name in taken:
        number += 1
        name = f"{stem}_{number}_poses.jpg"
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


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="convert a checkpoint of the authors",
        description="Converts a checkpoint of the authors into a folder for from_pretrained, every tensor checked.",
    )
    parser.add_argument("--checkpoint_path", required=True, type=Path, help="the authors' .pth file")
    parser.add_argument("--variant", required=True, choices=sorted(VARIANTS), help="backbone and neck")
    parser.add_argument("--output_dir", required=True, type=Path, help="a folder that does not exist yet")
    parser.add_argument(
        "--keypoint_parts",
        type=_json_list,
        help="keypoint indices of each part as JSON, where they are none of the paper's groupings of COCO's",
    )
    parser.add_argument(
        "--keypoint_names", type=_json_list, help="JSON list of names, for a skeleton other than COCO's"
    )
    parser.set_defaults(run=_convert)


def _json_list(text: str) -> list[Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, list):
        raise argparse.ArgumentTypeError(f"expected a JSON list, but got {text!r}")
    return value


def _convert(options: argparse.Namespace) -> None:
    from .conversion import convert_checkpoint, describe_report

    overrides = {} if options.keypoint_names is None else {"keypoint_names": options.keypoint_names}
    report = convert_checkpoint(
        options.checkpoint_path,
        options.variant,
        options.output_dir,
        keypoint_parts=options.keypoint_parts,
        **overrides,
    )
    print(describe_report(report))
    print(f"Written to {options.output_dir}.")


def _add_evaluate(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="score a model or its results against annotations",
        description="Scores a model on a data set's pictures, or results in COCO's format, by COCO's or CrowdPose's "
        "protocol. Several processes (accelerate launch) share the pictures; a run that was stopped goes on.",
    )
    parser.add_argument("--annotations", required=True, type=Path, help="ground truth, COCO keypoints JSON")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--predictions", type=Path, help="results to score, COCO results JSON")
    what.add_argument("--images", type=Path, help="folder of the pictures to find people in; needs --model")
    parser.add_argument("--model", help="folder or Hub id of a checkpoint")
    parser.add_argument("--metric", choices=("coco", "crowdpose"), default="coco", help="protocol (%(default)s)")
    parser.add_argument("--output", required=True, type=Path, help="folder for metrics.json and keypoints.json")
    parser.add_argument("--sigmas", type=float, nargs="+", help="OKS constants of another skeleton, one per keypoint")
    parser.add_argument("--boxes", action="store_true", help="box AP, too")
    parser.add_argument("--backend", choices=("pycocotools", "faster-coco-eval"), default="pycocotools")
    with_model = parser.add_argument_group("with --images")
    with_model.add_argument("--test-dev", action="store_true", help="write a submission; there is nothing to score")
    with_model.add_argument("--batch-size", type=int, default=8, help="pictures per forward pass (%(default)s)")
    with_model.add_argument("--top-k", type=int, default=20, help="people kept per picture (%(default)s)")
    with_model.add_argument("--flip-test", action="store_true", help="merge with the mirrored picture's people")
    with_model.add_argument("--scales", type=float, nargs="+", help="merge people found at these factors of the size")
    with_model.add_argument("--undo-squeeze", action="store_true", help="resize to orig_width and orig_height first")
    with_model.add_argument("--device", help="such as cpu or cuda:0; the first accelerator by default")
    with_model.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="float32 by default")
    with_model.add_argument("--workers", type=int, default=2, help="processes that read ahead (%(default)s)")
    with_model.add_argument("--no-report", action="store_true", help="do not write report.html and report.json")
    with_model.add_argument("--worst-images", type=int, default=12, help="drawn in the report (%(default)s)")
    parser.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    import torch

    from .evaluation import evaluate_model, evaluate_predictions

    shared = {"metric": options.metric, "sigmas": options.sigmas, "boxes": options.boxes, "backend": options.backend}
    result: dict[str, Any] | None
    if options.predictions is not None:
        result = evaluate_predictions(options.annotations, options.predictions, output_dir=options.output, **shared)
    elif options.model is None:
        raise ValueError("--model must name a checkpoint's folder or Hub id, whose people in --images are scored.")
    else:
        result = evaluate_model(
            options.model,
            options.annotations,
            options.images,
            options.output,
            test_dev=options.test_dev,
            batch_size=options.batch_size,
            top_k=options.top_k,
            flip_test=options.flip_test,
            scales=options.scales,
            undo_squeeze=options.undo_squeeze,
            device=options.device,
            dtype=None if options.dtype is None else getattr(torch, options.dtype),
            num_workers=options.workers,
            report=not options.no_report,
            worst_images=options.worst_images,
            **shared,
        )
    # processes other than the first have nothing to tell
    for name, value in ((result or {}).get("metrics") or {}).items():
        print(f"{name:<10} {'-' if value is None else format(value, '.4f')}")


def _add_check_data(commands: Any) -> None:
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
    from .data import CocoPoseDataset, CrowdPoseDataset, PoseDataset, YoloPoseDataset, check_data

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


if __name__ == "__main__":
    sys.exit(main())
