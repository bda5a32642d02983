"""Images drawn for reports: annotated people beside found ones."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..data.sample import UnusableImageError, read_image
from ..files import find_file
from ..inference.visualization import draw_poses
from ..model.skeletons import Skeleton
from .scoring import ImageError, KeypointEvaluation


_WIDTH, _HEIGHT = 560, 420  # pixels; two beside each other fit on a page


class ImagePairs:
    """Draws annotated and found people of an image as a `<figure>`.

    Args:
        evaluation ([`KeypointEvaluation`]): the annotations and results.
        images_dir (`Path`): the folder of the images. An image is resized to the size that its record says.
        skeleton ([`Skeleton`], *optional*): its limbs are drawn, and its names tell left from right for the colours.
    """

    def __init__(self, evaluation: KeypointEvaluation, images_dir: Path, skeleton: Skeleton | None):
        self.images_dir = images_dir
        self.edges = () if skeleton is None else skeleton.edges
        self.keypoint_names = None if skeleton is None else skeleton.keypoint_names
        self.records = {image["id"]: image for image in evaluation.ground_truth.images}
        self.annotated: dict[int, list[Mapping[str, Any]]] = {}
        for record in evaluation.ground_truth.annotations:
            if record["num_keypoints"] > 0 and not record["iscrowd"]:
                self.annotated.setdefault(record["image_id"], []).append(record)
        self.found: dict[int, list[Mapping[str, Any]]] = {}
        for result in evaluation.results:
            self.found.setdefault(result["image_id"], []).append(result)

    def figure(self, error: ImageError) -> str:
        """Annotated people on the left; on the right as many of the results with the highest scores."""
        record = self.records[error.image_id]
        file = find_file(self.images_dir, record["file_name"])
        try:
            image = read_image(file, str(file))
        except UnusableImageError as unusable:
            return f"<p>{escape(str(unusable))}</p>"
        size = (int(record.get("width", image.width)), int(record.get("height", image.height)))
        if image.size != size:
            image = image.resize(size, PIL.Image.Resampling.BILINEAR)
        # drawn at the size that is shown, so that lines keep their width
        factor = min(_WIDTH / size[0], _HEIGHT / size[1])
        shown_size = (max(1, round(size[0] * factor)), max(1, round(size[1] * factor)))
        image = image.resize(shown_size, PIL.Image.Resampling.LANCZOS, reducing_gap=3.0)
        people = self.annotated.get(error.image_id, [])
        best = sorted(self.found.get(error.image_id, []), key=lambda result: -result["score"])[: len(people)]
        annotated = self._draw(image, [_annotated_person(person, factor) for person in people], found=False)
        found = self._draw(image, [_found_person(result, factor) for result in best], found=True)
        return (
            f"<figure><figcaption><b>{escape(str(record['file_name']))}</b> <span>image {error.image_id}: "
            f"{error.people} {'person' if error.people == 1 else 'people'}, {error.missed} missed, mean OKS "
            f'{error.mean_oks:.2f}</span></figcaption><div class="pair">{annotated}{found}</div></figure>'
        )

    def _draw(self, image: PIL.Image.Image, people: Sequence[Mapping[str, Any]], found: bool) -> str:
        drawn = draw_poses(
            image,
            people,
            edges=self.edges,
            keypoint_names=self.keypoint_names,
            keypoint_threshold=0.0,
            draw_scores=found,
        )
        buffer = io.BytesIO()
        drawn.save(buffer, "JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        return f'<img alt="{"found" if found else "annotated"}" src="data:image/jpeg;base64,{data}" loading="lazy">'


def _annotated_person(record: Mapping[str, Any], factor: float) -> dict[str, Any]:
    points = np.asarray(record["keypoints"], dtype=np.float64).reshape(-1, 3)
    x, y, width, height = record["bbox"]
    return {
        "score": 1.0,
        "bbox": np.array([x, y, x + width, y + height]) * factor,
        "keypoints": (points[:, :2] + 0.5) * factor - 0.5,
        # a keypoint that is not labelled is not drawn: its score is below every threshold
        "scores": np.where(points[:, 2] > 0, 1.0, -1.0),
    }


def _found_person(result: Mapping[str, Any], factor: float) -> dict[str, Any]:
    points = np.asarray(result["keypoints"], dtype=np.float64).reshape(-1, 3)
    if "bbox" in result:
        x, y, width, height = result["bbox"]
        box = np.array([x, y, x + width, y + height])
    else:
        box = np.concatenate([points[:, :2].min(axis=0), points[:, :2].max(axis=0)])
    return {
        "score": result["score"],
        "bbox": box * factor,
        "keypoints": (points[:, :2] + 0.5) * factor - 0.5,
        "scores": np.ones(len(points)),  # COCO's protocol scores every keypoint, whatever its own score
    }
