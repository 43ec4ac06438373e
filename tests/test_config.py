"""Settings: round trips, flags, and errors that name the flag."""

import dataclasses
import re
import subprocess
import sys

import pytest
from absl import flags as absl_flags

import flags
from input.config import AnchorConfig, AugmentConfig, InputConfig, MatchConfig
from model.config import DetectConfig, LossConfig, ModelConfig
from trainer.config import Config, OptimizerConfig, TrainConfig


@pytest.fixture
def parse():
    """Flags as a command line gives them; defaults again afterwards."""

    def config(*arguments):
        absl_flags.FLAGS.unparse_flags()
        absl_flags.FLAGS(["task", *arguments])
        return flags.config_from_flags(("cat", "dog"))

    yield config
    for name in absl_flags.FLAGS.flags_by_module_dict()["flags"]:
        name.unparse()


def test_without_flags_every_setting_is_its_default(parse):
    default = dataclasses.replace(Config(), labels=("cat", "dog"))
    assert parse() == default


def test_json_round_trip():
    config = Config(
        labels=("è", "dog"),
        input=InputConfig(image_size=(64, 96), augment=AugmentConfig.preset("strong"), mixture=((2.0, 3), (1.0, 8))),
        train=TrainConfig(optimizer=OptimizerConfig(lr_steps=(0.5,))),
    )
    assert Config.from_json(config.to_json()) == config


def test_unknown_settings_in_json_are_named():
    with pytest.raises(ValueError, match=r"unknown ModelConfig settings \['wings'\]"):
        Config.from_json('{"model": {"wings": 2}}')


def test_a_run_from_before_norm_is_read():
    assert Config.from_json('{"model": {"sync_batch_norm": true}}').model.norm == "sync"
    assert Config.from_json('{"model": {"sync_batch_norm": false}}').model.norm == "local"


def test_flags_set_their_settings(parse):
    config = parse(
        "--image_size=250x310",
        "--anchor_sizes=16,32,64,128,256",
        "--anchor_scales=1,1.5",
        "--aspect_ratios=1",
        "--backbone=resnet18",
        "--neck=panet",
        "--learning_rate=0.5",
        "--lr_schedule=step",
        "--precision=mixed_bfloat16",
        "--augment=paper",
        "--train_steps=7",
        "--positive_iou=0.6",
    )
    assert config.input.image_size == (256, 320)  # rounded up
    assert config.input.anchor == AnchorConfig(sizes=(16, 32, 64, 128, 256), scales=(1, 1.5), aspect_ratios=(1,))
    assert config.input.match == MatchConfig(positive_iou=0.6)
    assert config.input.augment == AugmentConfig.preset("paper")
    assert (config.model.backbone, config.model.neck) == ("resnet18", "panet")
    assert config.train.train_steps == 7
    assert config.train.precision == "mixed_bfloat16"
    assert (config.train.optimizer.learning_rate, config.train.optimizer.lr_schedule) == (0.5, "step")


def test_a_flag_overrides_its_part_of_the_preset(parse):
    augment = parse("--augment=strong", "--mosaic=0", "--scale_max=1.5").input.augment
    assert augment == dataclasses.replace(AugmentConfig.preset("strong"), mosaic=0.0, scale_max=1.5)


def test_train_weights_are_joined_with_the_number_of_shards():
    absl_flags.FLAGS.unparse_flags()
    absl_flags.FLAGS(["task", "--train_records=a,b", "--train_weights=3,1", "--deterministic_input=false"])
    config = flags.config_from_flags(("cat",), [8, 2])
    assert config.input.mixture == ((3.0, 8), (1.0, 2))
    assert not config.input.deterministic_input
    for name in absl_flags.FLAGS.flags_by_module_dict()["flags"]:
        name.unparse()


@pytest.mark.parametrize(
    ("text", "size"), [("512", (512, 512)), ("480x640", (480, 640)), ("1", (32, 32)), ("33X65", (64, 96))]
)
def test_image_size(text, size):
    assert flags.parse_image_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "0", "-5", "4x5x6", "big", "32.5"])
