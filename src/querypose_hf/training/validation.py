"""Scores a model while it is trained."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
from torch.utils.data import Subset

from ..checks import shown
from ..data import DataDescription, image_sizes
from ..data.formats import FORMATS
from ..data.pose_dataset import PoseFileDataset
from ..evaluation.ground_truth import KeypointGroundTruth
from ..evaluation.image_checks import check_images
from ..evaluation.prediction import check_model, predict_dataset
from ..evaluation.protocols import resolve_sigmas
from ..evaluation.scoring import KeypointEvaluation, check_backend, score_keypoints
from ..files import write_image
from ..model.fusion_querypose import fuse_for_inference, share_weights
from ..model.modeling_querypose import QueryPoseForPoseEstimation
from ..processes import process_group, this_process
from .experiment import ValidationSource
from .fast_convolutions import restore_convolutions
from .sources import open_source


logger = logging.getLogger(__name__)


class Validation:
    """Scores a model on the validation images; every process has to call it, and the processes share the images.

    Annotations and the headers of images are checked at once, a model by [`check`]. Images that turn out damaged
    later do not stop a training that runs.

    Attributes:
        evaluation ([`KeypointEvaluation`], *optional*): the last one, in the first process.

    Args:
        settings ([`ValidationSource`]): the images, and how people are found in them.
        image_processor (`QueryPoseImageProcessor`): the model's.
        folder (`Path`): where images without a file, those of `hub` and `generated` sources, are written.
    """

    def __init__(self, settings: ValidationSource, image_processor: Any, folder: Path):
        self.settings = settings
        self.evaluation: KeypointEvaluation | None = None
        self.image_processor = image_processor
        check_backend("pycocotools")
        self.images = Path(settings.images or ".")
        content: Any = settings.annotations
        if not FORMATS[settings.format].is_coco_file:
            self.images = folder
            content = _as_coco(open_source(settings, "data.validation"), list(image_processor.category_ids), folder)
        category_ids = settings.category_ids or list(image_processor.category_ids)
        reading: dict[str, Any] = {"category_ids": category_ids, "area_ratio": settings.area_ratio}
        ground_truth = KeypointGroundTruth.read(content, settings.protocol, **reading)
        if settings.max_images is not None and settings.max_images < len(ground_truth.images):
            chosen = [image["id"] for image in ground_truth.images[: settings.max_images]]
            ground_truth = KeypointGroundTruth.read(content, settings.protocol, chosen, **reading)
        source = f"`data.validation` ({settings.annotations or settings.format})"
        self.ground_truth = dataclasses.replace(ground_truth, source=source)
        if this_process().is_main_process:
            for remark in self.ground_truth.remarks():
                logger.warning("%s", remark)
        check_images(self.ground_truth, self.images, progress=False)

    def check(self, model: QueryPoseForPoseEstimation) -> None:
        """Raises `ValueError` unless the model finds the keypoints and categories that are annotated."""
        check_model(model, self.image_processor, self.ground_truth, self.settings)
        self._sigmas(model)

    def _sigmas(self, model: QueryPoseForPoseEstimation) -> Sequence[float]:
        truth = self.ground_truth
        return resolve_sigmas(truth.metric, truth.num_keypoints, self.settings.sigmas, model.config.skeleton).tolist()

    def __call__(self, model: QueryPoseForPoseEstimation) -> dict[str, float]:
        """The protocol's figures, in every process, without those for which there is no ground truth.

        A copy looks at the images, whose batch norms are folded; the model stays as it is.
        `F1` is the best at OKS 0.5, and `score_threshold` the score threshold that has it. Images that cannot be
        read are warned of and counted as `unusable_images`, if there are any; their people count as missed.
        """
        truth = self.ground_truth
        unusable: dict[int, str] = {}
        results = predict_dataset(
            _fused(model), truth, self.images, self.settings, image_processor=self.image_processor, skipped=unusable
        )
        with process_group() as group:
            metrics: dict[str, float | None] = {}
            if group.rank == 0:
                self.evaluation = evaluation = score_keypoints(truth, results, self._sigmas(model), progress=False)
                metrics = dict(evaluation.metrics)
                if (best := evaluation.best_score_threshold()) is not None:
                    metrics.update(F1=best.f1, score_threshold=best.value)
                if unusable:
                    metrics["unusable_images"] = len(unusable)
                    logger.warning(
                        "%s: %d of %d images cannot be used, and their people count as missed. %s",
                        *(truth.source, len(unusable), len(truth.images), next(iter(unusable.values()))),
                    )
            return {name: value for name, value in group.broadcast(metrics).items() if value is not None}


def _fused(model: QueryPoseForPoseEstimation) -> Any:
    """A copy for inference, which shares the memory of all weights but those of convolutions."""
    copied = share_weights(model).eval()
    restore_convolutions(copied)  # those that do their batch norm's work are not to do it twice
    return fuse_for_inference(copied)


def _as_coco(dataset: Any, category_ids: Sequence[int], folder: Path) -> Mapping[str, Any]:
    """An opened source as COCO annotations with these category ids.

    The first process writes images without a file of their own to the folder.
    """
    description = DataDescription.of_source(dataset)
    if len(description.category_names) != len(category_ids):
        raise ValueError(
            f"`data.validation` has the categories {shown(description.category_names)}; expected {len(category_ids)}, "
            "as in the training data."
        )
    number_of = dict(zip(description.category_names, category_ids, strict=True))
    plain: Any = dataset.dataset if isinstance(dataset, Subset) else dataset
    has_files = isinstance(plain, PoseFileDataset)
    folder.mkdir(parents=True, exist_ok=True)
    images, people = [], []
    with this_process().main_process_first():
        for index, (width, height) in enumerate(image_sizes(dataset).tolist()):
            if has_files:
                name, image_id = str(Path(plain.image_name(index)).resolve()), plain.image_id(index)
                annotations = plain.annotations(index)
            else:
                sample = dataset[index]
                name, image_id, annotations = f"{index:06d}.png", sample["image_id"], sample["annotations"]
                if not _holds(folder / name, sample["image"]):
                    write_image(sample["image"], folder / name)
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
            people += [
                {**one, "image_id": image_id, "category_id": number_of[one["category_id"]]} for one in annotations
            ]
    if not people:
        raise ValueError(f"`data.validation`: none of its {len(images)} images has a person; expected at least one.")
    categories = [{"id": number, "name": str(number)} for number in category_ids]
    return {"images": images, "annotations": people, "categories": categories}


def _holds(path: Path, image: PIL.Image.Image) -> bool:
    if not path.is_file():
        return False
    with PIL.Image.open(path) as found:
        return found.size == image.size and found.tobytes() == image.tobytes()
