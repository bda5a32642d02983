from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import DataLoader

from querypose_hf import QueryPoseImageProcessor
from querypose_hf.data import (
    AspectRatioBatchSampler,
    AugmentedPoseDataset,
    CocoPoseDataset,
    PoseAugmentation,
    PoseCollator,
    ReadingOptions,
    ResizeShortSide,
)


@pytest.fixture
def dataset(coco_content, write_coco):
    return CocoPoseDataset(*write_coco(coco_content), options=ReadingOptions(exhaustive=False))


@pytest.fixture
def collator():
    return PoseCollator(QueryPoseImageProcessor(size={"shortest_edge": 96, "longest_edge": 128}, num_keypoints=5))


class TestPoseCollator:
    def test_inputs_of_the_model(self, dataset, collator):
        batch = collator([dataset[i] for i in (1, 2, 5)])
        assert batch["pixel_values"].shape[:2] == (3, 3)
        assert batch["pixel_mask"].shape == (3, *batch["pixel_values"].shape[2:])
        assert [label["class_labels"].shape[0] for label in batch["labels"]] == [2, 3, 0]
        assert [label["keypoints"].shape[1:] for label in batch["labels"]] == [(5, 3)] * 3
        assert [label["image_id"].item() for label in batch["labels"]] == [99, 98, 95]
        assert [label["size"].tolist() for label in batch["labels"]] == [[128, 85], [96, 128], [128, 85]]
        assert not any(label["exhaustive"] for label in batch["labels"])
        assert batch["labels"][0]["exhaustive"].dtype == torch.bool

    def test_resized_samples_keep_their_size(self, dataset, collator):
        augmented = AugmentedPoseDataset(dataset, PoseAugmentation([ResizeShortSide((56,), None)]))
        batch = collator([augmented[0], augmented[2]])
        assert [label["size"].tolist() for label in batch["labels"]] == [[56, 75], [56, 75]]
        assert batch["pixel_values"].shape == (2, 3, 64, 96)

    def test_labels_point_at_the_same_place_as_the_annotations(self, dataset, collator):
        sample = dataset[0]
        sample["exhaustive"] = True
        (label,) = collator([sample])["labels"]
        x, y, _ = sample["annotations"][0]["keypoints"][:3]
        assert label["keypoints"][0, 0].tolist() == pytest.approx([(x + 0.5) / 64, (y + 0.5) / 48, 2])
        assert label["exhaustive"]

    def test_mixed_and_empty_lists(self, dataset, collator):
        with pytest.raises(ValueError, match="only some of the samples were resized"):
            collator([dataset[0], {**dataset[0], "resized": True}])
        with pytest.raises(ValueError, match="no samples"):
            collator([])

    def test_runs_in_workers(self, dataset, collator):
        sampler = AspectRatioBatchSampler(dataset, 2, shuffle=False)
        batches = list(DataLoader(dataset, batch_sampler=sampler, num_workers=1, collate_fn=collator))
        assert [len(batch["labels"]) for batch in batches] == [2, 2, 2]


