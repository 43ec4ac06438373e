"""Evaluation: from records to metrics, on one device and on two, once and repeatedly."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import painted
import pytest
import tensorflow as tf
import tiny
import toy_shards

from input import pipeline, tfrecord
from input.config import AugmentConfig
from model.config import DetectConfig
from trainer import checkpoints, compare, evaluate, inference, metrics, step, train
from trainer.config import OptimizerConfig

# Keeps every detection of an untrained network, so that there is something to compare.
ALL_DETECTIONS = dataclasses.replace(painted.CONFIG, detect=DetectConfig(score_threshold=0.0, max_detections=10))


@pytest.fixture
def shard(tmp_path):
    return painted.write_shard(tmp_path / "test-00000-of-00001.tfrecord", painted.PAINTINGS)


def test_every_painted_box_is_found(shard):
    """Wide, tall and tiny pictures and one without objects, in batches of two, of which the last is padded."""
    result = evaluate.make_evaluator(painted.PaintFinder(), painted.CONFIG, [shard])()
    assert result["num_images"] == 5
    assert (result["voc07_ap50"], result["voc12_ap50"]) == (1, 1)
    assert result["coco_ap50"] == pytest.approx(1)
    assert result["coco_ap"] > 0.8
    assert [values["num_detections"] for values in result["per_class"].values()] == [2, 2]


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_the_batch_size_changes_nothing(shard, batch_size):
    detections = evaluate.make_finder(
        painted.PaintFinder(), painted.CONFIG, [shard], batch_size=batch_size
    )().detections
    for painting, found in zip(painted.PAINTINGS, detections):
        assert found.classes.tolist() == ([painting.category] if painting.box else [])
        expected = np.reshape(painting.box or (), (-1, 4))
        np.testing.assert_allclose(found.boxes, expected, atol=painting.tolerance)


def test_images_of_an_accumulated_batch_are_evaluated_a_part_at_a_time(shard):
    """As they are trained, since no more may fit into a GPU; and with the same result."""
    config = dataclasses.replace(
        painted.CONFIG,
        input=dataclasses.replace(painted.CONFIG.input, batch_size=4),
        train=dataclasses.replace(painted.CONFIG.train, accumulation_steps=2),
    )
    sizes = []

    class Model(painted.PaintFinder):
        def __call__(self, images, training=False):
            sizes.append(len(images))
            return super().__call__(images, training)

    in_parts = evaluate.make_finder(Model(), config, [shard])()
    whole = evaluate.make_finder(Model(), config, [shard], batch_size=4)()
    assert sizes == [2, 4]
    assert in_parts.losses == pytest.approx(whole.losses, rel=1e-5)
    for ours, theirs in zip(in_parts.detections, whole.detections):
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)


def test_lack_of_memory_names_the_batch_size_to_give(shard, monkeypatch):
    def lack(*arguments, **options):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    run = inference.TrainedRun(painted.CONFIG, painted.PaintFinder(), 1, "run/checkpoints/ckpt-1")
    monkeypatch.setattr(inference, "load_for_inference", lambda *arguments, **options: run)
    monkeypatch.setattr(evaluate, "make_finder", lambda *arguments, **options: lack)
    expected = r"does not suffice for 2 images of 64x96 at a time in float32 .*Give --batch_size=1 or less\."
    with pytest.raises(ValueError, match=expected):
        evaluate.evaluate_run("run", [shard])
    with pytest.raises(ValueError, match=expected):
        compare.compare_runs(["run", "run"], [shard])
    with pytest.raises(ValueError, match=r"for 1 image of 64x96 .*CUDA_VISIBLE_DEVICES=-1 takes the CPU"):
        evaluate.evaluate_run("run", [shard], batch_size=1)


def test_evaluating_again_sees_new_weights_and_compiles_nothing(shard):
    model = painted.PaintFinder()
    evaluator = evaluate.make_evaluator(model, painted.CONFIG, [shard])
    assert evaluator()["voc12_ap50"] == 1
    model.logit.assign(-20.0)  # too low a score for a detection
    assert evaluator()["voc12_ap50"] == 0
    assert model.num_traces == 1


def test_two_replicas_find_what_one_does(shard, two_replicas):
    with two_replicas.scope():
        model = checkpoints.make_model(ALL_DETECTIONS)
    moving = [variable for variable in model.non_trainable_variables if "moving_mean" in variable.name]
    assert moving

    def set_apart():
        """As after training with --norm=local; what is saved, and evaluated, is the mean."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        for variable in moving:
            variable.assign(tf.random.stateless_normal(variable.shape, [1, replica], stddev=0.1))

    two_replicas.run(set_apart)
    expected = [variable.numpy() for variable in moving]
    find_on_two = evaluate.make_finder(model, ALL_DETECTIONS, [shard], strategy=two_replicas, batch_size=3)  # becomes 2
    found_on_two = find_on_two()
    for variable, mean in zip(moving, expected):
        np.testing.assert_allclose([values.numpy() for values in variable.values], [mean, mean], rtol=1e-6)
    found_on_one = evaluate.make_finder(model, ALL_DETECTIONS, [shard])()
    for name, value in found_on_one.losses.items():
        assert found_on_two.losses[name] == pytest.approx(value, rel=1e-5)
    on_two, on_one = found_on_two.detections, found_on_one.detections
    assert len(on_two) == len(painted.PAINTINGS)
    for ours, theirs in zip(on_two, on_one):
        assert len(ours.classes) > 0
        np.testing.assert_array_equal(ours.classes, theirs.classes)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-6)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-3)


