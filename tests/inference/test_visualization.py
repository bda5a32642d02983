import colorsys
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from querypose_hf.inference.visualization import draw_poses, pose_colors
from querypose_hf.model.skeletons import COCO_17, CROWDPOSE_14


GREY = (128, 128, 128)


def pipeline_person(points, scores=None, names=None, box=(20, 20, 180, 180), score=0.9):
    scores = [1.0] * len(points) if scores is None else scores
    names = [f"point {i}" for i in range(len(points))] if names is None else names
    return {
        "score": score,
        "label": "person",
        "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)),
        "keypoints": [
            {"name": name, "x": x, "y": y, "score": s} for name, (x, y), s in zip(names, points, scores, strict=True)
        ],
    }


def draw(people, edges=(), size=(200, 200), background=GREY, **kwargs):
    """Draws on a plain image, by default the skeletons alone; returns the pixels."""
    options = {"draw_boxes": False, "draw_scores": False, **kwargs}
    return np.asarray(draw_poses(Image.new("RGB", size, background), people, edges=edges, **options))


def changed(pixels, background=GREY):
    return (pixels != np.array(background)).any(axis=-1)


def distance_to_segment(shape, start, end):
    """Distance of every pixel's centre, in pixel indices, from a segment."""
    ys, xs = np.mgrid[: shape[0], : shape[1]]
    start, end = np.array(start, float), np.array(end, float)
    direction = end - start
    along = ((xs - start[0]) * direction[0] + (ys - start[1]) * direction[1]) / (direction @ direction)
    along = np.clip(along, 0, 1)
    return np.hypot(xs - start[0] - along * direction[0], ys - start[1] - along * direction[1])


