"""The schedule fitted to the time rented, by a clock that the test moves."""

from __future__ import annotations

import dataclasses
import json
import math

import no_learning
import pytest
import tiny
import toy_shards

from input.config import AugmentConfig
from trainer import budget, distribution, schedules, watch
from trainer.config import OptimizerConfig


def test_steps_that_fit_leave_time_for_evaluations_and_checkpoints(tmp_path):
    """Steps of 5 s, and after every 50 and the last an evaluation of 100 s and a checkpoint of 20 s."""
    clock = no_learning.Clock()
    times = budget.Budget(str(tmp_path), evaluation_steps=10, clock=clock)
    times.add_steps(10, 50.0)
    assert times.seconds_left(0, 50, 50, 50) == 50 * 5 + 50  # an evaluation is taken to last 10 steps, saving no time
    for part, seconds in (("evaluation", 100), ("saving", 20)):
        clock.now += seconds
        times.set_time(part, seconds)
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
    records = toy_shards.write_shards(tmp_path / "records", 4, 1)
    clock = no_learning.install(monkeypatch)

    def run(hours, step_s=10, augment=tiny.CONFIG.input.augment, **settings):
        clock.step_s, started = step_s, clock.now
        optimizer = OptimizerConfig(learning_rate=0.01, warmup_steps=0)
        given = {"max_hours": hours, "train_steps": 1000, "eval_every": 0, "steps_per_loop": 5, "optimizer": optimizer}
        data = dataclasses.replace(tiny.CONFIG.input, augment=augment)
        config = tiny.config(train={"price_per_hour": 3.0, **given, **settings}, input=data)
        result = no_learning.run(records, tmp_path / "run", config, clock=clock)
        lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
        return result, clock.now - started, [line for line in lines if "loss" in line]

    return run


@pytest.mark.parametrize("every", [7, 20, 30])
def test_a_report_s_speed_is_that_of_its_steps_alone(timed_run, every):
    """20 steps of 10 s each, with evaluations of 120 s and checkpoints between, before and at the reports."""
    _, _, lines = timed_run(0.0, train_steps=100, steps_per_loop=20, eval_every=every, checkpoint_every=every)
    assert [line["step"] for line in lines] == [20, 40, 60, 80, 100]
    for line in lines[1:]:  # the compilation is in the first
        assert line["images_per_s"] == pytest.approx(tiny.CONFIG.input.batch_size / 10)


def test_an_evaluation_that_is_cut_off_is_no_measure(timed_run, tmp_path, monkeypatch):
    path = tmp_path / "run" / "time.json"
    timed_run(0.0, train_steps=20, eval_every=10, checkpoint_every=5)
    assert json.loads(path.read_text())["evaluation"] == 120
    monkeypatch.setattr(watch.StopSignal, "interruptible", lambda *arguments, **options: None)
    timed_run(0.0, train_steps=40, eval_every=10, checkpoint_every=5)
    assert json.loads(path.read_text())["evaluation"] == 120


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


@pytest.mark.parametrize("planned", [1, 5, 7])
def test_a_planned_end_before_a_step_is_timed_does_not_end_the_run(timed_run, planned):
    """A small data set has so few steps by default. The first report, which is not timed, is at step 5 or before."""
    optimizer = OptimizerConfig(learning_rate=0.01, warmup_steps=5)
    result, seconds, lines = timed_run(0.5, train_steps=planned, optimizer=optimizer)
    assert 0.9 * 1800 < seconds <= 1800
    assert result.step > 60  # evaluations take no more of the time than in any other run
    schedule = schedules.make_schedule(optimizer, result.step)
    for line in lines[len(lines) // 2 :]:
        assert line["learning_rate"] == pytest.approx(float(schedule(line["step"] - 1)), abs=0.0005)


def test_a_run_that_was_stopped_before_a_step_was_timed_is_measured_first(timed_run, tmp_path):
    timed_run(0.0, train_steps=10)
    (tmp_path / "run" / "time.json").unlink()
    assert timed_run(0.5, train_steps=10)[1] > 0.9 * 1800


def test_a_resumed_run_is_fitted_to_what_is_left_and_to_its_new_speed(timed_run):
    """Half of the time is used; the next machine is half as fast. Without hours left, nothing is trained."""
    first, first_s, _ = timed_run(0.25)
    result, seconds, lines = timed_run(0.5, step_s=20)
    assert 0.9 * 1800 < first_s + seconds <= 1800
    assert first.step < result.step < 2 * first.step
    assert lines[-1]["learning_rate"] < 0.01 * 0.05
    again, no_time, _ = timed_run(0.5)
    assert (again.step, no_time) == (result.step, 0)


def test_the_last_share_of_the_fitted_run_mixes_no_images(timed_run, monkeypatch):
    """Planned are 1,000 steps, of which some 150 fit; after the resume twice as many."""
    began = []  # the steps at which the data begin anew, and the last one that mixes images
    monkeypatch.setattr(
        distribution,
        "make_iterator",
        lambda *_, first_step, last_mixed_step: began.append((first_step, last_mixed_step)),
    )
    mosaic = AugmentConfig(mosaic=1.0, close_mosaic=0.25)
    first = timed_run(0.5, augment=mosaic)[0].step
    (start, closing) = began
    assert start == (0, None)  # without an end
    assert closing[0] == closing[1]  # from there on nothing is mixed
    assert closing[0] == pytest.approx(0.75 * first, abs=3)
    last = timed_run(1.0, augment=mosaic)[0].step
    resumed, closing = began[2:]
    assert resumed == (first, None)
    assert closing == (closing[0], closing[0])
    assert closing[0] == pytest.approx(0.75 * last, abs=3)


def test_hours_are_refused_for_several_workers():
    with pytest.raises(ValueError, match=r"--max_hours fits the run to one machine's clock"):
        tiny.config(train={"max_hours": 1.0, "distribution": "multi_worker"})
