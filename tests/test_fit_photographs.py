"""From annotated photographs to keypoint AP, through what a user has: all coordinate conventions agree."""

import contextlib
import io
import json
import os
from pathlib import Path

import PIL.Image
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from transformers import pipeline

from querypose_hf.data.synthetic import SyntheticPeople
from querypose_hf.training.small_fit import fit_small_model
from querypose_hf.visualization import draw_poses


SHARED = Path(os.environ.get("QUERYPOSE_SHARED") or Path(__file__).resolve().parents[1] / ".." / "shared")
PHOTOGRAPHS = SHARED / "data" / "coco_ccby"
# photographs of one or two people, none of them tiny
IMAGE_IDS = (86, 165, 370, 436, 459, 529, 693, 872)


def keypoint_ap(annotations: dict, results: list[dict], folder: Path) -> float:
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(str(folder / "annotations.json"))
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(str(folder / "results.json")), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def find_people(folder: Path, pictures: dict[int, str | PIL.Image.Image], drawn: Path | None = None) -> list[dict]:
    """The people of all pictures as COCO results."""
    pose_estimator = pipeline("pose-estimation", model=str(folder), device="cpu")
    results = []
    for image_id, picture in pictures.items():
        people = pose_estimator(picture, threshold=0.05)
        for person in people:
            points = [[point["x"], point["y"], point["score"]] for point in person["keypoints"]]
            results.append(
                {
                    "image_id": image_id,
                    "category_id": 1,
                    "keypoints": [value for point in points for value in point],
                    "score": person["score"],
                }
            )
        if drawn is not None:
            drawn.mkdir(parents=True, exist_ok=True)
            sure = [person for person in people if person["score"] > 0.3]
            picture = draw_poses(picture, sure, edges=pose_estimator.model.config.keypoint_edges)
            picture.save(drawn / f"{image_id}.png")
    return results


def test_fit_to_photographs(tmp_path):
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("the shared COCO photographs are not here")
    everything = json.loads((PHOTOGRAPHS / "person_keypoints.json").read_text())
    images = [image for image in everything["images"] if image["id"] in IMAGE_IDS]
    annotations = [entry for entry in everything["annotations"] if entry["image_id"] in IMAGE_IDS]
    paths = {image["id"]: str(PHOTOGRAPHS / "images" / image["file_name"]) for image in images}
    samples = [
        {
            "image": PIL.Image.open(paths[image["id"]]),
            "image_id": image["id"],
            "annotations": [entry for entry in annotations if entry["image_id"] == image["id"]],
        }
        for image in images
    ]
    fit_small_model(samples, tmp_path / "model")
    # QUERYPOSE_DRAWN keeps the drawn pictures for a person to look at
    drawn = Path(os.environ["QUERYPOSE_DRAWN"]) if "QUERYPOSE_DRAWN" in os.environ else None
    results = find_people(tmp_path / "model", paths, drawn)
    ap = keypoint_ap({**everything, "images": images, "annotations": annotations}, results, tmp_path)
    print(f"AP on {len(images)} photographs: {ap:.3f}")
    assert len(images) == len(IMAGE_IDS)
    assert ap >= 0.9


def test_fit_to_rendered_pictures(tmp_path):
    """The same on three pictures of the synthetic source, where the photographs are not to be had."""
    samples = [SyntheticPeople(seed=3, size=(256, 192), people=(1, 2))[index] for index in range(3)]
    fit_small_model(samples, tmp_path / "model", steps=200, shortest_edge=128)
    annotations = {
        "images": [{"id": sample["image_id"], "width": 256, "height": 192} for sample in samples],
        "annotations": [
            {**entry, "id": number, "image_id": sample["image_id"]}
            for number, (sample, entry) in enumerate(
                ((sample, entry) for sample in samples for entry in sample["annotations"]), start=1
            )
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    results = find_people(tmp_path / "model", {sample["image_id"]: sample["image"] for sample in samples})
    ap = keypoint_ap(annotations, results, tmp_path)
    print(f"AP on {len(samples)} rendered pictures: {ap:.3f}")
    assert ap >= 0.8