class TestSkeleton:
    def test_limb_and_keypoints_have_their_colours_where_they_are(self):
        points, edges = [(40, 40), (160, 60), (50, 150)], [(0, 1), (2, 0)]
        person = pipeline_person(points)
        pixels = draw([person], edges)
        limb_colors, keypoint_colors = pose_colors(edges, 3, [k["name"] for k in person["keypoints"]])
        for (a, b), color in zip(edges, limb_colors, strict=True):
            middle_x, middle_y = np.add(points[a], points[b]) // 2
            assert tuple(pixels[middle_y, middle_x]) == color
        for (x, y), color in zip(points, keypoint_colors, strict=True):
            assert tuple(pixels[y, x]) == color

    def test_ink_stays_at_the_limbs(self):
        points = [(40, 40), (160, 60)]
        pixels = draw([pipeline_person(points)], [(0, 1)])
        distance = distance_to_segment((200, 200), *points)
        assert changed(pixels)[distance < 0.5].all()
        assert not changed(pixels)[distance > 6].any()

    def test_keypoint_at_an_index_is_centred_on_that_pixel(self):
        pixels = draw([pipeline_person([(100, 100)])])
        ink = changed(pixels)
        ys, xs = np.nonzero(ink)
        assert (ys.mean(), xs.mean()) == (100, 100)
        assert np.array_equal(pixels[90:111, 90:111], pixels[90:111, 90:111][::-1, ::-1])

    def test_limb_is_centred_on_its_pixels(self):
        column = draw([pipeline_person([(20, 100), (180, 100)])], [(0, 1)])[80:121, 100].astype(int)
        assert tuple(column[20]) == pose_colors([(0, 1)], 2)[0][0]
        np.testing.assert_allclose(column, column[::-1], atol=1)

    @pytest.mark.parametrize("end", [(790, 690), (790, 30), (40, 795), (30, 10)])
    def test_long_limb_has_no_seams(self, end):
        points = [(20, 20), end] if end != (30, 10) else [(770, 20), end]
        pixels = draw([pipeline_person(points)], [(0, 1)], size=(800, 800)).astype(int)
        distance = distance_to_segment((800, 800), *points)
        ink = np.abs(pixels - 128).sum(axis=-1)
        away = np.minimum(*(np.hypot(*(np.mgrid[:800, :800] - np.array(p[::-1])[:, None, None])) for p in points)) > 20
        assert ink[(distance < 0.5) & away].min() > 150
        assert not ink[distance > 6].any()
        # the same amount of ink on every stretch
        axis = 0 if abs(end[0] - points[0][0]) >= abs(end[1] - points[0][1]) else 1
        profile = np.where(away, ink, 0).sum(axis=axis)
        profile = profile[np.flatnonzero(profile)][40:-40]
        assert profile.std() < 0.12 * profile.mean()

    def test_edges_are_smooth(self):
        points = [(20, 40), (180, 97)]
        pixels = draw([pipeline_person(points)], [(0, 1)], background=(255, 255, 255)).astype(int)
        rim_to_ground = pixels[(distance_to_segment((200, 200), *points) > 1) & changed(pixels, (255, 255, 255))]
        # without smoothing only the colours, the rim and the ground would occur
        assert len(np.unique(rim_to_ground, axis=0)) > 8

    @pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255)])
    def test_stands_out_from_dark_and_light_ground(self, background):
        """Every core is bright and its rim dark, so one of them contrasts with any ground."""
        names = COCO_17.keypoint_names
        for color in [*pose_colors(COCO_17.edges, 17, names)[0], *pose_colors(COCO_17.edges, 17)[0]]:
            assert max(color) > 200
        person = pipeline_person([(20, 300), (580, 300)], box=(0, 0, 600, 600))
        column = draw([person], [(0, 1)], size=(600, 600), background=background)[280:321, 300]
        thickness = np.count_nonzero(changed(column, background))
        column = column.max(axis=-1)
        assert column[20] > 200
        assert thickness == 7  # 0.7 % of the image's side and the rims
        assert column[10:20].min() < 90 and column[21:31].min() < 90

    def test_below_threshold_nothing_is_drawn(self):
        points = [(40, 40), (160, 40), (100, 160)]
        person = pipeline_person(points, scores=[0.9, 0.29, 0.3])
        pixels = draw([person], [(2, 0), (0, 1), (1, 2)])
        assert np.array_equal(pixels, draw([person], [(2, 0)]))
        ink = changed(pixels)
        assert not ink[30:50, 150:170].any()  # the keypoint below the threshold
        assert not ink[40, 100] and not ink[100, 130]  # its limbs
        assert ink[40, 40] and ink[160, 100] and ink[100, 70]  # the others, one of them just at the threshold
        assert not changed(draw([pipeline_person(points, scores=[0.2] * 3)], [(0, 1)])).any()
        assert changed(draw([pipeline_person(points, scores=[0.2] * 3)], [(0, 1)], keypoint_threshold=0.1))[40, 100]

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_keypoint_that_is_not_finite_is_skipped(self, bad):
        points = [(40, 40), (bad, 40), (160, 160)]
        pixels = draw([pipeline_person(points)], [(0, 1), (1, 2), (0, 2)])
        without = draw([pipeline_person(points, scores=[1, 0, 1])], [(0, 1), (1, 2), (0, 2)])
        assert np.array_equal(pixels, without)
        assert changed(pixels)[100, 100]
        assert np.array_equal(
            draw([pipeline_person(points, scores=[1, float("nan"), 1])], [(0, 1), (1, 2), (0, 2)]), pixels
        )

    def test_limb_towards_a_keypoint_outside_is_cut_off_at_the_border(self):
        pixels = draw([pipeline_person([(100, 100), (500, 100)])], [(0, 1)])
        assert changed(pixels)[100, 100:].all()
        assert not changed(pixels)[:, :90].any()

    @pytest.mark.parametrize("far", [1e4, 1e9, 1e300])
    def test_keypoints_far_outside_break_nothing(self, far):
        points = [(100, 100), (far, 100), (-far, far), (-far, -far)]
        ink = changed(draw([pipeline_person(points)], [(0, 1), (1, 2), (2, 3)]))
        assert ink[100, 100:].all()
        assert not ink[:90].any()

    def test_lines_grow_with_the_person(self):
        def thickness(person_size, image_size):
            middle = image_size // 2
            person = pipeline_person(
                [(middle - 40, middle), (middle + 40, middle)], box=(0, 0, person_size, person_size)
            )
            pixels = draw([person], [(0, 1)], size=(image_size, image_size))
            return int(changed(pixels)[:, middle].sum())

        sizes = [thickness(person, 1000) for person in (20, 200, 400, 800)]
        assert sizes[0] <= 4
        assert sizes == sorted(sizes) and sizes[-1] > 2 * sizes[0]
        # one person counts for less in a small image
        assert thickness(800, 300) < thickness(800, 1000)

    def test_dense_keypoints_stay_apart(self):
        points = [(100 + 8 * i, 300) for i in range(51)]
        pixels = draw([pipeline_person(points, box=(0, 0, 600, 600))], size=(600, 600))
        assert changed(pixels)[300, 100:501:8].all()
        edges = [(i, i + 1) for i in range(50)]
        thick = changed(draw([pipeline_person(points, box=(0, 0, 600, 600))], edges, size=(600, 600)))
        # between two keypoints the limb is thinner than at them
        assert thick[:, 300].sum() > thick[:, 304].sum()
        assert thick[:, 300].sum() < 9

    def test_first_of_overlapping_people_lies_on_top(self):
        first = pipeline_person([(20, 100), (180, 100), (0, 0)], scores=[1, 1, 0])
        second = pipeline_person([(100, 20), (0, 0), (100, 180)], scores=[1, 0, 1])
        edges = [(0, 1), (0, 2)]
        limb_colors, _ = pose_colors(edges, 3)
        assert tuple(draw([first, second], edges)[100, 100]) == limb_colors[0]
        assert tuple(draw([second, first], edges)[100, 100]) == limb_colors[1]


