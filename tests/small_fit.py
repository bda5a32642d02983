"""Fits a small model to eight photographs, from scratch, in minutes on a CPU, to learn them by heart.

This compares the values of `query_feedback`:

    PYTHONPATH=src python tests/small_fit.py always selected never training
"""

import argparse
import contextlib
import io
import json
import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import torch
from places import SHARED
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from tqdm.auto import tqdm
from transformers import pipeline

from querypose_hf import QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseImageProcessor


PHOTOGRAPHS = SHARED / "data" / "coco_ccby"
#: Photographs of one or two people, none of them tiny.
IMAGE_IDS = (86, 165, 370, 436, 459, 529, 693, 872)


class Photographs(NamedTuple):
    """Their COCO annotations, their files by id, and both as samples."""

    annotations: dict
    paths: dict[int, str]
    samples: list[dict]


def read_photographs() -> Photographs:
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
    return Photographs({**everything, "images": images, "annotations": annotations}, paths, samples)


def small_config(**fields):
    """A full QueryPose of 9.5 million parameters: 3 stages, 20 queries, width 64, and ConvNeXt-Atto as the backbone.

    The backbone has layer norms, whose results do not depend on the batch as those of batch norms do. No query is fed
    back unless `fields` say so: this fits fastest.
    """
    return QueryPoseConfig(
        backbone_config={"model_type": "timm_backbone", "backbone": "convnext_atto", "out_indices": [0, 1, 2, 3]},
        d_model=64,
        num_queries=20,
        decoder_layers=3,
        decoder_attention_heads=4,
        decoder_ffn_dim=256,
        dynamic_dim=16,
        part_dim=64,
        num_pose_convs=4,
        **{"query_feedback": "never", **fields},
    )


def fit_small_model(samples, output_dir, steps=450, height=192, width=256, learning_rate=2e-3, **fields):
    """Fits a new model of `small_config` to the samples, all of them in every step, and saves it.

    Returns:
        The model, in evaluation mode, and the batch that it was fitted to.
    """
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(small_config(**fields)).train()
    image_processor = QueryPoseImageProcessor(
        # one size for all: what has been learnt by heart with the padding of a batch is missed without it
        size={"height": height, "width": width},
    )
    batch = image_processor(
        [sample["image"] for sample in samples],
        [{key: sample[key] for key in ("image_id", "annotations")} for sample in samples],
        return_tensors="pt",
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    warm_up = max(1, steps // 10)

    def factor(step):
        return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    with tqdm(range(steps), desc="Fitting", unit="step") as progress:
        for _ in progress:
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.set_postfix(loss=f"{loss.item():.2f}")
    model.eval().save_pretrained(output_dir)
    image_processor.save_pretrained(output_dir)
    return model, batch


def find_people(folder: Path, images: dict[int, str]) -> list[dict]:
    """The people of all images as COCO results."""
    pose_estimator = pipeline("pose-estimation", model=str(folder), device="cpu")
    results = []
    for image_id, image in images.items():
        for person in pose_estimator(image, threshold=0.05):
            points = [[point["x"], point["y"], point["score"]] for point in person["keypoints"]]
            results.append(
                {
                    "image_id": image_id,
                    "category_id": 1,
                    "keypoints": [value for point in points for value in point],
                    "score": person["score"],
                }
            )
    return results


def keypoint_ap(annotations: dict, results: list[dict], folder: Path) -> tuple[float, float]:
    """AP, and AP50."""
    if not results:  # which pycocotools does not take
        return 0.0, 0.0
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(str(folder / "annotations.json"))
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(str(folder / "results.json")), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0]), float(evaluation.stats[1])


def class_scores_of_both_modes(model, batch) -> dict[str, float]:
    """The class loss of all stages in both modes, and how sure inference is of queries that stand for nobody."""
    matched = []

    def keep(module, args, outputs):
        matched.append(outputs.matches[-1].query_rows)

    figures = {}
    with model.model.decoder.register_forward_hook(keep), torch.no_grad():
        for mode in ("training", "inference"):
            outputs = model.train(mode == "training")(**batch)
            terms = [float(term) for name, term in outputs.loss_dict.items() if name.startswith("loss_class")]
            figures[f"class loss in {mode}"] = sum(terms)
    scores = outputs.logits.sigmoid().flatten()
    others = torch.ones(len(scores), dtype=torch.bool).index_fill(0, matched[-1], False)
    figures["others"] = int(others.sum())
    figures["others above 0.3"] = int((scores[others] > 0.3).sum())
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("query_feedback", nargs="+")
    parser.add_argument("--steps", type=int, default=250)
    options = parser.parse_args()
    photographs = read_photographs()
    for query_feedback in options.query_feedback:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model, batch = fit_small_model(photographs.samples, folder, options.steps, query_feedback=query_feedback)
            ap, ap50 = keypoint_ap(photographs.annotations, find_people(folder, photographs.paths), folder)
        figures = {"AP": ap, "AP50": ap50, **class_scores_of_both_modes(model, batch)}
        print(query_feedback, json.dumps({name: round(value, 4) for name, value in figures.items()}), flush=True)


if __name__ == "__main__":
    main()
