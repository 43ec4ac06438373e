"""Which steps are traced, and what is written."""

from __future__ import annotations

import pytest
import tensorflow as tf

from trainer.config import TrainConfig
from trainer.profiling import Profile


def train(profile, first, last, most):
    """The steps at which loops of at most `most` steps return, from `first` to `last`."""
    step, returned = first, []
    while step < last:
        target = profile.limit(step, min(step + most, last))
        profile.before_loop(step)
        tf.reduce_sum(tf.ones([8, 8])).numpy()
        step = target
        profile.after_loop(step)
        returned.append(step)
    profile.on_end({})
    return returned


def traces(folder):
    return list(folder.rglob("*.xplane.pb"))


def test_the_steps_between_two_loops_are_traced(tmp_path):
    profile = Profile(TrainConfig(profile_steps="12:15"))
    profile.on_start({"model_dir": str(tmp_path)})
    assert train(profile, first=0, last=30, most=10) == [10, 12, 15, 25, 30]
    assert len(traces(tmp_path / "events")) == 1


def test_a_rollback_goes_on_with_the_trace(tmp_path):
    profile = Profile(TrainConfig(profile_steps="4:8"))
    profile.on_start({"model_dir": str(tmp_path)})
    for step, target in ((4, 6), (4, 8)):  # at step 6 the loss is not finite, and the run goes back to step 4
        profile.before_loop(step)
        profile.after_loop(target)
    assert len(traces(tmp_path / "events")) == 1


def test_a_trace_ends_with_the_run(tmp_path):
    profile = Profile(TrainConfig(profile_steps="5:100"))
    profile.on_start({"model_dir": str(tmp_path)})
    train(profile, first=0, last=10, most=10)
    assert len(traces(tmp_path / "events")) == 1


def test_a_worker_that_does_not_report_returns_at_the_same_steps(tmp_path):
    profile = Profile(TrainConfig(profile_steps="12:15"))  # without on_start
    assert train(profile, first=0, last=30, most=10) == [10, 12, 15, 25, 30]
    assert not traces(tmp_path)


def test_without_the_flag_nothing_is_limited():
    assert train(Profile(TrainConfig()), first=3, last=9, most=10) == [9]


@pytest.mark.parametrize("value", ["5", "5:5", "a:b", "-1:4", "5:"])
def test_what_is_no_range_is_refused(value):
    with pytest.raises(ValueError, match=f"--profile_steps={value}: write A:B"):
        TrainConfig(profile_steps=value)
