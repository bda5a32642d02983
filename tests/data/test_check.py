import json

import numpy as np
import pytest
from PIL import Image

from querypose_hf.data import CocoPoseDataset, ReadingOptions, check, check_data


def face(left, right, x=20.0):
    """Keypoints of the five names of the made-up data, of somebody who faces the camera."""
    points = {"nose": (x, 10), "left_eye": (left, 8), "right_eye": (right, 8)}
    points.update(left_shoulder=(left + (left - x), 20), right_shoulder=(right + (right - x), 20))
    return [value for point in points.values() for value in (*point, 2)]


@pytest.fixture
def people(coco_content):
    """Replaces the people of the first three images by the given ones, and empties the others."""

    def replace(*groups):
        coco_content["annotations"] = [
            {"id": 10 * row + i, "image_id": coco_content["images"][row]["id"], "category_id": 1, **person}
            for row, group in enumerate(groups)
            for i, person in enumerate(group)
        ]
        return coco_content

    return replace


class TestCounts:
    def test_counts_agree_with_the_file(self, coco_content, write_coco):
        dataset = CocoPoseDataset(*write_coco(coco_content))
        report = check_data(dataset)
        humans = [entry for entry in coco_content["annotations"] if not entry["iscrowd"]]
        visibility = np.array([entry["keypoints"][2::3] for entry in humans])
        assert report.num_images == 6 and report.num_images_with_people == 5
        assert report.num_people == len(humans) == 9 and report.num_crowd_regions == 1
        assert report.people_by_category == {1: 9}
        counts = (visibility > 0).sum(axis=1)
        assert report.people_by_labelled_keypoints == {n: int((counts == n).sum()) for n in sorted(set(counts))}
        for k, name in enumerate(dataset.keypoint_names):
            found = report.keypoint_visibility[name]
            assert list(found) == ["not labelled", "hidden", "visible"]
            assert list(found.values()) == [int((visibility[:, k] == v).sum()) for v in range(3)]

    def test_people_without_keypoints(self, people, write_coco):
        content = people([{"bbox": [1, 1, 20, 20]}, {"bbox": [5, 5, 30, 30], "keypoints": face(25, 15)}])
        report = check_data(CocoPoseDataset(*write_coco(content)))
        assert report.num_people_without_keypoints == 1
        assert report.people_by_labelled_keypoints == {0: 1, 5: 1}
        assert report.keypoint_visibility["nose"] == {"not labelled": 0, "hidden": 0, "visible": 1}