def test_image_size_refused(text):
    with pytest.raises(ValueError, match=f"--image_size={text}"):
        flags.parse_image_size(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--anchor_sizes=32,64"], "--anchor_sizes needs 5 values"),
        (["--anchor_sizes=a,b,c,d,e"], "--anchor_sizes=a,b,c,d,e: write numbers"),
        (["--aspect_ratios=0"], "--aspect_ratios needs positive"),
        (["--positive_iou=0.3"], "--negative_iou <= --positive_iou"),
        (["--learning_rate=0"], "--learning_rate must be positive"),
        (["--logical_cpus=0"], "--logical_cpus must be at least 1"),
        (["--mixup=2"], "--mixup is a probability"),
        (["--warp=-1"], "--warp is a probability"),
        (["--randaugment=4"], "--randaugment is a number of operations"),
        (["--train_records=a,b", "--train_weights=1"], "--train_weights has 1 numbers for 2 patterns"),
        (["--train_records=a", "--train_weights=0"], "--train_weights must be positive"),
        (["--repeat_threshold=2"], "--repeat_threshold is a share"),
        (["--scale_min=3"], "--scale_min <= --scale_max"),
    ],
)
def test_errors_name_the_flag(parse, arguments, message):
    with pytest.raises(ValueError, match=message):
        parse(*arguments)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (InputConfig, {"image_size": (30, 64)}),
        (InputConfig, {"max_boxes": 0}),
        (InputConfig, {"target_assignment": "moon"}),
        (ModelConfig, {"backbone": "vgg"}),
        (ModelConfig, {"neck": "long"}),
        (ModelConfig, {"resnet_stride": "2x2"}),
        (ModelConfig, {"p6_from": "c4"}),
        (ModelConfig, {"freeze_stages": 6}),
        (ModelConfig, {"neck_filters": 0}),
        (ModelConfig, {"neck_repeats": 0}),
        (ModelConfig, {"head_filters": -1}),
        (ModelConfig, {"head_norm": "some"}),
        (ModelConfig, {"prior_probability": 1.0}),
        (ModelConfig, {"batch_norm_momentum": 1.0}),
        (ModelConfig, {"batch_norm_epsilon": 0.0}),
        (LossConfig, {"focal_alpha": 1.5}),
        (LossConfig, {"focal_gamma": -0.5}),
        (LossConfig, {"smooth_l1_beta": 0.0}),
        (LossConfig, {"box_loss_weight": -1.0}),
        (DetectConfig, {"score_threshold": 1.5}),
        (DetectConfig, {"pre_nms_top_k": 0}),
        (DetectConfig, {"nms_iou": -0.5}),
        (DetectConfig, {"max_detections": 0}),
        (OptimizerConfig, {"optimizer": "guess"}),
        (OptimizerConfig, {"lr_schedule": "guess"}),
        (TrainConfig, {"precision": "float8"}),
        (TrainConfig, {"distribution": "wide"}),
        (TrainConfig, {"steps_per_loop": 0}),
    ],
)
def test_errors_of_settings_name_the_flag_and_the_value(kind, settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"--{name}.*{re.escape(str(value))}"):
        kind(**settings)


def test_levels_that_the_neck_does_not_make_are_refused():
    anchor = AnchorConfig(min_level=2, max_level=6)
    with pytest.raises(ValueError, match="the neck makes the levels P3-P7, not P2-P6"):
        Config(input=InputConfig(anchor=anchor))


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="--augment=wild: choose one of none, paper"):
        AugmentConfig.preset("wild")


def test_help_needs_no_tensorflow():
    """So it answers at once. It lists the flags."""
    code = "import sys, runpy; sys.modules['tensorflow'] = None; runpy.run_module('trainer.task', run_name='__main__')"
    command = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=False, timeout=60
    )
    assert "--learning_rate" in command.stdout
    assert "--train_records" in command.stdout
