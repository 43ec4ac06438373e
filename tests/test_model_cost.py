"""The cost of a network, against Keras's ResNet-50, TensorFlow's own count and values worked by hand."""

import dataclasses
import pathlib
import subprocess
import sys

import published
import pytest
import tensorflow as tf
import tiny
from tensorflow.python.framework import ops

from model import pretrained, resnet
from model.config import ModelConfig
from trainer import model_cost, virtual_gpu

CHECKOUT = pathlib.Path(__file__).parent.parent


def convolutions(function, *shapes):
    graph = tf.function(function).get_concrete_function(*(tf.TensorSpec(shape) for shape in shapes)).graph
    return graph.get_operations()


def test_flops_of_a_convolution_and_of_its_gradients():
    """A 3x3 filter of 4 channels makes 5 channels of 3x2 places: 2 * 3 * 3 * 4 * (5 * 3 * 2) operations an image."""

    def both(images, kernel):
        with tf.GradientTape() as tape:
            tape.watch([images, kernel])
            outputs = tf.nn.conv2d(images, kernel, 2, "SAME")
        return tape.gradient(outputs, [images, kernel])

    found = convolutions(both, (7, 6, 4, 4), (3, 3, 4, 5))
    assert model_cost.count_flops(operation for operation in found if operation.type == "Conv2D") == 7 * 2160
    assert model_cost.count_flops(found) == 3 * 7 * 2160


def test_flops_of_a_depthwise_convolution():
    """A 3x3 filter for each of 4 channels, at 3x2 places: 2 * 3 * 3 * (4 * 3 * 2) operations an image."""
    found = convolutions(
        lambda images, kernel: tf.nn.depthwise_conv2d(images, kernel, [1, 2, 2, 1], "SAME"), (7, 6, 4, 4), (3, 3, 4, 1)
    )
    assert model_cost.count_flops(found) == 7 * 432


def test_a_gradient_that_nothing_reads_is_not_counted():
    def by_kernel(images, kernel):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            outputs = tf.nn.conv2d(images, kernel, 2, "SAME")
        return tape.gradient(outputs, kernel)

    assert model_cost.count_flops(convolutions(by_kernel, (7, 6, 4, 4), (3, 3, 4, 5))) == 2 * 7 * 2160


def test_resnet_50_against_keras():
    """Parameters against Keras, whose convolutions have a bias; FLOPs against TensorFlow's profiler."""
    keras = tf.keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))
    biases = sum(layer.filters for layer in keras.layers if isinstance(layer, tf.keras.layers.Conv2D))
    profiled = sum(
        ops.get_stats_for_node_def(operation.graph, operation.node_def, "flops").value
        for operation in convolutions(keras, (1, 64, 64, 3))
        if operation.type == "Conv2D"
    )
    ours = resnet.ResNet(ModelConfig(norm="local"))
    assert model_cost.count_flops(convolutions(ours, (1, 64, 64, 3))) == profiled
    trained = sum(weight.shape.num_elements() for weight in ours.trainable_weights)
    assert trained == sum(weight.shape.num_elements() for weight in keras.trainable_weights) - biases == 23_508_032


