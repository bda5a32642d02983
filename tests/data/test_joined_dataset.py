from collections import Counter

import numpy as np
import PIL.Image
import pytest
from torch.utils.data import DataLoader, Dataset

from querypose_hf.data import (
    AspectRatioBatchSampler,
    AugmentedPoseDataset,
    GeneratedPeople,
    JoinedPoseDataset,
    PoseAugmentation,
)


class Pictures(Dataset):
    """Pictures with ids of their own, every third of them wide."""

    def __init__(self, count, first=0, category_id=1):
        self.ids = [first + index for index in range(count)]
        self.category_id = category_id
        self.sizes = np.array([(40, 30) if index % 3 == 0 else (30, 40) for index in range(count)])

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        annotation = {"id": 1, "category_id": self.category_id, "bbox": [1, 1, 9, 9], "iscrowd": 0, "area": 81}
        image = PIL.Image.new("RGB", tuple(self.sizes[index].tolist()))
        return {"image": image, "image_id": self.ids[index], "annotations": [{**annotation, "keypoints": [5, 5, 2]}]}


def epochs(dataset, count):
    for epoch in range(count):
        dataset.set_epoch(epoch)
        yield [dataset[index]["image_id"] for index in range(len(dataset))]


def test_every_image_comes_as_often_as_asked():
    joined = JoinedPoseDataset([Pictures(12), Pictures(6, 100), Pictures(12, 200)], [1, 2, 0.5])
    assert len(joined) == 12 + 12 + 6
    seen = list(epochs(joined, 4))
    for ids in seen:
        times = Counter(ids)
        assert all(times[i] == 1 for i in range(12))
        assert all(times[100 + i] == 2 for i in range(6))
        assert sum(200 <= i for i in ids) == 6
    # the halves of two epochs make the whole
    for pair in (0, 2):
        halves = [i for ids in seen[pair : pair + 2] for i in ids if i >= 200]
        assert sorted(halves) == list(range(200, 212))
    assert seen[0] != seen[1]
    assert seen == list(epochs(JoinedPoseDataset([Pictures(12), Pictures(6, 100), Pictures(12, 200)], [1, 2, 0.5]), 4))
    other = JoinedPoseDataset([Pictures(12), Pictures(6, 100), Pictures(12, 200)], [1, 2, 0.5], seed=1)
    assert seen != list(epochs(other, 4))


def test_sizes_tell_wide_from_tall_in_every_epoch():
    joined = JoinedPoseDataset([Pictures(10), Pictures(7, 100)], [0.7, 1.6])
    wide = joined.sizes[:, 0] > joined.sizes[:, 1]
    assert wide.any() and not wide.all()
    for epoch in (0, 1, 5):
        joined.set_epoch(epoch)
        found = [joined[index]["image"].size for index in range(len(joined))]
        assert [width > height for width, height in found] == wide.tolist()


def test_a_rare_kind_is_not_left_out():
    # 1 of 3 images is wide; a tenth of it rounds to none
    joined = JoinedPoseDataset([Pictures(3)], [0.1])
    assert {i for ids in epochs(joined, 3) for i in ids} == {0, 1, 2}


def test_categories_become_the_first_sources():
    joined = JoinedPoseDataset([Pictures(2), Pictures(2, 100, category_id=0)], category_ids=[[1], [0]])
    assert {joined[i]["annotations"][0]["category_id"] for i in range(4)} == {1}


def test_generated_people_are_others_in_every_pass():
    joined = JoinedPoseDataset([GeneratedPeople(2, size=(48, 64))])
    seen = [i for ids in epochs(joined, 3) for i in ids]
    assert sorted(seen) == list(range(6))


def test_workers_that_live_on_see_the_epoch():
    augmented = AugmentedPoseDataset(JoinedPoseDataset([Pictures(12)], [0.5]), PoseAugmentation([]))
    loader = DataLoader(
        augmented,
        batch_sampler=AspectRatioBatchSampler(augmented, 2, shuffle=False),
        num_workers=1,
        persistent_workers=True,
        collate_fn=lambda samples: [sample["image_id"] for sample in samples],
    )
    seen = []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        seen += [image for batch in loader for image in batch]
    assert sorted(seen) == list(range(12))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "0 `sources` and 0 `repeats`"),
        (([Pictures(2)], [1, 2]), "1 `sources` and 2 `repeats`"),
        (([Pictures(2)], [0]), r"`repeats\[0\]` is 0; expected a number above 0"),
        (([Pictures(2), Pictures(0)],), "source 1 is empty"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        JoinedPoseDataset(*arguments)


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="as many categories"):
        JoinedPoseDataset([Pictures(1), Pictures(1)], category_ids=[[1], [1, 2]])
