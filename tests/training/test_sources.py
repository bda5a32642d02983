import json
from pathlib import Path

import pytest
from PIL import Image
from small_data import relabelled_for_crowdpose, write_rendered_coco

from querypose_hf import COCO_17
from querypose_hf.data import image_sizes
from querypose_hf.training.experiment import Experiment
from querypose_hf.training.sources import describe_sources, open_source


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_rendered_coco(tmp_path_factory.mktemp("rendered"))


def sources_of(*train):
    values = {"model": {"variant": "r50"}, "data": {"train": list(train)}}
    return [
        open_source(settings, f"data.train[{n}]")
        for n, settings in enumerate(Experiment.from_mapping(values).data.train)
    ]


GENERATED = {"format": "generated", "length": 3, "size": [64, 48]}


class TestSources:
    def test_options_reach_the_readers(self, source, tmp_path):
        content = json.loads(open(source["annotations"]).read())
        content["images"].append({**content["images"][0], "id": 99})  # nobody in it
        path = tmp_path / "people.json"
        path.write_text(json.dumps(content))
        fields = {"annotations": str(path), "images": source["images"]}
        (dataset,) = sources_of({**fields, "exhaustive": False})
        assert len(dataset) == 6
        assert dataset[0]["exhaustive"] is False
        (few,) = sources_of({**fields, "only_with_people": False, "max_images": 2})
        assert len(few) == 2 and image_sizes(few).tolist() == [[64, 48]] * 2

    def test_sizes_of_images_before_they_are_turned_upright(self, source, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        for path in Path(source["images"]).iterdir():
            Image.open(path).save(tmp_path / path.name, exif=exif if path.name in ("2.png", "4.png") else Image.Exif())
        turned = {**source, "images": str(tmp_path)}
        message = r"`data.train\[1\]`: 2 of 6 images .*2.png: the upright .* 48 x 64 .* 64 x 48, .* EXIF orientation"
        with pytest.raises(ValueError, match=message):
            sources_of(source, turned)
        (dataset,) = sources_of({**turned, "on_error": "skip"})
        assert [Path(name).name for name in dataset.unusable_images] == ["2.png", "4.png"]
        assert dataset[2]["image_id"] == 3

    def test_together(self, source):
        data = describe_sources(sources_of(GENERATED, source))
        assert data.keypoint_names == COCO_17.keypoint_names
        assert data.category_names == {1: "person"}

    def test_differences_are_errors(self, source, tmp_path):
        path = tmp_path / "other.json"
        content = json.loads(open(source["annotations"]).read())
        path.write_text(json.dumps(relabelled_for_crowdpose(content)))
        crowdpose = {"annotations": str(path), "images": source["images"]}
        with pytest.raises(ValueError, match=r"`data.train\[1\]` has 14 keypoints and `data.train\[0\]` 17"):
            describe_sources(sources_of(source, crowdpose))
        content["categories"][0]["keypoints"][:2] = ["left_eye", "nose"]
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"`data.train\[1\]` has the keypoints \['left_eye', 'nose'"):
            describe_sources(sources_of(source, crowdpose))
        content["categories"] = [{**content["categories"][0], "id": number} for number in (1, 2)]
        path.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"has the categories .*; expected the same number"):
            describe_sources(sources_of(source, crowdpose))

    def test_errors_name_the_place(self, source):
        with pytest.raises(ValueError, match=r"`data.train\[0\]`: `length` is None; expected a whole number"):
            sources_of({"format": "generated"})
        with pytest.raises(FileNotFoundError, match=r"`data.train\[1\]`: .*none.json"):
            sources_of(source, {**source, "annotations": "none.json"})
        with pytest.raises(ValueError, match=r"`data.train\[0\]`: `columns` is .*; expected fields of PoseColumns"):
            sources_of({"format": "hub", "annotations": "x", "columns": {"picture": "y"}})
