"""Exported graphs in other engines find the people that torch finds, at any batch and image size."""

import json

import PIL.Image
import pytest
import torch
from test_modeling_querypose import images, make_model
from transformers import pipeline

from querypose_hf import QueryPoseImageProcessorPil
from querypose_hf.assets import SAMPLE_IMAGE
from querypose_hf.cli import main
from querypose_hf.export import ExportedPoseEstimator, export_model


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
    QueryPoseImageProcessorPil(size={"shortest_edge": 96, "longest_edge": 160}).save_pretrained(folder)
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


def assert_same_people(model, exported, threshold=0.0, everybody=True):
    processor = QueryPoseImageProcessorPil()
    for shape in SHAPES:
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
            assert len(people) == len(others) and bool(people) == (threshold == 0)
            assert len(people) == TOP_K or threshold or not everybody
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


def test_a_model_whose_keypoints_feed_its_boxes(tmp_path):
    """Each stage of the graph then chooses its queries anew, as torch does with `keypoint_top_k`."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    full = make_model(backbone="resnet", query_feedback="always").float()
    assert full.config.pose_query_interaction != "none"
    export_model(full, QueryPoseImageProcessorPil(), tmp_path, "onnx", keypoint_top_k=TOP_K)
    exported = ExportedPoseEstimator.from_export(tmp_path, num_threads=1)
    # a box that lies outside its picture is nobody's, and fed back, random keypoints put some there
    assert_same_people(full, exported, everybody=False)
    assert_same_people(full, exported, threshold=0.9999)


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
    for value in (*graph.graph.input, *graph.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param, value.name
    for dim in graph.graph.input[0].type.tensor_type.shape.dim[2:]:
        assert dim.dim_param
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
    picture = PIL.Image.open(SAMPLE_IMAGE)
    found = exported([picture, picture], threshold=0.0, batch_size=2)
    expected = pipeline("pose-estimation", model=str(checkpoint))(picture, threshold=0.0, keypoint_top_k=TOP_K)
    for people in found:
        assert len(people) == len(expected) == TOP_K
        for person, other in zip(people, expected, strict=True):
            assert person["box"] == pytest.approx(other["box"], abs=KEYPOINT_TOLERANCE)
            assert person["score"] == pytest.approx(other["score"], abs=SCORE_TOLERANCE)
            for point, other_point in zip(person["keypoints"], other["keypoints"], strict=True):
                assert point == pytest.approx(other_point, abs=KEYPOINT_TOLERANCE)


@pytest.mark.parametrize(("nms_threshold", "confidence"), [(None, "deviation"), (0.01, "attention")])
def test_people_as_outputs(tmp_path, nms_threshold, confidence):
    """What the graph makes of them is what post-processing does; here without leaving torch."""
    model = make_model(backbone="resnet", pose_query_interaction="none", keypoint_confidence=confidence).float()
    processor = QueryPoseImageProcessorPil(nms_threshold=nms_threshold)
    export_model(model, processor, tmp_path, "torch-export", outputs="people", keypoint_top_k=6, num_people=4)
    exported = ExportedPoseEstimator.from_export(tmp_path)
    pixel_values, pixel_mask = batch(3, 64, 96)
    sizes = torch.tensor([[480, 640], [64, 96], [1000, 333]])
    found = exported.find_people(pixel_values, sizes, pixel_mask=pixel_mask)
    with torch.no_grad():
        outputs = model(pixel_values, pixel_mask=pixel_mask, keypoint_top_k=6)
    expected = processor.post_process_pose_estimation(outputs, threshold=0.0, target_sizes=sizes, top_k=4)
    assert all(len(people) == 4 for people in expected) == (nms_threshold is None)
    names = {"scores": "score", "labels": "label", "boxes": "bbox", "keypoints": "keypoints"}
    for image, people in enumerate(expected):
        for name, ours in {**names, "keypoint_scores": "scores"}.items():
            values = torch.stack([person[ours] for person in people])
            mine = torch.from_numpy(found[name][image])
            torch.testing.assert_close(mine[: len(people)], values, atol=1e-3, rtol=1e-5)
            assert name != "scores" or not mine[len(people) :].any()
    with pytest.raises(ValueError, match="find_people"):
        exported(pixel_values)


def test_mistakes(model, checkpoint, onnx_folder, tmp_path, capsys):
    processor = QueryPoseImageProcessorPil()
    with pytest.raises(ValueError, match="format"):
        export_model(model, processor, tmp_path / "none", "tensorflow")
    with pytest.raises(ValueError, match="keypoint_top_k"):
        export_model(model, processor, tmp_path / "none", keypoint_top_k=13)
    with pytest.raises(ValueError, match="num_people"):
        export_model(model, processor, tmp_path / "none", keypoint_top_k=2, num_people=3, outputs="people")
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError, match=r"export\.json"):
        ExportedPoseEstimator.from_export(tmp_path)
    assert main(["export", "--model", str(tmp_path / "nowhere"), "--output", str(tmp_path / "none")]) == 2
    assert "--model" in capsys.readouterr().err
    exported = ExportedPoseEstimator.from_export(onnx_folder)
    with pytest.raises(ValueError, match="multiples of 32"):
        exported(torch.zeros(1, 3, 60, 64))
    with pytest.raises(ValueError, match="exported with 5"):
        exported(torch.zeros(1, 3, 64, 64), keypoint_top_k=4)
    with pytest.raises(ValueError, match="CPU"):
        exported.to("cuda")
    with pytest.raises(ValueError, match="use `forward`"):
        exported.find_people(torch.zeros(1, 3, 64, 64), torch.tensor([[64, 64]]))
