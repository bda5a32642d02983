"""What a check of a dataset found, as plain values and as text."""

from dataclasses import asdict, dataclass, field
from typing import Any


#: Names of the visibilities 0, 1 and 2.
VISIBILITIES = ("not labelled", "hidden", "visible")
#: The keypoints that tell whether a person faces the camera.
FACE = ("nose", "left_eye", "right_eye", "left_shoulder", "right_shoulder")
_LISTED = 5
# what the kinds of remarks of readers mean
_CONSEQUENCES = {
    "people_with_num_keypoints_0": "keypoints are labelled, but `num_keypoints` is 0: evaluate does not score them",
    "people_with_area_0": "`area` is 0: OKS divides by it, so evaluate counts them as missed",
    "people_without_area": "evaluate needs `area`, or `--area-ratio 0.53` to take it from the box",
    "images_without_label_file": "they count as images without people",
    "boxes_taken_from_keypoints": "the annotated box has no area in the image",
}


@dataclass
class DataReport:
    """What [`check_data`] found. Objects are named by their image and their place in it, counted from 0.

    Attributes:
        num_images (`int`): images checked, unusable ones included.
        num_images_with_people (`int`): images with an object that is not a crowd region.
        num_people (`int`): objects that are not crowd regions.
        num_crowd_regions (`int`): objects that are.
        num_people_without_keypoints (`int`): people without a labelled keypoint.
        people_by_category (`dict[int, int]`): people by category id.
        people_by_labelled_keypoints (`dict[int, int]`): people by their number of labelled keypoints.
        keypoint_visibility (`dict[str, dict[str, int]]`): for each keypoint how often it is `"not labelled"`,
            `"hidden"` and `"visible"`, in people with labelled keypoints.
        left_out (`dict[str, int]`): records that the reader left out, by reason.
        remarks (`dict[str, int]`): annotations that are doubtful or were mended by the reader, by kind.
        unusable_images (`list[str]`): images that cannot be read or have the wrong size, with the reason.
        boxes_outside_images (`list[str]`): boxes that reach out of the image by more than a pixel.
        boxes_without_area (`list[str]`): people whose box has no area in the image, and what becomes of them: the box
            is taken from the keypoints, or they are left out.
        keypoints_outside_boxes (`list[str]`): people with a visible keypoint further from the box than a quarter of
            the box's longer side.
        duplicate_images (`list[list[str]]`): groups of images with equal pixels.
        duplicate_people (`list[str]`): pairs of people in one image, alike within a pixel.
        left_right_order (`dict[str, dict[str, float]]`): for `eye`, `ear`, `shoulder` and `hip`: the number of upright
            `people` who face the camera and have both labelled, and the `share` of them whose left one lies to the
            right in the image, as it should. Empty if the skeleton has no such names.
        people_with_sides_exchanged (`list[str]`): those of them whose eyes and shoulders are both the wrong way round.
    """

    num_images: int = 0
    num_images_with_people: int = 0
    num_people: int = 0
    num_crowd_regions: int = 0
    num_people_without_keypoints: int = 0
    people_by_category: dict[int, int] = field(default_factory=dict)
    people_by_labelled_keypoints: dict[int, int] = field(default_factory=dict)
    keypoint_visibility: dict[str, dict[str, int]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    remarks: dict[str, int] = field(default_factory=dict)
    unusable_images: list[str] = field(default_factory=list)
    boxes_outside_images: list[str] = field(default_factory=list)
    boxes_without_area: list[str] = field(default_factory=list)
    keypoints_outside_boxes: list[str] = field(default_factory=list)
    duplicate_images: list[list[str]] = field(default_factory=list)
    duplicate_people: list[str] = field(default_factory=list)
    left_right_order: dict[str, dict[str, float]] = field(default_factory=dict)
    people_with_sides_exchanged: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return asdict(self)

    def left_out_images(self) -> list[str]:
        """In words, how many images the reader left out because they are missing or cannot be read."""
        counts = ((self.left_out.get(f"{kind}_images", 0), kind) for kind in ("missing", "unusable"))
        return [f"{count} {kind} {'image' if count == 1 else 'images'}" for count, kind in counts if count]

    def to_text(self) -> str:
        """The report as a table."""
        return "\n".join([*self._counts(), "", *self._keypoints(), "", *self._left_and_right(), "", *self._mistakes()])

    def _counts(self) -> list[str]:
        lines = [
            f"{'images':32}{self.num_images:>9}",
            f"{'  with people':32}{self.num_images_with_people:>9}",
            f"{'people':32}{self.num_people:>9}",
            f"{'  without labelled keypoints':32}{self.num_people_without_keypoints:>9}",
            f"{'crowd regions':32}{self.num_crowd_regions:>9}",
        ]
        if len(self.people_by_category) > 1:
            lines += [f"{f'  of category {key}':32}{count:>9}" for key, count in self.people_by_category.items()]
        lines += [f"{'left out: ' + key.replace('_', ' '):42}{n:>9}" for key, n in self.left_out.items() if n]
        return lines + [f"{key.replace('_', ' '):32}{n:>9}   {_CONSEQUENCES[key]}" for key, n in self.remarks.items()]

    def _keypoints(self) -> list[str]:
        lines = [f"{'labelled keypoints':24}{'people':>9}"]
        lines += [f"{count:<24}{people:>9}" for count, people in self.people_by_labelled_keypoints.items()]
        lines += ["", f"{'keypoint':24}" + "".join(f"{name:>14}" for name in VISIBILITIES)]
        for name, counts in self.keypoint_visibility.items():
            lines.append(f"{name:24}" + "".join(f"{counts[visibility]:>14}" for visibility in VISIBILITIES))
        return lines

    def _left_and_right(self) -> list[str]:
        lines = ["people who face the camera and whose left one lies to the right in the image"]
        for name, order in self.left_right_order.items():
            if order["people"]:
                doubt = "   left and right are probably exchanged" if order["share"] < 0.5 else ""
                lines.append(f"  {name:22}{order['share']:>9.1%} of {order['people']:.0f}{doubt}")
            else:
                lines.append(f"  {name:22}        nobody faces the camera with both labelled")
        if not self.left_right_order:
            lines.append("  not examined: needs keypoints named " + ", ".join(FACE))
        return lines

    def _mistakes(self) -> list[str]:
        lines = []
        for title, found in (
            ("unusable images", self.unusable_images),
            ("boxes outside their image", self.boxes_outside_images),
            ("boxes without area", self.boxes_without_area),
            ("people with a keypoint far outside the box", self.keypoints_outside_boxes),
            ("groups of equal images", [" = ".join(group) for group in self.duplicate_images]),
            ("people annotated twice", self.duplicate_people),
            ("people with left and right exchanged", self.people_with_sides_exchanged),
        ):
            lines.append(f"{title:44}{len(found):>9}")
            lines += [f"  {entry}" for entry in found[:_LISTED]]
            if len(found) > _LISTED:
                lines.append(f"  and {len(found) - _LISTED} more")
        return lines
