"""What a network costs: parameters, arithmetic and a GPU's memory, read off the trace of its training step."""

from __future__ import annotations

import collections
import dataclasses
import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import tensorflow as tf

from input import anchors, augment, random_numbers
from input.config import InputConfig
from input.types import Batch
from trainer import checkpoints, distribution, optimizers, step, virtual_gpu
from trainer.config import Config

GPU_SIZES = (16, 24, 40, 80)  # GB
_USABLE = 0.9  # of a GPU's memory; the rest is for CUDA, cuDNN's workspace and fragments, which no trace shows
_PRECISIONS = ("float32", "mixed_float16")
# The peak of memory is a straight line over the images, drawn through these. With few small images it would lie in the
# update of the weights instead of the backward pass.
_BATCH_SIZES = (32, 64)


class Stage(NamedTuple):
    """The cost of a part of the network."""

    parameters: int  # that are trained
    flops: int  # of the forward pass of an image
    kept_bytes: tuple[float, ...]  # by precision: what the forward pass of an image leaves for the backward pass


class Memory(NamedTuple):
    """The memory of a training step on one GPU, in bytes."""

    variables: int  # of the network and the optimizer
    image: float  # added at the peak by each image of a pass through the network
    rest: float  # added at the peak by everything else, such as copies of the weights in float16
    waiting: float = 0.0  # added for each image of a pass by those that wait for theirs; 0 where there is one pass

    def peak(self, num_images: int) -> float:
        """With so many images in a pass."""
        return self.variables + self.rest + num_images * (self.image + self.waiting)

    def most_images(self, gigabytes: float) -> int:
        """How many images of a pass a replica's GPU of so many GB takes; 0: not one."""
        return max(0, int((gigabytes * 1e9 * _USABLE - self.variables - self.rest) / (self.image + self.waiting)))


class ModelCost(NamedTuple):
    """The cost of the network of a `Config`."""

    stages: dict[str, Stage]  # in the order of the forward pass
    step_flops: int  # of an image, forward and backward
    memory: dict[str, Memory]  # by precision


class _Traced(NamedTuple):
    """The training step of one replica."""

    functions: list[Any]  # concrete functions, for each of _BATCH_SIZES
    model: tf.keras.Model
    variables_bytes: int


def measure(config: Config) -> ModelCost:
    """Traces the training step of `config` in float32 and in float16; `labels` must be filled in."""
    traced = {precision: _trace(_one_pass(config), precision) for precision in _PRECISIONS}
    model, graph = traced["float32"].model, traced["float32"].functions[0].graph
    parameters: collections.Counter[str] = collections.Counter()
    for variable in model.trainable_variables:
        parameters[_stage_of(variable.name, model)] += variable.shape.num_elements()
    flops: collections.Counter[str] = collections.Counter()
    for operation in graph.get_operations():
        if operation.name.startswith(f"{model.name}/"):
            flops[_stage_of(operation.name, model)] += count_flops([operation])
    kept = [_kept_bytes(traced[precision]) for precision in _PRECISIONS]
    return ModelCost(
        stages={
            name: Stage(
                parameters=parameters[name],
                flops=flops[name] // _BATCH_SIZES[0],
                kept_bytes=tuple(by_stage[name] / _BATCH_SIZES[0] for by_stage in kept),
            )
            for name in dict.fromkeys(_parts(model).values())
        },
        step_flops=count_flops(graph.get_operations()) // _BATCH_SIZES[0],
        memory={precision: _memory(traced[precision], config) for precision in _PRECISIONS},
    )


def measure_memory(config: Config, precision: str) -> Memory:
    """As `measure`, but the memory in one precision alone, which takes less time."""
    return _memory(_trace(_one_pass(config), precision), config)


