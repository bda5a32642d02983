import pytest
import yaml
from small_data import small_experiment, write_rendered_coco

from querypose_hf import QueryPoseImageProcessor
from querypose_hf.data import AugmentationRecipe
from querypose_hf.settings import with_assignments
from querypose_hf.training.experiment import Experiment
from querypose_hf.training.recipe import RECIPES


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_rendered_coco(tmp_path_factory.mktemp("rendered"))


class TestDescription:
    def test_yaml_and_back(self, source, tmp_path):
        values = small_experiment(source, variant="r50", light=True, num_queries=50, query_feedback="never")
        values["training"]["recipe"] = "paper_2x"
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(values))
        experiment = Experiment.from_yaml(path)
        assert experiment.model.overrides == {"num_queries": 50, "query_feedback": "never"}
        assert experiment.augmentation.crop_window == (32, 48)
        assert experiment.training.evaluate_every == 2
        path.write_text(experiment.to_yaml())
        assert Experiment.from_yaml(path) == experiment

    def test_assignments(self, source, tmp_path):
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(small_experiment(source)))
        assignments = [
            "training.learning_rate=1e-4",
            "data.train.0.repeat=2",
            "data.validation=null",
            "augmentation.scale_jitter=[0.5, 2]",
            "model.num_queries=5",
        ]
        experiment = Experiment.from_yaml(path, assignments)
        assert (experiment.model.config["num_queries"], experiment.model.overrides) == (5, {})
        assert experiment.training.learning_rate == 1e-4
        assert experiment.data.train[0].repeat == 2
        assert experiment.data.validation is None
        assert experiment.augmentation.scale_jitter == (0.5, 2.0)

    def test_length(self, source):
        values = small_experiment(source)
        values["training"] = {"recipe": "paper_1x"}
        schedule = Experiment.from_mapping(values, length=(1400, "step")).training.schedule
        assert (schedule.length, schedule.milestones, schedule.warmup_steps) == (1400, (1100, 1300), 140)
        schedule = Experiment.from_mapping(values, length=(12, "epoch")).training.schedule
        assert (schedule.unit, schedule.length, schedule.milestones) == ("epoch", 12, (9, 11))
        assert Experiment.from_mapping(values, length=(1, "epoch")).training.schedule.milestones == ()
        with pytest.raises(ValueError, match="expected at least 1"):
            Experiment.from_mapping(values, length=(0, "step"))

    def test_from_a_checkpoint_it_is_fine_tuning(self, source, tmp_path):
        size = {"shortest_edge": 100, "longest_edge": 150}
        QueryPoseImageProcessor(size=size).save_pretrained(tmp_path)
        values = {"model": {"checkpoint": str(tmp_path)}, "data": {"train": [source]}}
        experiment = Experiment.from_mapping(values)
        assert experiment.training == RECIPES["fine_tuning"]
        assert experiment.augmentation.short_sides == (80, 90, 100, 110, 120)
        assert experiment.augmentation.longest_side == 180
        paper = Experiment.from_mapping({**values, "model": {"variant": "r50"}})
        assert (paper.training, paper.augmentation) == (RECIPES["paper_1x"], AugmentationRecipe())
        for change, sizes in (
            ({"training": {"recipe": "paper_2x"}}, (AugmentationRecipe().short_sides, 1333)),
            ({"augmentation": {"short_sides": [64]}}, ((64,), 180)),
            ({"augmentation": {"short_sides": [64], "longest_side": 99}}, ((64,), 99)),
            ({"augmentation": {"longest_side": 99}}, ((80, 90, 100, 110, 120), 99)),
            ({"image_processor": {"size": {"height": 40, "width": 30}}}, ((24, 27, 30, 33, 36), 48)),
        ):
            augmentation = Experiment.from_mapping({**values, **change}).augmentation
            assert (augmentation.short_sides, augmentation.longest_side) == sizes, change
        again = Experiment.from_mapping(experiment.to_mapping())
        assert again == experiment

    @pytest.mark.parametrize(
        ("assignment", "message"),
        [
            ("model.variant=r50", "`checkpoint`, `variant` and `config`: variant and config given"),
            ("model.config=null", "`checkpoint`, `variant` and `config`: none given"),
            ("model.light=true", "`light` is True; expected it with `variant`"),
            ("model.fresh=neck", "`fresh` is 'neck'; expected nothing without `checkpoint`"),
            ("model.overrides={num_queries: 3}", r"\['num_queries'\] beside `config`"),
            ("model.config.num_query=3", "unknown field `num_query` .value 3. of `config`"),
            ("model.chekpoint=x", "unknown field `model.chekpoint` .value 'x'."),
            ("model=3", "`model` is 3; expected fields with values"),
            ("data.train=[]", "`train` is ..; expected at least one source"),
            ("data.train=x", "`data.train` is 'x'; expected a list"),
            ("data.train.0.repeat=0", r"in `data.train\[0\]`: `repeat` is 0.0; expected above 0"),
            ("data.train.0.repeats=2", r"unknown field `data.train\[0\].repeats`"),
            ("data.train.0.split=val", r"in `data.train\[0\]`: `split` is 'val'; format 'coco' does not have it"),
            (
                "data.train=[{format: generated, length: 3, exhaustive: false}]",
                r"`exhaustive` is False; format 'generated' does not have it",
            ),
            ("data.train.0.format=voc", r"in `data.train\[0\]`: `format` is 'voc'; expected one of \['coco', "),
            ("data.train.0.annotations=null", r"in `data.train\[0\]`: `annotations` is None; expected a value"),
            ("data.train.0.max_images=0", "`max_images` is 0; expected at least 1"),
            ("data.validation.metric=crowdpose", "in `data.validation`: `metric` is 'crowdpose'; expected 'coco'"),
            ("data.validation.metric=voc", "`data.validation.metric` is 'voc'; expected one of .*, or nothing"),
            ("data.validation.batch_size=0", "`batch_size` is 0; expected a whole number of at least 1"),
            (
                "data.validation.device=cpu",
                "`device` is .cpu.; expected nothing: a model is scored where and as it is trained",
            ),
            ("augmentation.rotation=200", "in `augmentation`: `rotation` is 200.0; expected an angle"),
            ("augmentation.flip_probability=2", "`flip_probability` is 2.0; expected from 0 to 1"),
            ("augmentation.crop_window=[9, 3]", "in `augmentation`: `window` is .9, 3."),
            ("image_processor.num_keypoints=3", "unknown field `image_processor.num_keypoints` .value 3."),
            ("training.batch_size=0", "in `training`: `batch_size` is 0; expected at least 1"),
            ("trainnig.batch_size=1", "unknown field `trainnig`"),
        ],
    )
    def test_bad_values_are_named(self, source, tmp_path, assignment, message):
        path = tmp_path / "bad.yaml"
        path.write_text(yaml.safe_dump(small_experiment(source)))
        with pytest.raises(ValueError, match=message) as error:
            Experiment.from_yaml(path, [assignment])
        assert str(error.value).startswith(str(path))

    def test_what_a_resumed_run_may_change(self, source):
        values = small_experiment(source)
        experiment = Experiment.from_mapping(values)
        for change in ("data.train.0.images=elsewhere", "data.validation.batch_size=3", "training.log_every=7"):
            Experiment.from_mapping(with_assignments(values, [change])).check_continues(experiment, "run")
        for change, message in (
            ("data.train.0.repeat=2", "run: `data.train.0.repeat` was 1.0 in this run and is 2.0 now"),
            ("augmentation.rotation=3", "`augmentation.rotation` was 0.0"),
            ("model.config.d_model=64", "`model.config.d_model` was 32"),
            ("data.train=[{format: generated, length: 3}]", "`data.train.0.format` was 'coco'"),
        ):
            with pytest.raises(ValueError, match=message):
                Experiment.from_mapping(with_assignments(values, [change])).check_continues(experiment, "run")
