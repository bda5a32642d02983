import math

import pytest
import yaml

from querypose_hf.training.recipe import RECIPES, LearningRateSchedule, TrainingConfig


class TestSchedule:
    def test_the_papers(self):
        schedule = RECIPES["paper_2x"].schedule
        assert (schedule.length, schedule.milestones) == (280_000, (220_000, 260_000))
        expected = {0: 0.01, 500: 0.505, 1000: 1, 219_999: 1, 220_000: 0.1, 259_999: 0.1, 260_000: 0.01, 279_999: 0.01}
        assert {step: schedule.factor(step) for step in expected} == pytest.approx(expected)
        assert RECIPES["paper_1x"].schedule.milestones == (110_000, 130_000)
        assert RECIPES["paper_1x"].schedule.length == 140_000

    def test_by_epochs(self):
        schedule = LearningRateSchedule(unit="epoch", length=12, milestones=(8, 11), warmup_steps=5)
        in_steps = schedule.in_steps(7)
        assert (in_steps.length, in_steps.milestones, in_steps.warmup_steps) == (84, (56, 77), 5)
        assert in_steps.in_steps(7) == in_steps
        with pytest.raises(ValueError, match="in_steps"):
            schedule.factor(0)

    def test_warm_up_is_at_most_a_tenth_of_a_length_that_is_chosen(self):
        for unit, length in (("step", 70), ("epoch", 10)):  # an epoch of seven steps
            schedule = RECIPES["fine_tuning"].schedule.with_length(length, unit).in_steps(7)
            assert (schedule.length, schedule.warmup_steps) == (70, 7)
        assert RECIPES["fine_tuning"].schedule.in_steps(100).warmup_steps == 30

    def test_warm_up_is_at_most_a_tenth_of_a_length_in_yaml(self):
        for schedule, warmup_steps in (
            ({"length": 50}, 5),
            ({"length": 50, "warmup_steps": 20}, 20),
            ({"length": 500}, 30),
            ({"gamma": 0.5}, 30),
        ):
            config = TrainingConfig.from_mapping({"recipe": "fine_tuning", "schedule": schedule})
            assert config.schedule.warmup_steps == warmup_steps, schedule

    def test_cosine(self):
        schedule = LearningRateSchedule(kind="cosine", length=100, milestones=(), warmup_steps=10)
        assert schedule.factor(0) == pytest.approx(0.01)
        assert schedule.factor(50) == pytest.approx(0.5)
        assert schedule.factor(99) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))

    def test_without_warm_up(self):
        assert LearningRateSchedule(warmup_steps=0).factor(0) == 1


