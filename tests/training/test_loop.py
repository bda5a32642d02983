import json
import math
import os
import re
import signal
import warnings
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from small_run import NoiseImages, read_log, small_config, small_loop
from tiny import BACKBONES, images, people

from querypose_hf import QueryPoseForPoseEstimation, QueryPoseImageProcessor
from querypose_hf.training import loop as training_loop
from querypose_hf.training.checkpoints import find_checkpoints
from querypose_hf.training.log import Length, TrainingLog
from querypose_hf.training.loop import TrainingLoop
from querypose_hf.training.recipe import LearningRateSchedule, TrainingConfig


def losses(folder):
    return [record["loss"] for record in read_log(folder) if "loss" in record]


class TestRun:
    def test_records_and_folders(self, tmp_path):
        figures = iter([0.2, 0.6, 0.4])
        config = small_config(6, evaluate_every=2, save_every=4, log_every=4, keep_checkpoints=1)
        seen = []

        def evaluate(model):
            assert not model.training and not torch.is_grad_enabled()
            seen.append({name: value.clone() for name, value in model.state_dict().items()})
            return {"AP": next(figures), "AP50": 0.9}

        loop = small_loop(tmp_path, config, evaluate=evaluate)
        assert loop.run() == {"AP": 0.4, "AP50": 0.9}
        log = read_log(tmp_path)
        records = [record for record in log if "loss" in record]
        assert [record["step"] for record in records] == [2, 4, 6]
        assert [record["evaluation/AP"] for record in log if "loss" not in record] == [0.2, 0.6, 0.4]
        terms = ("loss_class", "loss_bbox", "loss_giou", "loss_keypoint")
        for record in records:
            assert record["loss"] == pytest.approx(sum(record[term] for term in terms), rel=1e-5)
            assert 0 <= record["data_wait"] <= 1
            assert record["images_per_second"] > 0 and record["memory_gib"] > 0 and record["gradient_norm"] > 0
        assert [record["learning_rate"] for record in records] == pytest.approx([3.4e-4, 1e-4, 1e-4])
        assert [path.name for path in find_checkpoints(tmp_path / "checkpoints")] == ["step_000000006.pt"]
        assert TrainingConfig.from_yaml(tmp_path / "training.yaml") == config
        for folder, expected in (("best", seen[1]), ("last", seen[2])):
            weights = QueryPoseForPoseEstimation.from_pretrained(tmp_path / folder).state_dict()
            assert all(torch.equal(weights[name], value) for name, value in expected.items()), folder
            assert QueryPoseImageProcessor.from_pretrained(tmp_path / folder).num_keypoints == 17
        assert not torch.equal(seen[1]["flow.scale.0.0.weight"], seen[2]["flow.scale.0.0.weight"])
        assert loop.model.training

    def test_an_evaluation_that_fails_is_made_up_for(self, tmp_path):
        def fail(model):
            torch.rand(3)
            raise ValueError("the disk is gone")

        config = small_config(4, evaluate_every=2, save_every=4)
        with pytest.raises(ValueError, match="the disk is gone"):
            small_loop(tmp_path / "failed", config, evaluate=fail).run()
        results = []
        for name in ("failed", "whole"):
            loop = small_loop(tmp_path / name, config, evaluate=lambda model: {"AP": 0.5})
            assert loop.run(resume=True) == {"AP": 0.5} and loop.best_step == 2
            results.append(losses(tmp_path / name))
        assert results[0] == results[1] and len(results[0]) == 4

    def test_models_have_the_score_threshold_of_the_evaluation(self, tmp_path):
        figures = iter([{"AP": 0.6, "score_threshold": 0.12}, {"AP": 0.4, "score_threshold": 0.34}])
        config = small_config(2, evaluate_every=1, save_every=1, schedule=one_step(2))
        small_loop(tmp_path, config, evaluate=lambda model: next(figures)).run()
        thresholds = {
            folder: QueryPoseImageProcessor.from_pretrained(tmp_path / folder).score_threshold
            for folder in ("best", "last")
        }
        assert thresholds == {"best": 0.12, "last": 0.34}
        loop = small_loop(tmp_path, small_config(3, evaluate_every=None, schedule=one_step(3)))
        loop.run(resume=True)  # without an evaluation: the last one counts
        assert QueryPoseImageProcessor.from_pretrained(tmp_path / "last").score_threshold == 0.34

    def test_the_papers_learning_rate_is_scaled_by_the_images_of_a_step(self, tmp_path, caplog):
        config = small_config(1, learning_rate=2.5e-5, gradient_accumulation_steps=2, schedule=one_step())
        with caplog.at_level("INFO", logger="querypose_hf.training.loop"):
            loop = small_loop(tmp_path, config)
        assert "learning rate 6.25e-06: 2.5e-05 for 16 images per step, scaled to 4" in caplog.text
        loop.run()
        assert read_log(tmp_path)[0]["learning_rate"] == pytest.approx(2.5e-5 * 4 / 16)
        assert TrainingConfig.from_yaml(tmp_path / "training.yaml") == config  # not scaled twice when it is resumed
        again = small_config(2, learning_rate=2.5e-5, gradient_accumulation_steps=2, scale_learning_rate=False)
        with pytest.raises(ValueError, match=r"`learning_rate` was 6\.25e-06 in this run and is 2\.5e-05 now"):
            small_loop(tmp_path, again).run(resume=True)

    def test_learns(self, tmp_path):
        torch.manual_seed(1)
        config = small_config(15, batch_size=11, ema_decay=None, learning_rate=3e-4)
        small_loop(tmp_path, config, dropout=0.0).run()
        values = losses(tmp_path)
        assert values[-1] < 0.7 * values[0]

    def test_evaluations_workers_and_records_do_not_change_training(self, tmp_path):
        def evaluate(model):
            return {"AP": torch.rand(()).item()}

        small_loop(tmp_path / "a", small_config(4)).run()
        config = small_config(4, evaluate_every=1, num_workers=2, save_every=1)
        small_loop(tmp_path / "b", config, evaluate=evaluate).run()
        assert losses(tmp_path / "a") == losses(tmp_path / "b")

    def test_by_default_every_epoch_is_scored_and_saved(self, tmp_path):
        config = small_config(14, save_every=None)  # an epoch of eleven images has six steps
        small_loop(tmp_path, config, evaluate=lambda model: {"AP": 0.5}).run()
        assert [record["step"] for record in read_log(tmp_path) if "evaluation/AP" in record] == [6, 12, 14]
        assert [path.stem for path in find_checkpoints(tmp_path / "checkpoints")] == [
            "step_000000012",
            "step_000000014",
        ]

    def test_patience(self, tmp_path):
        """Three evaluations without a better AP, in two runs of which the second goes on counting."""
        figures = iter([0.2, 0.6, 0.4, 0.6, 0.5, 0.9])
        config = small_config(14, evaluate_every=1, save_every=20, patience=3)
        loop = small_loop(tmp_path, config, evaluate=lambda model: {"AP": next(figures)})
        loop.run(stop_after=3)
        assert not loop.is_over and loop.account().startswith("Stopped at step 3 of 14. The checkpoint is in")
        loop = small_loop(tmp_path, config, evaluate=lambda model: {"AP": next(figures)})
        loop.run(resume=True)
        assert loop.is_over and (loop.step, loop.best_step, loop.best) == (5, 2, 0.6)
        assert loop.account().startswith("Stopped early at step 5 of 14: AP was best at step 2, 3 evaluations ago")
        assert find_checkpoints(tmp_path / "checkpoints")[-1].stem == "step_000000005"
        again = small_loop(tmp_path, config)
        again.run(resume=True)  # there is nothing left to do
        assert again.step == 5

    def test_an_interrupted_run_writes_a_checkpoint_and_goes_on(self, tmp_path, capsys):
        small_loop(tmp_path / "whole", small_config(4, save_every=9)).run()
        loop = small_loop(tmp_path / "parts", small_config(4, save_every=9))
        before = signal.getsignal(signal.SIGINT)

        def interrupt(module, args):
            if loop.step == 1:
                os.kill(os.getpid(), signal.SIGINT)

        loop.model.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt, match=r"Stopped at step 2 of 4\. .* Run the same command with --resume"):
            loop.run()
        assert "Interrupted: a checkpoint follows this step" in capsys.readouterr().out
        assert signal.getsignal(signal.SIGINT) is before
        assert [path.stem for path in find_checkpoints(tmp_path / "parts" / "checkpoints")] == ["step_000000002"]
        small_loop(tmp_path / "parts", small_config(4, save_every=9)).run(resume=True)
        assert losses(tmp_path / "parts") == losses(tmp_path / "whole")

    def test_interrupted_twice_it_stops_at_once(self, tmp_path):
        loop = small_loop(tmp_path)

        def interrupt(module, args):
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

        loop.model.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt, match="--resume goes on from the newest checkpoint"):
            loop.run()
        assert loop.step == 0 and not find_checkpoints(tmp_path / "checkpoints")

    @pytest.mark.parametrize(("total", "of_epoch"), [(280_000, 3500), (570, 38), (9, None)])
    def test_the_progress_bar_fits_80_columns(self, total, of_epoch, tmp_path):
        step = total // 2
        log = TrainingLog(
            SimpleNamespace(is_main_process=True, is_local_main_process=True), tmp_path, Length(step, total, of_epoch)
        )
        log.show_record({"loss": 12.3456, "images_per_second": 123.4, "learning_rate": 2.5e-5})
        log.show_figures({"AP": 0.2041})
        log.progress.start_t -= 40 * 3600
        log.progress.initial = 0
        text = str(log.progress)
        log.progress.close()
        assert len(text) <= 80
        epoch = (
            f"epoch {-(-step // of_epoch)}/{-(-total // of_epoch)} step {step}" if of_epoch else f"step {step}/{total}"
        )
        assert text.startswith(f"{epoch} loss 12.3 AP 0.204 lr 2.5e-5 123 images/s ")
        assert re.search(r" (\d+:)?\d+:\d\d left$", text)

    def test_clipping(self, tmp_path):
        loop = small_loop(tmp_path, small_config(1, max_gradient_norm=0.01, schedule=one_step()))
        norms = []
        step = loop.optimizer.step

        def step_and_note():
            gradients = [p.grad for p in loop.model.parameters() if p.grad is not None]
            norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())
            step()

        loop.optimizer.step = step_and_note
        loop.run()
        assert norms == pytest.approx([0.01], rel=1e-3)
        assert read_log(tmp_path)[0]["gradient_norm"] > 0.01

    def test_accumulation_averages_the_gradients_of_micro_batches(self, tmp_path):
        config = small_config(1, gradient_accumulation_steps=2, max_gradient_norm=1e9, schedule=one_step())
        loop = small_loop(tmp_path, config, dropout=0.0)
        gradients = {}
        step = loop.optimizer.step

        def step_and_note():
            gradients.update({name: p.grad.clone() for name, p in loop.model.named_parameters() if p.grad is not None})
            step()

        batches = []
        loop.model.register_forward_pre_hook(lambda module, args, kwargs: batches.append(kwargs), with_kwargs=True)
        start = {name: value.clone() for name, value in loop.model.state_dict().items()}
        loop.optimizer.step = step_and_note
        loop.run()
        assert len(batches) == 2
        assert loop.batch == 2 and loop.step == 1
        model = QueryPoseForPoseEstimation(loop.model.config).train()
        model.load_state_dict(start)
        for batch in list(batches):
            (model(**batch).loss / 2).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5)

    def test_bfloat16_hardly_changes_the_loss(self, tmp_path):
        for name, options in (("plain", {}), ("option", {"mixed_precision": "bf16"})):
            AcceleratorState._reset_state(reset_partial_state=True)
            config = small_config(1, batch_size=11, schedule=one_step(), **options)
            small_loop(tmp_path / name, config, dropout=0.0).run()
        assert losses(tmp_path / "option") == pytest.approx(losses(tmp_path / "plain"), rel=0.05)

    def test_fast_convolutions_last_as_long_as_the_run(self, tmp_path, monkeypatch):
        losses_of = {}
        frozen = {**BACKBONES["resnet"], "freeze_batch_norm_2d": True}
        for fast in (True, False):
            if not fast:
                monkeypatch.setattr(training_loop, "speed_up_convolutions", lambda *args, **kwargs: None)
            config = small_config(1, schedule=one_step())
            loop = small_loop(tmp_path / str(fast), config, dropout=0.0, backbone_config=frozen)
            assert any(not p.is_contiguous() for p in loop.model.parameters()) == fast
            norm = next(m for m in loop.model.modules() if type(m).__name__.startswith("FrozenBatchNorm"))
            norm.running_var.fill_(4.0)
            features = torch.rand(1, len(norm.bias), 2, 2)
            assert torch.equal(norm(features), features) == fast
            loop.run()
            assert not torch.equal(norm(features), features)
            losses_of[fast] = losses(tmp_path / str(fast))
        assert losses_of[True] == pytest.approx(losses_of[False], rel=1e-3)

    def test_tensorboard(self, tmp_path):
        pytest.importorskip("tensorboard", reason="the tracker of this test is not installed")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        small_loop(tmp_path, small_config(2, evaluate_every=1), evaluate=lambda model: {"AP": 0.5}).run()
        events = EventAccumulator(str(tmp_path / "querypose")).Reload()
        assert [event.step for event in events.Scalars("loss")] == [1, 2]
        assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(tmp_path), rel=1e-6)
        assert len(events.Scalars("evaluation/AP")) == 2

    def test_compile_covers_backbone_and_neck(self, tmp_path):
        loop = small_loop(tmp_path, small_config(1, schedule=one_step(), compile=True))
        assert loop.model.model.backbone._compiled_call_impl is not None
        assert loop.model.model.neck._compiled_call_impl is not None
        assert loop.average.module.model.backbone._compiled_call_impl is None

    @pytest.mark.parametrize("query_feedback", ["always", "selected"])
    def test_gradient_checkpointing_changes_nothing(self, query_feedback, tmp_path):
        """Neither gradients nor batch statistics, which recomputing a batch norm would count twice."""
        tensors = []
        for checkpointing in (False, True):
            written = small_config(1, schedule=one_step(), gradient_checkpointing=checkpointing).to_yaml()
            (tmp_path / "training.yaml").write_text(written)
            config = TrainingConfig.from_yaml(tmp_path / "training.yaml")
            with warnings.catch_warnings():
                warnings.simplefilter("error", FutureWarning)
                loop = small_loop(tmp_path, config, query_feedback=query_feedback, feedback_threshold=0.01)
            model, runs = loop.model.double(), []
            decoder = model.model.decoder
            for module in (decoder.box_layers[0].class_head, decoder.keypoint_layers[0].conv_stack.convs[0]):
                module.register_forward_hook(lambda module, *_, runs=runs: runs.append(module))
            torch.manual_seed(0)  # of the dropout
            model(images(2, 3, 64, 64), labels=[people(2), people(1)]).loss.backward()
            gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
            tensors.append({**gradients, **dict(model.named_buffers())})
            assert len(runs) == (4 if checkpointing else 2)
        torch.testing.assert_close(*tensors)