def count_flops(operations: Iterable[tf.Operation]) -> int:
    """Floating point operations of the convolutions among these and of their gradients.

    An output of a convolution takes a multiplication and an addition for each weight of its filter. The gradient by the
    inputs takes as many, and so does that by the weights.
    """
    total = 0
    for operation in operations:
        if operation.type in ("Conv2D", "DepthwiseConv2dNative"):
            kernel, outputs = operation.inputs[1], operation.outputs[0]
        elif not operation.outputs or not operation.outputs[0].consumers():
            continue  # such as the gradient by the images, which TensorFlow drops
        elif operation.type in ("Conv2DBackpropInput", "DepthwiseConv2dNativeBackpropInput"):
            kernel, outputs = operation.inputs[1:]
        elif operation.type in ("Conv2DBackpropFilter", "DepthwiseConv2dNativeBackpropFilter"):
            kernel, outputs = operation.outputs[0], operation.inputs[2]
        else:
            continue
        weights = kernel.shape[:2] if operation.type.startswith("Depthwise") else kernel.shape[:3]
        total += 2 * outputs.shape.num_elements() * weights.num_elements()
    return total


def _one_pass(config: Config) -> Config:
    """One of the passes that --accumulation_steps makes; `_memory` adds what the others need."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, accumulation_steps=1))


def _trace(config: Config, precision: str) -> _Traced:
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))
    policy, level = tf.keras.mixed_precision.global_policy(), tf.get_logger().level
    tf.get_logger().setLevel(logging.ERROR)  # Keras would warn that float16 is slow without a GPU
    try:
        tf.keras.mixed_precision.set_global_policy(precision)
        model = checkpoints.make_model(config)
        optimizer = optimizers.make_optimizer(
            config.train.optimizer,
            train_steps=1,
            loss_scaling=precision == "mixed_float16",
            backbone=model.backbone.name,
        )
        optimizer.build(model.trainable_variables)
        train_step = step.make_train_step(
            model, optimizer, config, method="dense", compile_stages=config.train.compile_stages
        )
        function = tf.function(train_step)
        functions = [function.get_concrete_function(_batch_spec(config.input, size)) for size in _BATCH_SIZES]
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
        tf.get_logger().setLevel(level)
    variables = [*model.variables, *optimizer.variables()]
    if config.train.ema_decay:
        variables += model.variables
    return _Traced(functions, model, sum(variable.shape.num_elements() * variable.dtype.size for variable in variables))


def _batch_spec(config: InputConfig, batch_size: int) -> Batch:
    def blank() -> Batch:
        return augment.blank(
            config,
            record_index=tf.zeros([batch_size], tf.int64),
            random_numbers=tf.zeros([batch_size, random_numbers.NUM_PER_IMAGE]),
        )

    return tf.nest.map_structure(
        tf.TensorSpec.from_tensor, tf.function(blank).get_concrete_function().structured_outputs
    )


def _memory(traced: _Traced, config: Config) -> Memory:
    small, large = (virtual_gpu.run(function).peak_bytes for function in traced.functions)
    image = (large - small) / (_BATCH_SIZES[1] - _BATCH_SIZES[0])
    rest, waiting = small - _BATCH_SIZES[0] * image, 0.0
    if (passes := config.train.accumulation_steps) > 1:
        rest += 4 * sum(variable.shape.num_elements() for variable in traced.model.trainable_variables)  # of gradients
        # Nothing makes a cast of the weights wait for its pass, so those of all passes may lie in memory at once.
        rest += (passes - 1) * _cast_weights_bytes(traced)
        waiting = passes * _prepared_image_bytes(config.input)
    return Memory(variables=traced.variables_bytes, image=image, rest=rest, waiting=waiting)


def _cast_weights_bytes(traced: _Traced) -> int:
    """The bytes of all copies of weights in half precision that a pass makes."""
    casts = [
        operation.outputs[0]
        for operation in traced.functions[0].graph.get_operations()
        if operation.type == "Cast" and operation.inputs[0].op.type == "ReadVariableOp"
    ]
    return sum(tensor.shape.num_elements() * tensor.dtype.size for tensor in casts)


def _prepared_image_bytes(config: InputConfig) -> int:
    """The bytes of an image as the network takes it, float32, and of its targets: a class, a box and a weight each."""
    height, width = config.image_size
    return 4 * (3 * height * width + (1 + 4 + 1) * len(anchors.make_anchors(config.anchor, config.image_size)))


def _kept_bytes(traced: _Traced) -> collections.Counter[str]:
    """By stage: the bytes of all tensors of the forward pass that the backward pass reads."""
    forward = {
        tensor.ref()
        for operation in traced.functions[0].graph.get_operations()
        if operation.name.startswith("gradient_tape/")
        for tensor in operation.inputs
        if tensor.name.startswith(f"{traced.model.name}/")
    }
    kept: collections.Counter[str] = collections.Counter()
    for tensor in (reference.deref() for reference in forward):
        if (tensor.shape.rank or 0) > 1 and tensor.shape[0] == _BATCH_SIZES[0]:  # otherwise it is a weight
            kept[_stage_of(tensor.name, traced.model)] += tensor.shape.num_elements() * tensor.dtype.size
    return kept


def _parts(model: tf.keras.Model) -> dict[str, str]:
    """By the name of a layer, the stage that it belongs to, in the order of the forward pass."""
    backbone = {
        layer.name: f"stage {number}" for number, stage in enumerate(model.backbone.stages, 1) for layer in stage
    }
    return {model.backbone.stem.name: "stem", **backbone, **{name: name for name in _after_backbone(model)}}


def _after_backbone(model: tf.keras.Model) -> list[str]:
    return [layer.name for layer in (model.neck, model.class_head, model.box_head)]


def _stage_of(name: str, model: tf.keras.Model) -> str:
    """The stage of an op, a tensor or a variable called retinanet/LAYER/... or retinanet/BACKBONE/LAYER/..."""
    _, *layers = name.split("/")
    parts = _parts(model)
    return next((parts[layer] for layer in layers[:2] if layer in parts), "stem")  # the stem: the cast of the images


def describe(config: Config, num_replicas: int) -> str:
    """The cost of the network of `config` as text, with the batches that fit into GPUs of several sizes.

    Raises:
      ValueError: the batch cannot be split over so many replicas.
    """
    distribution.check_replicas(config, num_replicas)
    config = distribution.resolve_norm(config, num_replicas)
    cost = measure(config)
    height, width = config.input.image_size
    total = Stage(
        parameters=sum(stage.parameters for stage in cost.stages.values()),
        flops=sum(stage.flops for stage in cost.stages.values()),
        kept_bytes=tuple(map(sum, zip(*(stage.kept_bytes for stage in cost.stages.values())))),
    )
    passes = config.train.accumulation_steps
    per_pass = config.input.batch_size // num_replicas // passes
    memory = list(cost.memory.values())
    stages = [
        ["stage", "parameters", "GFLOP", "kept, float32", "kept, float16"],
        *(
            [
                name,
                f"{stage.parameters:,}",
                f"{stage.flops / 1e9:.2f}",
                *(f"{x / 1e6:,.1f} MB" for x in stage.kept_bytes),
            ]
            for name, stage in {**cost.stages, "all": total}.items()
        ),
    ]
    peaks = [
        ["memory of a replica", "float32", "float16"],
        ["weights and optimizer", *(f"{part.variables / 1e9:.2f} GB" for part in memory)],
        ["each image", *(f"{part.image / 1e9:.2f} GB" for part in memory)],
        *([["those that wait, for each", *(f"{part.waiting / 1e9:.2f} GB" for part in memory)]] if passes > 1 else []),
        ["the rest", *(f"{part.rest / 1e9:.2f} GB" for part in memory)],
        [f"peak with {per_pass} images", *(f"{part.peak(per_pass) / 1e9:.2f} GB" for part in memory)],
    ]
    fitting = [
        ["largest --batch_size", "float32", "float16"],
        *(
            [f"{num_replicas} x {size} GB", *(f"{part.most_images(size) * num_replicas * passes}" for part in memory)]
            for size in GPU_SIZES
        ),
    ]
    network = f"{config.model.backbone}-{config.model.neck} at {height}x{width}, {len(config.labels)} classes"
    return f"""\
{network}, --norm={config.model.norm}, --optimizer={config.train.optimizer.optimizer}

{_table(stages)}

GFLOP: of an image's forward pass; {cost.step_flops / 1e9:.0f} in a training step. Only convolutions are counted, a
multiplication and an addition as two. Kept: what an image's forward pass leaves in memory for the backward pass.

{_table(peaks)}

{_table(fitting)}

The memory is an estimate: TensorFlow's scheduler runs the traced step on a GPU that does not exist. A tenth of each GPU
is left for what the trace does not show: CUDA, cuDNN's workspace, fragments, packs of gradients. bfloat16 takes what
float16 takes.
"""


def _table(rows: list[list[str]]) -> str:
    """Rows as lines, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    )
