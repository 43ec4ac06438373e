"""What a GPU would do in a training step and an evaluation, read off their traces; no GPU is needed."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pathlib
import tempfile
from typing import Any
from unittest import mock

import gpu_kernels
import pytest
import tensorflow as tf
import toy_shards

from input import batch_augment, pipeline
from input.config import AugmentConfig, InputConfig, MatchConfig
from input.types import Batch
from model import efficientnet_lite, resnet
from model.config import BOX_LOSSES, NECKS, LossConfig, ModelConfig
from trainer import checkpoints, distribution, inference, optimizers, step, virtual_gpu
from trainer.config import Config, OptimizerConfig, TrainConfig
from trainer.loop import make_train_loop

pytestmark = pytest.mark.skipif(
    not tf.sysconfig.get_build_info()["is_cuda_build"],
    reason="this TensorFlow is built without CUDA and registers no GPU kernels",
)

BATCH_SIZE = 16  # of a replica
IMAGE_SIZE = (640, 640)


@dataclasses.dataclass(frozen=True)
class Case:
    """The settings that change which ops a step runs."""

    augment: str = "default"
    precision: str = "float32"
    optimizer: str = "sgd"
    neck: str = "fpn"
    assignment: str = "device"
    norm: str = "local"
    box_loss: str = "smooth_l1"
    class_loss: str = "focal"
    ema_decay: float = 0.0
    match: str = "iou"
    ties: str = "first"
    head_norm: str = "none"
    separable_convs: bool = False
    backbone: str = "resnet18"
    accumulation_steps: int = 1

    def __str__(self) -> str:
        return "-".join(str(value) for value in dataclasses.astuple(self))


PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
AUGMENTATIONS = {
    **{name: AugmentConfig.preset(name) for name in ("none", "paper", "default", "strong")},
    "all": dataclasses.replace(AugmentConfig.preset("strong"), vertical_flip=0.5, cutmix=0.5, randaugment=2),
}
PLAIN = Case(norm="sync")
CASES = [
    PLAIN,
    Case(augment="all", precision="mixed_float16", optimizer="adamw", neck="panet", norm="group"),
    Case(
        augment="strong",
        precision="mixed_bfloat16",
        assignment="host",
        norm="frozen",
        box_loss="ciou",
        class_loss="quality_focal",
        ema_decay=0.999,
        neck="bifpn",
        head_norm="group",
        separable_convs=True,
    ),
]
MORE_CASES = [
    *(Case(augment, assignment=place) for augment in AUGMENTATIONS for place in ("device", "host")),
    *itertools.starmap(functools.partial(Case, "default"), itertools.product(PRECISIONS, ("sgd", "adamw"), NECKS)),
    *(Case(norm=norm) for norm in ("frozen", "group")),
    *(Case(precision=precision, head_norm="group") for precision in PRECISIONS),
    *(Case(precision=precision, neck="bifpn", separable_convs=True) for precision in PRECISIONS),
    Case(precision="mixed_float16", neck="bifpn", norm="sync", head_norm="batch"),
    *(Case(box_loss=loss) for loss in BOX_LOSSES),
    Case(class_loss="quality_focal"),
    Case(optimizer="lamb"),
    Case(match="atss"),
    Case(ties="nearest"),
    *(Case(precision=precision, backbone="efficientnet_lite0") for precision in PRECISIONS),
]
IN_PARTS = [
    Case(accumulation_steps=2),
    pytest.param(Case(accumulation_steps=2, precision="mixed_float16", assignment="host"), marks=pytest.mark.slow),
]
each_case = pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE_CASES)], ids=str
)


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One block a stage: tracing takes most of this file's time."""
    monkeypatch.setitem(resnet.LAYOUTS, "resnet18", (False, (1, 1, 1, 1)))
    one_block_each = tuple(((6, 3, 2, filters, 1),) for filters in (24, 40, 112, 320))
    monkeypatch.setattr(efficientnet_lite, "STAGES", one_block_each)


@functools.cache
def strategy() -> tf.distribute.Strategy:
    """Reduces with collectives, as with GPUs, unlike the fixture `two_replicas`; nothing here runs a step."""
    return tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])


