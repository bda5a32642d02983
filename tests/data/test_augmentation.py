import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from querypose_hf.data import (
    AugmentationRecipe,
    HorizontalFlip,
    Photometric,
    PoseAugmentation,
    RandomCrop,
    ResizeShortSide,
    Rotation,
    ScaleJitter,
)
from querypose_hf.data.annotated_image import AnnotatedImage
from querypose_hf.model.skeletons import COCO_17


GROUND = (128, 128, 128)
COLORS = np.array(
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255), (0, 0, 0), (255, 255, 255)]
)
RADIUS = 9
FLIP = (1, 0, 3, 2)


def dotted(size=(400, 300), seed=0):
    """An image with two people of four keypoints, each keypoint a dot of its own colour; boxes enclose the dots."""
    rng = np.random.default_rng(seed)
    width, height = size
    centers = []
    while len(centers) < 8:
        center = rng.integers(2 * RADIUS, np.array(size) - 2 * RADIUS)
        if all(np.hypot(*(center - other)) > 3 * RADIUS for other in centers):
            centers.append(center)
    pixels = np.full((height, width, 3), 128.0)
    y, x = np.mgrid[:height, :width]
    for center, color in zip(centers, COLORS, strict=True):
        pixels[np.hypot(x - center[0], y - center[1]) <= RADIUS] = color
    annotations = []
    for person in (0, 1):
        points = np.array(centers[4 * person : 4 * person + 4], dtype=float)
        low, high = points.min(axis=0) + 0.5 - RADIUS, points.max(axis=0) + 0.5 + RADIUS
        annotations.append(
            {
                "id": person + 10,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [*low, *(high - low)],
                "area": float((high - low).prod() / 2),
                "keypoints": np.column_stack([points, np.full(4, 2)]).ravel().tolist(),
            }
        )
    return {"image": Image.fromarray(pixels.astype(np.uint8)), "image_id": 7, "annotations": annotations}


def check_dots(sample, colors_of):
    """Looks for every labelled keypoint's dot, of the colours that `colors_of` gives for a person.

    Returns how far keypoints lie from the middles of the whole dots among them, (dots, 2).
    """
    pixels = np.asarray(sample["image"]).astype(int)
    height, width = pixels.shape[:2]
    offsets = []
    for entry in sample["annotations"]:
        points = np.reshape(entry["keypoints"], (-1, 3))
        for (x, y, visibility), color in zip(points, colors_of(entry), strict=True):
            if visibility == 0:
                assert (x, y) == (0, 0)
                continue
            assert -0.5 <= x <= width - 0.5 and -0.5 <= y <= height - 0.5
            # the dot's colour is where the keypoint says ...
            column, row = np.clip(np.rint([x, y]).astype(int), 0, [width - 1, height - 1])
            assert np.abs(pixels[row, column] - color).max() < 60, (x, y, color)
            # ... and a whole dot around it
            like = np.abs(pixels - color).max(axis=2) < 100
            rows, columns = np.nonzero(like)
            near = np.hypot(columns - x, rows - y) < 3 * RADIUS
            rows, columns = rows[near], columns[near]
            if min(rows.min(), columns.min()) > 0 and rows.max() < height - 1 and columns.max() < width - 1:
                offsets.append((columns.mean() - x, rows.mean() - y))
    return np.array(offsets).reshape(-1, 2)


def colors_of(entry, flipped=False):
    colors = COLORS[4 * (entry["id"] - 10) :][:4]
    return colors[list(FLIP)] if flipped else colors


STEPS = {
    "resize": ResizeShortSide((150, 210, 430), 600),
    "crop": RandomCrop((240, 320, 400), (200, 320), probability=1),
    "zoom in": ScaleJitter((1.1, 1.8)),
    "zoom out": ScaleJitter((0.5, 0.9)),
    "rotation": Rotation(90, probability=1),
}


