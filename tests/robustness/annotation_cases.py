"""Annotation files, read by check-data, by scoring and as labels for training."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from mutations import damage_bytes, damage_json, damage_text, pick
from sandbox import Fault, command, contents, describe, reason
from small_data import relabelled_for_crowdpose, write_rendered_coco

from querypose_hf import QueryPoseImageProcessor
from querypose_hf.data.formats import SourceSettings, open_source
from querypose_hf.data.reading_options import ReadingOptions


KINDS = ("coco", "coco", "crowdpose", "yolo", "hub", "hub")
_CATEGORIES = ("person",)


@dataclass
class State:
    images: Path
    contents: dict[str, dict[str, Any]]  # of COCO and CrowdPose
    processors: dict[int, Any]
    what: str = ""


def prepare(folder: Path) -> State:
    source = write_rendered_coco(folder, count=4)
    coco = json.loads(Path(source["annotations"]).read_text())
    for number, person in enumerate(coco["annotations"]):
        person["id"] = number + 1
    processors = {
        count: QueryPoseImageProcessor(num_keypoints=count, size={"shortest_edge": 48, "longest_edge": 96})
        for count in (14, 17)
    }
    crowdpose = relabelled_for_crowdpose(coco)
    for image in crowdpose["images"]:
        image["crowdIndex"] = 0.5
    return State(Path(source["images"]), {"coco": coco, "crowdpose": crowdpose}, processors)


def run(rng: np.random.Generator, folder: Path, state: State) -> tuple[str, bool, str]:
    kind = pick(rng, KINDS)
    data = folder / "data"
    data.mkdir()
    if kind in ("coco", "crowdpose"):
        annotations, what = _write_coco(rng, data, state.contents[kind])
        source = {"annotations": str(annotations), "images": str(state.images)}
    elif kind == "yolo":
        annotations, what = _write_yolo(rng, data, state)
        source = {"annotations": str(annotations)}
    else:
        annotations, what = _write_hub(rng, data, state)
        source = {"annotations": str(annotations)}
    unchanged = what.startswith("unchanged")
    state.what = what = f"{kind}: {what}"
    before = contents(data), contents(state.images)
    status, checked = _check(kind, source, folder / "check")
    read = _labels(SourceSettings(format=kind, **source), state)
    said = [checked, read]
    if (status == 2) != (read is not None):
        raise Fault("disagree", f"check-data ends with {status} ({checked}), training's reader with {read}")
    if kind == "hub":
        streamed = SourceSettings(format=kind, **source, streaming=True, category_names=_CATEGORIES)
        said.append(_labels(streamed, state))
        # a stream sees one row at a time, and is told its categories, which may be others
        told = "twice" in str(read) or "`category` is" in str(said[-1])
        if (said[-1] is None) != (read is None) and not told:
            raise Fault("disagree", f"the whole dataset ends with {read}, the stream with {said[-1]}")
    if kind in ("coco", "crowdpose"):
        said.append(_score(kind, annotations, folder / "scores", state))
    # a table that pyarrow writes beside a Parquet file is its cache, which is elsewhere
    if (contents(data), contents(state.images)) != before:
        raise Fault("outside", "the folders of the data have changed")
    errors = [text for text in said if text is not None]
    names = {str(annotations), *(path.name for path in (*data.rglob("*"), *state.images.iterdir()))}
    for text in errors:
        # the first of the missing images is named in the log, which is not seen here
        if not any(name in text for name in names) and "missing image" not in text:
            raise Fault("unclear", f"the message does not name the input: {text!r}")
    if unchanged and errors:
        raise Fault("wrong", f"good data is refused: {errors}")
    return what, not errors, "; ".join(errors)[:500]


def _check(kind: str, source: dict[str, str], output: Path) -> tuple[int, str | None]:
    """Status of check-data, and what it says where it fails or skips images."""
    arguments = ["check-data", "--format", kind, "--output", str(output)]
    for name, value in source.items():
        arguments += [f"--{name}", value]
    status, printed, said = command(arguments)
    if status != 2:
        report = json.loads((output / "report.json").read_text())
        with PIL.Image.open(output / "samples.png") as page:
            page.load()
        if not printed.strip() or report["num_images"] < 0:
            raise Fault("wrong", f"an empty report: {printed[:100]!r}")
    elif output.exists() and any(output.iterdir()) and "none of the images can be used" not in said:
        raise Fault("partial", "a report is written, and the status is 2")
    # the images that are skipped are named in the report alone
    return status, reason(said) + printed * (status == 1) if status else None


def _labels(settings: SourceSettings, state: State) -> str | None:
    """What the reader of training says where it refuses; the labels of what it takes are finite and in range."""
    try:
        dataset = open_source(settings, ReadingOptions(on_error="skip"))
        samples = list(dataset) if settings.streaming else [dataset[index] for index in range(len(dataset))]
        if not samples:  # training goes over a stream again and again, and refuses one that gives nothing
            return f"{settings.annotations}: no sample"
        count = len(dataset.keypoint_names) if dataset.keypoint_names else 17
        processor = state.processors.get(count)
        if processor is None:
            processor = QueryPoseImageProcessor(num_keypoints=count, size={"shortest_edge": 48, "longest_edge": 96})
        for sample in samples:
            batch = processor(
                images=sample["image"],
                annotations={"image_id": sample["image_id"], "annotations": sample["annotations"]},
                return_tensors="pt",
                category_ids=list(dataset.category_names) or None,
            )
            for name, value in batch["labels"][0].items():
                if value.is_floating_point() and not torch.isfinite(value).all():
                    raise Fault("wrong", f"the label {name} is not finite")
    except (OSError, ValueError) as error:
        if not str(error).strip():
            raise Fault("silent", describe(error)) from error
        return str(error)
    except Fault:
        raise
    except Exception as error:
        raise Fault("traceback", describe(error)) from error
    return None


def _score(kind: str, annotations: Path, output: Path, state: State) -> str | None:
    """What evaluate says where it refuses; figures of what it takes lie within 0 and 1."""
    predictions = annotations.parent.parent / "results.json"
    count = len(state.contents[kind]["categories"][0]["keypoints"])
    image_id = state.contents[kind]["images"][0]["id"]
    people = [person for person in state.contents[kind]["annotations"] if person["image_id"] == image_id]
    results = [
        {"image_id": image_id, "category_id": 1, "keypoints": person["keypoints"][: 3 * count], "score": 0.9}
        for person in people
    ]
    predictions.write_text(json.dumps(results))
    arguments = ["evaluate", "--annotations", str(annotations), "--predictions", str(predictions)]
    status, _, said = command([*arguments, "--output", str(output), "--metric", kind])
    if status:
        if list(output.glob("*")):
            raise Fault("partial", "figures are written, and the status is not 0")
        return reason(said)
    metrics = json.loads((output / "metrics.json").read_text())["metrics"]
    if not all(value is None or 0 <= value <= 1 for value in metrics.values()):
        raise Fault("wrong", f"figures {metrics}")
    return None


def _write_coco(rng: np.random.Generator, folder: Path, content: dict[str, Any]) -> tuple[Path, str]:
    path = folder / "annotations.json"
    draw = rng.random()
    if draw < 0.05:
        path.write_text(json.dumps(content))
        return path, "unchanged"
    if draw < 0.75:
        damaged, what = damage_json(content, rng)
        path.write_text(json.dumps(damaged))
        return path, what
    if draw < 0.9:
        data, what = damage_text(json.dumps(content, indent=1), rng)
    else:
        data, what = damage_bytes(json.dumps(content).encode(), rng)
    path.write_bytes(data)
    return path, what


def _yolo_lines(content: dict[str, Any]) -> dict[str, str]:
    files: dict[str, str] = {}
    for image in content["images"]:
        width, height = image["width"], image["height"]
        lines = []
        for person in content["annotations"]:
            if person["image_id"] != image["id"]:
                continue
            x, y, w, h = person["bbox"]
            values = [0, (x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
            for place in range(0, len(person["keypoints"]), 3):
                px, py, visibility = person["keypoints"][place : place + 3]
                inside = visibility and 0 <= px < width and 0 <= py < height
                values += [px / width, py / height, int(visibility)] if inside else [0, 0, 0]
            lines.append(" ".join(f"{value:.6g}" for value in values))
        files[image["file_name"].replace(".png", ".txt")] = "\n".join(lines) + "\n"
    return files


_ODD_WORDS = ("nan", "inf", "-1", "2", "1e9", "1e-320", "x", "", "0.5 0.5", "999999999999999999999", "٣", "0x10")
_ODD_FIELDS: tuple[tuple[str, str], ...] = (
    ("kpt_shape: [17, 3]", "kpt_shape: [17, 2]"),
    ("kpt_shape: [17, 3]", "kpt_shape: [0, 3]"),
    ("kpt_shape: [17, 3]", "kpt_shape: [1000000000, 3]"),
    ("kpt_shape: [17, 3]", "kpt_shape: 17"),
    ("kpt_shape: [17, 3]", ""),
    ("names: [person]", "nc: 1"),
    ("names: [person]", "nc: 1000000000"),
    ("names: [person]", "names: {0: person, 5: cat}"),
    ("names: [person]", "names: {person: 0}"),
    ("names: [person]", "names: person"),
    ("names: [person]", ""),
    ("train: images", "train: /nowhere"),
    ("train: images", "train: ../data/images"),
    ("train: images", "train: [images, images]"),
    ("train: images", "train: list.txt"),
    ("train: images", "train: 3"),
    ("train: images", "val: images"),
    ("train: images", "train: https://example.com/data.zip"),
    ("train: images", "train: &a [*a]"),
    ("path: .", "path: ../.."),
    ("path: .", "download: !!python/object/apply:os.system ['touch pwned']"),
    ("path: .", "a: &a [x,x,x,x,x]\nb: &b [*a,*a,*a,*a]\nc: [*b,*b,*b]"),
    ("path: .", "flip_idx: [0, 1]"),
    ("path: .", "kpt_names: {0: [a, b]}"),
)


def _write_yolo(rng: np.random.Generator, folder: Path, state: State) -> tuple[Path, str]:
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    files = _yolo_lines(state.contents["coco"])
    for name in files:
        image = name.replace(".txt", ".png")
        (folder / "images" / image).write_bytes((state.images / image).read_bytes())
    text = "path: .\ntrain: images\nkpt_shape: [17, 3]\nnames: [person]\n"
    (folder / "list.txt").write_text("./images/0.png\nimages/1.png\n")
    data = text.encode()
    draw, what = rng.random(), "unchanged"
    name = pick(rng, sorted(files))
    written = {key: value.encode() for key, value in files.items()}
    if draw < 0.3:
        old, new = pick(rng, _ODD_FIELDS)
        data, what = text.replace(old, new).encode(), new.partition("\n")[0]
    elif draw < 0.4:
        data, what = damage_text(text, rng)
    elif draw < 0.75:
        words = files[name].split(" ")
        for _ in range(int(rng.integers(1, 4))):
            words[int(rng.integers(len(words)))] = pick(rng, _ODD_WORDS)
        written[name], what = " ".join(words).encode(), "words of labels"
    elif draw < 0.9:
        written[name], what = damage_text(files[name], rng)
    elif draw < 0.95:
        written[name], what = damage_bytes(written[name], rng)
    for key, value in written.items():
        (folder / "labels" / key).write_bytes(value)
    path = folder / "data.yaml"
    path.write_bytes(data)
    return path, what


_ODD_CELLS = (
    None,
    0,
    1,
    -1,
    2,
    7,
    0.5,
    1e308,
    -1e308,
    1e-310,
    float("nan"),
    float("inf"),
    [],
    [0.0],
    [float("nan")] * 51,
)


def _write_hub(rng: np.random.Generator, folder: Path, state: State) -> tuple[Path, str]:
    """A folder with a Parquet file, as of a dataset on the Hub, or what `save_to_disk` writes."""
    import datasets
    import pyarrow
    import pyarrow.parquet

    content = state.contents["coco"]
    rows: list[dict[str, Any]] = []
    for image in content["images"]:
        people = [person for person in content["annotations"] if person["image_id"] == image["id"]]
        data = (state.images / image["file_name"]).read_bytes()
        rows.append(
            {
                "image_id": image["id"],
                "image": {"bytes": data, "path": image["file_name"]},
                "objects": [
                    {
                        "bbox": [float(value) for value in person["bbox"]],
                        "keypoints": [float(value) for value in person["keypoints"]],
                        "category": 0,
                        "area": float(person["area"]),
                        "iscrowd": 0,
                    }
                    for person in people
                ],
            }
        )
    what = "unchanged"
    draw = rng.random()
    schema = pyarrow.Table.from_pylist(rows).schema
    if draw < 0.6:
        plain = [{**row, "image": {**row["image"], "bytes": None}} for row in rows]
        damaged, what = damage_json(plain, rng, _ODD_CELLS)
        for row, damage in zip(rows, damaged, strict=False):
            if isinstance(damage, dict):
                image = damage.get("image")
                if isinstance(image, dict) and image.get("bytes", 0) is None:
                    image["bytes"] = row["image"]["bytes"]
        rows = damaged if isinstance(damaged, list) and all(isinstance(row, dict) for row in damaged) else rows
    elif draw < 0.8:
        row = pick(rng, rows)
        row["image"]["bytes"], what = damage_bytes(row["image"]["bytes"], rng)
    try:
        try:
            table = pyarrow.Table.from_pylist(rows, schema=schema)
        except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
            table = pyarrow.Table.from_pylist(rows)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
        # columns of several types, which a table does not have
        table, what = pyarrow.table({"image": ["text"], "objects": [3]}), "other columns"
    if rng.random() < 0.4:
        datasets.Dataset(datasets.table.InMemoryTable(table)).save_to_disk(folder)
        what += ", saved"
    else:
        pyarrow.parquet.write_table(table, folder / "train-00000-of-00001.parquet")
    if draw >= 0.9:
        path = pick(rng, sorted(folder.iterdir()))
        content, done = damage_bytes(path.read_bytes(), rng)
        path.write_bytes(content)
        what = f"{path.name} {done}"
    return folder, what
