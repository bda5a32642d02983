"""The synthetic source: what it promises about samples, layouts, visibility and repeatability."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from places import PROJECT, SHARED
from torch.utils.data import DataLoader

from querypose_hf.data import synthetic_scene
from querypose_hf.data.synthetic import (
    SyntheticPeople,
    SyntheticPeopleStream,
)
from querypose_hf.data.synthetic_arrangements import Arrangement, lift
from querypose_hf.data.synthetic_layouts import read_layouts
from querypose_hf.data.synthetic_poses import (
    _STANDING_MEAN,
    JOINT,
    Poses,
    _assemble,
    _rotation,
    pose_library,
    sample_poses,
)
from querypose_hf.data.synthetic_surfaces import PROFILE, Light, Materials, Solids


SOURCE = PROJECT / "src"

NOSE, LEFT_EYE, RIGHT_EYE = 0, 1, 2
SHOULDERS, KNEES, ANKLES = [5, 6], [13, 14], [15, 16]


def fingerprint(sample) -> str:
    digest = hashlib.sha256(sample["image"].tobytes())
    digest.update(json.dumps([sample["image_id"], sample["annotations"]]).encode())
    return digest.hexdigest()


def keypoints_of(annotation) -> np.ndarray:
    return np.array(annotation["keypoints"]).reshape(17, 3)


def standing(degrees_turned: float = 0.0) -> Poses:
    """One adult with hanging arms, 300 pixels tall in a picture of 320 x 400, turned about the vertical."""
    root = _rotation(1, np.array([degrees_turned]))
    poses = _assemble(np.random.default_rng(4), _STANDING_MEAN[None], root)
    joints = poses.joints * 300
    joints[..., :2] += [160, 210]
    return Poses(joints, poses.head_axes * 300, poses.joint_scale * 300)


def several(*poses: Poses) -> Arrangement:
    """Poses from back to front."""
    return Arrangement(
        Poses(*(np.concatenate([getattr(p, n) for p in poses]) for n in ("joints", "head_axes", "joint_scale"))),
        depth=-np.arange(len(poses)),
        labels=None,
        labelled=np.ones((len(poses), 17), dtype=bool),
        horizon=150.0,
    )


@pytest.fixture
def real_looking_layouts() -> dict[str, np.ndarray]:
    """Two pictures with three people, one of them with few labels, and one picture without people."""
    poses = sample_poses(np.random.default_rng(8), 3)
    points = np.round(poses.joints[:, :17, :2] * 120 + [[[100, 110]], [[220, 130]], [[150, 120]]])
    keypoints = np.concatenate([points, np.full((3, 17, 1), 2)], axis=2)
    keypoints[1, 7:] = 0
    keypoints[2, [0, 13], 2] = 1
    corner = points.min(axis=1)
    return {
        "image_id": np.array([5, 6, 7]),
        "size": np.array([[320, 240], [100, 100], [300, 250]]),
        "offset": np.array([0, 2, 2, 3]),
        "bbox": np.concatenate([corner, points.max(axis=1) - corner], axis=1),
        "keypoints": keypoints,
    }


def write_npz(path: Path, layouts: dict[str, np.ndarray]) -> Path:
    np.savez(path, **layouts)
    return path


def write_json(path: Path, layouts: dict[str, np.ndarray]) -> Path:
    image_of = np.repeat(layouts["image_id"], np.diff(layouts["offset"]))
    content = {
        "images": [
            {"id": int(i), "width": int(w), "height": int(h)}
            for i, (w, h) in zip(layouts["image_id"], layouts["size"], strict=True)
        ],
        "annotations": [
            {"image_id": int(i), "bbox": b.tolist(), "keypoints": k.ravel().tolist(), "iscrowd": 0}
            for i, b, k in zip(image_of, layouts["bbox"], layouts["keypoints"], strict=True)
        ],
    }
    content["annotations"].append({"image_id": 5, "iscrowd": 1, "bbox": [0, 0, 9, 9], "keypoints": [0] * 51})
    path.write_text(json.dumps(content))
    return path


class TestRepeatability:
    def test_any_order_gives_the_same_samples(self):
        forwards = [fingerprint(SyntheticPeople(seed=3, size=(160, 128))[i]) for i in range(4)]
        people = SyntheticPeople(seed=3, size=(160, 128))
        backwards = [fingerprint(people[i]) for i in reversed(range(4))]
        assert forwards == backwards[::-1]
        assert len(set(forwards)) == 4

    def test_seed_matters(self):
        first, second = (SyntheticPeople(seed=s, size=(96, 96))[0] for s in (0, 1))
        assert fingerprint(first) != fingerprint(second)

    def test_another_process_gives_the_same_samples(self):
        code = (
            "import hashlib, json\n"
            "from querypose_hf.data.synthetic import SyntheticPeople\n"
            "sample = SyntheticPeople(seed=11, size=(128, 160))[7]\n"
            "digest = hashlib.sha256(sample['image'].tobytes())\n"
            "digest.update(json.dumps([sample['image_id'], sample['annotations']]).encode())\n"
            "print(digest.hexdigest())\n"
        )
        environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONHASHSEED": "123"}
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
        )
        assert result.stdout.strip() == fingerprint(SyntheticPeople(seed=11, size=(128, 160))[7])

    def test_global_random_state_is_neither_read_nor_changed(self):
        people = SyntheticPeople(seed=0, size=(96, 96))
        np.random.seed(1)
        first = fingerprint(people[2])
        np.random.seed(2)
        before = np.random.get_state()[1].copy()
        assert fingerprint(people[2]) == first
        np.testing.assert_array_equal(np.random.get_state()[1], before)

    def test_workers_share_the_stream(self):
        people = SyntheticPeople(seed=5, size=(64, 64), length=6)
        loader = DataLoader(SyntheticPeopleStream(people), batch_size=None, num_workers=2)
        samples = {sample["image_id"]: fingerprint(sample) for sample in loader}
        assert samples == {i: fingerprint(people[i]) for i in range(6)}


class TestSamples:
    @pytest.fixture(scope="class")
    def samples(self):
        people = SyntheticPeople(seed=2, size=(240, 200), people=(2, 4))
        return [people[i] for i in range(16)]

    def test_pictures(self, samples):
        for i, sample in enumerate(samples):
            assert sample["image"].mode == "RGB"
            assert sample["image"].size == (240, 200)
            assert sample["image_id"] == i
            assert np.asarray(sample["image"]).std() > 5

    def test_annotations_are_coco_objects(self, samples):
        annotations = [a for sample in samples for a in sample["annotations"]]
        assert len(annotations) > 24
        assert len({a["id"] for a in annotations}) == len(annotations)
        for annotation in annotations:
            assert annotation["category_id"] == 1 and annotation["iscrowd"] == 0
            assert annotation["num_keypoints"] == (keypoints_of(annotation)[:, 2] > 0).sum()
        json.dumps(annotations)

    def test_boxes_and_keypoints_agree(self, samples):
        shown = hidden = outside = 0
        for annotation in (a for sample in samples for a in sample["annotations"]):
            x, y, width, height = annotation["bbox"]
            assert x >= 0 and y >= 0 and x + width <= 240 and y + height <= 200
            assert 0 < annotation["area"] <= width * height
            keypoints = keypoints_of(annotation)
            seen = keypoints[keypoints[:, 2] == 2, :2] + 0.5
            assert (seen >= [x - 1, y - 1]).all() and (seen <= [x + width + 1, y + height + 1]).all()
            labelled = keypoints[keypoints[:, 2] > 0, :2] + 0.5
            assert (labelled >= 0).all() and (labelled <= [240, 200]).all()
            assert (keypoints[keypoints[:, 2] == 0] == 0).all()
            visibility = np.bincount(keypoints[:, 2].astype(int), minlength=3)
            outside, hidden, shown = outside + visibility[0], hidden + visibility[1], shown + visibility[2]
        # all three kinds occur, and most keypoints are seen
        assert shown > hidden > 0 and outside > 0

    def test_people_arguments_bound_the_number(self):
        people = SyntheticPeople(seed=0, size=(96, 96), people=(1, 2))
        assert all(len(people[i]["annotations"]) <= 2 for i in range(8))

    def test_length(self):
        assert len(SyntheticPeople(length=3)) == 3
        with pytest.raises(IndexError, match="sample 3"):
            SyntheticPeople(length=3)[3]
        with pytest.raises(IndexError, match="sample -1"):
            SyntheticPeople()[-1]
        with pytest.raises(TypeError, match="length"):
            len(SyntheticPeople())
        far = 10**9
        assert SyntheticPeople(size=(32, 32))[far]["image_id"] == far

    def test_stream_takes_its_share(self):
        source = SyntheticPeople(seed=0, size=(32, 32), length=7)
        assert [s["image_id"] for s in SyntheticPeopleStream(source, start=1, step=3)] == [1, 4]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"seed": -1}, "`seed`.*-1"),
            ({"seed": 0.5}, "`seed`.*0.5"),
            ({"size": (640,)}, "`size`"),
            ({"size": (8, 640)}, "`size`.*16"),
            ({"size": 384}, "`size`.*384"),
            ({"people": (0, 2)}, "`people`"),
            ({"people": (3, 2)}, r"`people`.*\(3, 2\)"),
            ({"length": 0}, "`length`.*0"),
        ],
    )
    def test_wrong_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            SyntheticPeople(**arguments)

    @pytest.mark.parametrize("arguments", [{"start": -1}, {"step": 0}])
    def test_wrong_stream_arguments(self, arguments):
        with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
            SyntheticPeopleStream(SyntheticPeople(), **arguments)


class TestVisibility:
    @pytest.fixture(autouse=True)
    def no_chance_obstacles(self, monkeypatch):
        monkeypatch.setattr(synthetic_scene, "_obstacle_box", lambda *arguments: None)

    def render(self, *poses: Poses, seed: int = 0, size=(320, 400)):
        _, annotations = synthetic_scene.render(np.random.default_rng(seed), several(*poses), size)
        return [keypoints_of(annotation) for annotation in annotations]

    def test_facing_the_camera_everything_is_seen(self):
        for seed in range(5):
            (keypoints,) = self.render(standing(0), seed=seed)
            assert (keypoints[:, 2] == 2).sum() >= 15, f"seed {seed}: {keypoints[:, 2]}"
            assert (keypoints[[NOSE, LEFT_EYE, RIGHT_EYE], 2] == 2).all()

    def test_from_behind_the_face_is_hidden(self):
        for seed in range(5):
            (keypoints,) = self.render(standing(180), seed=seed)
            assert (keypoints[[NOSE, LEFT_EYE, RIGHT_EYE], 2] == 1).all()
            assert (keypoints[KNEES + ANKLES, 2] == 2).all()
        # the left shoulder is now on the left of the picture
        assert keypoints[5, 0] < keypoints[6, 0]

    def test_from_the_side_the_far_eye_is_hidden(self):
        (keypoints,) = self.render(standing(90))
        assert {keypoints[LEFT_EYE, 2], keypoints[RIGHT_EYE, 2]} == {1, 2}

    def test_a_thing_in_front_hides_keypoints(self, monkeypatch):
        pose = standing(0)
        knee_height = pose.joints[0, KNEES, 1].min()
        box = (0.0, knee_height - 10, 320.0, 400.0)
        monkeypatch.setattr(synthetic_scene, "_obstacle_box", lambda *arguments: box)
        monkeypatch.setattr(
            synthetic_scene,
            "draw_obstacle",
            lambda rng, size, box: (Image.new("RGBA", (320, 400 - int(box[1])), (9, 9, 9, 255)), (0, int(box[1]))),
        )
        _, (annotation,) = synthetic_scene.render(np.random.default_rng(0), several(pose), (320, 400))
        keypoints = keypoints_of(annotation)
        assert (keypoints[KNEES + ANKLES, 2] == 1).all()
        assert (keypoints[[NOSE, *SHOULDERS], 2] == 2).all()
        assert annotation["bbox"][1] + annotation["bbox"][3] > pose.joints[0, ANKLES, 1].max()

    def test_the_nearer_person_hides_the_farther(self):
        behind, before = standing(0), standing(0)
        before.joints[..., 0] += 25
        far, near = self.render(behind, before)
        assert (near[:, 2] == 2).sum() >= 15
        assert (far[:, 2] == 1).sum() >= 4

    def test_a_person_quite_hidden_is_not_annotated(self):
        behind = standing(0)
        middle = behind.joints[:, [JOINT["pelvis"]]]
        behind = Poses(
            (behind.joints - middle) * 0.1 + middle - [0, 20, 0], behind.head_axes * 0.1, behind.joint_scale * 0.1
        )
        assert len(self.render(behind)) == 1
        assert len(self.render(behind, standing(0))) == 1

    def test_outside_the_picture(self):
        pose = standing(0)
        pose.joints[..., 1] += 200
        (keypoints,) = self.render(pose)
        assert (keypoints[KNEES + ANKLES] == 0).all()
        assert keypoints[NOSE, 2] == 2
        pose.joints[..., 1] += 2000
        assert self.render(pose) == []


class TestLayouts:
    def test_json_and_npz_read_the_same(self, tmp_path, real_looking_layouts):
        from_npz = read_layouts(write_npz(tmp_path / "layouts.npz", real_looking_layouts))
        from_json = read_layouts(write_json(tmp_path / "layouts.json", real_looking_layouts))
        assert len(from_npz) == 2
        for name in ("size", "offset", "bbox", "keypoints"):
            np.testing.assert_array_equal(getattr(from_npz, name), getattr(from_json, name))

    def test_people_without_labels_are_skipped(self, tmp_path, real_looking_layouts):
        real_looking_layouts["keypoints"][0, :, 2] = 0
        layouts = read_layouts(write_npz(tmp_path / "layouts.npz", real_looking_layouts))
        assert layouts.offset.tolist() == [0, 1, 2]
        np.testing.assert_array_equal(layouts.keypoints, real_looking_layouts["keypoints"][1:])

    def test_given_keypoints_are_reproduced(self, tmp_path, real_looking_layouts):
        path = write_npz(tmp_path / "layouts.npz", real_looking_layouts)
        people = SyntheticPeople(seed=1, layouts=path)
        seen = {people[i]["image"].size: people[i]["annotations"] for i in range(2)}
        # every layout comes once before any comes again, each in its own size
        assert set(seen) == {(320, 240), (300, 250)}
        given = real_looking_layouts["keypoints"]
        drawn = np.stack([keypoints_of(a) for a in seen[320, 240] + seen[300, 250]])
        assert drawn.shape == given.shape
        labelled = given[..., 2] > 0
        np.testing.assert_array_equal(drawn[..., 2] > 0, labelled)
        np.testing.assert_array_equal(drawn[labelled][:, :2], given[labelled][:, :2])
        assert (drawn[~labelled] == 0).all()

    def test_another_size_scales_the_layout(self, tmp_path, real_looking_layouts):
        real_looking_layouts["size"][2] = 320, 240
        path = write_npz(tmp_path / "layouts.npz", real_looking_layouts)
        people = SyntheticPeople(seed=1, layouts=path, size=(640, 480))
        given = real_looking_layouts["keypoints"]
        drawn = np.concatenate([[keypoints_of(a) for a in people[i]["annotations"]] for i in range(2)])
        assert len(drawn) == 3
        drawn = drawn[np.argsort([np.abs(drawn[i] - given[:, None, :]).sum() for i in range(3)])]
        expected = {tuple(p) for p in ((given[given[..., 2] > 0][:, :2] + 0.5) * 2 - 0.5).tolist()}
        assert {tuple(p) for p in drawn[drawn[..., 2] > 0][:, :2].tolist()} == expected

    def test_real_layouts(self):
        path = SHARED / "data" / "coco_layouts" / "val2017.npz"
        if not path.exists():
            pytest.skip(f"needs {path.name} of the shared data")
        people = SyntheticPeople(seed=0, layouts=path)
        layouts = people.layouts
        found = total = 0
        for i in range(6):
            layout = int(people._order[i])
            given = layouts.keypoints[layouts.offset[layout] : layouts.offset[layout + 1]].astype(float)
            total += len(given)
            for annotation in people[i]["annotations"]:
                drawn = keypoints_of(annotation)
                found += any(
                    np.array_equal(drawn[:, :2] * labelled, person[:, :2] * labelled)
                    and np.array_equal(drawn[:, 2:] > 0, labelled)
                    for person, labelled in ((p, p[:, 2:] > 0) for p in given)
                )
        assert total > 6
        assert found >= 0.9 * total

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda a: a.pop("offset"), "`offset` is missing"),
            (lambda a: a.update(keypoints=a["keypoints"][:, :14]), r"`keypoints` has shape \(3, 14, 3\)"),
            (lambda a: a.update(bbox=a["bbox"][:2]), r"`bbox` has shape \(2, 4\), expected \(3, 4\)"),
            (lambda a: a.update(offset=np.array([0, 2, 1, 3])), "`offset` must rise"),
            (lambda a: a.update(offset=np.array([0, 2, 2, 9])), "`offset` must rise.*people 3"),
            (lambda a: a.update(size=a["size"] * 0), "`size`.*positive"),
            (lambda a: a["keypoints"].__setitem__((0, 0, 2), 3), "`keypoints` holds visibility 3"),
            (lambda a: a["keypoints"].__setitem__((0, 0, 0), np.nan), "`keypoints` holds values that are not finite"),
            (lambda a: a.update(size=np.array(["a", "b", "c"])), "`size` has type"),
            (lambda a: a["keypoints"].__setitem__((..., 2), 0), "`keypoints` holds no person"),
        ],
    )
    def test_wrong_npz(self, tmp_path, real_looking_layouts, change, message):
        change(real_looking_layouts)
        path = write_npz(tmp_path / "wrong.npz", real_looking_layouts)
        with pytest.raises(ValueError, match=f"wrong.npz.*{message}"):
            SyntheticPeople(layouts=path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.pop("images"), "`images` must be a list"),
            (lambda c: c["images"][1].pop("width"), r"`images\[1\].width` is missing"),
            (lambda c: c["images"][1].update(width="wide"), r"`images\[1\].width`"),
            (lambda c: c["annotations"][2].update(keypoints=[1, 2, 2]), r"`annotations\[2\].keypoints`.*51"),
            (lambda c: c["annotations"][0].update(bbox=None), r"`annotations\[0\].bbox`.*4"),
            (lambda c: c["annotations"][1].update(image_id=99), r"`annotations\[1\].image_id` is 99"),
            (lambda c: c["annotations"].insert(0, 5), r"`annotations\[0\]` must be an object"),
        ],
    )
    def test_wrong_json(self, tmp_path, real_looking_layouts, change, message):
        path = write_json(tmp_path / "wrong.json", real_looking_layouts)
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"wrong.json.*{message}"):
            SyntheticPeople(layouts=path)

    def test_wrong_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
            SyntheticPeople(layouts=tmp_path / "nowhere.json")
        for name in ("broken.npz", "broken.json"):
            (tmp_path / name).write_text("{not a file of either kind")
            with pytest.raises(ValueError, match=f"{name}.*not"):
                SyntheticPeople(layouts=tmp_path / name)
        (tmp_path / "layouts.yaml").write_text("a: 1")
        with pytest.raises(ValueError, match=r"layouts\.yaml.*\.yaml"):
            SyntheticPeople(layouts=tmp_path / "layouts.yaml")


class TestLifting:
    def test_recovers_a_pose_of_the_library(self):
        library = pose_library()
        chosen = np.array([3, 500, 4000])
        points = library.joints[chosen, :17, :2] * 200 + [300, 250]
        boxes = np.concatenate([points.min(axis=1), np.ptp(points, axis=1)], axis=1)
        poses = lift(points, np.ones((3, 17), dtype=bool), boxes)
        np.testing.assert_allclose(poses.joints[:, :17, :2], points)
        np.testing.assert_allclose(poses.joints[..., 2], library.joints[chosen][..., 2] * 200, atol=1e-6)

    def test_completes_what_is_missing(self):
        library = pose_library()
        points = library.joints[[70, 71], :17, :2] * 150 + [200, 200]
        labelled = np.ones((2, 17), dtype=bool)
        labelled[:, [9, 15]] = False
        boxes = np.concatenate([points.min(axis=1), np.ptp(points, axis=1)], axis=1)
        given = np.where(labelled[..., None], points, -999.0)
        poses = lift(given, labelled, boxes)
        np.testing.assert_array_equal(poses.joints[:, :17, :2][labelled], points[labelled])
        # a wrist and an ankle that nobody labelled land near where they were, in units of standing height
        error = np.linalg.norm(poses.joints[:, [9, 15], :2] - points[:, [9, 15]], axis=-1) / 150
        assert error.max() < 0.12

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_few_labels_are_enough_to_draw(self, count):
        labelled = np.zeros((1, 17), dtype=bool)
        labelled[0, :count] = True
        points = np.full((1, 17, 2), 50.0) + np.arange(17)[:, None]
        poses = lift(points, labelled, np.array([[30.0, 30.0, 60.0, 90.0]]))
        assert np.isfinite(poses.joints).all() and (np.linalg.det(poses.head_axes) > 0).all()
        assert 30 < poses.joint_scale.mean() < 600


class TestSurfaces:
    def test_an_ellipsoid_has_its_size_and_depth(self):
        solids, materials = Solids(100), Materials()
        look = materials.add((0.5, 0.5, 0.5))
        solids.ellipsoid(np.array([50.0, 40.0, 7.0]), np.diag([30.0, 20.0, 10.0]), look)
        drawing = solids.draw((0, 0, 100, 80), 2.0)
        area = (drawing.solid == 0).sum() / 4
        assert area == pytest.approx(np.pi * 30 * 20, rel=0.01)
        assert drawing.depth[80, 100] == pytest.approx(7 - 10, abs=0.02)

    @pytest.mark.parametrize("turned", [0, 35, 90])
    def test_a_flat_tube_turns(self, turned):
        """A tube twice as wide as deep shows its width from the front and its depth from the side."""
        solids, materials = Solids(100), Materials()
        look = materials.add((0.5, 0.5, 0.5))
        angle = np.radians(turned)
        across = np.array([np.cos(angle), 0.0, np.sin(angle)])
        solids.tube(np.array([50.0, 10, 0]), np.array([50.0, 90, 0]), np.full(PROFILE, 20.0), look, across, 0.5)
        drawing = solids.draw((0, 0, 100, 100), 2.0)
        width = (drawing.solid[100] == 0).sum() / 2
        assert width == pytest.approx(2 * np.hypot(20 * np.cos(angle), 10 * np.sin(angle)), abs=1)
        nearest = np.min(drawing.depth[100])
        assert nearest == pytest.approx(-np.hypot(20 * np.sin(angle), 10 * np.cos(angle)), abs=0.2)

    def test_the_nearer_solid_is_seen(self):
        solids, materials = Solids(100), Materials()
        red, blue = materials.add((1, 0, 0)), materials.add((0, 0, 1))
        solids.ellipsoid(np.array([20.0, 20, 30]), np.eye(3) * 15, red)
        solids.ellipsoid(np.array([20.0, 20, 0]), np.eye(3) * 5, blue)
        drawing = solids.draw((0, 0, 40, 40), 1.0)
        colours = drawing.shade(materials, Light.sample(np.random.default_rng(0)), (0, 0))
        assert drawing.solid[20, 20] == 1 and drawing.solid[20, 30] == 0 and drawing.solid[0, 0] == -1
        assert colours[20, 20, 2] > colours[20, 20, 0] and colours[20, 30, 0] > colours[20, 30, 2]
        assert colours[0, 0, 3] == 0 and colours[20, 20, 3] == 255
