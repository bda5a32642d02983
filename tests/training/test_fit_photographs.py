"""From annotated photographs to keypoint AP through the public interface: all coordinate conventions agree."""

import os
from pathlib import Path

import pytest
from small_fit import IMAGE_IDS, PHOTOGRAPHS, find_people, fit_small_model, keypoint_ap, read_photographs
from transformers import pipeline

from querypose_hf.inference.visualization import draw_poses


@pytest.mark.slow
def test_fit_to_photographs(tmp_path):
    if not PHOTOGRAPHS.is_dir():
        pytest.skip("the shared COCO photographs are not here")
    photographs = read_photographs()
    fit_small_model(photographs.samples, tmp_path / "model")
    # QUERYPOSE_DRAWN keeps the drawn images for a person to look at
    if "QUERYPOSE_DRAWN" in os.environ:
        draw_people(tmp_path / "model", photographs.paths, Path(os.environ["QUERYPOSE_DRAWN"]))
    results = find_people(tmp_path / "model", photographs.paths)
    ap, ap50 = keypoint_ap(photographs.annotations, results, tmp_path)
    print(f"on {len(photographs.paths)} photographs: AP {ap:.3f}, AP50 {ap50:.3f}")
    assert len(photographs.paths) == len(IMAGE_IDS)
    # one of 11 people may be missed; exactness differs between processors and runs
    assert ap50 >= 0.9
    assert ap >= 0.8


def draw_people(model: Path, images: dict[int, str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pose_estimator = pipeline("pose-estimation", model=str(model), device="cpu")
    for image_id, image in images.items():
        # after so little training positions are good and scores are not
        people = pose_estimator(image, threshold=0.1)
        edges = pose_estimator.model.config.keypoint_edges
        draw_poses(image, people, edges=edges, keypoint_threshold=0.1).save(folder / f"{image_id}.png")
