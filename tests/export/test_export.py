"""Exported graphs in other engines find the people that torch finds, at any batch and image size."""

import copy
import json

import PIL.Image
import pytest
import torch
from tiny import images, make_model
from transformers import pipeline

from querypose_hf import QueryPoseImageProcessorPil
from querypose_hf.assets import SAMPLE_IMAGE
from querypose_hf.cli import main
from querypose_hf.export import ExportedPoseEstimator, ExportOptions, export_model
from querypose_hf.export.graphs import PeopleGraph
from querypose_hf.model.fusion_querypose import fuse_for_inference


TOP_K = 5
SHAPES = ((1, 64, 96), (2, 96, 128), (8, 64, 32))
# pixels and scores
KEYPOINT_TOLERANCE, SCORE_TOLERANCE = 0.05, 1e-4


@pytest.fixture(scope="module")
def model():
    return make_model(backbone="resnet", pose_query_interaction="none").float()


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    size = {"shortest_edge": 96, "longest_edge": 160}
    QueryPoseImageProcessorPil(size=size, score_threshold=0.25).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def onnx_folder(checkpoint, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("onnx")
    arguments = ["export", "--model", str(checkpoint), "--output", str(folder), "--keypoint-top-k", str(TOP_K)]
    assert main(arguments) == 0
    return folder


def batch(batch_size: int, height: int, width: int):
    """Images of which the first ends before the others."""
    pixel_values = images(batch_size, 3, height, width).float()
    pixel_mask = torch.ones(batch_size, height, width, dtype=torch.long)
    pixel_mask[0, height - 9 :] = 0
    pixel_mask[0, :, width - 13 :] = 0
    return pixel_values * pixel_mask[:, None], pixel_mask


def assert_same_people(model, exported, threshold=0.0, shapes=SHAPES):
    processor = QueryPoseImageProcessorPil()
    for shape in shapes:
        pixel_values, pixel_mask = batch(*shape)
        with torch.no_grad():
            expected = model(pixel_values, pixel_mask=pixel_mask, keypoint_top_k=TOP_K)
        found = exported(pixel_values, pixel_mask=pixel_mask)
        wanted = {"threshold": threshold, "target_sizes": [(480, 640)] * shape[0]}
        for people, others in zip(
            processor.post_process_pose_estimation(found, **wanted),
            processor.post_process_pose_estimation(expected, **wanted),
            strict=True,
        ):
            assert len(people) == len(others) == (0 if threshold else TOP_K)
            for person, other in zip(people, others, strict=True):
                torch.testing.assert_close(person["keypoints"], other["keypoints"], atol=KEYPOINT_TOLERANCE, rtol=0)
                torch.testing.assert_close(person["bbox"], other["bbox"], atol=KEYPOINT_TOLERANCE, rtol=0)
                torch.testing.assert_close(person["score"], other["score"], atol=SCORE_TOLERANCE, rtol=0)
                torch.testing.assert_close(person["scores"], other["scores"], atol=SCORE_TOLERANCE, rtol=0)


def test_onnx_runtime_finds_the_same_people(model, onnx_folder):
    exported = ExportedPoseEstimator.from_export(onnx_folder, num_threads=1)
    assert_same_people(model, exported)
    assert_same_people(model, exported, threshold=0.9999)  # an image without people


def test_openvino_finds_the_same_people(model, onnx_folder):
    """OpenVINO reads what was written for ONNX Runtime; the command's own format is the same, converted."""
    openvino = pytest.importorskip("openvino")
    exported = ExportedPoseEstimator.from_export(onnx_folder)
    compiled = openvino.Core().compile_model(onnx_folder / "model.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    names = exported.metadata["output_names"]
    exported.run_graph = lambda inputs: {name: compiled(inputs)[name] for name in names}
    assert_same_people(model, exported)
    assert_same_people(model, exported, threshold=0.9999)  # an image without people


def test_what_the_onnx_file_says(model, onnx_folder):
    import onnx

    graph = onnx.load(onnx_folder / "model.onnx")
    assert {entry.domain: entry.version for entry in graph.opset_import}[""] >= 18
    nodes = [node for node in graph.graph.node if node.op_type == "RoiAlign"]
    # four levels of each box stage and one of each keypoint stage
    assert len(nodes) == 2 * 5
    for node in nodes:
        attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
        assert attributes["sampling_ratio"] == 2
        assert attributes["mode"] == b"avg"
        assert attributes["coordinate_transformation_mode"] == b"half_pixel"
    axes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert axes["pixel_values"] == ["batch", 3, "height", "width"]
    assert axes["pixel_mask"] == ["batch", "height", "width"]
    assert {shape[0] for shape in axes.values()} == {"batch"}
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(metadata["keypoint_names"]) == model.config.keypoint_names
    assert json.loads(metadata["keypoint_edges"]) == model.config.keypoint_edges
    assert json.loads(metadata["preprocessing"])["size"] == {"shortest_edge": 96, "longest_edge": 160}
    assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}


def test_pipeline_of_an_exported_model(checkpoint, onnx_folder):
    from transformers import AutoImageProcessor

    exported = pipeline(
        "pose-estimation",
        model=ExportedPoseEstimator.from_export(onnx_folder),
        image_processor=AutoImageProcessor.from_pretrained(onnx_folder),
    )
    assert exported.score_threshold == 0.25
    image = PIL.Image.open(SAMPLE_IMAGE)
    found = exported([image, image], threshold=0.0, batch_size=2)
    expected = pipeline("pose-estimation", model=str(checkpoint))(image, threshold=0.0, keypoint_top_k=TOP_K)
    for people in found:
        assert len(people) == len(expected) == TOP_K
        for person, other in zip(people, expected, strict=True):
            assert person["box"] == pytest.approx(other["box"], abs=KEYPOINT_TOLERANCE)
            assert person["score"] == pytest.approx(other["score"], abs=SCORE_TOLERANCE)
            for point, other_point in zip(person["keypoints"], other["keypoints"], strict=True):
                assert point == pytest.approx(other_point, abs=KEYPOINT_TOLERANCE)


SIZES = torch.tensor([[480, 640], [64, 96], [1000, 333]])


def assert_people(found, model, processor, pixel_values, pixel_mask, num_people):
    """What a graph makes of people is what post-processing does; in place of people left out it has scores of 0."""
    with torch.no_grad():
        outputs = model(pixel_values, pixel_mask=pixel_mask, keypoint_top_k=6)
    expected = processor.post_process_pose_estimation(outputs, threshold=0.0, target_sizes=SIZES, top_k=num_people)
    fields = {"scores": "score", "labels": "label", "boxes": "bbox", "keypoints": "keypoints"}
    for image, people in enumerate(expected):
        assert people
        for name, field in {**fields, "keypoint_scores": "scores"}.items():
            values = torch.stack([person[field] for person in people])
            atol = SCORE_TOLERANCE if "score" in name else KEYPOINT_TOLERANCE
            torch.testing.assert_close(found[name][image][: len(people)], values, atol=atol, rtol=0)
        assert not found["scores"][image][len(people) :].any()
    return [len(people) for people in expected]


@pytest.mark.parametrize(("nms_threshold", "coordinates"), [(None, "regression"), (0.01, "attention")])
def test_people_as_outputs(nms_threshold, coordinates):
    fields = {"pose_query_interaction": "none", "keypoint_parts": "a", "keypoint_coordinates": coordinates}
    model = make_model(backbone="resnet", **fields).float()
    processor = QueryPoseImageProcessorPil(nms_threshold=nms_threshold)
    pixel_values, pixel_mask = batch(3, 64, 96)
    with torch.no_grad():
        outputs = PeopleGraph(model, 6, 4, nms_threshold)(pixel_values, pixel_mask, SIZES)
    found = dict(zip(PeopleGraph.output_names, outputs, strict=True))
    counts = assert_people(found, model, processor, pixel_values, pixel_mask, num_people=4)
    assert (counts == [4, 4, 4]) == (nms_threshold is None)


def test_people_of_a_model_whose_keypoints_feed_its_boxes(tmp_path):
    """Earlier stages of the graph decode all queries, the last one those of `keypoint_top_k`."""
    model = make_model(backbone="resnet", query_feedback="always").float()
    assert model.config.pose_query_interaction != "none"
    processor = QueryPoseImageProcessorPil(nms_threshold=0.5)
    options = ExportOptions("torch-export", outputs="people", keypoint_top_k=6, num_people=4)
    assert export_model(model, processor, tmp_path, options).name == "model.pt2"
    exported = ExportedPoseEstimator.from_export(tmp_path)
    pixel_values, pixel_mask = batch(3, 64, 96)
    arrays = exported.find_people(pixel_values, SIZES, pixel_mask=pixel_mask)
    found = {name: torch.from_numpy(array) for name, array in arrays.items()}
    assert_people(found, model, processor, pixel_values, pixel_mask, num_people=4)
    with pytest.raises(ValueError, match="find_people"):
        exported(pixel_values)


def test_a_model_whose_norms_are_folded_stays_as_it_is(model, tmp_path):
    """It refuses to be put into evaluation mode, where it is."""
    fused = fuse_for_inference(copy.deepcopy(model))
    modules = [type(module) for module in fused.modules()]
    export_model(fused, QueryPoseImageProcessorPil(), tmp_path, ExportOptions("torch-export", keypoint_top_k=TOP_K))
    assert [type(module) for module in fused.modules()] == modules
    assert_same_people(model, ExportedPoseEstimator.from_export(tmp_path), shapes=SHAPES[:2])


def test_mistakes(model, checkpoint, onnx_folder, tmp_path, capsys):
    processor = QueryPoseImageProcessorPil()
    for message, fields in (
        ("`format` is 'tensorflow'; expected one of", {"format": "tensorflow"}),
        ("`outputs` is 'boxes'; expected", {"outputs": "boxes"}),
        ("`num_people` is 3; expected none unless", {"num_people": 3}),
        ("`keypoint_top_k` is 13; expected 1 to 12", {"keypoint_top_k": 13}),
        ("`num_people` is 3, but the keypoints of 2", {"keypoint_top_k": 2, "num_people": 3, "outputs": "people"}),
    ):
        with pytest.raises(ValueError, match=message):
            export_model(model, processor, tmp_path / "none", ExportOptions(**fields))
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError, match=r"export\.json"):
        ExportedPoseEstimator.from_export(tmp_path)
    (tmp_path / "export.json").write_text('{"format": "tensorflow"}')
    with pytest.raises(ValueError, match="`format` is 'tensorflow'; expected one of"):
        ExportedPoseEstimator.from_export(tmp_path)
    assert main(["export", "--model", str(tmp_path / "nowhere"), "--output", str(tmp_path / "none")]) == 2
    assert "expected a QueryPose checkpoint" in capsys.readouterr().err
    exported = ExportedPoseEstimator.from_export(onnx_folder)
    with pytest.raises(ValueError, match="multiples of 32"):
        exported(torch.zeros(1, 3, 60, 64))
    with pytest.raises(ValueError, match="exported with 5"):
        exported(torch.zeros(1, 3, 64, 64), keypoint_top_k=4)
    with pytest.raises(ValueError, match="CPU"):
        exported.to("cuda")
    with pytest.raises(ValueError, match="use `forward`"):
        exported.find_people(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]]))
