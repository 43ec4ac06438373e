"""The benchmarks of the training step run whole and print what they promise, on a tiny network."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf
import tiny
import toy_shards

from benchmarks import synthetic

CHECKOUT = pathlib.Path(__file__).parent.parent
TINY = ("--backbone=resnet18", "--image_size=64", "--steps=1", "--rounds=2")


def test_a_batch_of_noise_trains():
    """What a benchmark measures has objects to find: positives, and losses that are numbers."""
    config = tiny.config(input=dataclasses.replace(tiny.CONFIG.input, max_boxes=12))  # 3 more for ignored regions
    batch = synthetic.make_batch(config, 2)
    height, width = config.input.image_size
    assert batch.images.shape == (2, height, width, 3)
    assert bool(tf.reduce_all(batch.valid))
    trainer = synthetic.Trainer(config, tf.distribute.OneDeviceStrategy("/cpu:0"))
    results = []
    cost = synthetic.measure(lambda: results.append(trainer.run(2)))
    assert cost.cpu > 0 < cost.wall
    assert int(results[0].num_steps) == 2
    assert results[0].num_positives > 0
    assert 0 < float(results[0].losses.loss) < 100


def last_line(*arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=CHECKOUT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("xla", [(), ("--xla",)], ids=["plain", "xla"])
def test_train_step(xla):
    result = last_line(
        "benchmarks/train_step.py", *TINY, *xla, "--peer_command=echo peer 1.00 images/s 12.5 cpu_ms/image"
    )
    assert result["images_per_s"] > 0
    assert 0 < result["share_of_conv_peak"] < 2
    assert result["peer_cpu_ms_per_image"] == 12.5
    # Of two turns the median is the mean, and 12.5 / mean lies below the mean of the ratios.
    assert result["ratio_to_peer"] == pytest.approx(12.5 / result["cpu_ms_per_image"], rel=0.5)


@pytest.mark.slow
def test_replicas():
    result = last_line("benchmarks/replicas.py", *TINY)
    assert result["overhead"] > 0 < result["overhead_sync"]
    assert result["half_batch"] > 0
    assert result["sync_loss_difference"] < 1e-3


@pytest.mark.slow
def test_inference():
    settings = ("--backbone=resnet18", "--image_size=64", "--images=2", "--batch_sizes=1,2", "--rounds=1")
    peer = "--peer_command=echo peer 1.00 images/s {batch_size}2.5 cpu_ms/image"
    result = last_line("benchmarks/inference.py", *settings, peer)
    assert {name: values["peer_cpu_ms"] for name, values in result.items()} == {"batch_1": 12.5, "batch_2": 22.5}
    for values in result.values():
        assert values["network_cpu_ms"] > 0 < values["predict_cpu_ms"]
        share = values["postprocess_cpu_ms"] / values["network_cpu_ms"]
        assert values["postprocess_share"] == pytest.approx(share, abs=0.01)
        assert values["ratio_to_peer"] == pytest.approx(values["peer_cpu_ms"] / values["network_cpu_ms"], abs=0.01)


# Each is run with the smallest settings, so that none is left behind by a change to what it measures.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "figures"),
    [
        (("targets.py", "--batch_size=2", "--rounds=1", "--repeats=1"), ("speedup", "speedup_over_dense_full")),
        (
            ("input_pipeline.py", "--image_size=64", "--batch_size=2", "--batches=2", "--rounds=1"),
            ("full_images_per_s", "ratio_to_floor", "unordered_to_host"),
        ),
        (
            ("store_smaller.py", "--num_images=8", "--image_size=64", "--sides=64", "--batches=1", "--rounds=1"),
            ("as_it_is_images_per_s", "bytes_ratio_at_64", "images_per_s_ratio_at_64"),
        ),
        (("evaluate.py", "--images=20", "--classes=3"), ("speedup", "ours_s")),
    ],
    ids=lambda value: value[0].removesuffix(".py"),
)
def test_the_other_benchmarks_run(arguments, figures, tmp_path):
    name, *settings = arguments
    if name == "input_pipeline.py":
        paths = toy_shards.write_shards(tmp_path, 8, num_shards=2)
        settings.append(f"--records={os.path.dirname(paths[0])}/train-*.tfrecord")
    result = last_line(f"benchmarks/{name}", *settings)
    assert all(result[figure] > 0 for figure in figures), result
    assert result.get("largest_difference", 0) < 1e-9  # to pycocotools


@pytest.mark.slow
def test_a_switch_trains(tmp_path):
    result = last_line("benchmarks/switches.py", f"--output_dir={tmp_path}", "--train_steps=20", "--only=head_filters")
    assert list(result["runs"]) == ["default", "head_filters=96"]
    assert all(run["first_loss"] > run["last_loss"] > 0 for run in result["runs"].values())
