"""Tests of `pipeline("pose-estimation")`: what it takes, what it gives, batches, parameters and errors."""

import base64
import http.server
import io
import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
import torchvision
from tiny import tiny_config
from transformers import AutoImageProcessor, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from querypose_hf import (
    CROWDPOSE_14,
    PoseEstimationPipeline,
    QueryPoseConfig,
    QueryPoseForPoseEstimation,
    QueryPoseImageProcessor,
    QueryPoseImageProcessorPil,
)


ALL = {"threshold": 0.0}  # a model with random weights is sure of nothing
SIZE = {"shortest_edge": 64, "longest_edge": 128}


def make_picture(height=90, width=120, seed=0):
    """A smooth picture: neighbouring pixels are alike, as in photographs."""
    phase = np.random.default_rng(seed).uniform(0, 6, (3, 2))
    y, x = np.mgrid[:height, :width] / max(height, width) * 9
    waves = [np.sin(x + a) * np.cos(y + b) for a, b in phase]
    return PIL.Image.fromarray(np.rint(127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8))


def save_model(folder, image_processor=None, **config):
    torch.manual_seed(0)
    QueryPoseForPoseEstimation(tiny_config(**config)).save_pretrained(folder)
    (image_processor or QueryPoseImageProcessor(size=SIZE)).save_pretrained(folder)
    return str(folder)


def load(folder, **kwargs):
    # in double precision results of one image and of a batch agree, whatever kernels the sizes call for
    return pipeline("pose-estimation", model=folder, **{"device": "cpu", "dtype": torch.float64, **kwargs})


def numbers(people):
    """All numbers of one image's people, `(number of people, 1 + 4 + 3 * K)`."""
    rows = [
        [
            person["score"],
            *person["box"].values(),
            *(p[field] for p in person["keypoints"] for field in ("x", "y", "score")),
        ]
        for person in people
    ]
    return np.array(rows)


def assert_same_people(results, expected, tolerance=1e-6):
    assert len(results) == len(expected)
    for people, expected_people in zip(results, expected, strict=True):
        assert len(people) == len(expected_people) > 0
        np.testing.assert_allclose(numbers(people), numbers(expected_people), rtol=0, atol=tolerance)


def direct_results(pose_estimator, pictures, **kwargs):
    """The same by hand: image processor, model, post-processing."""
    processor, model = pose_estimator.image_processor, pose_estimator.model
    inputs = processor(pictures, return_tensors="pt")
    with torch.no_grad():
        outputs = model(inputs["pixel_values"].to(model.dtype), pixel_mask=inputs["pixel_mask"])
    sizes = [(picture.height, picture.width) for picture in pictures]
    return processor.post_process_pose_estimation(outputs, target_sizes=sizes, **kwargs)


