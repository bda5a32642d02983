"""What the campaign found, each fault by itself."""

import io
import json
import os
import pickle
import signal
import socket
import time

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import torch
from checkpoint_cases import Code
from failing_runs import (
    draw_with_little_disk,
    export_with_little_disk,
    train_beside_one_that_dies,
    train_with_a_dying_reader,
    train_with_little_disk,
)
from launching import start_process
from safetensors.torch import load_file, save_file
from small_run import read_log, small_config, small_loop
from tiny import save_tiny_checkpoint, tiny_config

from querypose_hf import QueryPoseImageProcessor
from querypose_hf.cli import main
from querypose_hf.commands.tally import InputTally
from querypose_hf.data import YoloPoseDataset
from querypose_hf.data.sample import UnusableImageError, read_image
from querypose_hf.files import filling_folder, read_json
from querypose_hf.hub.checkpoint_files import collect_checkpoint
from querypose_hf.hub.endpoint_handler import EndpointHandler
from querypose_hf.inference.bulk import predict_to_parquet
from querypose_hf.inference.image_dataset import open_image_dataset
from querypose_hf.inference.loading import load_model, load_pipeline
from querypose_hf.inference.sources import check_image
from querypose_hf.model.image_decoding_querypose import decode_image
from querypose_hf.settings import read_yaml
from querypose_hf.training import loop as training_loop
from querypose_hf.training.checkpoints import find_checkpoints, load_checkpoint


class TestFiles:
    @pytest.mark.parametrize(("read", "text"), [(read_json, "["), (read_yaml, "["), (read_yaml, "{a: ")])
    def test_nested_beyond_reason(self, read, text, tmp_path):
        path = tmp_path / "deep.txt"
        path.write_text(text * 100_000)
        with pytest.raises(ValueError, match=r"deep\.txt: not a (JSON|YAML) file"):
            read(path)

    def test_yaml_with_a_date_that_is_none(self, tmp_path):
        path = tmp_path / "date.yaml"
        path.write_text("day: 2020-13-45")
        with pytest.raises(ValueError, match=r"date\.yaml: not a YAML file"):
            read_yaml(path)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("train: images", "train: 3", "`train` is 3; expected a folder or a text file"),
            ("train: images", "train: {a: images}", "`train` is .*; expected a folder or a text file"),
            ("names: [person]", "nc: 1000000000", "`nc` is 1000000000; expected the number of classes, at most"),
            ("[1, 3]", "[1000000000, 3]", "`kpt_shape` is .*; expected .number of keypoints, at most"),
        ],
    )
    def test_yolo(self, old, new, message, tmp_path):
        text = "train: images\nkpt_shape: [1, 3]\nnames: [person]\n"
        path = tmp_path / "data.yaml"
        path.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=message):
            YoloPoseDataset(path)


class TestImages:
    @pytest.fixture
    def postscript(self, tmp_path, monkeypatch):
        monkeypatch.setattr("subprocess.Popen", lambda *arguments, **options: pytest.fail("a program was started"))
        path = tmp_path / "images" / "image.jpg"
        path.parent.mkdir()
        PIL.Image.new("RGB", (32, 24)).save(path, "EPS")
        return path

    def test_postscript_is_not_run(self, postscript):
        with pytest.raises(ValueError, match="PostScript is a program"):
            decode_image(postscript)
        with pytest.raises(UnusableImageError, match="PostScript is a program"):
            read_image(postscript, "a name")

    def test_postscript_in_a_dataset_is_not_run(self, postscript, tmp_path):
        save_tiny_checkpoint(tmp_path / "checkpoint")
        dataset = open_image_dataset(str(postscript.parent))
        output = tmp_path / "people"
        report = predict_to_parquet(load_pipeline(tmp_path / "checkpoint"), dataset, output, model_name="tiny")
        assert report.unreadable == 1 and "PostScript" in report.reasons[0]

    def test_errors_of_any_kind_name_the_file(self, tmp_path):
        path = tmp_path / "image.png"
        text = PIL.PngImagePlugin.PngInfo()
        text.add_text("comment", "x" * 2_000_000, zip=True)
        PIL.Image.new("L", (8, 8)).save(path, pnginfo=text)
        with pytest.raises(ValueError, match=r"image\.png cannot be read"):
            check_image(str(path))

    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize("error", [RuntimeError("no item"), TypeError("no item"), ValueError("no item")])
    def test_commands_tell_errors_of_any_kind(self, error, strict, capsys):
        def read():
            raise error

        with pytest.raises(ValueError, match=r"^a\.avif: no item"):
            tally = InputTally(strict)
            tally.attempt("a.avif", read)
            tally.finish()

    def test_resample(self):
        with pytest.raises(ValueError, match="`resample` is -2; expected one of"):
            QueryPoseImageProcessor(resample=-2)(np.zeros((32, 32, 3), np.uint8))