def make_config(case: Case) -> Config:
    return Config(
        labels=tuple(f"class {index}" for index in range(80)),
        input=InputConfig(
            image_size=IMAGE_SIZE,
            batch_size=BATCH_SIZE * 2,
            target_assignment=case.assignment,
            augment=AUGMENTATIONS[case.augment],
            match=MatchConfig(assignment=case.match, low_quality_ties=case.ties),
        ),
        model=ModelConfig(
            backbone=case.backbone,
            neck=case.neck,
            neck_repeats=1,
            head_convs=1,
            head_norm=case.head_norm,
            separable_convs=case.separable_convs,
            norm=case.norm,
        ),
        loss=LossConfig(box_loss=case.box_loss, class_loss=case.class_loss),
        train=TrainConfig(ema_decay=case.ema_decay, accumulation_steps=case.accumulation_steps),
    )


@functools.cache
def batch_spec() -> Batch:
    """The shapes of a replica's batch."""
    with tempfile.TemporaryDirectory() as folder:
        paths = toy_shards.write_shards(pathlib.Path(folder), 2, 1)
        config = InputConfig(image_size=IMAGE_SIZE)
        return pipeline.make_dataset(paths, config, training=True, batch_size=BATCH_SIZE).element_spec


def blank_batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
    batch = batch_spec()

    def blank(_: tf.Tensor) -> Batch:
        return tf.nest.map_structure(lambda spec: tf.zeros(spec.shape, spec.dtype), batch)

    return tf.data.Dataset.range(1).repeat().map(blank)


@functools.cache
def train_loop(case: Case) -> Any:
    """The train loop of two replicas as a concrete function; TensorFlow is made to believe in GPUs where Keras asks."""
    config = make_config(case)
    tf.keras.mixed_precision.set_global_policy(case.precision)
    gpus = [tf.config.PhysicalDevice(f"/physical_device:GPU:{index}", "GPU") for index in range(2)]
    with strategy().scope():
        model = checkpoints.make_model(config)
        with mock.patch("tensorflow.compat.v2.config.list_physical_devices", return_value=gpus):  # as Keras asks
            optimizer = optimizers.make_optimizer(
                OptimizerConfig(optimizer=case.optimizer),
                train_steps=10,
                loss_scaling=case.precision == "mixed_float16",
            )
        optimizer.build(model.trainable_variables)
        averaged = checkpoints.make_model(config) if case.ema_decay else None

    def dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        batches = blank_batches(context).map(pipeline.only_for_training)
        if case.assignment == "host":
            return pipeline.assign_on_host(batches, config.input)
        return batches.map(lambda batch: (batch,))

    with mock.patch.object(distribution, "device_type", return_value="GPU"):
        loop: Any = make_train_loop(strategy(), model, optimizer, config, averaged)
    iterator = iter(strategy().distribute_datasets_from_function(dataset))
    loop.get_concrete_function(iterator, tf.constant(3))
    function = loop.get_concrete_function(iterator, tf.constant(20))
    assert loop.experimental_get_tracing_count() == 1
    return function


@functools.cache
def training(case: Case) -> gpu_kernels.Findings:
    return gpu_kernels.examine(train_loop(case))


@functools.cache
def evaluation(precision: str) -> gpu_kernels.Findings:
    tf.keras.mixed_precision.set_global_policy(precision)
    config = make_config(PLAIN)
    model = checkpoints.make_model(config)
    spec = batch_spec()
    detect = tf.function(inference.make_detector(model, config))
    return gpu_kernels.examine(detect.get_concrete_function(spec.images, spec.transforms, spec.original_sizes))


def describe(crossings: list[gpu_kernels.Crossing], limit: int) -> list[str]:
    return sorted({str(crossing) for crossing in crossings if crossing.num_bytes > limit})


@each_case
def test_every_op_of_a_training_step_has_a_gpu_kernel(case: Case) -> None:
    assert {operation.type for operation in training(case).without_kernel} <= {"Timestamp"}


@each_case
def test_no_tensor_above_1_kb_leaves_or_enters_the_gpu_in_a_training_step(case: Case) -> None:
    assert not describe(training(case).crossings, 1000)


@each_case
def test_no_float64_or_string_in_a_training_step(case: Case) -> None:
    wide = [
        tensor.name
        for operation in training(case).operations
        for tensor in operation.outputs
        if tensor.dtype == tf.string or (tensor.dtype == tf.float64 and tensor.shape.rank != 0)
    ]
    assert not wide


@each_case
def test_xla_compiles_our_own_stages_alone(case: Case) -> None:
    names = {operation.node_def.attr["f"].func.name for operation in training(case).compiled}
    first = "augment_images" if case.assignment == "host" else "augment_and_assign"
    assert {name.rstrip("_0123456789") for name in names} == {
        f"__inference_{first}",
        "__inference_losses_and_gradients",
    }