class TestAnySkeleton:
    @pytest.mark.parametrize("num_keypoints", [1, 14, 133])
    def test_every_limb_and_keypoint_is_drawn(self, num_keypoints):
        angles = np.linspace(0, 2 * np.pi, num_keypoints, endpoint=False)
        points = np.rint(np.stack([300 + 280 * np.cos(angles), 300 + 280 * np.sin(angles)], axis=1)).astype(int)
        edges = [(i, i + 1) for i in range(num_keypoints - 1)]
        ink = changed(draw([pipeline_person(points.tolist(), box=(0, 0, 100, 100))], edges, size=(600, 600)))
        assert ink[points[:, 1], points[:, 0]].all()
        for a, b in edges:
            x, y = (points[a] + points[b]) // 2
            assert ink[y, x]

    def test_colours_of_a_skeleton_without_sides_differ_between_neighbours(self):
        edges = [(i, i + 1) for i in range(132)]
        limb_colors, keypoint_colors = pose_colors(edges, 133)
        assert len(limb_colors) == 132 and len(keypoint_colors) == 133
        for color, following in pairwise(limb_colors):
            assert np.abs(np.subtract(color, following)).max() > 60

    @pytest.mark.parametrize(
        ("names", "edges", "flip_indices"),
        [
            (COCO_17.keypoint_names, COCO_17.edges, COCO_17.flip_indices),
            (CROWDPOSE_14.keypoint_names, CROWDPOSE_14.edges, CROWDPOSE_14.flip_indices),
            (("R_hoof", "L_hoof", "R_knee", "L_knee", "Tail"), ((0, 2), (1, 3), (2, 4), (3, 4)), (1, 0, 3, 2, 4)),
        ],
    )
    def test_left_is_cold_right_is_warm(self, names, edges, flip_indices):
        limb_colors, keypoint_colors = pose_colors(edges, len(names), names)

        def side(color):
            hue = 360 * colorsys.rgb_to_hsv(*(c / 255 for c in color))[0]
            return "left" if 170 < hue < 224 else "right" if hue > 340 or hue < 48 else "middle"

        for name, color in zip(names, keypoint_colors, strict=True):
            expected = {"l": "left", "r": "right"}.get(name.lower()[0]) if "_" in name else "middle"
            assert side(color) == expected, name
        limbs = {frozenset(edge): color for edge, color in zip(edges, limb_colors, strict=True)}
        mirrored_limbs = 0
        for (a, b), color in zip(edges, limb_colors, strict=True):
            mirrored = frozenset((flip_indices[a], flip_indices[b]))
            if mirrored != frozenset((a, b)):
                mirrored_limbs += 1
                assert {side(color), side(limbs[mirrored])} == {"left", "right"}
            else:
                assert side(color) == "middle"
        assert mirrored_limbs >= 4
        assert len(set(limb_colors)) == len(limb_colors)

    def test_names_reach_the_image(self):
        points = [(50, 40), (150, 40), (50, 160), (150, 160)]
        names, edges = ["left_a", "right_a", "left_b", "right_b"], [(0, 2), (1, 3)]
        by_person = draw([pipeline_person(points, names=names)], edges)
        left, right = by_person[100, 50].astype(int), by_person[100, 150].astype(int)
        assert left[2] > left[0] + 100 and right[0] > right[2] + 100
        swapped = draw([pipeline_person(points, names=names)], edges, keypoint_names=[names[i] for i in (1, 0, 3, 2)])
        assert swapped[100, 50, 0] > swapped[100, 50, 2] and swapped[100, 150, 2] > swapped[100, 150, 0]


