"""The model card of a trained model, written beside it."""

from ..hub.model_card import build_model_card, fields_of_start, find_variant
from ..hub.options import CardFields
from ..model.image_processing_querypose import QueryPoseImageProcessor
from ..model.modeling_querypose import QueryPoseForPoseEstimation
from .experiment import ModelSettings


class TrainedModelCard:
    """Writes the card of a model as it is when it is saved.

    Args:
        settings ([`ModelSettings`]): what training started from: its licence and name go onto the card.
        image_processor ([`QueryPoseImageProcessor`]): the model's.
    """

    def __init__(self, settings: ModelSettings, image_processor: QueryPoseImageProcessor):
        self.fields = CardFields() if settings.checkpoint is None else fields_of_start(settings.checkpoint)
        self.image_processor = image_processor

    def __call__(self, model: QueryPoseForPoseEstimation) -> str:
        """The card as the text of a `README.md`."""
        config = model.config
        variant = find_variant(config)
        return str(build_model_card(config, "own", self.fields, variant=variant, image_processor=self.image_processor))