class TestConfig:
    def test_yaml_and_back(self, tmp_path):
        path = tmp_path / "run.yaml"
        path.write_text(
            "recipe: paper_2x\nlearning_rate: 1e-4\nmixed_precision: no\nema_decay: 0.9998\ntrackers: [wandb]\n"
            "schedule:\n  unit: epoch\n  length: 36\n  milestones: [27, 33]\n"
        )
        config = TrainingConfig.from_yaml(path)
        assert config.learning_rate == 1e-4
        assert config.mixed_precision == "no"
        assert config.trackers == ("wandb",)
        assert config.schedule == LearningRateSchedule(unit="epoch", length=36, milestones=(27, 33))
        path.write_text(config.to_yaml())
        assert TrainingConfig.from_yaml(path) == config
        assert TrainingConfig.from_mapping(yaml.safe_load(RECIPES["paper_2x"].to_yaml())) == RECIPES["paper_2x"]

    def test_a_length_counts_steps_unless_it_says_otherwise(self):
        config = TrainingConfig.from_mapping({"recipe": "fine_tuning", "schedule": {"length": 500}})
        assert (config.schedule.unit, config.schedule.length, config.schedule.kind) == ("step", 500, "cosine")
        assert config.patience == RECIPES["fine_tuning"].patience

    def test_the_old_name_of_the_2x_recipe(self):
        assert TrainingConfig.from_mapping({"recipe": "paper_3x"}) == RECIPES["paper_2x"]

    @pytest.mark.parametrize(
        ("values", "processes", "rate"),
        [
            ({"recipe": "paper_2x"}, 8, 2.5e-5),  # the paper's 16 images per step
            ({"recipe": "paper_2x"}, 4, 1.25e-5),
            ({"batch_size": 4, "gradient_accumulation_steps": 2}, 4, 5e-5),
            ({"learning_rate": 2.5e-5}, 1, 2.5e-5),  # chosen by the user, and so is the next
            ({"learning_rate": 1e-3}, 1, 1e-3),
            ({"scale_learning_rate": False}, 1, 2.5e-5),
            ({"scale_learning_rate": "auto", "learning_rate": 2.5e-5}, 1, 3.125e-6),
            ({"scale_learning_rate": True, "learning_rate": 1e-3}, 4, 5e-4),
        ],
    )
    def test_learning_rate_by_total_batch(self, values, processes, rate):
        config = TrainingConfig.from_mapping(values)
        assert config.scaled_learning_rate(processes) == pytest.approx(rate, rel=1e-12)
        told = config.describe_learning_rate(processes)
        assert told.startswith(f"learning rate {rate:g}")
        assert ("not scaled" in told) == (rate == config.learning_rate)
        again = TrainingConfig.from_mapping(yaml.safe_load(config.to_yaml()))
        assert again == config

    def test_a_learning_rate_chosen_in_python_is_not_scaled(self):
        assert TrainingConfig(learning_rate=1e-3).scaled_learning_rate(1) == 1e-3

    def test_an_empty_file_is_the_1x_recipe(self, tmp_path):
        (tmp_path / "empty.yaml").touch()
        assert TrainingConfig.from_yaml(tmp_path / "empty.yaml") == RECIPES["paper_1x"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("learning_rat: 1.0", "unknown field `learning_rat` .value 1.0.; expected one of"),
            ("batch_size: 2.5", "`batch_size` is 2.5; expected a whole number"),
            ("batch_size: true", "`batch_size` is True; expected a whole number"),
            ("batch_size: 0", "`batch_size` is 0; expected at least 1"),
            ("learning_rate: fast", "`learning_rate` is 'fast'; expected a number"),
            ("learning_rate: .nan", "`learning_rate` is nan; expected a number"),
            ("learning_rate: -1.0", "`learning_rate` is -1.0; expected above 0"),
            ("mixed_precision: fp8", "`mixed_precision` is 'fp8'; expected one of"),
            ("compile: 1", "`compile` is 1; expected true or false"),
            ("scale_learning_rate: 1", "`scale_learning_rate` is 1; expected one of .'auto', True, False."),
            ("ema_decay: 2.0", "`ema_decay` is 2.0; expected between 0 and 1, or nothing"),
            ("patience: 0", "`patience` is 0; expected at least 1, or nothing"),
            ("evaluate_every: never", "`evaluate_every` is 'never'; expected a whole number, or nothing"),
            ("trackers: tensorboard", "`trackers` is 'tensorboard'; expected a list, each of it text, or nothing"),
            ("recipe: paper_9x", "`recipe` is 'paper_9x'; expected one of"),
            ("schedule: cosine", "`schedule` is 'cosine'; expected fields with values"),
            ("schedule: {kind: linear}", "`schedule.kind` is 'linear'; expected one of"),
            ("schedule: {lenght: 3}", "unknown field `schedule.lenght`"),
            (
                "schedule: {milestones: [2, x]}",
                "`schedule.milestones` is .*; expected a list, each of it a whole number",
            ),
            (
                "schedule: {length: 100}",
                "`milestones` is .110000, 130000.; expected rising, above 0 and below `length`",
            ),
            ("- 3", "expected fields with values, got"),
            ("a: [", "not a YAML file"),
        ],
    )
    def test_bad_values_are_named(self, tmp_path, text, message):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            TrainingConfig.from_yaml(path)
        assert str(error.value).startswith(str(path))

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            TrainingConfig.from_yaml(tmp_path / "none.yaml")
