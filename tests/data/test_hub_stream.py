import numpy as np
import pytest
from hub_rows import make_rows
from torch.utils.data import DataLoader

from querypose_hf.data import (
    AugmentedPoseStream,
    HubPoseDataset,
    HubPoseStream,
    PoseAugmentation,
    ReadingOptions,
    ResizeShortSide,
    UnusableImageError,
)


datasets = pytest.importorskip("datasets")

CATEGORIES = ["a", "b"]


def stream_of(num_shards=1, options=ReadingOptions(), **rows):
    rows = make_rows(**rows).to_iterable_dataset(num_shards=num_shards)
    return HubPoseStream(rows, category_names=CATEGORIES, options=options)


def ids(samples):
    return [sample["image_id"] for sample in samples]


class TestReading:
    def test_same_samples_as_map_style(self):
        whole = HubPoseDataset(make_rows())
        stream = stream_of()
        assert stream.num_keypoints == 2  # of the first object
        for i, sample in enumerate(stream):
            expected = whole[i]
            assert sample["image"].tobytes() == expected["image"].tobytes()
            assert sample["image_id"] == expected["image_id"]
            for a, b in zip(sample["annotations"], expected["annotations"], strict=True):
                assert {**a, "id": 0} == {**b, "id": 0}
        assert i == 3

    def test_workers_share_the_rows(self):
        stream = stream_of(
            2, ReadingOptions(only_with_people=True, exhaustive=False, on_error="skip"), num_rows=6, broken=[3]
        )
        samples = list(DataLoader(stream, batch_size=None, num_workers=2))
        assert sorted(ids(samples)) == [51, 52, 54, 55]
        assert not any(sample["exhaustive"] for sample in samples)
        assert stream.left_out == {"unusable_images": 1, "images_without_people": 1}

    def test_rows_without_ids_get_different_ones(self):
        stream = stream_of(4, num_rows=8, image_ids=False)
        found = []
        for process in range(2):
            found += ids(DataLoader(stream.for_process(process, 2), batch_size=None, num_workers=2))
        assert sorted(found) == list(range(8))

    def test_saved_to_disk(self, tmp_path):
        make_rows(label=datasets.ClassLabel(names=CATEGORIES)).save_to_disk(tmp_path / "saved")
        stream = HubPoseStream(str(tmp_path / "saved"), "train", keypoint_names=["left_ear", "right_ear"])
        assert (stream.category_names, stream.flip_indices, stream.num_shards) == ({0: "a", 1: "b"}, (1, 0), 4)
        assert ids(stream) == [50, 51, 52, 53]

    def test_broken_image(self):
        with pytest.raises(UnusableImageError, match=r"row 1 \(image_id 51\): the image cannot be read"):
            list(stream_of(broken=[1]))

    def test_what_a_stream_must_be_told(self):
        with pytest.raises(ValueError, match="`category_names` is needed"):
            HubPoseStream(make_rows().to_iterable_dataset())
        with pytest.raises(ValueError, match="no row has an object"):
            stream_of(num_rows=1)


class TestOrder:
    def test_passes_are_shuffled_differently(self):
        stream = stream_of(3, num_rows=12).shuffled(seed=0, buffer_size=4)
        orders = []
        for epoch in (0, 1, 0):
            stream.set_epoch(epoch)
            orders.append(ids(stream))
        assert orders[0] == orders[2] != orders[1]
        assert sorted(orders[1]) == list(range(50, 62))
        assert orders[0] != ids(stream_of(3, num_rows=12).shuffled(seed=1, buffer_size=4))

    @pytest.mark.parametrize("num_shards", [4, 3])  # as many for each process, or not
    def test_processes_share_each_pass(self, num_shards):
        stream = stream_of(num_shards, num_rows=12).shuffled(seed=0, buffer_size=4)
        for epoch in range(2):
            stream.set_epoch(epoch)
            parts = [ids(stream.for_process(process, 2)) for process in range(2)]
            assert sorted(parts[0] + parts[1]) == list(range(50, 62))

    @pytest.mark.parametrize("options", [ReadingOptions(only_with_people=True), ReadingOptions(on_error="skip")])
    def test_skipping_samples_goes_on_where_a_run_stopped(self, options):
        broken = [3] if options.on_error == "skip" else []
        stream = stream_of(2, options, num_rows=6, broken=broken).shuffled(seed=3, buffer_size=3)

        def first(count, skipped=0):
            passes = stream.passes(skipped)
            return [(number, sample["image_id"]) for number, sample in (next(passes) for _ in range(count))]

        whole = first(14)
        assert {number for number, _ in whole} == {0, 1, 2}
        for skipped in (1, 5, 7):
            assert first(14 - skipped, skipped) == whole[skipped:]

    def test_a_pass_without_samples_is_an_error(self):
        stream = stream_of(1, ReadingOptions(only_with_people=True), num_rows=2, iscrowd=lambda i: [1] * i)
        with pytest.raises(ValueError, match=r"a pass over the rows gave no sample; .*'images_without_people': 2"):
            next(stream.passes())


class TestAugmentation:
    def samples(self, count, skipped=0, seed=0):
        stream = stream_of(2, num_rows=6).shuffled(seed=3, buffer_size=3)
        augmentation = PoseAugmentation([ResizeShortSide((20, 24, 28, 32))])
        augmented = iter(AugmentedPoseStream(stream, augmentation, seed=seed, skipped=skipped))
        return [(sample["image_id"], sample["image"].tobytes()) for sample in (next(augmented) for _ in range(count))]

    def test_a_run_goes_on_where_it_stopped(self):
        assert self.samples(10, skipped=4) == self.samples(14)[4:]

    def test_passes_and_seeds_differ(self):
        sizes = {}
        for image_id, pixels in self.samples(18):
            sizes.setdefault(image_id, set()).add(len(pixels))
        assert all(len(found) > 1 for found in sizes.values())
        assert self.samples(6) != self.samples(6, seed=1)
        with pytest.raises(ValueError, match="`seed` is -1"):
            self.samples(1, seed=-1)

    def test_negative_ids(self):
        rows = make_rows(image_ids=False).add_column("image_id", np.arange(-2, 2))
        stream = HubPoseStream(rows.to_iterable_dataset(), category_names=CATEGORIES)
        samples = iter(AugmentedPoseStream(stream, PoseAugmentation([])))
        assert ids(next(samples) for _ in range(5)) == [-2, -1, 0, 1, -2]
