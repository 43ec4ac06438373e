"""Which checkpoint is loaded, the errors when there is none, and the detector."""

from __future__ import annotations

import dataclasses

import numpy as np
import one_weight
import painted
import pytest
import tensorflow as tf
import tiny

from input import anchors, augment, batch_augment, boxes
from model import postprocess
from model.config import DetectConfig
from model.types import Predictions
from trainer import checkpoints, inference

# Keeps every detection of an untrained network, so that there is something to compare.
ALL_DETECTIONS = dataclasses.replace(painted.CONFIG, detect=DetectConfig(score_threshold=0.0, max_detections=10))


@pytest.fixture
def one_weight_network(monkeypatch):
    monkeypatch.setattr(checkpoints, "make_model", one_weight.make_model)


@pytest.mark.usefixtures("one_weight_network")
def test_the_best_checkpoint_is_loaded_first(tmp_path):
    folder = one_weight.save_run(tmp_path, steps=(1, 2), best=((1, 0.4),))
    run = inference.load_for_inference(folder)
    assert (run.config, one_weight.value_of(run.model), run.step) == (tiny.CONFIG, 1.5, 1)
    assert run.path == f"{folder}/best/ckpt-1"


@pytest.mark.usefixtures("one_weight_network")
def test_without_a_best_checkpoint_the_latest_or_the_named_one_is_loaded(tmp_path):
    folder = one_weight.save_run(tmp_path, steps=(1, 2))
    assert inference.load_for_inference(folder).step == 2
    for name in ("ckpt-1", "ckpt-1.index"):
        run = inference.load_for_inference(folder, str(tmp_path / "checkpoints" / name))
        assert (one_weight.value_of(run.model), run.step) == (1, 1)
    assert inference.load_for_inference(folder, str(tmp_path / "checkpoints")).step == 2


def test_a_damaged_checkpoint_gives_way_to_another_unless_it_was_asked_for(tmp_path, caplog):
    folder = one_weight.save_run(tmp_path, steps=(1, 2), best=((1, 0.4),))
    for path, taken in (("best/ckpt-1", "checkpoints/ckpt-2"), ("checkpoints/ckpt-2", "checkpoints/ckpt-1")):
        data = tmp_path / f"{path}.data-00000-of-00001"
        data.write_bytes(data.read_bytes()[:-1])
        assert inference.find_checkpoint(folder) == f"{folder}/{taken}"
        assert f"{path} is damaged, so another checkpoint is taken" in caplog.text
        with pytest.raises(ValueError, match=f"--checkpoint=.*{path} is damaged .*: give another one of this run"):
            inference.find_checkpoint(folder, f"{folder}/{path}")
    (tmp_path / "checkpoints" / "ckpt-1.index").write_bytes(b"")
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged, as the log says: put back a copy"):
        inference.find_checkpoint(folder)


def test_a_missing_run_or_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist: name the folder of a"):
        inference.load_for_inference(str(tmp_path))
    folder = one_weight.save_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint yet"):
        inference.load_for_inference(folder)
    with pytest.raises(FileNotFoundError, match=r"ckpt-9: there is no .*ckpt-9\.index"):
        inference.load_for_inference(folder, str(tmp_path / "ckpt-9"))
    (tmp_path / "mine.index").write_bytes(b"")
    with pytest.raises(ValueError, match=r"--checkpoint=.*mine: its name must end with its step"):
        inference.load_for_inference(folder, str(tmp_path / "mine"))


@pytest.mark.usefixtures("one_weight_network")
def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    folder = one_weight.save_run(tmp_path)
    other = tf.keras.Sequential([tf.keras.layers.Dense(3)])
    other.build([None, 5])
    path = tf.train.Checkpoint(model=other).save(str(tmp_path / "other" / "ckpt"))
    with pytest.raises(ValueError, match=r"ckpt-1 does not fit the network of .*config\.json"):
        inference.load_for_inference(folder, path)


def test_the_network_predicts_for_each_anchor_and_class():
    config = tiny.CONFIG
    model = checkpoints.make_model(config)
    predictions = model(np.zeros((1, *config.input.image_size, 3), np.float32))
    assert predictions.box_deltas.shape[1:] == anchors.make_anchors(config.input.anchor, config.input.image_size).shape
    assert predictions.class_logits.shape[2] == len(config.labels)


def letterboxed(paintings):
    images, transforms = zip(*(augment.letterbox(painting.pixels, painted.IMAGE_SIZE) for painting in paintings))
    sizes = [(painting.height, painting.width) for painting in paintings]
    return tf.stack(images), tf.stack(transforms), tf.constant(sizes)


@pytest.mark.parametrize("wrap", [lambda function: function, tf.function], ids=["eager", "graph"])
def test_the_detector_joins_network_detection_and_original_coordinates(wrap):
    model = checkpoints.make_model(ALL_DETECTIONS)
    images, transforms, sizes = letterboxed(painted.PAINTINGS[:2])
    found = wrap(inference.make_detector(model, ALL_DETECTIONS))(images, transforms, sizes)

    predictions = model(batch_augment.normalize(images), training=False)
    all_anchors = anchors.make_anchors(ALL_DETECTIONS.input.anchor, painted.IMAGE_SIZE)
    by_level = anchors.num_anchors_by_level(ALL_DETECTIONS.input.anchor, painted.IMAGE_SIZE)
    expected = postprocess.detect(
        predictions, all_anchors, ALL_DETECTIONS.detect, painted.IMAGE_SIZE, num_anchors_by_level=by_level
    )
    expected_boxes = boxes.to_original(expected.boxes, transforms, sizes).numpy()
    for row in range(2):
        real = np.all(expected_boxes[row, :, 2:] > expected_boxes[row, :, :2], axis=1)
        count = found.num_detections[row].numpy()
        assert count == real.sum() > 0
        np.testing.assert_allclose(found.boxes[row, :count], expected_boxes[row][real], atol=1e-3)
        np.testing.assert_allclose(found.scores[row, :count], expected.scores[row].numpy()[real], atol=1e-6)
        np.testing.assert_array_equal(found.classes[row, :count], expected.classes[row].numpy()[real])


def test_detections_in_the_padding_are_dropped():
    image_size, original = painted.IMAGE_SIZE, painted.Painting(20, 96, None)  # 64 x 96: rows 20 to 64 are padding
    all_anchors = tf.constant(anchors.make_anchors(painted.CONFIG.input.anchor, image_size))
    in_padding, in_image = (30.0, 10.0, 60.0, 40.0), (5.0, 50.0, 15.0, 80.0)

    def model(images, training):
        deltas = boxes.encode([in_padding, in_image], all_anchors[:2])
        rest = len(all_anchors) - 2
        logits = tf.pad(tf.constant([[4.0, -9.0], [-9.0, 2.0]]), [[0, rest], [0, 0]], constant_values=-9.0)
        box_deltas = tf.pad(deltas, [[0, rest], [0, 0]])
        return Predictions(class_logits=logits[tf.newaxis], box_deltas=box_deltas[tf.newaxis])

    found = inference.make_detector(model, painted.CONFIG)(*letterboxed([original]))
    assert found.num_detections.numpy().tolist() == [1]
    np.testing.assert_allclose(found.boxes[0, 0], in_image, atol=1e-4)
    assert found.classes[0].numpy().tolist() == [1] + [-1] * 9
    np.testing.assert_allclose(found.scores[0], [tf.sigmoid(2.0)] + [0.0] * 9, rtol=1e-6)
    assert not np.any(found.boxes[0, 1:])
