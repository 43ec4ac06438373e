"""The assembled network: shapes, precisions, gradients, replicas, checkpoints and exports."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from input import anchors
from input.config import AnchorConfig
from model import retinanet
from model.config import ModelConfig
from model.types import Predictions

IMAGE_SIZE = (64, 96)
NUM_CLASSES = 3
CONFIG = ModelConfig(backbone="resnet18", neck_filters=16, head_convs=1, norm="sync")


def make_model(config=CONFIG, image_size=IMAGE_SIZE):
    return retinanet.make_model(config, num_classes=NUM_CLASSES, anchors_per_location=9, image_size=image_size)


def set_gammas(model):
    """Replaces the zero gammas, which keep an untrained block's convolutions from having an effect or a gradient."""
    for layer in model.backbone.conv_norms:
        layer.norm.gamma.assign(0.5 * tf.ones_like(layer.norm.gamma))


def loss_and_gradients(model, images):
    with tf.GradientTape() as tape:
        predictions = model(images, training=True)
        loss = tf.reduce_sum(tf.sigmoid(predictions.class_logits)) + tf.reduce_sum(predictions.box_deltas**2)
    return loss, tape.gradient(loss, model.trainable_variables)


@pytest.fixture(scope="module")
def images():
    return tf.random.stateless_normal([4, *IMAGE_SIZE, 3], seed=[0, 0])


@pytest.fixture(scope="module")
def model():
    tf.keras.utils.set_random_seed(0)
    model = make_model()
    set_gammas(model)
    return model


def test_predicts_for_every_anchor(model, images):
    num_anchors = len(anchors.make_anchors(AnchorConfig(), IMAGE_SIZE))
    graph = tf.function(model).get_concrete_function(tf.TensorSpec([None, *IMAGE_SIZE, 3]), training=False)
    assert isinstance(graph.structured_outputs, Predictions)
    assert graph.structured_outputs.class_logits.shape.as_list() == [None, num_anchors, NUM_CLASSES]
    assert graph.structured_outputs.box_deltas.shape.as_list() == [None, num_anchors, 4]
    for eager, compiled in zip(model(images), graph(images)):
        assert eager.dtype == tf.float32
        np.testing.assert_allclose(eager, compiled, rtol=1e-4, atol=1e-5)


def test_every_variable_has_a_gradient(model, images):
    _, gradients = tf.function(loss_and_gradients)(model, images)
    for variable, gradient in zip(model.trainable_variables, gradients):
        assert np.any(gradient != 0), variable.name
        assert np.all(np.isfinite(gradient)), variable.name


@pytest.mark.parametrize("head_norm", ["batch", "group"])
def test_every_variable_of_a_bifpn_and_of_normalised_heads_has_a_gradient(images, head_norm):
    settings = {"neck": "bifpn", "neck_repeats": 1, "head_norm": head_norm, "separable_convs": head_norm == "batch"}
    model = make_model(dataclasses.replace(CONFIG, **settings))
    set_gammas(model)
    loss, gradients = tf.function(loss_and_gradients)(model, images)
    assert np.isfinite(loss)
    for variable, gradient in zip(model.trainable_variables, gradients):
        assert np.any(gradient != 0), variable.name
        assert np.all(np.isfinite(gradient)), variable.name


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_computes_in_half_precision_and_predicts_in_float32(model, policy):
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        half = make_model(image_size=(32, 32))
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert {variable.dtype for variable in half.trainable_variables} == {tf.float32}
    half.set_weights(model.get_weights())
    image = tf.random.stateless_normal([1, 32, 32, 3], seed=[0, 0])
    graph = tf.function(half)
    dtypes = {
        op.outputs[0].dtype for op in graph.get_concrete_function(image).graph.get_operations() if op.type == "Conv2D"
    }
    assert dtypes == {tf.as_dtype(policy.removeprefix("mixed_"))}
    for prediction, expected in zip(graph(image), model(image)):
        assert prediction.dtype == tf.float32
        np.testing.assert_allclose(prediction, expected, rtol=0.05, atol=0.05)


@pytest.mark.slow
def test_two_replicas_have_the_gradients_of_one(two_replicas, model, images):
    with two_replicas.scope():
        replicated = make_model()
    replicated.set_weights(model.get_weights())
    halves = two_replicas.experimental_distribute_values_from_function(
        lambda context: images[2 * context.replica_id_in_sync_group :][:2]
    )

    @tf.function
    def step(images):
        loss, gradients = loss_and_gradients(replicated, images)
        return tf.distribute.get_replica_context().all_reduce("sum", [loss, *gradients])

    loss, *gradients = (two_replicas.experimental_local_results(v)[0] for v in two_replicas.run(step, args=(halves,)))
    expected_loss, expected_gradients = tf.function(loss_and_gradients)(model, images)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-4)
    difference = tf.linalg.global_norm([a - b for a, b in zip(gradients, expected_gradients)])
    assert difference < 1e-3 * tf.linalg.global_norm(expected_gradients)


def test_a_restored_checkpoint_gives_the_same_predictions(model, images, tmp_path):
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
    branches = {key.split("/")[1] for key, _ in tf.train.list_variables(path) if key.startswith("model/")}
    assert branches == {"backbone", "neck", "class_head", "box_head"}
    other = make_model()
    assert not np.allclose(other(images).class_logits, model(images).class_logits)
    tf.train.Checkpoint(model=other).read(path).assert_consumed()
    for restored, expected in zip(other(images), model(images)):
        np.testing.assert_array_equal(restored, expected)


def test_an_export_gives_the_same_predictions(model, images, tmp_path):
    module = tf.Module()
    module.variables_ = model.variables  # rather than the Keras model, because each of its layers would be traced
    serve = tf.function(lambda images: model(images, training=False)._asdict())
    signature = serve.get_concrete_function(tf.TensorSpec([None, *IMAGE_SIZE, 3], name="images"))
    tf.saved_model.save(module, str(tmp_path), signatures=signature)
    served = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](images=images)
    expected = model(images)
    assert served.keys() == set(expected._fields)
    for name, prediction in served.items():
        np.testing.assert_allclose(prediction, getattr(expected, name), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("neck", ["fpn", "panet"])
def test_compiled_training_equals_uncompiled(neck, images):
    """In float64: in float32 XLA's order of summation moves values across zero, where the gradient of a ReLU jumps."""
    tf.keras.mixed_precision.set_global_policy("float64")
    try:
        model = make_model(ModelConfig(backbone="resnet18", neck=neck, neck_filters=16, head_convs=1))
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    images = tf.cast(images, tf.float64)
    set_gammas(model)
    loss, gradients = tf.function(loss_and_gradients)(model, images)
    compiled_loss, compiled_gradients = tf.function(loss_and_gradients, jit_compile=True)(model, images)
    np.testing.assert_allclose(compiled_loss, loss, rtol=1e-4)
    difference = tf.linalg.global_norm([a - b for a, b in zip(compiled_gradients, gradients)])
    assert difference < 1e-3 * tf.linalg.global_norm(gradients)


@pytest.mark.parametrize("image_size", [(64, 100), (0, 64)])
def test_sides_that_are_no_multiples_of_32_are_refused(image_size):
    with pytest.raises(ValueError, match="multiples of 32"):
        make_model(image_size=image_size)


def test_a_network_without_classes_is_refused():
    with pytest.raises(ValueError, match="at least one class; got 0"):
        retinanet.make_model(CONFIG, num_classes=0, anchors_per_location=9, image_size=IMAGE_SIZE)
