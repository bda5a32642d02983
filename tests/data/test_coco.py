import copy
import json

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Subset

from querypose_hf import QueryPoseImageProcessor
from querypose_hf.data import CocoPoseDataset, CrowdPoseDataset, ReadingOptions, UnusableImageError, image_sizes


def by_image(content):
    grouped = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        grouped[annotation["image_id"]].append(annotation)
    return grouped


class TestReading:
    def test_samples_hold_what_the_file_says(self, coco_content, write_coco):
        dataset = CocoPoseDataset(*write_coco(coco_content))
        assert len(dataset) == 6
        expected = by_image(coco_content)
        for i, record in enumerate(coco_content["images"]):
            sample = dataset[i]
            assert sample["image_id"] == record["id"]
            assert sample["image"].mode == "RGB"
            assert sample["image"].size == (record["width"], record["height"]) == tuple(dataset.sizes[i])
            assert sample["exhaustive"] is True
            assert len(sample["annotations"]) == len(expected[record["id"]]) > 0
            for found, wanted in zip(sample["annotations"], expected[record["id"]], strict=True):
                wanted = {"keypoints": [0.0] * 15, **wanted}
                assert found == wanted

    def test_description_comes_from_the_category(self, coco_content, write_coco):
        dataset = CocoPoseDataset(*write_coco(coco_content), options=ReadingOptions(exhaustive=False))
        assert dataset.category_names == {1: "person"}
        assert dataset.keypoint_names[1:3] == ("left_eye", "right_eye")
        assert dataset.edges == ((0, 1), (0, 2), (3, 4))
        assert dataset.flip_indices == (0, 2, 1, 4, 3)
        assert dataset[0]["exhaustive"] is False

    def test_image_processor_takes_samples_as_they_are(self, coco_content, write_coco):
        sample = CocoPoseDataset(*write_coco(coco_content))[2]
        labels = QueryPoseImageProcessor()(sample["image"], sample, return_tensors="pt")["labels"][0]
        assert labels["keypoints"].shape == (3, 5, 3)

    def test_images_without_people_are_left_out_and_counted(self, coco_content, write_coco):
        dataset = CocoPoseDataset(*write_coco(coco_content), options=ReadingOptions(only_with_people=True))
        assert [dataset.image_id(i) for i in range(len(dataset))] == [100, 99, 98, 97, 96]
        assert dataset.left_out["images_without_people"] == 1
        assert [len(dataset.annotations(i)) for i in range(5)] == [1, 2, 3, 1, 2]

    def test_person_without_labelled_keypoints_counts_as_person(self, coco_content, write_coco):
        coco_content["annotations"][0]["iscrowd"] = 0
        assert len(CocoPoseDataset(*write_coco(coco_content), options=ReadingOptions(only_with_people=True))) == 6

    def test_missing_area_and_keypoints(self, coco_content, write_coco):
        for annotation in coco_content["annotations"]:
            del annotation["area"]
            annotation.pop("iscrowd")
        files = write_coco(coco_content)
        for ratio in (1.0, 0.53):
            entry = CocoPoseDataset(*files, area_ratio=ratio).annotations(5)[0]
            assert entry["area"] == pytest.approx(40 * 30 * ratio)
            assert entry["keypoints"] == [0.0] * 15

    def test_several_categories(self, coco_content, write_coco):
        coco_content["categories"] += [
            {"id": 7, "name": "horse", "keypoints": coco_content["categories"][0]["keypoints"]},
            {"id": 9, "name": "kite"},
        ]
        coco_content["annotations"][1]["category_id"] = 7
        coco_content["annotations"][2] = {**coco_content["annotations"][2], "category_id": 9, "keypoints": [1, 2]}
        files = write_coco(coco_content)
        dataset = CocoPoseDataset(*files)
        assert dataset.category_ids == [1, 7]
        assert dataset.left_out["annotations_of_other_categories"] == 1
        found = [entry["category_id"] for i in range(6) for entry in dataset.annotations(i)]
        assert sorted(found) == [1] * 8 + [7]
        assert CocoPoseDataset(*files, category_ids=[7, 1]).category_ids == [7, 1]
        with pytest.raises(ValueError, match=r"`category_ids` is \[3\]"):
            CocoPoseDataset(*files, category_ids=[3])

    def test_number_of_keypoints_without_names(self, coco_content, write_coco):
        del coco_content["categories"][0]["keypoints"], coco_content["categories"][0]["skeleton"]
        dataset = CocoPoseDataset(*write_coco(coco_content))
        assert dataset.num_keypoints == 5
        assert dataset.keypoint_names is None and dataset.flip_indices is None

    def test_grey_and_turned_images_come_upright_in_rgb(self, coco_content, write_coco):
        annotations, folder = write_coco(coco_content)
        upright = Image.open(folder / "0.png").convert("L")
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by 90 degrees clockwise
        upright.transpose(Image.Transpose.ROTATE_90).save(folder / "0.png", exif=exif)
        image = CocoPoseDataset(annotations, folder)[0]["image"]
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), np.asarray(upright.convert("RGB")))

    def test_names_from_windows(self, coco_content, write_coco):
        annotations, folder = write_coco(coco_content)
        (folder / "sub").mkdir()
        (folder / "1.png").rename(folder / "sub" / "1.png")
        coco_content["images"][1]["file_name"] = r"sub\1.png"
        annotations.write_text(json.dumps(coco_content))
        assert CocoPoseDataset(annotations, folder)[1]["image"].size == (40, 60)

    def test_joined_datasets_tell_their_sizes(self, coco_content, write_coco):
        dataset = CocoPoseDataset(*write_coco(coco_content))
        joined = ConcatDataset([dataset, Subset(dataset, [3, 1])])
        assert np.array_equal(image_sizes(joined), np.concatenate([dataset.sizes, dataset.sizes[[3, 1]]]))
        with pytest.raises(ValueError, match="does not tell the sizes"):
            image_sizes([1, 2])

    def test_crowdpose(self, shared, tmp_path):
        content = json.loads((shared / "data" / "crowdpose" / "crowdpose_val.json").read_text())
        content["images"] = content["images"][:5]
        path = tmp_path / "crowdpose.json"
        path.write_text(json.dumps(content))
        for image in content["images"]:
            Image.new("RGB", (image["width"], image["height"])).save(tmp_path / image["file_name"])
        dataset = CrowdPoseDataset(path, tmp_path)
        assert dataset.num_keypoints == 14
        assert dataset.flip_indices[:2] == (1, 0) and dataset.flip_indices[12:] == (12, 13)
        entry = dataset[0]["annotations"][0]
        assert entry["area"] == pytest.approx(0.53 * entry["bbox"][2] * entry["bbox"][3])
        assert dataset.left_out["annotations_of_unknown_images"] > 0


