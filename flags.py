"""Every flag of the trainer; each default is read from its dataclass.

Only the commands read this module. `config_from_flags` turns the flags into frozen dataclasses, which they pass on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags

from input.config import AnchorConfig, AugmentConfig, InputConfig, MatchConfig, parse_image_size
from model.config import BACKBONES, NECKS, DetectConfig, LossConfig, ModelConfig
from trainer.config import DISTRIBUTIONS, OPTIMIZERS, PRECISIONS, SCHEDULES, Config, OptimizerConfig, TrainConfig

FLAGS = flags.FLAGS

_input, _anchor, _match = InputConfig(), AnchorConfig(), MatchConfig()
_model, _loss, _detect = ModelConfig(), LossConfig(), DetectConfig()
_train, _optimizer = TrainConfig(), OptimizerConfig()


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
flags.DEFINE_string("model_dir", None, "The run's folder. Where it holds checkpoints, the run is resumed.")

# Input
flags.DEFINE_string(
    "image_size",
    "x".join(map(str, _input.image_size)),
    "The size of the network's input in pixels: N, or HxW for height and width; padded up to a multiple of 32.",
)
flags.DEFINE_integer("batch_size", _input.batch_size, "Images in a step, over all replicas.", lower_bound=1)
flags.DEFINE_integer(
    "max_boxes", _input.max_boxes, "Largest number of boxes in an image; the smallest boxes are dropped.", lower_bound=1
)
flags.DEFINE_integer("shuffle_buffer", _input.shuffle_buffer, "Encoded records in the shuffle buffer.", lower_bound=1)
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
    "min_visible": "A cropped or covered box is kept if its centre or this share of its area is visible.",
}.items():
    flags.DEFINE_float(_name, None, f"{_help} Default: that of --augment.")
flags.DEFINE_integer(
    "randaugment", None, "Number of RandAugment's operations for an image, 0 to 3. Default: that of --augment."
)
flags.DEFINE_enum(
    "target_assignment", _input.target_assignment, ["device", "host"], "Where anchors are assigned to boxes."
)
flags.DEFINE_bool(
    "deterministic_input",
    _input.deterministic_input,
    "Give the same batches for the same seed. --nodeterministic_input: a slow image does not delay others.",
)
flags.DEFINE_bool("cache_records", _input.cache_records, "Keep the encoded records in memory after the first epoch.")
flags.DEFINE_integer(
    "max_damaged",
    _input.max_damaged,
    "How many images that cannot be decoded are skipped; one more ends the run.",
    lower_bound=0,
)
flags.DEFINE_float(
    "repeat_threshold",
    _input.repeat_threshold,
    "Repeat the images of classes that appear in fewer than this share of the images (LVIS: 0.001). 0: none.",
)
flags.DEFINE_string(
    "data_service",
    _input.data_service,
    "grpc://HOST:PORT of a tf.data service (python -m trainer.data_service) that reads, decodes and batches.",
)
flags.DEFINE_integer("seed", _input.seed, "Seed of the weights, the order and the augmentation.", lower_bound=0)

# Anchors
flags.DEFINE_list(
    "anchor_sizes", list(map(str, _anchor.sizes)), "Base size in pixels of each level's anchors, P3 to P7."
)
flags.DEFINE_list("anchor_scales", list(map(str, _anchor.scales)), "Factors of the base size.")
flags.DEFINE_list("aspect_ratios", list(map(str, _anchor.aspect_ratios)), "Width / height of the anchors.")
flags.DEFINE_float("positive_iou", _match.positive_iou, "An anchor is positive from this IoU with a box.")
flags.DEFINE_float("negative_iou", _match.negative_iou, "An anchor is background below this IoU with every box.")
flags.DEFINE_bool(
    "force_match", _match.force_match, "Make the best anchor of each box positive, even below --positive_iou."
)

# Network
flags.DEFINE_enum("backbone", _model.backbone, BACKBONES, "The backbone.")
flags.DEFINE_enum("neck", _model.neck, NECKS, "The feature pyramid.")
flags.DEFINE_integer("neck_filters", _model.neck_filters, "Width of the neck and of the heads.", lower_bound=1)
flags.DEFINE_integer("head_convs", _model.head_convs, "Convolutions in each head.", lower_bound=0)
flags.DEFINE_float(
    "prior_probability", _model.prior_probability, "Foreground probability that a new class head predicts."
)
flags.DEFINE_float(
    "batch_norm_momentum", _model.batch_norm_momentum, "Momentum of batch norm's moving mean and variance."
)
flags.DEFINE_float("batch_norm_epsilon", _model.batch_norm_epsilon, "What batch norm adds to the variance.")
flags.DEFINE_bool("sync_batch_norm", _model.sync_batch_norm, "Take batch norm's statistics over all replicas.")

# Losses
flags.DEFINE_float("focal_alpha", _loss.focal_alpha, "Weight of the foreground in the focal loss.")
flags.DEFINE_float("focal_gamma", _loss.focal_gamma, "Focusing exponent of the focal loss.", lower_bound=0.0)
flags.DEFINE_float(
    "smooth_l1_beta", _loss.smooth_l1_beta, "Error of a box delta at which smooth L1 turns from quadratic to linear."
)
flags.DEFINE_float("box_loss_weight", _loss.box_loss_weight, "Weight of the box loss.")

# Detections
flags.DEFINE_float("score_threshold", _detect.score_threshold, "Detections below this score are dropped.")
flags.DEFINE_integer(
    "pre_nms_top_k", _detect.pre_nms_top_k, "Best scores of an image that enter non-maximum suppression.", lower_bound=1
)
flags.DEFINE_float("nms_iou", _detect.nms_iou, "IoU above which the weaker of two detections of a class is dropped.")
flags.DEFINE_integer(
    "max_detections", _detect.max_detections, "Largest number of detections in an image.", lower_bound=1
)

# Optimizer
flags.DEFINE_enum("optimizer", _optimizer.optimizer, OPTIMIZERS, "The optimizer.")
flags.DEFINE_float("learning_rate", _optimizer.learning_rate, "Peak learning rate, for the given batch size.")
flags.DEFINE_enum("lr_schedule", _optimizer.lr_schedule, SCHEDULES, "Shape of the learning rate after the warm-up.")
flags.DEFINE_list(
    "lr_steps",
    list(map(str, _optimizer.lr_steps)),
    "Shares of the run after which the step schedule cuts the rate tenfold.",
)
flags.DEFINE_float(
    "lr_end", _optimizer.lr_end, "Final rate of the cosine and polynomial schedules, as a share of the peak."
)
flags.DEFINE_float("lr_power", _optimizer.lr_power, "Exponent of the polynomial schedule.")
flags.DEFINE_float("lr_decay", _optimizer.lr_decay, "Final rate of the exponential schedule, as a share of the peak.")
flags.DEFINE_integer(
    "warmup_steps", _optimizer.warmup_steps, "Steps of the linear warm-up; at most a tenth of the run.", lower_bound=0
)
flags.DEFINE_float("momentum", _optimizer.momentum, "Momentum of SGD.")
flags.DEFINE_float(
    "weight_decay", _optimizer.weight_decay, "Weight decay of kernels, as the factor of an L2 term.", lower_bound=0.0
)
flags.DEFINE_float(
    "clip_norm", _optimizer.clip_norm, "Clip the gradients to this global norm. 0: no clipping.", lower_bound=0.0
)

# Run
flags.DEFINE_float("epochs", _train.epochs, "Passes over the training shards, unless --train_steps is given.")
flags.DEFINE_integer("train_steps", _train.train_steps, "Steps of the run. 0: as many as --epochs asks.", lower_bound=0)
flags.DEFINE_enum("precision", _train.precision, PRECISIONS, "Precision of the network; float16 scales the loss.")
flags.DEFINE_enum(
    "distribution",
    _train.distribution,
    DISTRIBUTIONS,
    "How replicas share the work. auto: mirrored over all devices if there are several.",
)
flags.DEFINE_integer("num_gpus", _train.num_gpus, "GPUs to use. -1: all.", lower_bound=-1)
flags.DEFINE_integer(
    "logical_cpus", _train.logical_cpus, "Devices to split the CPU into, to try replicas without GPUs."
)
flags.DEFINE_integer("steps_per_loop", _train.steps_per_loop, "Steps in one call of the compiled loop.", lower_bound=1)
flags.DEFINE_integer("log_every", _train.log_every, "Steps between reports. 0: after every loop.", lower_bound=0)
flags.DEFINE_integer("eval_every", _train.eval_every, "Steps between evaluations. 0: ten in a run.", lower_bound=0)
flags.DEFINE_integer(
    "checkpoint_every", _train.checkpoint_every, "Steps between checkpoints. 0: with every evaluation.", lower_bound=0
)
flags.DEFINE_integer("keep_checkpoints", _train.keep_checkpoints, "How many latest checkpoints to keep.", lower_bound=1)
flags.DEFINE_enum(
    "best_metric",
    _train.best_metric,
    ["coco_ap", "coco_ap50", "voc07_ap50", "voc12_ap50"],
    "The metric of the evaluation that decides which checkpoint is the best.",
)
flags.DEFINE_bool("xla", _train.xla, "Compile the step with XLA; for one replica only.")
flags.DEFINE_bool("eager", _train.eager, "Run step by step without graphs, for debugging.")


def _numbers(name: str) -> tuple[float, ...]:
    """The numbers of a list flag."""
    texts = getattr(FLAGS, name)
    try:
        return tuple(float(text) for text in texts)
    except ValueError:
        raise ValueError(f"--{name}={','.join(texts)}: write numbers with commas between them.") from None


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
    weights = _numbers("train_weights")
    num_patterns = len(FLAGS.train_records or ())
    if weights and len(weights) != num_patterns:
        raise ValueError(f"--train_weights has {len(weights)} numbers for {num_patterns} patterns in --train_records.")
    return Config(
        labels=labels,
        input=_take(
            InputConfig,
            image_size=parse_image_size(FLAGS.image_size),
            anchor=AnchorConfig(
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
        train=_take(TrainConfig, optimizer=_take(OptimizerConfig, lr_steps=_numbers("lr_steps"))),
    )