@pytest.mark.parametrize("case", IN_PARTS, ids=str)
def test_a_step_in_parts_stays_on_the_gpu(case: Case) -> None:
    findings = training(case)
    assert {operation.type for operation in findings.without_kernel} <= {"Timestamp"}
    assert not describe(findings.crossings, 1000)


@pytest.mark.parametrize(
    "config",
    [AugmentConfig(mosaic=0.5), AugmentConfig(cutmix=0.5), AugmentConfig(mixup=0.5)],
    ids=["mosaic", "cutmix", "mixup"],
)
def test_mixing_has_gpu_kernels_without_xla_as_well(config: AugmentConfig) -> None:
    function = tf.function(lambda batch: batch_augment.augment(batch, config))
    findings = gpu_kernels.examine(function.get_concrete_function(batch_spec()))
    assert not {operation.type for operation in findings.without_kernel}


@each_case
def test_collectives_are_few_and_ordered(case: Case) -> None:
    """Of positives, of losses, of each pack of gradients, and two of each synchronised layer."""
    found = [
        operation
        for operation in training(case).operations
        if operation.type.startswith("Collective") and operation.device.endswith(":0")
    ]
    for operation in found[1:]:
        assert any(other in found for other in operation.control_inputs), operation.name
    packs = [operation for operation in found if operation.inputs[0].shape.num_elements() > 10_000]
    is_light = case.separable_convs or case.backbone.startswith("efficientnet_lite")  # its gradients fit into one
    assert len(packs) >= (1 if is_light else 2)
    num_synchronised = 0
    if case.norm == "sync":  # one for each convolution of the backbone and of a BiFPN, and for each level in both heads
        num_synchronised = 12 + 12 * (case.neck == "bifpn") + 2 * 5 * (case.head_norm == "batch")
    assert len(found) == 2 + len(packs) + 2 * num_synchronised


@each_case
def test_operations_of_a_training_step_are_within_the_budget(case: Case) -> None:
    """Starting an operation takes time on the host, and a fast GPU would wait for it. Of two replicas together.

    The most were 3,821 with SGD (float16, PANet), 5,911 with AdamW (float16, PANet, group norm) and 6,081 with LAMB.
    With SGD a BiFPN had 5,539 (float16, separable convolutions); with norms in the heads it had 9,096 with group norm
    (separable convolutions, averaged weights) and 8,263 with synchronised norms.
    """
    run = [operation for operation in training(case).operations if operation.type != "Const"]
    budget = {"sgd": 5_000, "adamw": 6_500, "lamb": 6_700}[case.optimizer]
    num_norms = 12 * (case.neck == "bifpn") + 2 * 5 * (case.head_norm != "none")  # outside the backbone
    assert len(run) < budget + (60 if case.norm == "local" and case.head_norm != "group" else 260) * num_norms


@pytest.mark.parametrize(
    "precision",
    [
        "mixed_float16",
        pytest.param("float32", marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", marks=pytest.mark.slow),
    ],
)
def test_evaluation_stays_on_the_gpu(precision: str) -> None:
    findings = evaluation(precision)
    assert not {operation.type for operation in findings.without_kernel}
    assert not describe(findings.crossings, 256_000)
    assert not findings.compiled


@functools.cache
def step_of_one_replica(precision: str) -> Any:
    """A whole training step as a concrete function of a batch."""
    tf.keras.mixed_precision.set_global_policy(precision)
    config = make_config(Case(precision=precision))
    model = checkpoints.make_model(config)
    optimizer = optimizers.make_optimizer(OptimizerConfig(), train_steps=10, loss_scaling=False)
    optimizer.build(model.trainable_variables)
    train_step = step.make_train_step(model, optimizer, config, method="dense", compile_stages=True)
    return tf.function(train_step).get_concrete_function(batch_spec())


@pytest.mark.parametrize("precision", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
def test_half_precision_keeps_its_layout_and_fits_into_the_budget(precision: str) -> None:
    run = virtual_gpu.run(step_of_one_replica(precision))
    layouts = {node.attr["data_format"].s for node in run.nodes if "data_format" in node.attr}
    assert layouts == {b"NHWC"}
    transposed = {tf.as_dtype(node.attr["T"].type) for node in run.nodes if node.op == "Transpose"}
    assert transposed <= {tf.int32}  # of shapes
    assert run.peak_bytes < 3.3 * 2**30