def test_the_losses_are_those_of_a_training_step_on_the_same_records(tmp_path):
    """With frozen batch norm and no augmentation, in one batch; evaluated in batches of two, the last one padded."""
    config = tiny.config(model=dataclasses.replace(tiny.CONFIG.model, norm="frozen"))
    config = dataclasses.replace(config, input=dataclasses.replace(config.input, augment=AugmentConfig.preset("none")))
    paths = toy_shards.write_shards(tmp_path, num_images=5, split="val")
    model = checkpoints.make_model(config)
    measured = evaluate.make_finder(model, config, paths)().losses
    optimizer = tf.keras.optimizers.SGD(0.0)
    (batch,) = pipeline.make_dataset(paths, config.input, training=False, batch_size=5)
    expected = step.make_train_step(model, optimizer, config, method="sparse")(batch).losses
    assert measured == pytest.approx({name: float(value) for name, value in expected._asdict().items()}, rel=1e-4)
    assert measured["box_loss"] > 0


@pytest.mark.slow
def test_the_validation_loss_rises_where_training_fits_what_does_not_hold(tmp_path):
    """The validation records have the classes swapped: the better the network learns, the worse it does there."""
    train_paths = toy_shards.write_shards(tmp_path / "train", num_images=4, num_shards=1)
    val_paths = toy_shards.write_shards(tmp_path / "val", num_images=4, num_shards=1, split="val")
    with tf.io.TFRecordWriter(val_paths[0]) as writer:
        for index in range(4):
            pixels, boxes, classes = toy_shards.blocks(index)
            writer.write(toy_shards.example(f"{index}", pixels, boxes, [1 - category for category in classes]))
    settings = {"train_steps": 120, "eval_every": 40, "steps_per_loop": 20}
    config = tiny.config(train={**settings, "optimizer": OptimizerConfig(learning_rate=0.02, warmup_steps=10)})
    config = dataclasses.replace(config, input=dataclasses.replace(config.input, augment=AugmentConfig.preset("none")))
    train.train_and_evaluate(config, train_paths=train_paths, val_paths=val_paths, model_dir=str(tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    training = [line["loss"] for line in lines if "loss" in line]
    validation = [line["eval/class_loss"] for line in lines if "eval/class_loss" in line]
    assert training[-1] < training[0] / 2
    assert validation[-1] > validation[0]


def test_other_labels_are_refused(tmp_path):
    shard = painted.write_shard(tmp_path / "test-00000-of-00001.tfrecord", painted.PAINTINGS, labels=("red", "blue"))
    with pytest.raises(ValueError, match=r"red, blue, but the model knows red, yellow.*--labels"):
        evaluate.make_evaluator(painted.PaintFinder(), painted.CONFIG, [shard])


def test_an_empty_shard_is_refused(tmp_path, shard):
    empty = tmp_path / "empty.tfrecord"
    empty.write_bytes(b"")
    with pytest.raises(tfrecord.DamagedShardError, match=r"empty\.tfrecord: it is empty"):
        evaluate.make_evaluator(painted.PaintFinder(), painted.CONFIG, [shard, str(empty)])


def test_the_command_writes_and_prints_the_metrics(tmp_path, shard):
    run = tmp_path / "run"
    checkpoints.save_config(ALL_DETECTIONS, str(run))
    model = checkpoints.make_model(ALL_DETECTIONS)
    prefix = tf.train.Checkpoint(model=model).save(str(run / "checkpoints" / "ckpt"))
    pattern = str(tmp_path / "test-*.tfrecord")
    command = [sys.executable, "-m", "trainer.evaluate", f"--model_dir={run}", f"--records={pattern}"]
    command += ["--ious=0.3", "--resamples=20"]
    done = subprocess.run([*command, f"--checkpoint={prefix}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "eval" / "test.json").read_text())
    evaluated = evaluate.make_finder(model, ALL_DETECTIONS, [shard])()
    arguments = (evaluated.ground_truths, evaluated.detections, painted.LABELS)
    expected = metrics.compute_metrics(*arguments, ious=[0.3], resamples=20)
    assert result.keys() == {*evaluated.losses, *expected, "checkpoint", "step", "averaged", "records"}
    for key, value in evaluated.losses.items():
        assert result[key] == pytest.approx(value)
    for key, bounds in expected["intervals"].items():
        assert result["intervals"][key] == pytest.approx(bounds, abs=1e-6)
    for key in ("voc07_ap50", "voc12_ap50", "coco_ap", "coco_ap50"):
        assert result[key] == pytest.approx(expected[key])
    assert (result["num_images"], result["per_class"].keys()) == (5, {"red", "yellow"})
    assert (result["step"], result["checkpoint"], result["records"]) == (1, prefix, [shard])
    assert done.stdout.splitlines()[0] == f"5 images, {prefix}"
    assert done.stdout.splitlines()[1].startswith(f"loss {result['loss']:.4f} (class ")
    assert done.stdout.splitlines()[2:] == evaluate.format_table(result).splitlines()

    rows = json.loads((run / "eval" / "test.detections.json").read_text())
    assert len(rows) == sum(len(found.scores) for found in evaluated.detections) > 0
    assert rows[0].keys() == {"image_id", "category_id", "bbox", "score"}
    first = evaluated.detections[0]
    ymin, xmin, ymax, xmax = first.boxes[0].tolist()
    assert (rows[0]["image_id"], rows[0]["category_id"]) == ("0", first.classes[0] + 1)
    assert rows[0]["bbox"] == pytest.approx([xmin, ymin, xmax - xmin, ymax - ymin], abs=1e-3)
    assert rows[0]["score"] == pytest.approx(first.scores[0])


def test_records_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file matches 'none-"):
        evaluate.evaluate_run(str(tmp_path), ["none-*"])


def test_the_table_of_metrics():
    row = {"voc07_ap50": 0.5, "voc12_ap50": 0.25, "coco_ap": 0.125, "coco_ap50": None}
    result = {
        **row,
        "per_class": {
            "cat": {**row, "num_objects": 3, "num_difficult": 1},
            "eel": {**dict.fromkeys(row), "num_objects": 0, "num_difficult": 2},
        },
    }
    lines = evaluate.format_table(result).splitlines()
    assert lines == [
        "                voc07_ap50    voc12_ap50       coco_ap     coco_ap50    objects  difficult",
        "cat                 0.5000        0.2500        0.1250             -          3          1",
        "eel                      -             -             -             -          0          2",
        "all classes         0.5000        0.2500        0.1250             -          3          3",
    ]
    result["intervals"] = {"voc07_ap50": [0.4, 0.6], "voc12_ap50": [0.2, 0.3], "coco_ap": [0, 1], "coco_ap50": None}
    assert evaluate.format_table(result).splitlines() == [
        *lines,
        "95% interval  0.400..0.600  0.200..0.300  0.000..1.000             -",
    ]


def test_ious_must_be_numbers():
    assert evaluate.numbers(["0.3", "1"]) == [0.3, 1.0]
    with pytest.raises(ValueError, match=r"--ious=0\.3,half: write numbers"):
        evaluate.numbers(["0.3", "half"])
    with pytest.raises(ValueError, match="an IoU must be above 0 and at most 1; got 30"):
        evaluate.evaluate_run("nowhere", ["nowhere/*"], ious=[30.0])  # before anything is read
