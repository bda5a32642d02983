import numpy as np
import pytest
from torch.utils.data import DataLoader

from querypose_hf.data import (
    AugmentedPoseDataset,
    CocoPoseDataset,
    PoseAugmentation,
    RandomCrop,
    ResizeShortSide,
    Rotation,
    ScaleJitter,
)


STEPS = [RandomCrop((30, 40), (20, 30)), Rotation(20), ResizeShortSide((24, 32, 40), 60), ScaleJitter((0.5, 2))]


def fingerprint(sample):
    return sample["image"].tobytes(), str(sample["annotations"])


@pytest.fixture
def dataset(coco_content, write_coco):
    return CocoPoseDataset(*write_coco(coco_content))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_order_and_process_do_not_matter(dataset, num_workers):
    augmented = AugmentedPoseDataset(dataset, PoseAugmentation(STEPS), seed=5)
    augmented.set_epoch(3)
    backwards = [fingerprint(augmented[i]) for i in reversed(range(6))][::-1]
    loaded = [fingerprint(sample) for sample in DataLoader(augmented, batch_size=None, num_workers=num_workers)]
    assert loaded == backwards
    assert len(set(loaded)) == 6
    # a new one, as after a restart, at the place where a run was left
    resumed = AugmentedPoseDataset(dataset, PoseAugmentation(STEPS), seed=5)
    resumed.set_epoch(3)
    assert fingerprint(resumed[4]) == backwards[4]


def test_seed_and_epoch_matter(dataset):
    def all_samples(seed, epoch):
        augmented = AugmentedPoseDataset(dataset, PoseAugmentation(STEPS), seed=seed)
        augmented.set_epoch(epoch)
        return tuple(fingerprint(augmented[i]) for i in range(6))

    assert len({all_samples(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_workers_that_live_on_see_the_new_epoch(dataset):
    augmented = AugmentedPoseDataset(dataset, PoseAugmentation(STEPS))
    loader = DataLoader(augmented, batch_size=None, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        augmented.set_epoch(epoch)
        epochs.append([fingerprint(sample) for sample in loader])
    assert epochs[0] == epochs[2] != epochs[1]


def test_sizes_are_those_of_the_source(dataset):
    augmented = AugmentedPoseDataset(dataset, PoseAugmentation(STEPS))
    assert np.array_equal(augmented.sizes, dataset.sizes)
    assert len(augmented) == 6
    assert fingerprint(augmented[-1]) == fingerprint(augmented[5])
    with pytest.raises(IndexError):
        augmented[6]


def test_wrong_numbers(dataset):
    with pytest.raises(ValueError, match="`seed` is -1"):
        AugmentedPoseDataset(dataset, PoseAugmentation([]), seed=-1)
    with pytest.raises(ValueError, match=r"`epoch` is 0\.5"):
        AugmentedPoseDataset(dataset, PoseAugmentation([])).set_epoch(0.5)
