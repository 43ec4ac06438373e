"""The schedule fitted to the time rented, by a clock that the test moves."""

from __future__ import annotations

import json
import math

import pytest
import small_network
import tensorflow as tf
import tiny
import toy_shards

from model.types import Losses
from trainer import budget, checkpoints, evaluate, loop, schedules, train
from trainer.config import OptimizerConfig


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_steps_that_fit_leave_time_for_evaluations_and_checkpoints(tmp_path):
    """Steps of 5 s, and after every 50 and the last an evaluation of 100 s and a checkpoint of 20 s."""
    clock = Clock()
    times = budget.Budget(str(tmp_path), evaluation_steps=10, clock=clock)
    times.add_steps(10, 50.0)
    assert times.seconds_left(0, 50, 50, 50) == 50 * 5 + 50  # an evaluation is taken to last 10 steps, saving no time
    for part, seconds in (("evaluation", 100), ("saving", 20)):
        with times.measure(part):
            clock.now += seconds
    assert times.seconds_left(0, 50, 50, 50) == 50 * 5 + 120
    assert times.seconds_left(50, 51, 50, 50) == 5 + 2 * 120  # that of step 50 is still to come
    assert times.seconds_left(49, 49, 50, 50) == 120
    last = times.last_step_within(1.0, 10, 50, 50)
    left = 0.99 * 3600 - 120
    assert times.seconds_left(10, last, 50, 50) <= left < times.seconds_left(10, last + 1, 50, 50)
    times.write()
    clock.now += 9999  # until the machine is back
    resumed = budget.Budget(str(tmp_path), clock=clock)
    assert (resumed.seconds, resumed.last_step_within(1.0, 10, 50, 50)) == (120, last)
    assert resumed.last_step_within(0.02, 10, 50, 50) == 10


def test_a_schedule_of_another_length_is_that_length_s_own():
    for name in ("cosine", "polynomial", "exponential", "one_cycle", "step", "constant"):
        config = OptimizerConfig(learning_rate=1.0, lr_schedule=name, warmup_steps=30)
        fitted, planned = schedules.Adjustable(config, 1000), schedules.make_schedule(config, 1000)
        assert [float(fitted(step)) for step in range(0, 1000, 97)] == [
            float(planned(step)) for step in range(0, 1000, 97)
        ]
        for length in (200, 4000):
            fitted.train_steps.assign(length)
            wanted = schedules.make_schedule(config, length)
            near = 1e-3 if name != "exponential" else 0.02  # which decays by 0.01 over the steps after the warm-up
            for share in (0.0, 0.02, 0.05, 0.3, 0.6, 0.8, 0.99):
                step = int(share * length)
                # In the warm-up Keras counts from 1: a step of 30 is not two of 15.
                assert float(fitted(step)) == pytest.approx(float(wanted(step)), rel=near, abs=0.03)
        fitted.factor.assign(0.5)
        assert float(fitted(2000)) == pytest.approx(0.5 * float(wanted(2000)), rel=0.02)


@pytest.fixture
def timed_run(tmp_path, monkeypatch):
    """Runs for some hours where a step takes 10 s, in a compiled loop 60 s at first, and an evaluation 120 s."""
    monkeypatch.setattr(checkpoints, "make_model", small_network.make_model)
    records = toy_shards.write_shards(tmp_path / "records", 4, 1)
    clock = Clock()

    def make_train_loop(strategy, model, optimizer, *others):
        """Learns nothing."""
        is_first = [True]

        def train_loop(iterator, num_steps):
            clock.now += clock.step_s * int(num_steps) + 60 * is_first[0]
            is_first[0] = False
            optimizer.iterations.assign_add(int(num_steps))
            optimizer._current_learning_rate.assign(optimizer._learning_rate(optimizer.iterations - 1))
            nothing = loop.LoopResult(*[tf.constant(0.0)] * len(loop.LoopResult._fields))
            none = tf.fill([2], tf.constant(-1, tf.int64))
            losses = Losses(*[tf.constant(1.0)] * 3)
            return nothing._replace(num_steps=num_steps, losses=losses, bad_records=none, damaged=none)

        return train_loop

    def make_evaluator(*arguments, **options):
        def evaluator():
            clock.now += 120
            return {"coco_ap": 0.5, "loss": 1.0}

        return evaluator

    monkeypatch.setattr(train, "make_train_loop", make_train_loop)
    monkeypatch.setattr(evaluate, "make_evaluator", make_evaluator)

    def run(hours, step_s=10, **settings):
        clock.step_s, started = step_s, clock.now
        optimizer = OptimizerConfig(learning_rate=0.01, warmup_steps=0)
        given = {"max_hours": hours, "train_steps": 1000, "eval_every": 0, "steps_per_loop": 5, "optimizer": optimizer}
        config = tiny.config(train={"price_per_hour": 3.0, **given, **settings})
        result = train.train_and_evaluate(
            config, train_paths=records, val_paths=records, model_dir=str(tmp_path / "run"), clock=clock
        )
        lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
        return result, clock.now - started, [line for line in lines if "loss" in line]

    return run


def test_a_run_and_its_decay_end_within_the_hours(timed_run):
    result, seconds, lines = timed_run(0.5)
    assert 0.9 * 1800 < seconds <= 1800
    assert result.metrics["coco_ap"] == 0.5  # of the last step
    assert 30 < result.step < 1000
    assert lines[-1]["step"] == lines[-1]["train_steps"] == result.step
    assert lines[-1]["learning_rate"] < 0.01 * 0.02  # a cosine's last steps
    middle = lines[len(lines) // 2]
    share = middle["step"] / result.step
    assert middle["learning_rate"] == pytest.approx(0.005 * (1 + math.cos(math.pi * share)), rel=0.15)
    assert middle["cost"] == pytest.approx(3 * middle["hours"])
    assert middle["hours"] + middle["hours_left"] == pytest.approx(0.5, rel=0.1)


def test_a_resumed_run_is_fitted_to_what_is_left_and_to_its_new_speed(timed_run):
    """Half of the time is used; the next machine is half as fast. Without hours left, nothing is trained."""
    first, first_s, _ = timed_run(0.25)
    result, seconds, lines = timed_run(0.5, step_s=20)
    assert 0.9 * 1800 < first_s + seconds <= 1800
    assert first.step < result.step < 2 * first.step
    assert lines[-1]["learning_rate"] < 0.01 * 0.05
    again, no_time, _ = timed_run(0.5)
    assert (again.step, no_time) == (result.step, 0)


def test_hours_are_refused_for_several_workers():
    with pytest.raises(ValueError, match=r"--max_hours fits the run to one machine's clock"):
        tiny.config(train={"max_hours": 1.0, "distribution": "multi_worker"})