class TestMistakes:
    def test_sound_data_has_none(self, people, write_coco):
        content = people([{"bbox": [5, 2, 35, 25], "keypoints": face(25, 15)}])
        report = check_data(CocoPoseDataset(*write_coco(content))).to_dict()
        for field in ("boxes_outside_images", "boxes_without_area", "keypoints_outside_boxes", "duplicate_images"):
            assert report[field] == []
        assert report["unusable_images"] == report["duplicate_people"] == report["people_with_sides_exchanged"] == []

    def test_boxes_and_keypoints(self, people, write_coco):
        good = face(25, 15)
        content = people(
            [
                {"bbox": [5, 2, 35, 25], "keypoints": good},
                {"bbox": [50, 2, 35, 25]},
                {"bbox": [5, 2, 0, 25]},
                {"bbox": [40, 30, 20, 10], "keypoints": good},
                {"bbox": [40, 30, 20, 10], "keypoints": [20, 10, 1] + 12 * [0]},
            ]
        )
        report = check_data(CocoPoseDataset(*write_coco(content)))
        assert [text.split("0.png, ")[1] for text in report.boxes_outside_images] == [
            "object 1: reaches out of 64 x 48 pixels"
        ]
        assert report.boxes_without_area == [
            "image_id 100, annotation 2: `bbox` is [5.0, 2.0, 0.0, 25.0], without area in the image; left out, for it "
            "has no keypoints there"
        ]
        # the hidden one may lie outside
        assert [text.split("0.png, ")[1][:8] for text in report.keypoints_outside_boxes] == ["object 2"]

    def test_duplicates(self, people, write_coco):
        person = {"bbox": [5, 2, 35, 25], "keypoints": face(25, 15)}
        shifted = {"bbox": [5.5, 2, 35, 25], "keypoints": face(25.5, 15)}
        other = {"bbox": [5, 2, 35, 25], "keypoints": face(28, 15)}
        annotations, folder = write_coco(people([other, person, shifted]))
        (folder / "4.png").write_bytes((folder / "2.png").read_bytes())
        report = check_data(CocoPoseDataset(annotations, folder))
        assert [text.split("0.png, ")[1] for text in report.duplicate_people] == ["objects 1 and 2"]
        assert [[name[-5:] for name in group] for group in report.duplicate_images] == [["2.png", "4.png"]]

    @pytest.mark.parametrize("on_error", ["raise", "skip"])
    def test_unusable_images(self, coco_content, write_coco, on_error):
        annotations, folder = write_coco(coco_content)
        (folder / "3.png").write_bytes(b"no picture")
        report = check_data(CocoPoseDataset(annotations, folder, options=ReadingOptions(on_error=on_error)))
        assert report.num_images == 6
        (text,) = report.unusable_images
        assert "3.png: the image cannot be read" in text
        assert text in report.to_text()

    def test_left_and_right(self, people, write_coco):
        box = {"bbox": [1, 2, 60, 40]}
        upside_down = face(15, 25)
        upside_down[10] = upside_down[13] = 2  # shoulders above the nose
        content = people(
            [{**box, "keypoints": face(25, 15)}, {**box, "keypoints": face(26, 15)}],
            [{**box, "keypoints": face(15, 25)}],
            [{**box, "keypoints": upside_down}],
        )
        files = write_coco(content)
        report = check_data(CocoPoseDataset(*files))
        assert report.left_right_order == {
            "eye": {"people": 3, "share": pytest.approx(2 / 3)},
            "shoulder": {"people": 3, "share": pytest.approx(2 / 3)},
        }
        (text,) = report.people_with_sides_exchanged
        assert "1.png, object 0" in text
        assert "probably exchanged" not in report.to_text()

        category = content["categories"][0]
        category["keypoints"] = [category["keypoints"][k] for k in (0, 2, 1, 4, 3)]
        files[0].write_text(json.dumps(content))
        assert "probably exchanged" in check_data(CocoPoseDataset(*files)).to_text()

    def test_left_and_right_are_not_judged_without_a_face(self, people, write_coco):
        content = people([{"bbox": [1, 2, 60, 40], "keypoints": face(15, 25)}])
        content["categories"][0]["keypoints"] = ["a", "b", "c", "d", "e"]
        report = check_data(CocoPoseDataset(*write_coco(content)))
        assert report.left_right_order == {}
        assert "not examined" in report.to_text()


class TestOutput:
    def test_page_and_report(self, coco_content, write_coco, tmp_path, monkeypatch):
        dataset = CocoPoseDataset(*write_coco(coco_content))
        output = tmp_path / "new" / "check"
        report = check_data(dataset, output_dir=output)
        assert sorted(file.name for file in output.iterdir()) == ["report.json", "samples.png"]
        saved = json.loads((output / "report.json").read_text())
        assert saved["num_people"] == report.num_people
        page = Image.open(output / "samples.png")
        assert page.size == (1280, 640)
        drawn = np.asarray(page)
        for i in range(6):
            corner = drawn[320 * (i // 4) :, 320 * (i % 4) :][:40, :40]
            assert len(np.unique(corner.reshape(-1, 3), axis=0)) > 100
        # the choice is the same each time
        monkeypatch.setattr(check, "NUM_DRAWN", 3)
        for name in ("a", "b"):
            check_data(dataset, output_dir=tmp_path / name)
        assert Image.open(tmp_path / "a" / "samples.png").size == (1280, 320)
        assert (tmp_path / "a" / "samples.png").read_bytes() == (tmp_path / "b" / "samples.png").read_bytes()

    def test_first_images_only(self, coco_content, write_coco):
        dataset = CocoPoseDataset(*write_coco(coco_content))
        assert check_data(dataset, max_images=2).num_people == 3
        with pytest.raises(ValueError, match="`max_images` is 0"):
            check_data(dataset, max_images=0)