class TestUnusableImages:
    @pytest.fixture
    def files(self, coco_content, write_coco):
        annotations, folder = write_coco(coco_content)
        truncated = (folder / "1.png").read_bytes()
        (folder / "1.png").write_bytes(truncated[: len(truncated) // 2])
        Image.new("RGB", (11, 13)).save(folder / "4.png")
        return annotations, folder

    def test_are_named(self, files):
        dataset = CocoPoseDataset(*files)
        with pytest.raises(UnusableImageError, match=r"1\.png: the image cannot be read"):
            dataset[1]
        with pytest.raises(UnusableImageError, match=r"4\.png: .* 11 x 13 pixels; expected 64 x 48"):
            dataset[4]

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_are_skipped_and_counted(self, files, num_workers):
        dataset = CocoPoseDataset(*files, options=ReadingOptions(on_error="skip"))
        assert dataset.unusable_images == []
        samples = list(DataLoader(dataset, batch_size=None, num_workers=num_workers))
        # the next one stands in
        assert [sample["image_id"] for sample in samples] == [100, 98, 98, 97, 95, 95]
        assert [name[-5:] for name in dataset.unusable_images] == ["1.png", "4.png"]

    def test_none_left(self, files):
        dataset = CocoPoseDataset(*files, options=ReadingOptions(on_error="skip"))
        for file in files[1].iterdir():
            file.write_bytes(b"")
        with pytest.raises(UnusableImageError, match="none of the 6 images"):
            dataset[2]

    def test_missing_ones_are_found_before_anything_is_read(self, files):
        (files[1] / "2.png").unlink()
        with pytest.raises(FileNotFoundError, match=r"1 of 6 images are not in .* 2\.png"):
            CocoPoseDataset(*files)
        dataset = CocoPoseDataset(*files, options=ReadingOptions(on_error="skip"))
        assert len(dataset) == 5 and dataset.left_out["missing_images"] == 1
        assert [dataset.image_id(i) for i in range(5)] == [100, 99, 97, 96, 95]
        assert len(dataset.annotations(2)) == 1


ERRORS = {
    "no such category": (lambda c: c.pop("categories"), "`categories` is missing"),
    "bbox": (lambda c: c["annotations"][2].update(bbox=[1, 2, 3]), "annotation 2: `bbox` has 3 values"),
    "bbox value": (lambda c: c["annotations"][2].update(bbox=[1, 2, 3, "x"]), r"annotation 2: `bbox`\[3\] is 'x'"),
    "bbox size": (lambda c: c["annotations"][3].update(bbox=[1, 2, -3, 4]), "annotation 3: `bbox` is .* at least 0"),
    "no bbox": (lambda c: c["annotations"][2].pop("bbox"), "annotation 2: `bbox` is missing"),
    "keypoints": (lambda c: c["annotations"][4].update(keypoints=[1, 2, 2]), "annotation 4: `keypoints` has 3 values"),
    "visibility": (
        lambda c: c["annotations"][4].update(keypoints=[1, 2, 3] * 5),
        "annotation 4: `keypoints` has visibility 3 at keypoint 0",
    ),
    "area": (lambda c: c["annotations"][1].update(area="big"), "annotation 1: `area` is 'big'"),
    "category": (lambda c: c["annotations"][1].update(category_id=None), "annotation 1: `category_id` is None"),
    "image id": (lambda c: c["images"][1].update(id="a"), "image 1: `id` is 'a'"),
    "image id twice": (lambda c: c["images"][1].update(id=100), "image 1: `id` 100 occurs twice"),
    "width": (lambda c: c["images"][1].pop("width"), "image 1: `width` is None"),
    "height": (lambda c: c["images"][1].update(height=0), "image 1: `height` is 0; .*at least 1"),
    "half a pixel": (
        lambda c: c["images"][1].update(width=64.5),
        r"image 1: `width` is 64\.5; expected a whole number",
    ),
    "huge image": (lambda c: c["images"][1].update(height=1e300), r"image 1: `height` is 1e\+300"),
    "file name": (lambda c: c["images"][1].pop("file_name"), "image 1: `file_name` is None"),
    "limb": (lambda c: c["categories"][0].update(skeleton=[[1, 6]]), r"limb \[1, 6\]; expected numbers from 1 to 5"),
    "names": (lambda c: c["categories"][0].update(keypoints=[1, 2]), r"category 1: `keypoints` is \[1, 2\]"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_file_record_and_field(case, coco_content, write_coco):
    files = write_coco(copy.deepcopy(coco_content))
    change, message = ERRORS[case]
    change(coco_content)
    files[0].write_text(json.dumps(coco_content))
    with pytest.raises(ValueError, match=message) as error:
        CocoPoseDataset(*files)
    assert str(files[0]) in str(error.value)


def test_other_errors(coco_content, write_coco, tmp_path):
    files = write_coco(coco_content)
    with pytest.raises(ValueError, match="`on_error` is 'ignore'"):
        ReadingOptions(on_error="ignore")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        CocoPoseDataset(files[0], tmp_path / "nowhere")
    with pytest.raises(IndexError, match="there are 6"):
        CocoPoseDataset(*files)[6]


def test_spawned_workers_tell_what_they_skipped(coco_content, write_coco):
    annotations, folder = write_coco(coco_content)
    (folder / "3.png").write_bytes(b"broken")
    dataset = CocoPoseDataset(annotations, folder, options=ReadingOptions(on_error="skip"))
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    assert [sample["image_id"] for sample in loader] == [100, 99, 98, 96, 96, 95]
    assert [name[-5:] for name in dataset.unusable_images] == ["3.png"]
