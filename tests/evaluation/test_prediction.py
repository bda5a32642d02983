import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import torchvision
from launching import run_two_processes
from tiny import tiny_config

import querypose_hf
from querypose_hf import QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.evaluation import (
    PredictionOptions,
    ReportOptions,
    coco_results_from_people,
    evaluate_model,
    predict_dataset,
    read_image_list,
)


SIZES = [(60, 40), (40, 60), (64, 48), (48, 64), (50, 50), (80, 40), (40, 80)]


def make_data(folder: Path, **image_fields) -> Path:
    """Seven images of different shapes, and annotations of a person in each."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    (folder / "images").mkdir(parents=True)
    for index, (width, height) in enumerate(SIZES):
        name = f"{index}.png"
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC).save(
            folder / "images" / name
        )
        images.append({"id": 70 - index, "file_name": name, "width": width, "height": height, **image_fields})
        points = np.column_stack([rng.uniform(5, 35, (17, 2)), np.full(17, 2)])
        annotations.append(
            {
                "id": index + 1,
                "image_id": 70 - index,
                "category_id": 1,
                "bbox": [5.0, 5.0, 30.0, 30.0],
                "area": 500.0,
                "iscrowd": 0,
                "num_keypoints": 17,
                "keypoints": points.ravel().tolist(),
            }
        )
    category = {"id": 1, "name": "person", "keypoints": list(querypose_hf.COCO_17.keypoint_names)}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def change(folder: Path, edit) -> None:
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "data")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config())
    model.save_pretrained(folder)
    QueryPoseImageProcessor(size={"shortest_edge": 64, "longest_edge": 128}).save_pretrained(folder)
    return folder


@pytest.fixture
def model(checkpoint):
    return QueryPoseForPoseEstimation.from_pretrained(checkpoint, dtype=torch.float64).eval()


@pytest.fixture
def image_processor(checkpoint):
    return QueryPoseImageProcessor.from_pretrained(checkpoint)


def predict(model, data, image_processor=None, image_ids=None, output_dir=None, **options):
    return predict_dataset(
        model,
        data / "annotations.json" if image_ids is None else read_image_list(data / "annotations.json", image_ids),
        data / "images",
        PredictionOptions(**{"num_workers": 0, "batch_size": 2, **options}),
        image_processor=image_processor,
        output_dir=output_dir,
        progress=False,
    )


def forbid_inference(monkeypatch):
    def forward(*args, **kwargs):
        raise AssertionError("inference was started")

    monkeypatch.setattr(QueryPoseForPoseEstimation, "forward", forward)


def assert_close(first, second, tolerance=1e-3):
    """The same people; coordinates of results are rounded to 1e-4."""
    assert [(r["image_id"], r["category_id"]) for r in first] == [(r["image_id"], r["category_id"]) for r in second]
    for field in ("keypoints", "score", "bbox"):
        np.testing.assert_allclose([r[field] for r in first], [r[field] for r in second], atol=tolerance, rtol=0)


def test_results_are_those_of_one_image_at_a_time(model, image_processor, data):
    expected = []
    for index, (width, height) in enumerate(SIZES):
        image = PIL.Image.open(data / "images" / f"{index}.png")
        with torch.inference_mode():
            batch = image_processor(image, return_tensors="pt")
            outputs = model(batch["pixel_values"].double(), pixel_mask=batch["pixel_mask"])
        people = image_processor.post_process_pose_estimation(outputs, 0.0, [(height, width)], top_k=5)[0]
        expected += coco_results_from_people(people, 70 - index)
    found = predict(model, data, image_processor, batch_size=1, top_k=5)
    assert len(found) == 5 * len(SIZES)
    assert_close(found, expected)
    assert [r["score"] for r in found[:5]] == sorted((r["score"] for r in found[:5]), reverse=True)


def test_duplicates_are_left_out_of_everybody_found(model, data, image_processor, monkeypatch):
    everybody = predict(model, data, image_processor, top_k=model.config.num_queries)
    best_three = predict(model, data, image_processor, top_k=3)
    monkeypatch.setattr(image_processor, "nms_threshold", 0.2)
    expected = []
    for image_id in dict.fromkeys(r["image_id"] for r in everybody):
        people = [r for r in everybody if r["image_id"] == image_id]
        boxes = torchvision.ops.box_convert(torch.tensor([r["bbox"] for r in people]), "xywh", "xyxy")
        overlap = torchvision.ops.box_iou(boxes, boxes)
        expected += [r for row, r in enumerate(people) if not (overlap[row, :row] > 0.2).any()][:3]
    found = predict(model, data, image_processor, top_k=3)
    assert_close(found, expected)
    assert [r["score"] for r in found] != [r["score"] for r in best_three]


def test_a_folder_and_workers_give_the_same(checkpoint, model, image_processor, data):
    model = model.float().train()
    expected = predict(model, data, image_processor)
    assert model.training, "the model's mode must be restored"
    assert_close(predict(checkpoint, data, num_workers=2, device="cpu"), expected)


def test_twenty_best_by_default_whatever_their_score(data, image_processor):
    torch.manual_seed(0)
    model = QueryPoseForPoseEstimation(tiny_config(num_queries=60))
    results = predict(model, data, image_processor)
    assert max(r["score"] for r in results) < 0.05
    assert {sum(r["image_id"] == 70 - i for r in results) for i in range(len(SIZES))} == {20}


def test_chosen_images(model, image_processor, data):
    results = predict(model, data, image_processor, image_ids=[66, 70])
    assert list(dict.fromkeys(r["image_id"] for r in results)) == [70, 66]


def test_annotations_are_not_needed(model, image_processor, data):
    expected = predict(model, data, image_processor)
    change(data, lambda content: content.pop("annotations"))
    assert predict(model, data, image_processor) == expected


def test_mirrored_images_give_mirrored_people(model, image_processor, data, tmp_path):
    """The merged people of an image and its mirror image are the merged people of the mirror image, mirrored."""
    mirrored = make_data(tmp_path / "mirrored")
    for file in (mirrored / "images").iterdir():
        PIL.Image.open(file).transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT).save(file)
    first = predict(model, data, image_processor, flip_test=True, batch_size=3, top_k=1)
    second = predict(model, mirrored, image_processor, flip_test=True, batch_size=3, top_k=1)
    assert first != predict(model, data, image_processor, batch_size=3, top_k=1)
    flip = list(querypose_hf.COCO_17.flip_indices)
    for a, b, (width, _) in zip(first, second, SIZES, strict=True):
        points = np.reshape(b["keypoints"], (17, 3))[flip]
        points[:, 0] = width - 1 - points[:, 0]
        np.testing.assert_allclose(np.reshape(a["keypoints"], (17, 3)), points, atol=2e-3)
        assert a["score"] == pytest.approx(b["score"], abs=1e-9)


def test_one_scale_of_one_is_no_change(model, image_processor, data):
    assert_close(
        predict(model, data, image_processor, scales=(1.0, 1)), predict(model, data, image_processor), tolerance=2e-3
    )


def test_further_scales_resize_the_images(model, image_processor, data, monkeypatch):
    shapes = []
    forward = QueryPoseForPoseEstimation.forward

    def watch(self, pixel_values, **kwargs):
        shapes.append(tuple(pixel_values.shape[-2:]))
        return forward(self, pixel_values, **kwargs)

    monkeypatch.setattr(QueryPoseForPoseEstimation, "forward", watch)
    predict(model, data, image_processor, scales=(0.5, 1.5), image_ids=[66])
    assert shapes == [(32, 32), (96, 96)]


def test_an_interrupted_run_goes_on_where_it_stopped(model, image_processor, data, tmp_path, monkeypatch):
    expected = predict(model, data, image_processor)
    forward = QueryPoseForPoseEstimation.forward
    calls = 0

    def stop_at_the_third(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(QueryPoseForPoseEstimation, "forward", stop_at_the_third)
    output = tmp_path / "scores"
    with pytest.raises(KeyboardInterrupt):
        predict(model, data, image_processor, output_dir=output)
    part = output / "predictions.part0.jsonl"
    lines = part.read_bytes().splitlines()
    assert len(lines) == 1 + 4
    # as if killed while the last line was written, and a second process had finished the second image
    part.write_bytes(b"\n".join(lines[:-1]) + b"\n" + lines[-1][:50])
    (output / "predictions.part1.jsonl").write_bytes(lines[0] + b"\n" + lines[2] + b"\n")
    (output / ".part.123.report.html").write_text("half a file")

    assert predict(model, data, image_processor, output_dir=output) == expected
    assert calls == 3 + 3  # the half batch again and two more
    assert predict(model, data, image_processor, output_dir=output) == expected
    assert calls == 6, "all images were finished"
    assert [file.name for file in output.iterdir()] == [part.name]


def test_results_of_other_settings_are_not_mixed_in(model, image_processor, data, tmp_path):
    predict(model, data, image_processor, output_dir=tmp_path / "scores")
    with pytest.raises(ValueError, match=r"another 'top_k' \(top_k was 20 and is now 3\); finish that run"):
        predict(model, data, image_processor, output_dir=tmp_path / "scores", top_k=3)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="another 'model'"):
        predict(model, data, image_processor, output_dir=tmp_path / "scores")


def evaluate_and_print(checkpoint, data, output, threads):
    torch.set_num_threads(threads)
    figures = evaluate_model(
        checkpoint,
        data / "annotations.json",
        data / "images",
        output,
        PredictionOptions(device="cpu", num_workers=0, batch_size=2),
        report=ReportOptions(worst_images=1),
        progress=False,
    )
    print(json.dumps(figures))


def test_two_processes_share_the_images(checkpoint, data, tmp_path):
    pytest.importorskip("pycocotools")
    expected = predict(checkpoint, data, device="cpu")
    output = tmp_path / "scores"
    # what an earlier run of one process had finished
    predict(checkpoint, data, device="cpu", image_ids=[69, 67], output_dir=output)
    arguments = (checkpoint, data, output, torch.get_num_threads())
    printed = run_two_processes(tmp_path / "printed", evaluate_and_print, *arguments)
    figures, nothing = (json.loads(text.splitlines()[-1]) for text in printed)
    assert json.loads((output / "keypoints.json").read_text()) == expected
    assert figures["protocol"]["results"] == len(expected)
    assert json.loads((output / "metrics.json").read_text()) == figures
    assert nothing is None
    assert not list(output.glob("predictions.part*"))


def test_bad_input_stops_before_inference(model, image_processor, data, tmp_path, monkeypatch):
    forbid_inference(monkeypatch)
    with pytest.raises(ValueError, match=r"`image_ids` holds 5, which .*annotations.json does not have"):
        predict(model, data, image_processor, image_ids=[70, 5])
    with pytest.raises(ValueError, match="`image_processor` is None"):
        predict(model, data)
    with pytest.raises(ValueError, match=r"`model` is .*nothing'; expected a QueryPose checkpoint"):
        predict(tmp_path / "nothing", data)
    (data / "images" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 7 images \(2.png\) are not in"):
        predict(model, data, image_processor)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_that_cannot_be_used_are_skipped_where_asked(model, image_processor, data, tmp_path, num_workers):
    whole = predict(model, data, image_processor, batch_size=1)  # alone, so that padding does not change
    folder, names = data / "images", ["0.png", "2.png", "3.png"]
    bad = {
        record["id"] for record in read_image_list(data / "annotations.json").images if record["file_name"] in names
    }
    kept = {name: (folder / name).read_bytes() for name in names}
    (folder / names[0]).unlink()
    (folder / names[1]).write_text("no image")
    (folder / names[2]).write_bytes(kept[names[2]][: len(kept[names[2]]) // 2])  # its header is whole
    skipped = {}
    options = {"num_workers": num_workers, "output_dir": tmp_path / "out", "batch_size": 1}
    results = predict_dataset(
        model,
        data / "annotations.json",
        folder,
        PredictionOptions(num_workers=num_workers, batch_size=1),
        image_processor=image_processor,
        output_dir=tmp_path / "out",
        skipped=skipped,
        progress=False,
    )
    assert set(skipped) == bad and all("the image cannot be read" in reason for reason in skipped.values())
    assert_close(results, [result for result in whole if result["image_id"] not in bad])
    # what was found is kept, and images that were mended are looked at
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    assert_close(predict(model, data, image_processor, **options), whole)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="can"):
        predict_dataset(
            model, data / "annotations.json", folder, image_processor=image_processor, skipped={}, progress=False
        )


def test_models_that_do_not_fit_the_annotations(image_processor, data, monkeypatch):
    forbid_inference(monkeypatch)

    def random_model(**fields):
        return QueryPoseForPoseEstimation(tiny_config(**fields))

    crowdpose = random_model(**QueryPoseConfig.skeleton_fields(querypose_hf.CROWDPOSE_14))
    with pytest.raises(ValueError, match=r"`model` finds 14 keypoints; .*annotations.json has 17"):
        predict(crowdpose, data, image_processor)
    with pytest.raises(ValueError, match=r"`image_processor.category_ids` is \[1\]; expected 2"):
        predict(random_model(num_labels=2), data, image_processor)
    with pytest.raises(ValueError, match=r"`image_processor.category_ids` is \[3\]; .* has the categories \[1\]"):
        predict(random_model(), data, QueryPoseImageProcessor(category_ids=[3]))
    names = {"keypoint_names": [f"k{i}" for i in range(17)], "keypoint_sigmas": [0.1] * 17, "keypoint_edges": []}
    unknown = random_model(keypoint_flip_indices=None, keypoint_parts=[[i] for i in range(17)], **names)
    assert unknown.config.keypoint_flip_indices is None
    with pytest.raises(ValueError, match="`flip_test` is True, but the model's `keypoint_flip_indices` are None"):
        predict(unknown, data, image_processor, flip_test=True)
    with pytest.raises(ValueError, match="`do_resize` is False"):
        predict(random_model(), data, QueryPoseImageProcessor(do_resize=False), scales=(0.5,))