class TestAspectRatioBatchSampler:
    def sizes(self, count, share=0.5):
        rng = np.random.default_rng(0)
        sizes = rng.integers(50, 100, (count, 2))
        sizes[:, 0] = np.where(rng.random(count) < share, sizes[:, 1] + 10, sizes[:, 1] - 10)
        return SimpleNamespace(sizes=sizes)

    @pytest.mark.parametrize(("count", "batch_size"), [(101, 4), (7, 8), (64, 1), (40, 3)])
    def test_every_image_once_in_batches_of_one_kind(self, count, batch_size):
        dataset = self.sizes(count)
        sampler = AspectRatioBatchSampler(dataset, batch_size, seed=2)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert sorted(index for batch in batches for index in batch) == list(range(count))
        assert all(len(batch) == batch_size for batch in batches[:-1])
        wide = dataset.sizes[:, 0] > dataset.sizes[:, 1]
        mixed = [len(set(wide[batch])) > 1 for batch in batches]
        # only what was left over at the end
        assert sum(mixed) <= 2 and not any(mixed[:-2])

    def test_epochs_and_seeds(self):
        dataset = self.sizes(50)

        def batches(seed, epoch):
            sampler = AspectRatioBatchSampler(dataset, 4, seed=seed)
            sampler.set_epoch(epoch)
            first = list(sampler)
            assert first == list(sampler)
            return str(first)

        assert len({batches(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6
        unshuffled = AspectRatioBatchSampler(dataset, 4, shuffle=False)
        wide = dataset.sizes[:, 0] > dataset.sizes[:, 1]
        assert next(batch for batch in unshuffled if wide[batch[0]]) == np.flatnonzero(wide)[:4].tolist()

    def test_epoch_reaches_the_dataset(self, dataset):
        augmented = AugmentedPoseDataset(dataset, PoseAugmentation([]))
        AspectRatioBatchSampler(augmented, 2).set_epoch(4)
        assert int(augmented._epoch) == 4

    def test_processes_share_the_batches(self):
        sampler = AspectRatioBatchSampler(self.sizes(50), 4, seed=1)
        sampler.set_epoch(2)
        whole = list(sampler)
        shards = [list(BatchSamplerShard(sampler, num_processes=2, process_index=i)) for i in range(2)]
        assert len(shards[0]) == len(shards[1]) == 7
        joined = [batch for pair in zip(*shards, strict=True) for batch in pair]
        assert joined[:12] == whole[:12]
        assert {index for batch in joined for index in batch} == set(range(50))

    def test_accelerate_passes_the_epoch_on_and_resumes(self, coco_content, write_coco):
        dataset = AugmentedPoseDataset(
            CocoPoseDataset(*write_coco(coco_content)), PoseAugmentation([ResizeShortSide((24, 32, 40))])
        )
        loader = DataLoader(
            dataset,
            batch_sampler=AspectRatioBatchSampler(dataset, 2),
            collate_fn=lambda samples: [(sample["image_id"], sample["image"].size) for sample in samples],
        )
        loader = Accelerator(cpu=True).prepare(loader)
        runs = {}
        for epoch in range(3):
            loader.set_epoch(epoch)
            runs[epoch] = list(loader)
        assert len({str(run) for run in runs.values()}) == 3
        loader.set_epoch(1)
        assert list(skip_first_batches(loader, 2)) == runs[1][2:]

    def test_accelerate_passes_the_epoch_on_when_it_shares_batches(self, dataset):
        augmented = AugmentedPoseDataset(dataset, PoseAugmentation([]))
        sampler = AspectRatioBatchSampler(augmented, 2)
        shard = BatchSamplerShard(sampler, num_processes=2, process_index=1)
        loader = Accelerator(cpu=True).prepare(DataLoader(augmented, batch_sampler=shard, collate_fn=list))
        loader.set_epoch(3)
        assert sampler.epoch == 3 and int(augmented._epoch) == 3

    def test_wrong_settings(self):
        with pytest.raises(ValueError, match="`batch_size` is 0"):
            AspectRatioBatchSampler(self.sizes(4), 0)
        with pytest.raises(ValueError, match="`seed` is -3"):
            AspectRatioBatchSampler(self.sizes(4), 2, seed=-3)


def test_training_step_inputs_from_shared_images(shared):
    folder, options = shared / "data" / "coco_fullres", ReadingOptions(only_with_people=True)
    source = CocoPoseDataset(folder / "person_keypoints.json", folder / "images", options=options)
    train = AugmentedPoseDataset(source, PoseAugmentation.from_recipe(source.flip_indices), seed=1)
    sampler = AspectRatioBatchSampler(train, 2, seed=1)
    batch = next(iter(DataLoader(train, batch_sampler=sampler, collate_fn=PoseCollator(QueryPoseImageProcessor()))))
    assert batch["pixel_values"].shape[0] == 2
    assert all(384 <= min(label["size"]) <= 800 for label in batch["labels"])
    assert all(size % 32 == 0 for size in batch["pixel_values"].shape[2:])
