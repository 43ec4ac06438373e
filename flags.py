"""Every flag of the trainer; each default is read from its dataclass.

Only the commands read this module. `config_from_flags` turns the flags into frozen dataclasses, which they pass on.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from input.config import (
    ANCHOR_CONVENTIONS,
    ASSIGNMENTS,
    LOW_QUALITY_TIES,
    PREPROCESSINGS,
    AnchorConfig,
    AugmentConfig,
    InputConfig,
    MatchConfig,
    parse_image_size,
)
from model.config import (
    BACKBONES,
    BOX_LOSSES,
    CLASS_LOSSES,
    HEAD_NORMS,
    NECKS,
    NMS,
    NORMS,
    P6_SOURCES,
    PRE_NMS,
    RESNET_STRIDES,
    DetectConfig,
    LossConfig,
    ModelConfig,
)
from trainer.config import (
    COMMUNICATIONS,
    DISTRIBUTIONS,
    ON_NON_FINITE,
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    Config,
    OptimizerConfig,
    TrainConfig,
)

FLAGS = flags.FLAGS


def _define(config: type, name: str, text: str, *, choices: Sequence[str] = (), **bounds: Any) -> None:
    """Defines the flag of a setting, with the type and the default of its field in a dataclass."""
    default, kind = getattr(config, name), typing.get_type_hints(config)[name]
    if choices:
        flags.DEFINE_enum(name, default, choices, text)
    elif kind is bool:
        flags.DEFINE_bool(name, default, text)
    elif kind is int:
        flags.DEFINE_integer(name, default, text, **bounds)
    elif kind is float:
        flags.DEFINE_float(name, default, text, **bounds)
    elif kind is str:
        flags.DEFINE_string(name, default, text)
    else:
        flags.DEFINE_list(name, list(map(str, default)), text)


# Data and output
flags.DEFINE_list("train_records", None, "The shards to train on, as patterns such as 'OUT/train-*.tfrecord'.")
flags.DEFINE_list(
    "train_weights",
    [],
    "How often to show each pattern of --train_records, relative to the others, such as 3,1. "
    "Default: each image once an epoch.",
)
flags.DEFINE_list(
    "val_records", [], "The shards to evaluate on while training. Default: no evaluation, and no best checkpoint."
)
flags.DEFINE_string(
    "model_dir",
    None,
    "The run's folder, on a disk or in a bucket (gs://). Where it holds checkpoints, the run is resumed.",
)

# Input
flags.DEFINE_string(
    "image_size",
    "x".join(map(str, InputConfig.image_size)),
    "The size of the network's input in pixels: N, or HxW for height and width; padded up to a multiple of 32.",
)
_define(
    InputConfig,
    "preprocessing",
    "How pixels become the network's input. imagenet: minus ImageNet's mean, over its deviation. caffe: BGR minus the "
    "mean. tf_lite: (x - 127) / 128. auto: what the weights that the run starts from need, otherwise imagenet.",
    choices=PREPROCESSINGS,
)
_define(InputConfig, "batch_size", "Images in a step, over all replicas.", lower_bound=1)
_define(
    InputConfig,
    "max_boxes",
    "Largest number of objects in an image; the smallest beyond it are ignored.",
    lower_bound=1,
)
_define(InputConfig, "shuffle_buffer", "Encoded records in the shuffle buffer.", lower_bound=1)
flags.DEFINE_enum("augment", "default", ["none", "paper", "default", "strong"], "Preset of the augmentation.")
for _name, _help in {
    "iou_crop": "Probability of SSD's crop, which shows an object with a random IoU.",
    "scale_min": "Smallest size of scale jitter, relative to the size at which the image just fits.",
    "scale_max": "Largest size of scale jitter; what exceeds the input is cropped at a random position.",
    "warp": "Probability of rotation, shear and translation.",
    "rotate": "Largest angle of --warp, in degrees.",
    "shear": "Largest shift of x in --warp, as a share of y.",
    "translate": "Largest translation in --warp, as a share of each side.",
    "randaugment_magnitude": "Strength of RandAugment's operations, from 0 to 10.",
    "horizontal_flip": "Probability of a horizontal flip.",
    "vertical_flip": "Probability of a vertical flip.",
    "brightness": "Largest change of brightness, as a share of the full range.",
    "contrast": "Largest deviation of the contrast factor from 1.",
    "saturation": "Largest deviation of the saturation factor from 1.",
    "hue": "Largest rotation of the hue, in turns.",
    "grayscale": "Probability of grayscale.",
    "cutout": "Probability of a grey square over a part of the image.",
    "cutmix": "Probability that a part of another image replaces that part of this one.",
    "mixup": "Probability that another image is blended in.",
    "mosaic": "Probability of four images at half size in one.",
    "close_mosaic": "Share of the run, at its end, in which cutmix, mixup and mosaic are off.",
    "min_visible": "A cropped or covered box is kept if its centre or this share of its area is visible.",
}.items():
    flags.DEFINE_float(_name, None, f"{_help} Default: that of --augment.")
flags.DEFINE_integer(
    "randaugment", None, "Number of RandAugment's operations for an image, 0 to 3. Default: that of --augment."
)
_define(InputConfig, "target_assignment", "Where anchors are assigned to boxes.", choices=["device", "host"])
_define(
    InputConfig,
    "deterministic_input",
    "Give the same batches for the same seed. --nodeterministic_input: a slow image does not delay others.",
)
_define(InputConfig, "cache_records", "Keep the encoded records in memory after the first epoch.")
_define(
    InputConfig,
    "max_damaged",
    "Images that cannot be decoded are skipped, unless there are more than this.",
    lower_bound=0,
)
_define(
    InputConfig,
    "repeat_threshold",
    "Repeat the images of classes that appear in fewer than this share of the images (LVIS: 0.001). 0: none.",
)
_define(
    InputConfig,
    "data_service",
    "grpc://HOST:PORT of a tf.data service (python -m trainer.data_service) that reads, decodes and batches.",
)
_define(
    InputConfig,
    "private_threadpool_size",
    "Threads of the input pipeline. 0: it shares those of TensorFlow, one for each core.",
    lower_bound=0,
)
_define(InputConfig, "seed", "Seed of the weights, the order and the augmentation.", lower_bound=0)

# Anchors
flags.DEFINE_list(
    "anchor_sizes", list(map(str, AnchorConfig.sizes)), "Base size in pixels of each level's anchors, P3 to P7."
)
flags.DEFINE_list("anchor_scales", list(map(str, AnchorConfig.scales)), "Factors of the base size.")
_define(AnchorConfig, "aspect_ratios", "Width / height of the anchors.")
_define(
    AnchorConfig,
    "anchor_convention",
    "Where anchors stand and how they are rounded. paper: in the middle of each cell. torchvision: in its corner, with "
    "even sides. auto: as the detector that the run starts from needs, otherwise paper.",
    choices=ANCHOR_CONVENTIONS,
)
_define(MatchConfig, "positive_iou", "An anchor is positive from this IoU with a box.")
_define(MatchConfig, "negative_iou", "An anchor is background below this IoU with every box.")
_define(
    MatchConfig,
    "assignment",
    "How anchors are assigned. iou: by --positive_iou and --negative_iou. atss: by a threshold that each box gets from "
    "the anchors near it.",
    choices=ASSIGNMENTS,
)
_define(
    MatchConfig,
    "low_quality_ties",
    "Which anchors --force_match takes where a small box lies inside many and all fit alike.",
    choices=LOW_QUALITY_TIES,
)
_define(MatchConfig, "force_match", "Make the best anchor of each box positive, even below --positive_iou.")

# Network and losses
_define(ModelConfig, "backbone", "The backbone.", choices=BACKBONES)
_define(
    ModelConfig,
    "resnet_stride",
    "Convolution of a bottleneck that strides: 1x1 (Keras) or 3x3 (torchvision, timm). auto: what the weights that the "
    "run starts from need, otherwise 1x1.",
    choices=RESNET_STRIDES,
)
_define(
    ModelConfig,
    "freeze_stages",
    "Do not train so many stages of the backbone, from its stem on, and keep their statistics: 0 to 5.",
    lower_bound=0,
    upper_bound=5,
)
_define(ModelConfig, "neck", "The feature pyramid.", choices=NECKS)
_define(
    ModelConfig,
    "p6_from",
    "The map that P6 is made of. auto: what the weights that the run starts from need, otherwise c5.",
    choices=P6_SOURCES,
)
_define(ModelConfig, "neck_filters", "Width of the neck.", lower_bound=1)
_define(ModelConfig, "neck_repeats", "Repeats of the BiFPN.", lower_bound=1)
_define(ModelConfig, "head_convs", "Hidden convolutions in each head.", lower_bound=0)
_define(ModelConfig, "head_filters", "Width of the heads. 0: that of the neck.", lower_bound=0)
_define(
    ModelConfig,
    "head_norm",
    "Normalisation in the heads. group: group norm. batch: batch norm of each level alone, by --norm's statistics.",
    choices=HEAD_NORMS,
)
_define(ModelConfig, "separable_convs", "Depthwise separable convolutions in the BiFPN and in the heads.")
_define(ModelConfig, "prior_probability", "Foreground probability that a new class head predicts.")
_define(ModelConfig, "batch_norm_momentum", "Momentum of batch norm's moving mean and variance.")
_define(
    ModelConfig, "batch_norm_epsilon", "What batch norm adds to the variance; EfficientNet-Lite has at least 0.001."
)
_define(
    ModelConfig,
    "norm",
    "Normalisation. local: batch norm with each replica's statistics. sync: with those of all replicas. frozen: with "
    "fixed statistics and scale (and group norm in a BiFPN). group: group norm. auto: frozen for "
    "a run that starts from trained weights (but see docs/TRANSFER.md); sync for replicas of fewer than 8 images; "
    "otherwise local.",
    choices=NORMS,
)
_define(
    LossConfig,
    "class_loss",
    "Loss of the classes. quality_focal: the score learns to predict the IoU of its box as well.",
    choices=CLASS_LOSSES,
)
_define(
    LossConfig,
    "box_loss",
    "Loss of the boxes: smooth L1 of the deltas, or 1 - IoU with a term for boxes that do not overlap.",
    choices=BOX_LOSSES,
)
_define(LossConfig, "focal_alpha", "Weight of the foreground in the focal loss.")
_define(LossConfig, "focal_gamma", "Focusing exponent of the focal loss.", lower_bound=0.0)
_define(LossConfig, "smooth_l1_beta", "Error of a box delta at which smooth L1 turns from quadratic to linear.")
_define(LossConfig, "box_loss_weight", "Weight of the box loss.")

# Detections
_define(DetectConfig, "score_threshold", "Detections below this score are dropped.")
_define(DetectConfig, "pre_nms_top_k", "Best scores of an image that enter non-maximum suppression.", lower_bound=1)
_define(DetectConfig, "pre_nms", "Take --pre_nms_top_k of all levels together, or of each.", choices=PRE_NMS)
_define(
    DetectConfig,
    "nms",
    "Non-maximum suppression within each class, or agnostic: of all classes together, one label for each object.",
    choices=NMS,
)
_define(
    DetectConfig,
    "soft_nms_sigma",
    "Above 0, overlapping detections get lower scores instead of being dropped (Soft-NMS; 0.5 is usual); on the CPU.",
    lower_bound=0.0,
)
_define(DetectConfig, "nms_iou", "IoU above which the weaker of two detections of a class is dropped.")
_define(DetectConfig, "max_detections", "Largest number of detections in an image.", lower_bound=1)

# Optimizer
_define(OptimizerConfig, "optimizer", "The optimizer.", choices=OPTIMIZERS)
_define(OptimizerConfig, "learning_rate", "Peak learning rate, for the given batch size.")
_define(
    OptimizerConfig,
    "scale_learning_rate",
    "Multiply --learning_rate by --batch_size / 16, the paper's batch size (Goyal et al. 2017); the log says to what.",
)
_define(OptimizerConfig, "backbone_rate", "Learning rate of the backbone, as a share of that of the other layers.")
_define(OptimizerConfig, "lr_schedule", "Shape of the learning rate after the warm-up.", choices=SCHEDULES)
_define(OptimizerConfig, "lr_steps", "Shares of the run after which the step schedule lowers the rate tenfold.")
_define(
    OptimizerConfig, "lr_end", "Final rate of the cosine, polynomial and one_cycle schedules, as a share of the peak."
)
_define(OptimizerConfig, "lr_power", "Exponent of the polynomial schedule.")
_define(OptimizerConfig, "lr_decay", "Final rate of the exponential schedule, as a share of the peak.")
_define(
    OptimizerConfig,
    "warmup_steps",
    "Steps of the linear warm-up; at most a tenth of the run. The one_cycle schedule has its own.",
    lower_bound=0,
)
_define(OptimizerConfig, "momentum", "Momentum of SGD.")
_define(OptimizerConfig, "nesterov", "Look ahead along SGD's momentum (Nesterov).")
_define(OptimizerConfig, "weight_decay", "Weight decay of kernels, as the factor of an L2 term.", lower_bound=0.0)
_define(OptimizerConfig, "clip_norm", "Clip the gradients to this global norm. 0: no clipping.", lower_bound=0.0)

# Run
_define(TrainConfig, "epochs", "Passes over the training shards, unless --train_steps is given.")
_define(TrainConfig, "train_steps", "Steps of the run. 0: as many as --epochs asks.", lower_bound=0)
_define(
    TrainConfig,
    "max_hours",
    "Hours that the whole run may take, with evaluations, checkpoints and what was before a resume: the number of "
    "steps and the decay of the learning rate are fitted to it, instead of --epochs or --train_steps. 0: no limit.",
    lower_bound=0.0,
)
_define(
    TrainConfig,
    "price_per_hour",
    "What the machines cost in an hour; the progress line then tells what was spent and what is to come.",
    lower_bound=0.0,
)
_define(
    TrainConfig,
    "backbone_weights",
    "Where the backbone starts: a file of python -m trainer.import_weights or one that it reads, or imagenet for "
    "Keras's own weights of ResNet-50, 101 and 152, which are downloaded once, or those of an installed package with "
    "EfficientNet-Lite's.",
)
_define(
    TrainConfig,
    "init_checkpoint",
    "Where the whole network starts: a run's folder, one of its checkpoints, or an imported detector. What does not "
    "fit is initialised anew.",
)
_define(TrainConfig, "precision", "Precision of the network; float16 scales the loss.", choices=PRECISIONS)
_define(
    TrainConfig,
    "tf32",
    "Let Ampere GPUs and later multiply float32 with ten bits of mantissa (TensorFloat-32), several times faster. "
    "--notf32: with all bits.",
)
_define(
    TrainConfig,
    "distribution",
    "How replicas share the work. auto: mirrored over all devices if there are several.",
    choices=DISTRIBUTIONS,
)
_define(
    TrainConfig,
    "communication",
    "How several workers sum gradients. auto: nccl on GPUs, otherwise ring. ring: if nccl hangs or fails.",
    choices=COMMUNICATIONS,
)
_define(TrainConfig, "num_gpus", "GPUs to use. -1: all.", lower_bound=-1)
_define(TrainConfig, "logical_cpus", "Devices to split the CPU into, to try replicas without GPUs.")
_define(TrainConfig, "steps_per_loop", "Steps in one call of the compiled loop.", lower_bound=1)
_define(TrainConfig, "log_every", "Steps between reports. 0: --steps_per_loop.", lower_bound=0)
_define(TrainConfig, "eval_every", "Steps between evaluations. 0: ten in a run.", lower_bound=0)
_define(TrainConfig, "checkpoint_every", "Steps between checkpoints. 0: with every evaluation.", lower_bound=0)
_define(
    TrainConfig,
    "override_config",
    "Resume a run with another batch size, learning rate, seed, records or the like; RUN/overrides.jsonl lists them.",
)
_define(TrainConfig, "keep_checkpoints", "How many latest checkpoints to keep.", lower_bound=1)
_define(
    TrainConfig,
    "best_metric",
    "The metric of the evaluation that decides which checkpoint is the best.",
    choices=["coco_ap", "coco_ap50", "voc07_ap50", "voc12_ap50"],
)
_define(
    TrainConfig,
    "patience",
    "End the run after so many evaluations in a row without a better --best_metric. 0: never.",
    lower_bound=0,
)
_define(
    TrainConfig,
    "on_non_finite",
    "What a loss or a gradient that is not finite does. stop: it ends the run. rollback: the run goes back to its last "
    "checkpoint and halves its learning rate. The images are named in either case.",
    choices=ON_NON_FINITE,
)
_define(
    TrainConfig, "max_rollbacks", "How often --on_non_finite=rollback may go back before the run ends.", lower_bound=0
)
_define(
    TrainConfig,
    "accumulation_steps",
    "Pass each replica's images through the network in so many parts before one update: for a batch that does not fit.",
    lower_bound=1,
)
_define(
    TrainConfig,
    "ema_decay",
    "Keep an exponential moving average of the weights with this decay, such as 0.9998, and evaluate it. 0: none.",
    lower_bound=0.0,
)
flags.DEFINE_multi_string(
    "hooks",
    [],
    "MODULE:CLASS of a trainer.events.Hook, which is told of the run's start, logs, evaluations, checkpoints and end",
)
_define(
    TrainConfig,
    "profile_steps",
    "A:B, to trace the steps after A up to B for TensorBoard's profiler; after the first ones, which compile.",
)
_define(TrainConfig, "xla", "Compile the step with XLA; for one replica only.")
_define(
    TrainConfig,
    "compile_stages",
    "On GPUs, compile augmentation with target assignment, and the losses, with XLA; for any number of replicas.",
)
_define(TrainConfig, "eager", "Run step by step without graphs, for debugging.")


def _numbers(name: str) -> tuple[float, ...]:
    """The numbers of a list flag."""
    texts = getattr(FLAGS, name)
    try:
        numbers = tuple(float(text) for text in texts)
    except ValueError:
        raise ValueError(f"--{name}={','.join(texts)}: write numbers with commas between them.") from None
    _require_finite(name, numbers)
    return numbers


def _require_finite(name: str, numbers: Iterable[float]) -> None:
    """Refuses nan, which passes most comparisons with a bound, and inf."""
    if wrong := [number for number in numbers if not math.isfinite(number)]:
        raise ValueError(f"--{name}: {wrong[0]} is not a finite number.")


def _take(kind: type, **settings: Any) -> Any:
    """A dataclass whose fields have the values of the flags of the same name, or those of `settings`."""
    named = {field.name: getattr(FLAGS, field.name) for field in dataclasses.fields(kind) if field.name in FLAGS}
    return kind(**{**named, **settings})


def _augment_from_flags() -> AugmentConfig:
    """The preset, changed by the flags that were given."""
    values = {field.name: getattr(FLAGS, field.name) for field in dataclasses.fields(AugmentConfig)}
    given = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(AugmentConfig.preset(FLAGS.augment), **given)


def config_from_flags(labels: tuple[str, ...] = (), group_sizes: Sequence[int] = ()) -> Config:
    """The flags as a `Config`.

    Args:
      labels: the class names, once they are known.
      group_sizes: how many shards each pattern of --train_records matches, for --train_weights.

    Raises:
      ValueError: names the flag whose value does not fit.
    """
    for flag in FLAGS.get_flags_for_module(__name__):
        if isinstance(flag.value, float):
            _require_finite(flag.name, [flag.value])
    weights = _numbers("train_weights")
    num_patterns = len(FLAGS.train_records or ())
    if weights and len(weights) != num_patterns:
        raise ValueError(f"--train_weights has {len(weights)} numbers for {num_patterns} patterns in --train_records.")
    return Config(
        labels=labels,
        input=_take(
            InputConfig,
            image_size=parse_image_size(FLAGS.image_size),
            anchor=_take(
                AnchorConfig,
                sizes=_numbers("anchor_sizes"),
                scales=_numbers("anchor_scales"),
                aspect_ratios=_numbers("aspect_ratios"),
            ),
            match=_take(MatchConfig),
            augment=_augment_from_flags(),
            mixture=tuple(zip(weights, group_sizes or [0] * len(weights))),
        ),
        model=_take(ModelConfig),
        loss=_take(LossConfig),
        detect=_take(DetectConfig),
        train=_take(
            TrainConfig,
            hooks=tuple(FLAGS.hooks),
            optimizer=_take(OptimizerConfig, lr_steps=_numbers("lr_steps")),
        ),
    )