def assert_as_processed(results, expected, names):
    assert len(results) == len(expected)
    for people, expected_people in zip(results, expected, strict=True):
        assert len(people) == len(expected_people) > 0
        for person, wanted in zip(people, expected_people, strict=True):
            assert list(person) == ["score", "label", "box", "keypoints"]
            assert list(person["box"]) == ["xmin", "ymin", "xmax", "ymax"]
            assert [point["name"] for point in person["keypoints"]] == list(names)
            points = [[point["x"], point["y"]] for point in person["keypoints"]]
            assert person["score"] == pytest.approx(wanted["score"].item(), abs=1e-9)
            np.testing.assert_allclose(list(person["box"].values()), wanted["bbox"], rtol=0, atol=1e-6)
            np.testing.assert_allclose(points, wanted["keypoints"], rtol=0, atol=1e-6)
            np.testing.assert_allclose([p["score"] for p in person["keypoints"]], wanted["scores"], rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pose_estimator(folder):
    return load(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A web server on this machine with `picture.png`, `text.txt` and `slow.png`, which never comes."""
    root = tmp_path_factory.mktemp("web")
    make_picture().save(root / "picture.png")
    (root / "text.txt").write_text("no picture")
    stopped = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, directory=str(root), **kwargs)

        def do_GET(self):
            if self.path == "/slow.png":
                stopped.wait(30)
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        stopped.set()
        running.shutdown()


def test_importing_the_package_is_enough(folder):
    # the folder carries the same code, which must be neither run nor asked about
    assert Path(folder, "pipeline_querypose.py").is_file()
    assert "custom_pipelines" in json.loads(Path(folder, "config.json").read_text())
    pose_estimator = pipeline("pose-estimation", model=folder)
    assert type(pose_estimator) is PoseEstimationPipeline
    assert type(pose_estimator.model) is QueryPoseForPoseEstimation
    assert type(pose_estimator.image_processor) is QueryPoseImageProcessor


def test_results_are_those_of_post_processing_in_pixels_of_the_image(pose_estimator):
    picture = make_picture(150, 230)
    people = pose_estimator(picture, **ALL)
    expected = direct_results(pose_estimator, [picture], **ALL)
    assert_as_processed([people], expected, pose_estimator.model.config.keypoint_names)
    assert all(type(value) is float for value in numbers(people).ravel().tolist())
    assert {person["label"] for person in people} == {"person"}
    assert [person["score"] for person in people] == sorted((person["score"] for person in people), reverse=True)
    for person in people:
        box = person["box"]
        assert 0 <= box["xmin"] < box["xmax"] <= 230 and 0 <= box["ymin"] < box["ymax"] <= 150
    json.dumps(people)


@pytest.mark.parametrize(
    "kind",
    ["path", "Path", "rows, columns, channels", "channels, rows, columns", "tensor", "base64", "data URL", "URL"],
)
def test_kinds_of_image(pose_estimator, server, tmp_path, kind):
    picture = make_picture()
    path = tmp_path / "picture.png"
    picture.save(path)
    pixels = np.array(picture)
    text = base64.b64encode(path.read_bytes()).decode()
    image = {
        "path": str(path),
        "Path": path,
        "rows, columns, channels": pixels,
        "channels, rows, columns": pixels.transpose(2, 0, 1),
        "tensor": torch.from_numpy(pixels).permute(2, 0, 1),
        "base64": text,
        "data URL": f"data:image/png;base64,{text}",
        "URL": f"{server}/picture.png",
    }[kind]
    expected = pose_estimator(picture, **ALL)
    assert_same_people([pose_estimator(image, **ALL)], [expected])
    assert_same_people(pose_estimator([image], **ALL), [expected])


def test_grey_picture(pose_estimator, tmp_path):
    grey = make_picture().convert("L")
    grey.save(tmp_path / "grey.png")
    expected = [pose_estimator(grey.convert("RGB"), **ALL)]
    for image in (grey, np.array(grey), str(tmp_path / "grey.png")):
        assert_same_people([pose_estimator(image, **ALL)], expected)


def test_transparent_picture_lies_on_white_whatever_it_comes_as(pose_estimator, tmp_path):
    picture = make_picture()
    rgba = picture.copy()
    rgba.putalpha(PIL.Image.linear_gradient("L").resize(rgba.size))
    rgba.save(tmp_path / "rgba.png")
    white = PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    expected = [pose_estimator(white, **ALL)]
    for image in (rgba, str(tmp_path / "rgba.png"), tmp_path / "rgba.png"):
        assert_same_people([pose_estimator(image, **ALL)], expected)
    # the same as from the image processor that the pipeline holds
    assert_as_processed(
        [pose_estimator(rgba, **ALL)],
        direct_results(pose_estimator, [rgba], **ALL),
        pose_estimator.model.config.keypoint_names,
    )
    assert numbers(pose_estimator(picture, **ALL)).tolist() != numbers(expected[0]).tolist()


def test_rotated_camera(pose_estimator, tmp_path):
    """Coordinates are those of the upright picture, as every viewer shows it."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    path = tmp_path / "turned.jpg"
    make_picture(90, 150).save(path, exif=exif, quality=95)
    with PIL.Image.open(path) as opened:
        upright = PIL.ImageOps.exif_transpose(opened)
        assert (opened.size, upright.size) == ((150, 90), (90, 150))
        expected = [pose_estimator(upright, **ALL)]
        assert_same_people([pose_estimator(opened, **ALL)], expected)
    assert_same_people([pose_estimator(str(path), **ALL)], expected)


def test_sixteen_bit_grey_picture_keeps_its_range(pose_estimator):
    deep = PIL.Image.fromarray(np.array(make_picture().convert("L")).astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert_same_people([pose_estimator(deep, **ALL)], [pose_estimator(make_picture().convert("L"), **ALL)])


def test_floats_within_0_and_1_find_the_same_people(pose_estimator, tmp_path):
    grey = make_picture().convert("L")
    levels = np.array(grey.convert("RGB")).astype(np.float32)
    expected = numbers(pose_estimator(levels, **ALL))
    for image in (levels / 255, levels.astype(np.float64) / 255, torch.from_numpy(levels / 255).permute(2, 0, 1)):
        for found in (pose_estimator(image, **ALL), pose_estimator([image], **ALL)[0]):
            assert np.allclose(numbers(found), expected, atol=0.05, rtol=0.001)
    PIL.Image.fromarray(levels[..., 0] / 255).save(tmp_path / "float.tiff")
    assert_same_people([pose_estimator(str(tmp_path / "float.tiff"), **ALL)], [pose_estimator(grey, **ALL)])


def test_floats_of_other_ranges_are_refused(pose_estimator):
    with pytest.raises(ValueError, match=r"from -1 to 1; expected 0\.\.1 or 0\.\.255"):
        pose_estimator(np.linspace(-1, 1, 300, dtype=np.float32).reshape(10, 10, 3))


@pytest.fixture(scope="module")
def pictures():
    return [make_picture(*size, seed=seed) for seed, size in enumerate([(90, 120), (120, 90), (60, 100), (80, 80)])]


@pytest.fixture(scope="module")
def one_by_one(pose_estimator, pictures):
    return [pose_estimator(picture, **ALL) for picture in pictures]


def test_list_and_tuple(pose_estimator, pictures, one_by_one):
    for images in (pictures, tuple(pictures)):
        results = pose_estimator(images, **ALL)
        assert type(results) is list
        assert results == one_by_one


def test_nothing_to_do(pose_estimator):
    assert pose_estimator([]) == []
    assert pose_estimator(()) == []
    assert list(pose_estimator(picture for picture in ())) == []
    assert list(pose_estimator(KeyDataset([], "image"))) == []


def test_generator_is_read_as_results_are_asked_for(pose_estimator, pictures, one_by_one):
    read = []

    def camera():
        for index, picture in enumerate(pictures):
            read.append(index)
            yield picture

    results = iter(pose_estimator(camera(), **ALL))
    for index, expected in enumerate(one_by_one):
        assert next(results) == expected
        assert read == list(range(index + 1))
    with pytest.raises(StopIteration):
        next(results)


def test_other_iterables_are_read_as_results_are_asked_for(pose_estimator, pictures, one_by_one):
    read = []

    def note(picture):
        read.append(picture)
        return picture

    results = iter(pose_estimator(map(note, pictures), **ALL))
    assert next(results) == one_by_one[0]
    assert len(read) == 1
    assert [*results] == one_by_one[1:]


def test_sequence_is_read_as_results_are_asked_for(pose_estimator, pictures, one_by_one):
    class Column(Sequence):
        read = 0

        def __len__(self):
            return len(pictures)

        def __getitem__(self, index):
            self.read += 1
            return pictures[index]

    column = Column()
    results = pose_estimator(column, **ALL)
    assert len(results) == len(pictures)
    results = iter(results)
    for index, expected in enumerate(one_by_one):
        assert next(results) == expected
        assert column.read == index + 1
    assert list(pose_estimator(KeyDataset([{"image": picture} for picture in pictures], "image"), **ALL)) == one_by_one


def test_columns_of_datasets(pose_estimator, pictures, one_by_one, tmp_path):
    datasets = pytest.importorskip("datasets")
    for index, picture in enumerate(pictures):
        picture.save(tmp_path / f"{index}.png")
    table = datasets.Dataset.from_dict({"image": [str(tmp_path / f"{i}.png") for i in range(len(pictures))]})
    table = table.cast_column("image", datasets.Image())
    assert type(table["image"]).__name__ == "Column"
    for images in (table["image"], KeyDataset(table, "image"), table.to_iterable_dataset()["image"]):
        results = pose_estimator(images, **ALL)
        assert not isinstance(results, list)
        assert list(results) == one_by_one


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_batches_of_one_size(pose_estimator, batch_size):
    pictures = [make_picture(seed=seed) for seed in range(5)]
    assert_same_people(pose_estimator(pictures, batch_size=batch_size, **ALL), pose_estimator(pictures, **ALL))


def test_batch_of_several_sizes(pose_estimator, pictures):
    results = pose_estimator(pictures, batch_size=len(pictures), **ALL)
    expected = direct_results(pose_estimator, pictures, **ALL)
    assert_as_processed(results, expected, pose_estimator.model.config.keypoint_names)


def test_images_of_a_batch_know_nothing_of_each_other(folder, pictures):
    """Padded to the same size, an image gives the same people alone, in any batch and in any order."""
    pose_estimator = load(folder)
    pose_estimator.image_processor.pad_size = {"height": 128, "width": 128}
    alone = pose_estimator(pictures, **ALL)
    assert_same_people(pose_estimator(pictures, batch_size=3, **ALL), alone)
    assert_same_people(pose_estimator(pictures[::-1], batch_size=4, **ALL), alone[::-1])


def test_original_sizes_of_a_batch_are_not_mixed_up(pose_estimator):
    """Pictures that are alike once resized, but come in sizes of their own."""
    small = make_picture(64, 96)
    large = small.resize((192, 128), PIL.Image.Resampling.NEAREST)
    tall = small.resize((96, 128), PIL.Image.Resampling.NEAREST).resize((64, 96))
    for images in ([small, large, tall], [tall, large, small], [large, small]):
        results = pose_estimator(images, batch_size=len(images), **ALL)
        expected = direct_results(pose_estimator, images, **ALL)
        assert_as_processed(results, expected, pose_estimator.model.config.keypoint_names)
    # of the same size after resizing, so that nothing but the scale differs from the results of one alone
    results = pose_estimator([large, small], batch_size=2, **ALL)
    assert_same_people(results, [pose_estimator(large, **ALL), pose_estimator(small, **ALL)])


def test_images_of_similar_shape_share_a_batch(pose_estimator, tmp_path, monkeypatch):
    """Wide with wide, tall with tall, given as files, pictures or arrays, upright or not; results stay in order."""
    wide, tall = make_picture(60, 150, seed=1), make_picture(150, 60, seed=2)
    turned = make_picture(60, 150, seed=3)
    exif = turned.getexif()
    exif[0x0112] = 6  # shown turned by a quarter: tall
    turned.save(tmp_path / "turned.jpg", exif=exif)
    pictures = [wide, tall, np.asarray(make_picture(60, 150, seed=4)), str(tmp_path / "turned.jpg")]
    shapes = []
    pad_to_batch = pose_estimator.image_processor.pad_to_batch

    def noting(images, **kwargs):
        shapes.append([image.shape[-1] > image.shape[-2] for image in images])
        return pad_to_batch(images, **kwargs)

    alone = [pose_estimator(picture, **ALL) for picture in pictures]
    monkeypatch.setattr(pose_estimator.image_processor, "pad_to_batch", noting)
    found = pose_estimator(pictures, batch_size=2, **ALL)
    assert shapes == [[False, False], [True, True]]
    assert_same_people(found, alone)


def test_only_people_who_are_wanted_are_decoded(pose_estimator, monkeypatch):
    """The pipeline tells the model its threshold and number of people, given in the call or at the start."""
    seen = []
    forward = pose_estimator.model.forward
    monkeypatch.setattr(pose_estimator.model, "forward", lambda *args, **kw: seen.append(kw) or forward(*args, **kw))
    picture = make_picture()
    pose_estimator(picture)
    pose_estimator(picture, threshold=0.1, top_k=2)
    assert seen[0]["person_threshold"] == 0.3 and seen[0]["max_people"] is None
    assert seen[1]["person_threshold"] == 0.1 and seen[1]["max_people"] == 2


@pytest.mark.parametrize("field", ["keypoints", "scores", "bbox"])
def test_results_that_are_not_finite_are_an_error(folder, monkeypatch, field):
    """As of weights that are damaged and finite."""
    pose_estimator = pipeline("pose-estimation", model=folder)
    post_process = pose_estimator.image_processor.post_process_pose_estimation

    def damaged(*arguments, **parameters):
        [people] = post_process(*arguments, **parameters)
        people[-1][field].flatten()[0] = float("inf")
        return [people]

    monkeypatch.setattr(pose_estimator.image_processor, "post_process_pose_estimation", damaged)
    with pytest.raises(ValueError, match=r"it gives keypoints or boxes that are not finite: weights are damaged"):
        pose_estimator(make_picture(), threshold=0.0)


def test_threshold_and_top_k(pose_estimator, folder):
    picture = make_picture()
    people = pose_estimator(picture, **ALL)
    scores = [person["score"] for person in people]
    assert len(people) > 3 and len(set(scores)) == len(scores)
    between = (scores[1] + scores[2]) / 2
    assert pose_estimator(picture) == []  # no random model is surer than 0.3
    assert_same_people([pose_estimator(picture, threshold=between)], [people[:2]], tolerance=1e-3)
    assert_same_people([pose_estimator(picture, top_k=3, **ALL)], [people[:3]], tolerance=1e-3)
    assert_same_people([pose_estimator(picture, top_k=1, threshold=between)], [people[:1]], tolerance=1e-3)
    # given once, they hold for every call that does not say otherwise
    with_defaults = load(folder, threshold=0.0, top_k=2)
    assert_same_people([with_defaults(picture)], [people[:2]], tolerance=1e-3)
    assert_same_people([with_defaults(picture, top_k=3)], [people[:3]], tolerance=1e-3)


def test_duplicates_make_no_room(pose_estimator, monkeypatch):
    """As many people as wanted are found where duplicates are left out, as the image processor may ask for."""
    picture = make_picture()
    people = pose_estimator(picture, **ALL)
    boxes = torch.tensor([[person["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for person in people])
    overlap = torchvision.ops.box_iou(boxes, boxes)
    threshold = overlap[overlap < 1].median().item()
    expected = [person for row, person in enumerate(people) if not (overlap[row, :row] > threshold).any()]
    assert 1 < len(expected) < len(people) and expected[:3] != people[:3]
    monkeypatch.setattr(pose_estimator.image_processor, "nms_threshold", threshold)
    assert_same_people([pose_estimator(picture, **ALL)], [expected], tolerance=1e-3)
    assert_same_people([pose_estimator(picture, top_k=3, **ALL)], [expected[:3]], tolerance=1e-3)


def test_fewer_queries_decoded(tmp_path):
    """Where nothing feeds back, those that are decoded come out the same."""
    pose_estimator = load(save_model(tmp_path, pose_query_interaction="none"))
    picture = make_picture()
    inputs = pose_estimator.preprocess(picture)
    logits = pose_estimator.forward(inputs)["logits"][0, :, 0]
    all_people = numbers(pose_estimator(picture, **ALL))

    outputs = pose_estimator.forward(inputs, keypoint_top_k=4)
    assert outputs["keypoint_query_mask"].sum() == 4
    assert set(outputs["keypoint_query_mask"][0].nonzero().flatten().tolist()) == set(logits.topk(4).indices.tolist())
    few = numbers(pose_estimator(picture, keypoint_top_k=4, **ALL))
    assert 0 < len(few) <= 4
    distance = np.abs(few[:, None] - all_people[None]).max(axis=2)
    np.testing.assert_allclose(distance.min(axis=1), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threshold", -0.1),
        ("threshold", 1.5),
        ("threshold", float("nan")),
        ("threshold", "0.3"),
        ("top_k", 0),
        ("top_k", 2.5),
        ("top_k", True),
        ("keypoint_top_k", 0),
        ("timeout", 0),
    ],
)
def test_wrong_parameters(pose_estimator, folder, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be .* but is {value!r}"):
        pose_estimator(make_picture(), **{name: value})
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        load(folder, **{name: value})


def test_unknown_parameter(pose_estimator):
    with pytest.raises(TypeError, match="has no argument 'treshold'; expected threshold, top_k, batch_size,"):
        pose_estimator(make_picture(), treshold=0.5)


def test_the_score_threshold_of_the_image_processor(folder, pose_estimator):
    scores = [person["score"] for person in pose_estimator(make_picture(), **ALL)]
    processor = QueryPoseImageProcessor(size=SIZE, score_threshold=(scores[1] + scores[2]) / 2)
    careful = load(folder, image_processor=processor)
    assert [person["score"] for person in careful(make_picture())] == pytest.approx(scores[:2])
    assert [person["score"] for person in careful(make_picture(), **ALL)] == pytest.approx(scores)
    assert careful.score_threshold == processor.score_threshold
    assert load(folder, image_processor=processor, threshold=0.4).score_threshold == 0.4


def test_bytes_and_open_files(pose_estimator, tmp_path):
    make_picture().save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    expected = pose_estimator(make_picture(), **ALL)
    for form in (content, bytearray(content), memoryview(content), io.BytesIO(content)):
        assert_same_people([pose_estimator(form, **ALL)], [expected])
    with (tmp_path / "a.png").open("rb") as first, (tmp_path / "a.png").open("rb") as second:
        forms = [second, content, io.BytesIO(content)]
        assert_same_people([pose_estimator(first, **ALL)], [expected])
        assert_same_people(pose_estimator(forms, batch_size=2, **ALL), 3 * [expected])
    with (tmp_path / "a.png").open(encoding="latin-1") as text:
        with pytest.raises(TypeError, match=r"gives str; expected a file opened for reading bytes \('rb'\)"):
            pose_estimator(text)
    for bad in (b"no image", io.BytesIO(b"no image")):
        with pytest.raises(ValueError, match="cannot be decoded as an image: no format is recognised"):
            pose_estimator(bad)


def test_no_image(pose_estimator, tmp_path):
    for image in (3, None, {"image": make_picture()}, [[make_picture()]]):
        with pytest.raises(TypeError, match="expected a PIL image"):
            pose_estimator(image)
    with pytest.raises(ValueError, match=r"images\[0\]: an image of 2 bytes cannot be decoded"):
        pose_estimator([b"\xff\xd8"])
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        pose_estimator(str(tmp_path / "missing.jpg"))
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.jpg.* cannot be decoded"):
        pose_estimator(tmp_path / "text.jpg")
    with pytest.raises(ValueError, match=r"shape \(2, 90, 120, 3\)"):
        pose_estimator(np.zeros((2, 90, 120, 3), dtype=np.uint8))


def test_the_bad_one_among_many_is_named(pose_estimator, pictures, one_by_one, tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    items = [*pictures[:2], str(tmp_path / "text.jpg"), *pictures[2:], "missing.jpg"]
    bad = r"^images\[2\]: .*text\.jpg' cannot be decoded"
    for batch_size in (1, 2, 3):
        for images in (items, tuple(items), items[::-1]):
            message = bad if images[0] is items[0] else r"^images\[(0|3)\]: .*(missing|text)\.jpg"
            with pytest.raises((ValueError, FileNotFoundError), match=message):
                pose_estimator(images, batch_size=batch_size, **ALL)
    rows = [{"image": item} for item in items]
    for images in ((item for item in items), KeyDataset(rows, "image"), iter(items)):
        found = iter(pose_estimator(images, **ALL))
        assert_same_people([next(found), next(found)], one_by_one[:2])
        with pytest.raises(ValueError, match=bad):
            next(found)


def test_url_that_gives_no_image(pose_estimator, server):
    for url, reason in (("missing.png", "404"), ("with space.png", "with space")):
        with pytest.raises(OSError, match=f"{server}/{url}.*cannot be fetched.*{reason}"):
            pose_estimator(f"{server}/{url}")
    with pytest.raises(ValueError, match=f"{server}/text.txt.*cannot be decoded"):
        pose_estimator(f"{server}/text.txt")
    started = time.perf_counter()
    with pytest.raises(OSError, match=r"slow\.png.* timed out"):
        pose_estimator(f"{server}/slow.png", timeout=0.5)
    assert time.perf_counter() - started < 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions(folder, pose_estimator, dtype):
    picture = make_picture()
    half = load(folder, dtype=dtype)
    assert half.model.dtype == dtype and half.device.type == "cpu"
    outputs, expected = (one.forward(one.preprocess(picture)) for one in (half, pose_estimator))
    people = half(picture, **ALL)
    assert people and np.isfinite(numbers(people)).all()
    # the first stage sees the same boxes; what comes after depends on its small differences
    tolerance = 1e-3 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(outputs["logits"].double(), expected["logits"], rtol=0, atol=tolerance)


def test_pil_backend(folder, tmp_path):
    for image_processor in (
        QueryPoseImageProcessorPil.from_pretrained(folder),
        AutoImageProcessor.from_pretrained(folder, backend="pil"),
    ):
        pose_estimator = load(folder, image_processor=image_processor)
        assert type(pose_estimator.image_processor) is QueryPoseImageProcessorPil
        pictures = [make_picture(90, 120), make_picture(100, 60)]
        expected = direct_results(pose_estimator, pictures, **ALL)
        results = pose_estimator(pictures, batch_size=2, **ALL)
        assert_as_processed(results, expected, pose_estimator.model.config.keypoint_names)


def test_other_skeleton_and_classes(tmp_path):
    folder = save_model(
        tmp_path,
        image_processor=QueryPoseImageProcessor(size=SIZE, category_ids=[3, 7], num_keypoints=14),
        **QueryPoseConfig.skeleton_fields(CROWDPOSE_14),
        id2label={0: "horse", 1: "foal"},
        label2id={"horse": 0, "foal": 1},
    )
    pose_estimator = load(folder)
    picture = make_picture()
    people = pose_estimator(picture, **ALL)
    expected = direct_results(pose_estimator, [picture], **ALL)
    assert_as_processed([people], expected, CROWDPOSE_14.keypoint_names)
    assert [person["label"] for person in people] == [["horse", "foal"][int(p["label"])] for p in expected[0]]
    assert {person["label"] for person in people} == {"horse", "foal"}


def test_saved_and_loaded(pose_estimator, tmp_path):
    picture = make_picture()
    expected = pose_estimator(picture, **ALL)
    pose_estimator.save_pretrained(tmp_path / "saved")
    again = load(str(tmp_path / "saved"))
    assert type(again) is PoseEstimationPipeline
    assert_same_people([again(picture, **ALL)], [expected])
    # saving must not leave anything behind that makes Transformers ask for trust
    objects = pipeline("pose-estimation", model=again.model, image_processor=again.image_processor, device="cpu")
    assert_same_people([objects(picture, **ALL)], [expected])


def test_the_model_can_be_trained_after_it_was_used(folder):
    pose_estimator = load(folder, optimize=True)
    pose_estimator(make_picture(), **ALL)
    pose_estimator.model.train()(torch.randn(1, 3, 64, 64, dtype=torch.float64)).logits.sum().backward()
    assert any(parameter.grad is not None for parameter in pose_estimator.model.parameters())


def test_optimized(folder, pose_estimator, tmp_path):
    picture = make_picture()
    fast = load(folder, optimize=True)
    assert_same_people([fast(picture, **ALL)], [pose_estimator(picture, **ALL)])
    fast.save_pretrained(tmp_path / "saved")
    assert_same_people([load(str(tmp_path / "saved"))(picture, **ALL)], [pose_estimator(picture, **ALL)])
    # what becomes of the model afterwards is followed
    with torch.no_grad():
        fast.model.model.decoder.keypoint_layers[-1].keypoint_head.bias.add_(0.1)
    changed = fast(picture, **ALL)
    assert not np.allclose(numbers(changed), numbers(pose_estimator(picture, **ALL)), atol=0.1)
    plain = pipeline("pose-estimation", model=fast.model, image_processor=fast.image_processor, device="cpu")
    assert_same_people([changed], [plain(picture, **ALL)])
    with pytest.raises(ValueError, match="`optimize` must be True or False, but is 'yes'"):
        load(folder, optimize="yes")


def test_picture_is_left_as_it_was(pose_estimator):
    pixels = np.array(make_picture())
    copy = pixels.copy()
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    opened = PIL.Image.open(stream)
    pose_estimator([pixels, opened], **ALL)
    assert (pixels == copy).all() and opened.size == (120, 90) and (np.array(opened) == copy).all()