class TestCheckpoints:
    @pytest.fixture
    def checkpoint(self, tmp_path):
        save_tiny_checkpoint(tmp_path / "checkpoint")
        return tmp_path / "checkpoint"

    def change(self, checkpoint, name, **fields):
        content = json.loads((checkpoint / name).read_text())
        (checkpoint / name).write_text(json.dumps({**content, **fields}))

    def refuse(self, checkpoint, message=""):
        with pytest.raises(ValueError, match=f"`model` is '{checkpoint}'; expected .*{message}"):
            load_model(checkpoint)

    @pytest.mark.parametrize(
        ("file", "fields"),
        [
            ("config.json", {"auto_map": {"AutoConfig": 7}}),
            ("config.json", {"focal_gamma": "high"}),
            ("config.json", {"decoder_layers": 10**9}),
            ("config.json", {"num_keypoints": 10**9, "keypoint_names": None}),
            ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": 7}}),
        ],
    )
    def test_fields(self, checkpoint, file, fields):
        self.change(checkpoint, file, **fields)
        self.refuse(checkpoint)

    def test_code_in_a_pickle(self, checkpoint, tmp_path):
        (checkpoint / "model.safetensors").unlink()
        (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Code(tmp_path / "code_has_run")))
        self.refuse(checkpoint)
        assert not (tmp_path / "code_has_run").exists()

    def test_weights_that_lack_a_tensor(self, checkpoint):
        weights = load_file(checkpoint / "model.safetensors")
        name = min(weights)
        del weights[name]
        save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
        self.refuse(checkpoint, f"its weights lack {name}")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_no_numbers(self, checkpoint, value):
        weights = load_file(checkpoint / "model.safetensors")
        name = max(weights, key=lambda name: weights[name].numel())
        weights[name].flatten()[3] = value
        save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
        self.refuse(checkpoint, f"{name} of its weights holds values that are not finite")

    def test_denormal_weights_are_numbers(self, checkpoint):
        weights = load_file(checkpoint / "model.safetensors")
        weights = {name: value * 1e-42 if value.is_floating_point() else value for name, value in weights.items()}
        save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
        for person in load_pipeline(checkpoint)(PIL.Image.new("RGB", (64, 64)), threshold=0.0):
            assert np.isfinite(person["score"])

    def test_push_stays_in_the_folder(self, checkpoint, tmp_path):
        (checkpoint / "model.safetensors").rename(tmp_path / "secret.safetensors")
        index = {"weight_map": {"a": "../secret.safetensors"}}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=r"names '\.\./secret\.safetensors'; expected files of the same folder"):
            collect_checkpoint(checkpoint, tmp_path)

    @pytest.mark.parametrize("field", ["decoder_layers", "num_queries", "d_model", "pose_pooler_resolution"])
    def test_numbers_that_no_machine_can_hold(self, field):
        with pytest.raises(Exception, match=f"`{field}` must be at most"):
            tiny_config(**{field: 2**31})


def test_messages_of_the_handler_are_short():
    with pytest.raises(ValueError, match="expected an integer") as raised:
        EndpointHandler._check_parameters(None, {"top_k": "x" * 100_000})
    assert len(str(raised.value)) < 300


class TestNumbers:
    def test_a_gradient_that_is_no_number(self, tmp_path):
        """The loss is a number, its gradient is not: the weights are lost, and no checkpoint is made of them."""
        loop = small_loop(tmp_path, small_config(12, log_every=50, save_every=3, trackers=()))
        parameter = loop.model.model.decoder.part_queries

        parameter.register_hook(lambda gradient: gradient * (float("nan") if loop.step == 4 else 1))
        with pytest.raises(FloatingPointError, match="the gradient at step 5 is not finite, though the loss is"):
            loop.run()
        [kept] = find_checkpoints(tmp_path / "checkpoints")
        assert kept.name == "step_000000003.pt"
        assert all(value.isfinite().all() for value in load_checkpoint(kept)["model"].values())
        assert [record["step"] for record in read_log(tmp_path)] == [3]

    def test_step_and_terms_are_named(self, tmp_path):
        loop = small_loop(tmp_path, small_config(12, log_every=50, save_every=50, trackers=()))
        terms = loop.model.forward

        def forward(*arguments, **options):
            outputs = terms(*arguments, **options)
            if loop.step == 6:
                outputs.loss_dict = {**outputs.loss_dict, "loss_bbox": outputs.loss * float("inf")}
                outputs.loss = outputs.loss * float("inf")
            return outputs

        loop.model.forward = forward
        with pytest.raises(FloatingPointError, match=r"the loss at step 7 is (inf|nan) \(loss_bbox\)"):
            loop.run()
        assert not find_checkpoints(tmp_path / "checkpoints")


