"""One training step: two replicas do what one does, in every precision, with assignment on the device or the host."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import small_network
import tensorflow as tf
import tiny
import toy_shards
from tensorflow.python.distribute import cross_device_utils

from input import batch_augment, pipeline, targets, types
from input.config import AugmentConfig
from model import resnet
from trainer import checkpoints, optimizers, step
from trainer.config import OptimizerConfig

pytestmark = pytest.mark.usefixtures("smallest_resnet18")

BATCH_SIZE = 4


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return toy_shards.write_shards(tmp_path_factory.mktemp("records"))


def one_step(
    strategy, paths, config=tiny.CONFIG, *, method="sparse", compile_stages=False, on_host=False, clip_norm=0.0
):
    """The result of one step on the first global batch, and by how much it moved each variable."""
    tf.keras.utils.set_random_seed(3)
    fp16 = tf.keras.mixed_precision.global_policy().name == "mixed_float16"
    settings = OptimizerConfig(
        learning_rate=1.0, lr_schedule="constant", warmup_steps=0, momentum=0.0, weight_decay=0.0, clip_norm=clip_norm
    )
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, optimizer=settings))
    with strategy.scope():
        model = checkpoints.make_model(config)
        optimizer = optimizers.make_optimizer(settings, train_steps=1, loss_scaling=fp16)
        optimizer.build(model.trainable_variables)
    before = [variable.numpy() for variable in model.trainable_variables]
    dataset = pipeline.make_dataset(
        paths, config.input, training=True, batch_size=BATCH_SIZE // strategy.num_replicas_in_sync
    )
    dataset = pipeline.assign_on_host(dataset, config.input) if on_host else dataset.map(lambda batch: (batch,))
    iterator = iter(strategy.distribute_datasets_from_function(lambda context: dataset))
    train_step = step.make_train_step(model, optimizer, config, method=method, compile_stages=compile_stages)

    @tf.function
    def run(iterator):
        result = strategy.run(train_step, args=next(iterator))
        return tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], result)

    result = run(iterator)
    return result, [variable.numpy() - old for variable, old in zip(model.trainable_variables, before)]


@pytest.fixture(scope="module")
def on_one_device(paths):
    return one_step(tf.distribute.OneDeviceStrategy("/cpu:0"), paths)


def assert_same_step(one, other, atol):
    np.testing.assert_allclose(one[0].num_positives, other[0].num_positives)
    np.testing.assert_allclose(one[0].losses, other[0].losses, rtol=1e-5)
    np.testing.assert_allclose(one[0].gradient_norm, other[0].gradient_norm, rtol=1e-3)
    for ours, theirs in zip(one[1], other[1]):
        np.testing.assert_allclose(ours, theirs, atol=atol)


def test_a_step_learns(on_one_device):
    result, moves = on_one_device
    assert result.num_positives >= BATCH_SIZE
    assert result.losses.loss > 0
    np.testing.assert_allclose(result.losses.loss, result.losses.class_loss + result.losses.box_loss, rtol=1e-6)
    # With a rate of 1 and nothing else in the update each variable moves by its gradient.
    norm = np.sqrt(sum(np.sum(np.square(move, dtype=np.float64)) for move in moves))
    np.testing.assert_allclose(result.gradient_norm, norm, rtol=1e-3)
    # Only convolutions before a zero gamma do not move: it makes their residual branch output zeros at first.
    still = [move.ndim for move in moves if not np.any(move)]
    assert len(still) < len(moves) / 2
    assert all(np.any(move) for move in moves[-8:])  # the heads


def test_two_replicas_gradients_equal_ones(paths, two_replicas, on_one_device):
    """At a rate of 1 the moves are the gradients. The replicas have different images and numbers of positives."""
    assert_same_step(on_one_device, one_step(two_replicas, paths), atol=2e-5)


def test_compiled_stages_give_the_same_step(paths, two_replicas, on_one_device):
    """As on two GPUs, against one device that runs op by op."""
    compiled = one_step(two_replicas, paths, method="dense", compile_stages=True)
    np.testing.assert_allclose(on_one_device[0].losses, compiled[0].losses, rtol=1e-6)
    assert_same_step(on_one_device, compiled, atol=2e-5)


def test_gradients_in_several_packs_equal_those_in_one(paths, monkeypatch):
    """Bit for bit, and by collectives as on GPUs; the fixture `two_replicas` has none. The gradients take 20 MB."""
    replicas = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    group_by_size = cross_device_utils.group_by_size
    num_packs, steps = [], []

    def count_packs(gradients, bytes_per_pack):
        packs = group_by_size(gradients, bytes_per_pack)
        num_packs[-1] = max(num_packs[-1], len(packs))
        return packs

    monkeypatch.setattr(cross_device_utils, "group_by_size", count_packs)
    for bytes_per_pack in (0, 2**20):  # 0: all in one
        options = tf.distribute.experimental.CommunicationOptions(bytes_per_pack=bytes_per_pack)
        monkeypatch.setattr(step, "_IN_PACKS", options)
        num_packs.append(0)
        steps.append(one_step(replicas, paths))
    assert num_packs[0] == 1 < num_packs[1]
    for ours, theirs in zip(steps[0][1], steps[1][1]):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("compile_stages", [False, True])
def test_host_assignment_gives_the_same_step(paths, on_one_device, compile_stages):
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    host = one_step(strategy, paths, compile_stages=compile_stages, on_host=True)
    assert_same_step(on_one_device, host, atol=2e-5)


@pytest.mark.parametrize("compile_stages", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_accumulated_gradients_equal_those_of_the_whole_batch(paths, two_replicas, compile_stages, monkeypatch):
    """Without batch norm, whose statistics would be those of the parts; then fewer blocks have larger gradients."""
    monkeypatch.setitem(resnet.LAYOUTS, "resnet18", (False, (2, 2, 2, 2)))
    one_device = tf.distribute.OneDeviceStrategy("/cpu:0")
    model = dataclasses.replace(tiny.CONFIG.model, norm="group")
    whole = one_step(one_device, paths, tiny.config(model=model))
    settings = {"method": "dense", "compile_stages": compile_stages}
    in_parts = tiny.config(model=model, train={"accumulation_steps": 4})
    assert_same_step(whole, one_step(one_device, paths, in_parts, **settings), atol=2e-5)
    in_parts = tiny.config(model=model, train={"accumulation_steps": 2})
    assert_same_step(whole, one_step(two_replicas, paths, in_parts, **settings), atol=2e-5)


def test_a_step_is_clipped_and_tells_the_norm_from_before(paths, monkeypatch):
    monkeypatch.setattr(checkpoints, "make_model", small_network.make_model)
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    result, moves = one_step(strategy, paths)
    clipped, clipped_moves = one_step(strategy, paths, clip_norm=float(result.gradient_norm) / 4)
    np.testing.assert_allclose(clipped.gradient_norm, result.gradient_norm, rtol=1e-6)
    for clipped_move, move in zip(clipped_moves, moves):
        np.testing.assert_allclose(clipped_move, move / 4, rtol=1e-4, atol=1e-6 * np.abs(move).max())


@pytest.mark.parametrize("clip_norm", [0.0, 5.0, 20.0, 1e-8])
@pytest.mark.parametrize("in_graph", [False, True])
def test_scaling_and_clipping_in_one_pass_is_what_tensorflow_does(clip_norm, in_graph):
    """The unscaled gradients are (6, 0) and (0, 8), of norm 10."""
    scaled = [tf.constant([6.0, 0.0]) * 2**15, tf.constant([0.0, 8.0]) * 2**15]
    function = tf.function(step._scale_and_clip) if in_graph else step._scale_and_clip
    gradients, norm = function(scaled, tf.constant(2.0**-15), clip_norm)
    expected = [tf.constant([6.0, 0.0]), tf.constant([0.0, 8.0])]
    if clip_norm:
        expected, _ = tf.clip_by_global_norm(expected, clip_norm)
    np.testing.assert_allclose(gradients, expected, rtol=1e-6)
    assert norm == 10


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan, 1e30])  # 1e30 squared is not finite
@pytest.mark.parametrize("in_graph", [False, True])
def test_no_step_is_taken_with_a_norm_that_is_not_finite(wrong, in_graph):
    function = tf.function(step._scale_and_clip) if in_graph else step._scale_and_clip
    gradients, norm = function([tf.constant([wrong, 1.0]), tf.constant([2.0])], tf.constant(1.0), 10.0)
    assert not np.isfinite(norm)
    assert np.all(np.isnan(np.concatenate(gradients)))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_follows_float32(paths, on_one_device, policy):
    tf.keras.mixed_precision.set_global_policy(policy)
    result, moves = one_step(tf.distribute.OneDeviceStrategy("/cpu:0"), paths, method="dense")
    expected, expected_moves = on_one_device
    assert result.losses.loss.dtype == tf.float32
    np.testing.assert_allclose(result.losses, expected.losses, rtol=0.02)
    ours, theirs = (np.concatenate([move.ravel() for move in moves]) for moves in (moves, expected_moves))
    cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert cosine > 0.98
    np.testing.assert_allclose(result.gradient_norm, np.linalg.norm(theirs), rtol=0.1)
    np.testing.assert_allclose(np.linalg.norm(ours), np.linalg.norm(theirs), rtol=0.1)


def float64_gradients(weights, images, assigned, settings):
    """Of the focal loss and smooth L1 as the papers write them, for `small_network`; differentiated in float64."""
    kernel, bias = (tf.Variable(value, dtype=tf.float64) for value in weights)
    parts = tf.cast(tf.nn.avg_pool2d(tf.cast(images, tf.float64), 8, 8, "VALID"), tf.float64)
    num_anchors = assigned.class_targets.shape[1]
    with tf.GradientTape() as tape:
        values = tf.reshape(tf.reshape(parts, [len(images), -1]) @ kernel + bias, [len(images), num_anchors, -1])
        scores = tf.sigmoid(values[..., 4:] - 4.0)
        is_class = assigned.class_targets[..., tf.newaxis] == tf.range(scores.shape[-1])
        p_t = tf.where(is_class, scores, 1 - scores)
        alpha_t = tf.where(is_class, tf.constant(settings.focal_alpha, tf.float64), 1 - settings.focal_alpha)
        focal = -tf.reduce_sum(alpha_t * (1 - p_t) ** settings.focal_gamma * tf.math.log(p_t), axis=-1)
        distance = tf.abs(values[..., :4] - tf.cast(assigned.box_targets, tf.float64))
        beta = settings.smooth_l1_beta
        smooth_l1 = tf.where(distance < beta, distance**2 / (2 * beta), distance - beta / 2)
        is_positive = assigned.class_targets >= 0
        loss = tf.reduce_sum(focal[assigned.class_targets != types.IGNORED])
        loss += settings.box_loss_weight * tf.reduce_sum(smooth_l1[is_positive])
        loss /= tf.cast(tf.math.count_nonzero(is_positive), tf.float64)
    return tape.gradient(loss, [kernel, bias])


def test_gradients_equal_those_of_float64(paths, monkeypatch):
    weights = []

    def make_model(config):
        model = small_network.make_model(config)
        weights.extend(variable.numpy() for variable in model.trainable_variables)
        return model

    monkeypatch.setattr(checkpoints, "make_model", make_model)
    config = tiny.config(input=dataclasses.replace(tiny.CONFIG.input, augment=AugmentConfig()))
    result, moves = one_step(tf.distribute.OneDeviceStrategy("/cpu:0"), paths, config)
    batch = next(iter(pipeline.make_dataset(paths, config.input, training=True, batch_size=BATCH_SIZE)))
    batch = batch_augment.augment(batch, config.input.augment, config.input.preprocessing)
    assigned = targets.assign(batch, config.input, method="dense")
    assert result.num_positives == np.sum(assigned.class_targets.numpy() >= 0)
    for move, gradient in zip(moves, float64_gradients(weights, batch.images, assigned, config.loss)):
        np.testing.assert_allclose(-move, gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max())


def test_images_without_objects_train_without_nan(tmp_path):
    path = tmp_path / "train-00000-of-00001.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for index in range(BATCH_SIZE):
            writer.write(toy_shards.example(f"{index}", toy_shards.blocks(index)[0], [], []))
    config = tiny.config(input=dataclasses.replace(tiny.CONFIG.input, augment=AugmentConfig()))
    result, moves = one_step(tf.distribute.OneDeviceStrategy("/cpu:0"), [str(path)], config)
    assert result.num_positives == 0
    assert result.losses.box_loss == 0
    assert all(np.all(np.isfinite(move)) for move in moves)
