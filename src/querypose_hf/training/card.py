"""The model card of a trained model, written beside it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..hub.model_card import build_model_card, fields_of_start, find_variant
from ..hub.options import CardFields
from ..model.image_processing_querypose import QueryPoseImageProcessor
from ..model.modeling_querypose import QueryPoseForPoseEstimation
from .experiment import ModelSettings
from .validation import Validation


class TrainedModelCard:
    """Writes the card of a model as it is when it is saved.

    Args:
        settings ([`ModelSettings`]): what training started from: its licence and name go onto the card.
        image_processor ([`QueryPoseImageProcessor`]): the model's.
        validation ([`Validation`], *optional*): what the model is scored on.
    """

    def __init__(
        self, settings: ModelSettings, image_processor: QueryPoseImageProcessor, validation: Validation | None = None
    ):
        self.fields = CardFields() if settings.checkpoint is None else fields_of_start(settings.checkpoint)
        self.image_processor = image_processor
        self.validation = validation

    def __call__(self, model: QueryPoseForPoseEstimation, figures: Mapping[str, float]) -> str:
        """The card as the text of a `README.md`; `figures` are the model's own, none if it was not scored."""
        config = model.config
        fields = replace(self.fields, measured=self._measured(figures))
        variant = find_variant(config)
        return str(build_model_card(config, "own", fields, variant=variant, image_processor=self.image_processor))

    def _measured(self, figures: Mapping[str, float]) -> str | None:
        told = [f"{name} {100 * figures[name]:.1f} %" for name in ("AP", "AP50", "F1") if name in figures]
        if not told or self.validation is None:
            return None
        settings, images = self.validation.settings, len(self.validation.ground_truth.images)
        name = settings.format if settings.annotations is None else Path(settings.annotations).name
        return f"{', '.join(told)} on {images} images of `{name}`"