class TestWhereKeypointsSay:
    @pytest.mark.parametrize("name", STEPS)
    def test_dots_follow(self, name):
        augmentation = PoseAugmentation([STEPS[name]])
        measured, dropped = 0, 0
        for seed in range(12):
            result = augmentation(dotted(seed=seed), np.random.default_rng(seed))
            offsets = check_dots(result, colors_of)
            measured += len(offsets)
            assert np.hypot(*offsets.T).max(initial=0) < 0.4
            # a mistaken half pixel would shift all the same way
            assert len(offsets) < 3 or np.abs(offsets.mean(axis=0)).max() < 0.12
            dropped += sum(v == 0 for entry in result["annotations"] for v in entry["keypoints"][2::3])
        assert measured >= 30
        # of these, some have to lose keypoints
        assert (dropped > 0) == (name in ("crop", "zoom in", "rotation"))

    def test_flip_exchanges_left_and_right(self):
        result = PoseAugmentation([HorizontalFlip(FLIP, 1)])(dotted(), np.random.default_rng(0))
        offsets = check_dots(result, lambda entry: colors_of(entry, flipped=True))
        assert len(offsets) == 8 and np.abs(offsets).max() < 1e-9
        x, y = dotted()["annotations"][0]["keypoints"][:2]
        # a pixel of index i becomes that of index W - 1 - i
        assert result["annotations"][0]["keypoints"][3:5] == [400 - 1 - x, y]

    def test_everything_together(self):
        recipe = AugmentationRecipe(
            flip_probability=0,
            short_sides=(240, 320),
            longest_side=500,
            crop_short_sides=(250, 300),
            crop_window=(180, 280),
            scale_jitter=(0.8, 1.3),
            rotation=30,
            color_jitter=0.1,
        )
        augmentation = PoseAugmentation.from_recipe(FLIP, recipe)
        measured = sum(
            len(check_dots(augmentation(dotted(seed=seed), np.random.default_rng(seed)), colors_of))
            for seed in range(12)
        )
        assert measured >= 30


class TestBoxes:
    def sample(self):
        points = [30, 20, 2, 60, 50, 1, 0, 0, 0, 0, 0, 0]
        entry = {"id": 1, "bbox": [20, 10, 60, 60], "area": 1800, "keypoints": points, "category_id": 3}
        far = {"id": 2, "bbox": [90, 70, 5, 5], "keypoints": None}
        return {"image": Image.new("RGB", (100, 80)), "image_id": 1, "annotations": [entry, far]}

    def test_are_clipped_and_not_recomputed(self):
        people = AnnotatedImage.from_sample(self.sample()).cropped(40, 30, 50, 40)
        (entry,) = people.to_annotations()  # the other one has no area left
        # not the box of the only keypoint that is left
        assert entry["bbox"] == [0, 0, 40, 40]
        assert entry["keypoints"] == [0, 0, 0, 20, 20, 1] + 6 * [0]
        assert entry["area"] == pytest.approx(1800 * 1600 / 3600)
        assert (entry["id"], entry["category_id"]) == (1, 3)

    def test_scale_with_the_image(self):
        entry = AnnotatedImage.from_sample(self.sample()).resized(200, 240).to_annotations()[0]
        assert entry["bbox"] == [40, 30, 120, 180]
        assert entry["area"] == pytest.approx(1800 * 6)
        assert entry["keypoints"][:3] == pytest.approx([30.5 * 2 - 0.5, 20.5 * 3 - 0.5, 2])

    def test_rotated_one_encloses_the_corners(self):
        people = AnnotatedImage.from_sample(self.sample())
        turn = np.array([[0.6, -0.8, 50], [0.8, 0.6, 0]])
        box = people.mapped(Image.new("RGB", (200, 200)), turn).boxes[0]
        corners = np.array([[20, 10], [80, 10], [80, 70], [20, 70]]) @ turn[:, :2].T + turn[:, 2]
        assert box == pytest.approx([*corners.min(axis=0), *corners.max(axis=0)])

    def test_nobody_left(self):
        people = AnnotatedImage.from_sample(self.sample()).cropped(0, 0, 10, 5)
        assert people.to_annotations() == []
        empty = {**self.sample(), "annotations": []}
        augmentation = PoseAugmentation.from_recipe(FLIP, AugmentationRecipe(flip_probability=1))
        result = augmentation(empty, np.random.default_rng(0))
        assert result["annotations"] == []