class TestBoxesAndScores:
    def test_box_lies_on_the_first_and_last_pixels_it_covers(self):
        people = [pipeline_person([(0, 0)], scores=[0], box=(50, 60, 150, 140))]
        pixels = draw(people, draw_boxes=True)
        for y, x in ((60, 100), (139, 100), (100, 50), (100, 149)):
            assert pixels[y, x].max() > 200
        # the rim: one dark pixel on both sides
        assert pixels[59, 100].max() < 60 and pixels[61, 100].max() < 60
        assert not changed(pixels)[:58].any() and not changed(pixels)[63:137, 53:147].any()

    def test_boxes_of_different_people_differ_in_colour(self):
        people = [pipeline_person([(0, 0)], scores=[0], box=(10 + 60 * i, 20, 60 + 60 * i, 180)) for i in range(3)]
        pixels = draw(people, draw_boxes=True)
        assert len({tuple(pixels[20, 30 + 60 * i]) for i in range(3)}) == 3

    @pytest.mark.parametrize(
        "box", [(-500, -500, 900, 900), (150, 150, 260, 260), (-30, 90, 20, 110), (190, 0, 200, 9)]
    )
    def test_tag_is_whole_inside_the_image(self, box):
        person = pipeline_person([(0, 0)], scores=[0], box=box)
        with_tag, without = draw([person], draw_scores=True), draw([person])
        ys, xs = np.nonzero((with_tag != without).any(axis=-1))
        middle = draw([pipeline_person([(0, 0)], scores=[0], box=(80, 80, 120, 120))], draw_scores=True)
        middle_ys, middle_xs = np.nonzero(changed(middle))
        # as large as a tag with room on all sides, or larger for a larger person
        assert np.ptp(xs) >= np.ptp(middle_xs) and np.ptp(ys) >= np.ptp(middle_ys)
        # nothing of the text is cut off: the tag's own colour runs all round it
        tag = with_tag[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        frame = np.concatenate([tag[0], tag[-1], tag[:, 0], tag[:, -1]])
        assert len(np.unique(frame, axis=0)) == 1
        assert (tag.max(axis=-1) < 60).any()

    def test_tag_of_a_box_amid_a_low_image_is_whole(self):
        low = draw([pipeline_person([(0, 0)], scores=[0], box=(50, 8, 100, 12))], size=(200, 20), draw_scores=True)
        high = draw(
            [pipeline_person([(0, 0)], scores=[0], box=(50, 58, 100, 62))], size=(200, 20 + 100), draw_scores=True
        )
        assert changed(low).sum() == changed(high).sum() > 0

    def test_tags_of_two_people_at_one_place_do_not_cover_each_other(self):
        people = [
            pipeline_person([(0, 0)], scores=[0], box=(10, 50 + i, 190, 150), score=0.9 - i / 10) for i in range(2)
        ]
        both, first = draw(people, draw_scores=True), draw(people[:1], draw_scores=True)
        tag = changed(first)
        assert np.array_equal(both[tag], first[tag])
        assert changed(both).sum() > 1.8 * tag.sum()

    def test_tag_shows_the_score_and_a_text_label(self):
        def tag(**fields):
            return draw([pipeline_person([(0, 0)], scores=[0]) | fields], draw_scores=True)

        assert not np.array_equal(tag(score=0.91), tag(score=0.55))
        assert not np.array_equal(tag(label="person"), tag(label="horse"))
        assert changed(tag(label=0)).sum() < changed(tag(label="person")).sum()

    @pytest.mark.parametrize("size", [(1, 1), (8, 8), (40, 6), (6, 40), (3000, 12)])
    def test_small_and_narrow_images(self, size):
        person = pipeline_person([(0, 0), (size[0] - 1, size[1] - 1)], box=(0, 0, *size))
        pixels = draw([person], [(0, 1)], size=size, draw_boxes=True, draw_scores=True)
        assert pixels.shape == (size[1], size[0], 3)
        assert changed(pixels).any()

    @pytest.mark.parametrize(
        "box",
        [(float("nan"), 0, 10, 10), (0, 0, float("inf"), 10), (50, 50, 50, 90), (90, 50, 50, 90), (300, 0, 400, 9)],
    )
    def test_box_without_pixels_is_left_out_and_its_person_still_drawn(self, box):
        person = pipeline_person([(100, 100), (150, 100)], box=box)
        pixels = draw([person], [(0, 1)], draw_boxes=True, draw_scores=True)
        assert np.array_equal(pixels, draw([person], [(0, 1)]))
        assert changed(pixels)[100, 125]


class TestInputs:
    person = pipeline_person([(20, 30), (100, 70)], box=(10, 20, 110, 90))
    edges = ((0, 1),)

    @pytest.fixture
    def photograph(self):
        return np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)

    def test_image_types_agree_and_stay_unchanged(self, photograph, tmp_path):
        Image.fromarray(photograph).save(tmp_path / "photograph.png")
        file_before = (tmp_path / "photograph.png").read_bytes()
        image, array = Image.fromarray(photograph), photograph.copy()
        opaque = np.dstack([photograph, np.full((100, 120), 255, np.uint8)])
        results = [
            draw_poses(picture, [self.person], edges=self.edges)
            for picture in (image, array, opaque, tmp_path / "photograph.png", str(tmp_path / "photograph.png"))
        ]
        for result in results:
            assert result.mode == "RGB" and result.size == (120, 100)
            assert np.array_equal(np.asarray(result), np.asarray(results[0]))
        assert not np.array_equal(np.asarray(results[0]), photograph)
        assert np.array_equal(np.asarray(image), photograph) and np.array_equal(array, photograph)
        assert (tmp_path / "photograph.png").read_bytes() == file_before

    def test_without_people_the_result_is_a_copy(self, photograph):
        image = Image.fromarray(photograph)
        result = draw_poses(image, [], edges=self.edges)
        assert result is not image and np.array_equal(np.asarray(result), photograph)
        result.putpixel((0, 0), (1, 2, 3))
        assert np.array_equal(np.asarray(image), photograph)
        array = photograph.copy()
        result = draw_poses(array, [], edges=self.edges)
        array[:] = 0
        assert np.array_equal(np.asarray(result), photograph)

    def test_people_stay_unchanged_and_results_repeat(self, photograph):
        person = {
            "score": torch.tensor(0.9),
            "label": torch.tensor(0),
            "bbox": torch.tensor([10.0, 20.0, 110.0, 90.0]),
            "keypoints": torch.tensor([[20.0, 30.0], [100.0, 70.0]]),
            "scores": torch.tensor([1.0, 1.0]),
        }
        before = {field: value.clone() for field, value in person.items()}
        results = [np.asarray(draw_poses(photograph, [person] * 3, edges=self.edges)) for _ in range(2)]
        assert np.array_equal(*results)
        assert all(torch.equal(person[field], before[field]) for field in before)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_image_processor_form_equals_pipeline_form(self, photograph, dtype):
        person = {
            "score": torch.tensor(0.9, dtype=dtype),
            "label": "person",
            "bbox": torch.tensor([10, 20, 110, 90], dtype=dtype, requires_grad=True),
            "keypoints": torch.tensor([[20, 30], [100, 70]], dtype=dtype),
            "scores": torch.ones(2, dtype=dtype),
            "labels": torch.arange(2),
        }
        assert np.array_equal(
            np.asarray(draw_poses(photograph, [person], edges=self.edges)),
            np.asarray(draw_poses(photograph, [self.person], edges=self.edges)),
        )

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
    def test_other_modes_become_rgb(self, photograph, mode):
        image = Image.fromarray(photograph).convert(mode)
        result = draw_poses(image, [self.person], edges=self.edges)
        assert result.mode == "RGB" and image.mode == mode
        assert tuple(np.asarray(result)[30, 20]) == pose_colors(self.edges, 2)[1][0]

    def test_exif_orientation_is_applied(self, photograph, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # the image has to be turned by 90 degrees clockwise
        lying = np.ascontiguousarray(np.rot90(photograph))
        Image.fromarray(lying).save(tmp_path / "lying.png", exif=exif)
        expected = np.asarray(draw_poses(photograph, [self.person], edges=self.edges))
        for picture in (tmp_path / "lying.png", Image.open(tmp_path / "lying.png")):
            assert np.array_equal(np.asarray(draw_poses(picture, [self.person], edges=self.edges)), expected)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.full((8, 8, 3), -1.0), "values from -1 to -1"),
            (np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\)"),
            (np.zeros(8, np.uint8), r"\(8,\)"),
        ],
    )
    def test_wrong_array(self, array, message):
        with pytest.raises(ValueError, match=message):
            draw_poses(array, [], edges=())

    def test_wrong_image(self, tmp_path):
        with pytest.raises(TypeError, match="list"):
            draw_poses([1, 2], [], edges=())
        with pytest.raises(FileNotFoundError):
            draw_poses(tmp_path / "absent.png", [], edges=())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"score": "high"}, r"people\[1\].*high"),
            ({"box": {"xmin": 0}}, r"people\[1\].*ymin"),
            ({"keypoints": [{"name": "nose", "x": 1, "y": 2}]}, r"people\[1\].*score"),
            ({"keypoints": []}, r"people\[1\].*\(0,\)"),
            ({"keypoints": [{"name": "nose", "x": 1, "y": 2, "score": 1}]}, r"\(0, 1\).*people\[1\].*0 to 0"),
        ],
    )
    def test_wrong_person(self, photograph, change, message):
        with pytest.raises(ValueError, match=message):
            draw_poses(photograph, [self.person, self.person | change], edges=self.edges)

    def test_wrong_edges_names_and_nesting(self, photograph):
        with pytest.raises(ValueError, match=r"edges.*\(-1, 0\)"):
            draw_poses(photograph, [self.person], edges=[(-1, 0)])
        with pytest.raises(ValueError, match=r"3 names.*2 keypoints"):
            draw_poses(photograph, [self.person], edges=self.edges, keypoint_names=["a", "b", "c"])
        with pytest.raises(TypeError, match=r"people\[0\].*list"):
            draw_poses(photograph, [[self.person]], edges=self.edges)
