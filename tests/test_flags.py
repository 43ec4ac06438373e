"""Every setting has a flag of its name, and the flag changes it."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Iterator

import pytest
from absl import flags as absl_flags

import flags
from trainer.config import Config

RECIPES = pathlib.Path(__file__).resolve().parents[1] / "recipes"

# Settings without a flag of their name, and what sets them.
EXCEPTIONS = {
    "labels": "labels.txt beside the records",
    "mixture": "--train_weights",
    "sizes": "--anchor_sizes",
    "scales": "--anchor_scales",
    "min_level": "the neck, which makes the levels P3-P7",
    "max_level": "the neck, which makes the levels P3-P7",
}


def settings_of(config) -> Iterator[tuple[str, object]]:
    """(name, value) of every setting in a config and in those that it contains."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings_of(value)
        else:
            yield field.name, value


SETTINGS = {name: value for name, value in settings_of(Config()) if name not in EXCEPTIONS}


@pytest.fixture
def parse():
    """Flags as a command line gives them; defaults again afterwards."""

    def config(*arguments):
        absl_flags.FLAGS.unparse_flags()
        absl_flags.FLAGS(["task", *arguments])
        return flags.config_from_flags()

    yield config
    for flag in absl_flags.FLAGS.flags_by_module_dict()["flags"]:
        flag.unparse()


def test_no_two_settings_have_the_same_name():
    names = [name for name, _ in settings_of(Config())]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_flag_whose_help_is_a_sentence(name):
    assert absl_flags.FLAGS[name].help.endswith((".", "repeat this option to specify a list of values"))


def changed(value):
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else value * 0.875 or 0.125


@pytest.mark.parametrize("name", [name for name, value in SETTINGS.items() if isinstance(value, (int, float))])
def test_a_flag_changes_its_setting(parse, name):
    value = changed(SETTINGS[name])
    assert dict(settings_of(parse(f"--{name}={value}")))[name] == value


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--lr_steps=0.9,0.5", r"--lr_steps needs shares of the run .*; got \(0.9, 0.5\)"),
        ("--lr_steps=0.5,1.5", "--lr_steps needs shares"),
        ("--lr_steps=0,0.5", "--lr_steps needs shares"),
        ("--lr_steps=", "--lr_steps needs shares"),
        ("--lr_steps=half", "--lr_steps=half: write numbers"),
        ("--lr_end=-0.1", "--lr_end is a share"),
        ("--lr_decay=0", "--lr_decay is a share"),
        ("--lr_power=0", "--lr_power must be positive"),
        ("--prior_probability=0", "prior_probability"),
        ("--smooth_l1_beta=0", "smooth_l1_beta"),
        ("--seed=2147483648", "--seed must be from 0 to 2147483647; got 2147483648"),
        ("--epochs=0", "--epochs must be positive; got 0.0"),
        ("--learning_rate=nan", "--learning_rate: nan is not a finite number"),
        ("--max_hours=inf", "--max_hours: inf is not a finite number"),
        ("--min_visible=2", "--min_visible is a share, from 0 to 1; got 2.0"),
        ("--brightness=-0.5", "--brightness must be at least 0; got -0.5"),
        ("--rotate=nan", "--rotate: nan is not a finite number"),
        ("--anchor_sizes=8,nan,32,64,128", "--anchor_sizes: nan is not a finite number"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(parse, argument, message):
    with pytest.raises(ValueError, match=message):
        parse(argument)


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.flags")), ids=lambda path: path.stem)
def test_recipes_fit_together_and_say_what_to_expect(parse, recipe):
    assert parse(f"--flagfile={recipe}") != Config()
    said = dict(re.findall(r"^# (Command|Hardware|Time|Result|Has been run): (.+)$", recipe.read_text("utf-8"), re.M))
    assert list(said) == ["Command", "Hardware", "Time", "Result", "Has been run"]
    assert re.match("(yes|no)[.,]", said["Has been run"])
    python, module, name, first, *others = shlex.split(said["Command"])
    assert (python, module, name, first) == ("python", "-m", "trainer.task", f"--flagfile=recipes/{recipe.name}")
    assert {"--train_records", "--val_records", "--model_dir"} == {item.partition("=")[0] for item in others}


def test_lists_of_numbers(parse):
    assert parse("--lr_steps=0.5,0.75").train.optimizer.lr_steps == (0.5, 0.75)
    assert parse().train.optimizer.lr_steps == Config().train.optimizer.lr_steps
