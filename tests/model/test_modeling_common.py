"""transformers' own tests for models and configurations, run on ours."""

import copy
import unittest

import pytest
import torch
from parameterized import parameterized
from tiny import people, tiny_config
from transformers_tests import load_common_module

from querypose_hf import QueryPoseConfig, QueryPoseForPoseEstimation, QueryPoseModel


common = load_common_module("test_modeling_common")
configuration_common = load_common_module("test_configuration_common")
# by this table the mixin knows models that give no loss
common.MODEL_MAPPING_NAMES["querypose"] = "QueryPoseModel"


class QueryPoseModelTester:
    def __init__(self, parent):
        self.parent = parent
        self.batch_size = 3
        self.num_channels = 3
        self.image_size = 64
        self.is_training = True
        # what the mixin calls them: sequences are those of the instance queries
        self.num_hidden_layers = 2
        self.hidden_size = 32
        self.num_attention_heads = 4
        self.seq_length = 12

        self.config_overrides = {}

    def get_config(self):
        return tiny_config(**self.config_overrides)

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.num_channels, self.image_size, self.image_size)
        inputs = {
            "pixel_values": common.floats_tensor(list(shape)),
            "pixel_mask": torch.ones(self.batch_size, self.image_size, self.image_size, dtype=torch.long),
        }
        return self.get_config(), inputs


class QueryPoseModelTest(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (QueryPoseModel, QueryPoseForPoseEstimation)
    test_resize_embeddings = False
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = QueryPoseModelTester(self)
        self.config_tester = configuration_common.ConfigTester(
            self,
            config_class=QueryPoseConfig,
            has_text_modality=False,
            common_properties=["hidden_size", "num_attention_heads", "num_hidden_layers"],
            d_model=64,
            num_queries=30,
        )

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs_dict = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        if return_labels and model_class is QueryPoseForPoseEstimation:
            inputs_dict["labels"] = [people(count, seed=count) for count in (2, 1, 3)]
        return inputs_dict

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_model_outputs_equivalence(self):
        # The mixin subtracts whatever it compares, which torch refuses for the boolean `keypoint_query_mask`.
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(copy.deepcopy(config)).eval()
            for with_labels in (False, True):
                for flags in ({}, {"output_hidden_states": True}, {"output_attentions": True}):
                    arguments = {**self._prepare_for_class(inputs, model_class, return_labels=with_labels), **flags}
                    with torch.no_grad():
                        as_tuple = model(**arguments, return_dict=False)
                        as_dict = model(**arguments, return_dict=True)
                    self.assertIsInstance(as_tuple, tuple)
                    torch.testing.assert_close(as_tuple, as_dict.to_tuple())

    @parameterized.expand(common.TEST_EAGER_MATCHES_SDPA_INFERENCE_PARAMETERIZATION)
    def test_eager_matches_sdpa_inference(self, name, dtype, *arguments):
        if dtype != "fp32":
            # Boxes of random weights reach outside the picture, where RoIAlign jumps: a sample that rounding moves
            # beyond the border by a pixel counts as zero. One stage on its initial boxes compares attention alone.
            self.model_tester.config_overrides = {"decoder_layers": 1, "query_feedback": "never"}
        common._test_eager_matches_sdpa_inference(self, name, dtype, *arguments)

    @pytest.mark.skip(reason="images are not embedded from a vocabulary")
    def test_model_get_set_embeddings(self):
        pass

    @pytest.mark.skip(reason="images are not embedded from a vocabulary, whose gradient this looks at")
    def test_enable_input_require_grads_with_gradient_checkpointing(self):
        pass

    @pytest.mark.skip(reason="there is no language model beside the vision model, which this is about")
    def test_sdpa_can_dispatch_composite_models(self):
        pass

    @pytest.mark.skip(reason="the decoder collects the queries of all stages or of none")
    def test_can_capture_specific_layers_hidden_states(self):
        pass