class TestErrors:
    def test_a_folder_of_another_run(self, tmp_path):
        small_loop(tmp_path, small_config(1, schedule=one_step())).run()
        with pytest.raises(ValueError, match="holds checkpoints of a run; expected an empty folder, or `resume`"):
            small_loop(tmp_path).run()
        changes = (("batch_size", 2, 3), ("max_gradient_norm", 1.0, 2.0), ("best_metric", "AP", "AR"))
        for name, before, value in changes:
            with pytest.raises(ValueError, match=f"`{name}` was {before!r} in this run and is {value!r} now"):
                small_loop(tmp_path, small_config(**{name: value})).run(resume=True)
        small_loop(tmp_path, small_config(2, schedule=one_step(2))).run(resume=True)  # the schedule may become longer
        assert [record["step"] for record in read_log(tmp_path)] == [1, 2]

    def test_a_loss_that_is_no_number(self, tmp_path):
        loop = small_loop(tmp_path)
        torch.nn.init.constant_(loop.model.model.decoder.box_layers[0].class_head.bias, math.nan)
        with pytest.raises(FloatingPointError, match="the loss at step 1 is nan"):
            loop.run()
        assert not find_checkpoints(tmp_path / "checkpoints")

    def test_an_unknown_tracker(self, tmp_path):
        with pytest.raises(ValueError, match="`trackers` holds 'nothing', which is not installed"):
            small_loop(tmp_path, small_config(trackers=("nothing",)))

    def test_no_images(self, tmp_path):
        model = QueryPoseForPoseEstimation(small_loop(tmp_path).model.config)
        with pytest.raises(ValueError, match="`dataset` is empty"):
            TrainingLoop(model, NoImages(), QueryPoseImageProcessor(), small_config(), tmp_path)

    def test_a_metric_that_the_evaluation_does_not_give(self, tmp_path, caplog):
        config = small_config(1, schedule=one_step(), best_metric="accuracy")
        small_loop(tmp_path, config, evaluate=lambda model: {"AP": 0.5}).run()
        assert "`best_metric` is 'accuracy', but the evaluation gives ['AP']" in caplog.text
        assert not (tmp_path / "best").exists()

    def test_half_a_record_left_by_a_kill(self, tmp_path):
        small_loop(tmp_path, small_config(1, schedule=one_step())).run()
        with (tmp_path / "training_log.jsonl").open("a") as file:
            file.write(json.dumps({"step": 2, "loss": 1.0}) + "\n" + '{"step": 3, "lo')
        small_loop(tmp_path, small_config(2, schedule=one_step(2))).run(resume=True)
        assert [record["step"] for record in read_log(tmp_path)] == [1, 2]
        assert losses(tmp_path)[1] != 1.0


class NoImages(NoiseImages):
    def __init__(self):
        super().__init__(1)
        self.sizes = self.sizes[:0]


def one_step(length: int = 1) -> LearningRateSchedule:
    return LearningRateSchedule(length=length, milestones=(), warmup_steps=0)