class TestStoppedRuns:
    def test_last_is_written_before_the_checkpoint_that_ends_a_run(self, tmp_path, monkeypatch):
        """A kill between the two would leave an older model in `last`, and a run that has nothing left to do."""
        save = training_loop.save_model_folder

        def killed(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(training_loop, "save_model_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            small_loop(tmp_path, small_config(2, save_every=50, trackers=())).run()
        monkeypatch.setattr(training_loop, "save_model_folder", save)
        loop = small_loop(tmp_path, small_config(2, save_every=50, trackers=()))
        loop.run(resume=True)
        expected = loop.average.module.state_dict()
        found = load_file(tmp_path / "last" / "model.safetensors")
        assert all(torch.equal(found[name], expected[name]) for name in found)

    def test_a_folder_that_is_filled_alone_loses_what_a_kill_left(self, tmp_path):
        for name in (".part.abc", "other"):
            (tmp_path / name).mkdir()
        with filling_folder(tmp_path, alone=True) as temporary:
            (temporary / "file").write_text("")
        assert sorted(os.listdir(tmp_path)) == ["file", "other"]

    def test_bulk_prediction_removes_what_a_kill_left(self, tmp_path):
        save_tiny_checkpoint(tmp_path / "checkpoint")
        (tmp_path / "images").mkdir()
        PIL.Image.new("RGB", (32, 32)).save(tmp_path / "images" / "a.png")
        output = tmp_path / "people"
        output.mkdir()
        (output / ".part.123.people-00000-of-00001.parquet").write_text("half a file")
        arguments = ["--dataset", str(tmp_path / "images"), "--output-parquet", str(output), "--device", "cpu"]
        assert main(["predict", *arguments, "--model", str(tmp_path / "checkpoint")]) == 0
        assert sorted(os.listdir(output)) == ["people-00000-of-00001.parquet"]

    def test_a_disk_that_is_full(self, tmp_path):
        """The second checkpoint cannot be written: the error says so, the first is whole, and the run goes on."""
        folder, printed = tmp_path / "run", tmp_path / "printed"
        folder.mkdir()
        run_process(printed, train_with_little_disk, folder, None, expected=0)
        [*_, newest] = find_checkpoints(folder / "checkpoints")
        newest.unlink()
        run_process(printed, train_with_little_disk, folder, 300_000, expected=2)
        assert "told:" in printed.read_text()
        before = os.listdir(folder / "checkpoints")
        assert before and not [name for name in before if ".part." in name]
        load_checkpoint(find_checkpoints(folder / "checkpoints")[-1])
        run_process(printed, train_with_little_disk, folder, None, expected=0)
        assert load_checkpoint(find_checkpoints(folder / "checkpoints")[-1])["step"] == 12

    def test_a_disk_that_is_full_while_exporting(self, tmp_path):
        printed = tmp_path / "printed"
        run_process(printed, export_with_little_disk, tmp_path / "model.pt2", expected=2)
        assert "told: [Errno 27] File too large" in printed.read_text()

    def test_a_disk_that_is_full_while_drawing(self, tmp_path):
        """Pillow itself writes a part of the image, without an error."""
        run_process(tmp_path / "printed", draw_with_little_disk, tmp_path / "drawn.jpg", expected=2)
        assert "told: [Errno 27] File too large" in (tmp_path / "printed").read_text()
        assert os.listdir(tmp_path) == ["printed"]

    def test_a_process_that_reads_images_dies(self, tmp_path):
        printed = tmp_path / "printed"
        run_process(printed, train_with_a_dying_reader, tmp_path / "run", expected=2)
        assert "told: a process that reads the data" in printed.read_text()
        assert all(load_checkpoint(path) for path in find_checkpoints(tmp_path / "run" / "checkpoints"))

    def test_one_of_two_processes_dies(self, tmp_path):
        """The other one ends, too, and the last checkpoint is whole."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        environment = {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        processes = []
        for rank in ("0", "1"):
            own = {**environment, "RANK": rank, "LOCAL_RANK": rank}
            printed = tmp_path / f"printed.{rank}"
            processes.append(start_process(printed, own, train_beside_one_that_dies, tmp_path / "run"))
        deadline = time.monotonic() + 120
        try:
            for process in processes:
                process.join(max(0, deadline - time.monotonic()))
            assert processes[1].exitcode == -signal.SIGKILL
            assert processes[0].exitcode not in (None, 0)
        finally:
            for process in processes:
                process.kill()
        [checkpoint] = find_checkpoints(tmp_path / "run" / "checkpoints")
        assert load_checkpoint(checkpoint)["step"] == 3


def run_process(printed, function, *arguments, expected):
    process = start_process(printed, {}, function, *arguments)
    process.join(280)
    process.kill()
    process.join()
    assert process.exitcode == expected, printed.read_text()[-2000:]


def test_images_in_memory_are_not_refused(tmp_path):
    """An image that Pillow has drawn before is pixels, whatever it was."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (32, 24), "red").save(buffer, "PNG")
    assert decode_image(PIL.Image.open(buffer)).shape == (3, 24, 32)