@pytest.fixture(scope="module")
def cost():
    """Of the tiny network on images of 128x128; a ResNet-18 with one block in each stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resnet.LAYOUTS, "resnet18", (False, (1, 1, 1, 1)))
        return model_cost.measure(tiny.config(input=dataclasses.replace(tiny.CONFIG.input, image_size=(128, 128))))


def test_what_a_head_costs(cost):
    """The class head has one hidden convolution, 8 filters wide, and one of 3 anchors * 2 classes = 6 outputs.

    Images of 128x128 have 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2 + 1 = 341 places on P3-P7. Kept for the backward pass is what
    the hidden convolution makes; what it reads is the neck's.
    """
    head = cost.stages["class_head"]
    assert head.parameters == (9 * 8 * 8 + 8) + (9 * 8 * 6 + 6)
    assert head.flops == 341 * 2 * (9 * 8 * 8 + 9 * 8 * 6)
    assert head.kept_bytes == (341 * 8 * 4, 341 * 8 * 2)


def test_a_step_is_three_forward_passes_without_the_gradient_by_the_images(cost):
    forward = sum(stage.flops for stage in cost.stages.values())
    first = 2 * 7 * 7 * 3 * 64 * 64 * 64
    assert cost.step_flops == 3 * forward - first


def test_memory(cost):
    num_parameters = sum(stage.parameters for stage in cost.stages.values())
    num_statistics = 2 * (64 + 2 * 64 + 3 * (128 + 256 + 512))  # a mean and a variance for each filter of the backbone
    for memory, position in zip(cost.memory.values(), (0, 1)):
        # Weights, their momentum and the moving statistics; the optimizer's few scalars besides.
        assert memory.variables == pytest.approx(4 * (2 * num_parameters + num_statistics), abs=64)
        kept = sum(stage.kept_bytes[position] for stage in cost.stages.values())
        assert kept < memory.image < 1.6 * kept
    assert cost.memory["mixed_float16"].image == pytest.approx(cost.memory["float32"].image / 2, rel=0.1)


def test_most_images():
    memory = model_cost.Memory(variables=300_000_000, image=500_000_000, rest=100_000_000)
    assert memory.peak(4) == 2_400_000_000
    assert memory.most_images(10) == 17  # of 9 GB 0.4 are taken
    assert memory.most_images(0.4) == 0
    in_parts = memory._replace(waiting=100_000_000)
    assert in_parts.peak(4) == 2_800_000_000
    assert in_parts.most_images(10) == 14


@pytest.mark.parametrize("precision", ["mixed_float16", pytest.param("float32", marks=pytest.mark.slow)])
def test_memory_of_a_step_in_parts(precision, monkeypatch):
    """Against the trace of the whole step; a single pass of it would have two thirds of this peak."""
    monkeypatch.setitem(resnet.LAYOUTS, "resnet18", (False, (1, 1, 1, 1)))
    config = tiny.config(input=dataclasses.replace(tiny.CONFIG.input, image_size=(128, 128)))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, accumulation_steps=4))
    memory = model_cost.measure_memory(config, precision)
    monkeypatch.setattr(model_cost, "_BATCH_SIZES", (4 * 32,))
    traced = model_cost._trace(config, precision)
    peak = virtual_gpu.run(traced.functions[0]).peak_bytes + traced.variables_bytes
    assert peak <= memory.peak(32) < 1.1 * peak


def test_the_memory_of_a_known_function():
    """The scheduler frees what an operation has read just after the next one has begun: 3 of the matrices are alive."""
    function = tf.function(lambda x: tf.reduce_sum(tf.cos(tf.sin(tf.exp(x)))))
    run = virtual_gpu.run(function.get_concrete_function(tf.TensorSpec([1000, 1000])))
    assert run.peak_bytes == pytest.approx(3 * 4_000_000, abs=1000)


def test_variables_are_not_in_the_peak():
    variable = tf.Variable(tf.zeros([1000, 1000]))
    function = tf.function(lambda: tf.reduce_sum(tf.exp(variable))).get_concrete_function()
    assert virtual_gpu.run(function).peak_bytes == pytest.approx(4_000_000, abs=1000)


def test_the_table(cost, monkeypatch):
    monkeypatch.setattr(model_cost, "measure", lambda config: cost)
    text = model_cost.describe(tiny.config(input=dataclasses.replace(tiny.CONFIG.input, batch_size=8)), 4)
    lines = {line[:12].strip(): line.split() for line in text.splitlines()}
    assert lines["class_head"][1] == f"{cost.stages['class_head'].parameters:,}"
    assert "peak with 2 images" in text
    most = [4 * memory.most_images(16) for memory in cost.memory.values()]
    assert lines["4 x 16 GB"][-2:] == list(map(str, most))
    assert 0 < most[0] < most[1]


def test_the_table_of_a_step_in_parts(cost, monkeypatch):
    memory = {precision: part._replace(waiting=part.image) for precision, part in cost.memory.items()}
    monkeypatch.setattr(model_cost, "measure", lambda config: cost._replace(memory=memory))
    input_config = dataclasses.replace(tiny.CONFIG.input, batch_size=32)
    text = model_cost.describe(tiny.config(input=input_config, train={"accumulation_steps": 4}), 4)
    lines = {line[:12].strip(): line.split() for line in text.splitlines()}
    assert "peak with 2 images" in text
    assert lines["those that w"][-4:-1:2] == lines["each image"][-4:-1:2]
    assert lines["4 x 16 GB"][-2:] == [str(16 * part.most_images(16)) for part in memory.values()]


def test_a_batch_that_cannot_be_split_is_refused(cost):
    with pytest.raises(ValueError, match="--batch_size=2"):
        model_cost.describe(tiny.CONFIG, 4)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "trainer.task", *arguments], cwd=CHECKOUT, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_command_needs_no_records():
    sizes = ("--image_size=128", "--backbone=resnet18", "--neck_filters=8", "--head_convs=1")
    result = command("--print_model", *sizes, "--batch_size=8", "--num_gpus=4")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("resnet18-fpn at 128x128, 80 classes, --norm=sync")


@pytest.mark.slow
def test_the_command_takes_what_starting_weights_decide(tmp_path):
    tensors = published.random_tensors(published.resnet_shapes((2, 2, 2, 2), bottleneck=False))
    path = str(tmp_path / "backbone.safetensors")
    pretrained.save(path, pretrained.translate(tensors, "published").weights)
    sizes = ("--image_size=128", "--backbone=resnet18", "--neck_filters=8", "--head_convs=1", "--batch_size=8")
    result = command("--print_model", *sizes, f"--backbone_weights={path}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("resnet18-fpn at 128x128, 80 classes, --norm=frozen")


def test_training_still_needs_records():
    result = command("--model_dir=nowhere")
    assert result.returncode != 0
    assert "Flag --train_records must have a value other than None." in result.stderr
