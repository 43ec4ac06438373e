"""Devices, the chief of several workers, and settings that do not fit the replicas."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest
import tensorflow as tf
import tiny
import toy_shards

from input.config import AugmentConfig
from input.random_numbers import RandomNumbers
from trainer import distribution


@pytest.mark.parametrize(
    ("jobs", "kind", "index", "is_chief"),
    [(["worker"], "worker", 0, True), (["worker"], "worker", 1, False), (["chief", "worker"], "chief", 0, True),
     (["chief", "worker"], "worker", 0, False)],
)  # fmt: skip
def test_one_worker_is_the_chief(monkeypatch, jobs, kind, index, is_chief):
    cluster = {job: ["a:1", "b:1"][: 1 if job == "chief" else 2] for job in jobs}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}}))
    assert distribution.is_chief(dataclasses.replace(tiny.CONFIG.train, distribution="multi_worker")) == is_chief
    assert distribution.is_chief(tiny.CONFIG.train)


@pytest.mark.parametrize("given", ["{worker}", '{"cluster": {"worker": 2}}'])
def test_a_tf_config_that_cannot_be_read_is_named(monkeypatch, given):
    monkeypatch.setenv("TF_CONFIG", given)
    with pytest.raises(ValueError, match=f"TF_CONFIG={re.escape(given)} does not describe this worker .*: see docs"):
        distribution.is_chief(dataclasses.replace(tiny.CONFIG.train, distribution="multi_worker"))


@pytest.mark.parametrize("task", [{}, {"task": {"type": "worker", "index": 3}}])
def test_a_tf_config_without_this_worker_is_named(monkeypatch, task):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["localhost:1"]}, **task}))
    with pytest.raises(ValueError, match=r"TF_CONFIG=.* does not describe this worker .*: see docs"):
        distribution.make_strategy(dataclasses.replace(tiny.CONFIG.train, distribution="multi_worker"))


@pytest.mark.parametrize(
    ("settings", "num_replicas", "message"),
    [
        ({"batch_size": 3}, 2, "--batch_size=3, the global one, cannot be split over 2 replicas: use a multiple of 2"),
        ({"batch_size": 4}, 2, "--xla works with one replica only: add --distribution=one_device"),
    ],
)
def test_settings_that_do_not_fit_the_replicas_are_refused(settings, num_replicas, message):
    config = tiny.config(train={"xla": True}, input=dataclasses.replace(tiny.CONFIG.input, **settings))
    with pytest.raises(ValueError, match=message):
        distribution.check_replicas(config, num_replicas)


@pytest.mark.parametrize(("num_replicas", "num_warnings"), [(1, 0), (2, 1)])
def test_few_images_to_mix_are_warned_of(caplog, num_replicas, num_warnings):
    settings = dataclasses.replace(tiny.CONFIG.input, batch_size=4, augment=AugmentConfig(mosaic=0.5))
    distribution.check_replicas(tiny.config(input=settings), num_replicas)
    assert ["each replica gets only 2" in message for message in caplog.messages] == [True] * num_warnings


@pytest.mark.parametrize(
    ("batch_size", "num_replicas", "norm"), [(2, 1, "local"), (16, 2, "local"), (14, 2, "sync"), (64, 8, "local")]
)
def test_norm_is_chosen_by_the_images_of_a_replica(caplog, batch_size, num_replicas, norm):
    caplog.set_level("INFO", "retinanet")
    settings = dataclasses.replace(tiny.CONFIG.input, batch_size=batch_size)
    model = dataclasses.replace(tiny.CONFIG.model, norm="auto")
    resolved = distribution.resolve_norm(tiny.config(input=settings, model=model), num_replicas)
    assert resolved.model.norm == norm
    assert f"--norm=auto chooses {norm}, since" in caplog.text
    assert distribution.resolve_norm(tiny.CONFIG, num_replicas) == tiny.CONFIG  # a norm that is given is kept


@pytest.mark.parametrize(
    ("communication", "num_gpus", "implementation"),
    [("auto", 2, "NCCL"), ("auto", 0, "AUTO"), ("ring", 2, "RING"), ("nccl", 2, "NCCL")],
)
def test_several_workers_with_gpus_use_nccl(monkeypatch, communication, num_gpus, implementation):
    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{index}", "GPU") for index in range(num_gpus)]
    monkeypatch.setenv("TF_CONFIG", "{}")
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: gpus)
    monkeypatch.setattr(
        tf.distribute, "MultiWorkerMirroredStrategy", lambda communication_options: communication_options
    )
    config = tiny.config(train={"distribution": "multi_worker", "communication": communication}).train
    assert distribution.make_strategy(config).implementation.name == implementation


@pytest.mark.parametrize(
    ("first_step", "num_mixed", "assignment", "num_replicas"),
    [(0, 3, "device", 1), (0, 3, "device", 2), (2, 1, "host", 2), (4, 0, "host", 1)],
)
def test_the_last_share_of_a_run_mixes_no_images(
    tmp_path, two_replicas, first_step, num_mixed, assignment, num_replicas
):
    """A mosaic of all images until step 3 of 6, and then the same random numbers but for those of mixing."""
    strategy = two_replicas if num_replicas == 2 else tf.distribute.OneDeviceStrategy("/cpu:0")
    paths = toy_shards.write_shards(tmp_path)
    config = dataclasses.replace(tiny.CONFIG.input, batch_size=4, max_boxes=40, target_assignment=assignment)
    batches = {}
    for share in (0.0, 0.5):
        augment = AugmentConfig(mosaic=1.0, close_mosaic=share)
        iterator = distribution.make_iterator(
            strategy,
            tiny.config(input=dataclasses.replace(config, augment=augment)),
            paths,
            first_step=first_step,
            last_mixed_step=3,
        )
        steps = [next(iterator)[0] for _ in range(6 - first_step)]
        local = [strategy.experimental_local_results(batch.original_sizes) for batch in steps]
        local += [strategy.experimental_local_results(batch.transforms) for batch in steps]
        assert local == [(None,) * num_replicas] * len(local)
        batches[share] = [np.concatenate(strategy.experimental_local_results(batch.random_numbers)) for batch in steps]
    for step, (always, closed) in enumerate(zip(batches[0.0], batches[0.5])):
        mosaic = RandomNumbers.of(closed).mosaic
        assert np.all(mosaic < 1) if step < num_mixed else np.all(mosaic == 1)
        kept = closed != 1
        np.testing.assert_array_equal(closed[kept], always[kept])
        assert np.sum(~kept) == (0 if step < num_mixed else 3 * 4)  # cutmix, mixup and mosaic of four images


def test_more_gpus_than_there_are_is_refused():
    with pytest.raises(ValueError, match="--num_gpus=99, but TensorFlow sees"):
        distribution.set_up_devices(tiny.config(train={"num_gpus": 99}).train)