class TestRecipe:
    def test_sizes_are_the_papers(self):
        augmentation = PoseAugmentation.from_recipe(COCO_17.flip_indices, AugmentationRecipe(crop_probability=0))
        image = Image.new("RGB", (640, 480))
        found = set()
        for seed in range(80):
            sample = {"image": image, "image_id": 1, "annotations": []}
            width, height = augmentation(sample, np.random.default_rng(seed))["image"].size
            assert width == int(640 / 480 * height + 0.5)
            found.add(height)
        assert found == set(range(480, 801, 32))

    def test_long_side_is_limited(self):
        sample = {"image": Image.new("RGB", (1000, 300)), "image_id": 1, "annotations": []}
        result = PoseAugmentation([ResizeShortSide((800,))])(sample, np.random.default_rng(0))
        assert result["image"].size == (1333, 400)

    def test_windows_are_the_papers(self):
        widths, heights, seen = set(), set(), set()
        for seed in range(300):
            people = AnnotatedImage(Image.new("RGB", (640, 480)), *map(np.zeros, ((0, 4), (0, 0, 2), (0, 0), 0)), ())
            width, height = RandomCrop(probability=1)(people, np.random.default_rng(seed)).image.size
            widths.add(width)
            heights.add(height)
            seen.add(height > 500)
        assert min(widths) >= 384 and max(widths) <= 600 and min(heights) >= 384 and max(heights) <= 600
        assert min(widths) < 400 and max(widths) > 580 and min(heights) < 395 and max(heights) > 560
        assert seen == {True, False}

    def test_half_is_flipped_and_half_is_cropped(self):
        sample = dotted((640, 480))
        augmentation = PoseAugmentation.from_recipe(FLIP, AugmentationRecipe(short_sides=(480,)))
        sizes = [augmentation(sample, np.random.default_rng(seed))["image"].size for seed in range(120)]
        assert 35 < sum(size == (640, 480) for size in sizes) < 85
        flips = 0
        for seed in range(120):
            result = PoseAugmentation([HorizontalFlip(FLIP)])(sample, np.random.default_rng(seed))
            flips += result["annotations"][0]["bbox"] != sample["annotations"][0]["bbox"]
        assert 35 < flips < 85

    def test_resizing_is_marked(self):
        sample, rng = dotted(), np.random.default_rng(0)
        assert PoseAugmentation.from_recipe(FLIP)(sample, rng)["resized"] is True
        assert PoseAugmentation([HorizontalFlip(FLIP)])(sample, rng)["resized"] is False

    def test_flag_is_kept(self):
        sample = {**dotted(), "exhaustive": False}
        assert PoseAugmentation([])(sample, np.random.default_rng(0))["exhaustive"] is False

    def test_input_is_not_changed(self):
        sample = dotted()
        before = np.asarray(sample["image"]).copy()
        steps = [HorizontalFlip(FLIP, 1), Rotation(20, 1), ResizeShortSide((200,))]
        PoseAugmentation(steps)(sample, np.random.default_rng(0))
        assert np.array_equal(np.asarray(sample["image"]), before)
        assert sample["annotations"] == dotted()["annotations"]


class TestFlipsWithoutPairs:
    def test_are_left_out_with_a_warning(self):
        with pytest.warns(UserWarning, match="No image is mirrored"):
            augmentation = PoseAugmentation.from_recipe(None)
        steps = PoseAugmentation(augmentation.steps[:1])
        for seed in range(20):
            result = steps(dotted(), np.random.default_rng(seed))
            assert result["annotations"][0]["keypoints"] == dotted()["annotations"][0]["keypoints"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            HorizontalFlip(None, 0)

    def test_wrong_number(self):
        with pytest.raises(ValueError, match="4 keypoints where `flip_indices` has 17"):
            PoseAugmentation([HorizontalFlip(COCO_17.flip_indices, 1)])(dotted(), np.random.default_rng(0))
        with pytest.raises(ValueError, match=r"`flip_indices` is \[1, 2, 0\]"):
            HorizontalFlip((1, 2, 0))


class TestColours:
    def test_every_pixel_stays_and_chance_comes_from_the_generator(self):
        augmentation = PoseAugmentation([Photometric(v2.ColorJitter(0.8))])
        torch.manual_seed(3)
        state = torch.get_rng_state()
        first, again, other = (augmentation(dotted(), np.random.default_rng(seed))["image"] for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), state)
        assert first.tobytes() == again.tobytes() != other.tobytes()
        assert first.tobytes() != dotted()["image"].tobytes()

    def test_a_transform_that_moves_pixels_is_refused(self):
        with pytest.raises(ValueError, match=r"expected a PIL image of \(400, 300\) pixels"):
            PoseAugmentation([Photometric(v2.Resize(50))])(dotted(), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HorizontalFlip(FLIP, 1.5), "`probability` is 1.5"),
        (lambda: RandomCrop(window=(600, 384)), r"`window` is \(600, 384\)"),
        (lambda: RandomCrop(short_sides=()), r"`short_sides` is \(\)"),
        (lambda: ResizeShortSide((480.5,)), r"`short_sides` is \(480.5,\)"),
        (lambda: ResizeShortSide((480,), 0), r"`longest_side` is \(0,\)"),
        (lambda: ScaleJitter((0, 1)), r"`scale` is \(0, 1\)"),
        (lambda: Rotation(400), "`degrees` is 400"),
        (lambda: AugmentationRecipe(color_jitter=3), "`color_jitter` is 3"),
        (lambda: AugmentationRecipe(crop_window=(9,)), r"`window` is \(9,\)"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_samples():
    sample = dotted()
    sample["annotations"][0]["keypoints"] = [1, 2, 2]
    with pytest.raises(ValueError, match=r"image_id 7: `keypoints` of its objects have \[3, 12\] numbers"):
        AnnotatedImage.from_sample(sample)
    sample["annotations"][0]["keypoints"] = None
    sample["annotations"][1]["bbox"] = [1, 2]
    with pytest.raises(ValueError, match=r"image_id 7, object 1: `bbox` is \[1, 2\]; expected 4 numbers"):
        AnnotatedImage.from_sample(sample)
