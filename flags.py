"""Every flag of the trainer; each default comes from its dataclass.

Only entry files read this. `config_from_flags` turns the flags into frozen dataclasses, which is what the rest sees.
"""

import dataclasses
from collections.abc import Sequence

from absl import flags

from input.config import AnchorConfig, AugmentConfig, InputConfig, MatchConfig, parse_image_size
from model.config import BACKBONES, NECKS, DetectConfig, LossConfig, ModelConfig
from trainer.config import DISTRIBUTIONS, OPTIMIZERS, PRECISIONS, SCHEDULES, Config, OptimizerConfig, TrainConfig

FLAGS = flags.FLAGS

_input, _anchor, _match = InputConfig(), AnchorConfig(), MatchConfig()
_model, _loss, _detect = ModelConfig(), LossConfig(), DetectConfig()
_train, _optimizer = TrainConfig(), OptimizerConfig()


def _numbers(values):
    return [f"{value:g}" for value in values]


# Data and output
flags.DEFINE_list("train_records", None, "Shards to train on: patterns such as 'OUT/train-*.tfrecord'.")
flags.DEFINE_list(
    "train_weights",
    [],
    "How much of each pattern of --train_records to show, such as 3,1. None: each image once an epoch.",
)
flags.DEFINE_list("val_records", [], "Shards to evaluate on while training; none: no evaluation, no best checkpoint.")
flags.DEFINE_string("model_dir", None, "The run's folder; where it holds checkpoints, the run is resumed.")

# Input
flags.DEFINE_string("image_size", "x".join(map(str, _input.image_size)), "N or HxW, padded up to a multiple of 32.")
flags.DEFINE_integer("batch_size", _input.batch_size, "Images a step, over all replicas.", lower_bound=1)
flags.DEFINE_integer("max_boxes", _input.max_boxes, "Boxes an image, at most: the largest are kept.", lower_bound=1)
flags.DEFINE_integer("shuffle_buffer", _input.shuffle_buffer, "Records in the shuffle buffer, encoded.", lower_bound=1)
flags.DEFINE_enum("augment", "default", ["none", "paper", "default", "strong"], "Preset of the augmentation.")
for _name, _help in {
    "iou_crop": "Probability of SSD's crop, which shows an object by a drawn IoU.",
    "scale_min": "Scale jitter: the smallest size of the image, relative to the size at which it just fits.",
    "scale_max": "Scale jitter: the largest; what exceeds the input is cropped at a random place.",
    "warp": "Probability of rotation, shear and translation.",
    "rotate": "Largest angle, in degrees.",
    "shear": "Largest shift of x, as a share of y.",
    "translate": "Largest shift, as a share of each side.",
    "randaugment_magnitude": "How far RandAugment's operations go, from 0 to 10.",
    "horizontal_flip": "Probability.",
    "vertical_flip": "Probability.",
    "brightness": "Largest shift, as a share of the full range.",
    "contrast": "Largest change of the factor 1.",
    "saturation": "Largest change of the factor 1.",
    "hue": "Largest rotation, in turns.",
    "grayscale": "Probability.",
    "cutout": "Probability of a grey square.",
    "cutmix": "Probability of a part of another image in this one.",
    "mixup": "Probability of another image shining through.",
    "mosaic": "Probability of four images at half size.",
    "min_visible": "A box cut off or covered stays if its centre or this share of it is visible.",
}.items():
    flags.DEFINE_float(_name, None, f"{_help} Default: as --augment says.")
flags.DEFINE_integer("randaugment", None, "Operations that RandAugment draws for an image, 0 to 3.")
flags.DEFINE_enum("target_assignment", _input.target_assignment, ["device", "host"], "Where anchors get targets.")
flags.DEFINE_bool(
    "deterministic_input",
    _input.deterministic_input,
    "The same seed gives the same batches. --nodeterministic_input: a slow image does not hold up others.",
)
flags.DEFINE_bool("cache_records", _input.cache_records, "Keep the encoded records in memory after the first epoch.")
flags.DEFINE_integer(
    "max_damaged",
    _input.max_damaged,
    "Images that cannot be decoded are skipped; more of them end the run.",
    lower_bound=0,
)
flags.DEFINE_float(
    "repeat_threshold",
    _input.repeat_threshold,
    "Images of classes that fewer than this share of the images show are repeated (LVIS: 0.001). 0: none.",
)
flags.DEFINE_string(
    "data_service",
    _input.data_service,
    "grpc://HOST:PORT of a tf.data service (python -m trainer.data_service) that reads, decodes and batches.",
)
flags.DEFINE_integer("seed", _input.seed, "Of weights, order and augmentation.", lower_bound=0)

# Anchors
flags.DEFINE_list("anchor_sizes", _numbers(_anchor.sizes), "Base size in pixels for each of the levels P3-P7.")
flags.DEFINE_list("anchor_scales", [f"{scale:.6g}" for scale in _anchor.scales], "Factors of the base size.")
flags.DEFINE_list("aspect_ratios", _numbers(_anchor.aspect_ratios), "Width / height.")
flags.DEFINE_float("positive_iou", _match.positive_iou, "An anchor is positive from this IoU.")
flags.DEFINE_float("negative_iou", _match.negative_iou, "An anchor is background below this IoU.")

# Network and losses
flags.DEFINE_enum("backbone", _model.backbone, BACKBONES, "Backbone.")
flags.DEFINE_enum("neck", _model.neck, NECKS, "Feature pyramid.")
flags.DEFINE_integer("neck_filters", _model.neck_filters, "Width of the neck and of the heads.", lower_bound=1)
flags.DEFINE_integer("head_convs", _model.head_convs, "Convolutions in each head.", lower_bound=0)
flags.DEFINE_bool("sync_batch_norm", _model.sync_batch_norm, "Batch statistics over all replicas.")
flags.DEFINE_float("focal_alpha", _loss.focal_alpha, "Weight of the foreground.")
flags.DEFINE_float("focal_gamma", _loss.focal_gamma, "Focusing exponent.", lower_bound=0.0)
flags.DEFINE_float("box_loss_weight", _loss.box_loss_weight, "Weight of the box loss.")

# Detections
flags.DEFINE_float("score_threshold", _detect.score_threshold, "Detections below this score are dropped.")
flags.DEFINE_float("nms_iou", _detect.nms_iou, "IoU from which a weaker detection of the same class is dropped.")
flags.DEFINE_integer("max_detections", _detect.max_detections, "Detections an image, at most.", lower_bound=1)

# Optimizer
flags.DEFINE_enum("optimizer", _optimizer.optimizer, OPTIMIZERS, "Optimizer.")
flags.DEFINE_float("learning_rate", _optimizer.learning_rate, "Peak learning rate, for the batch size given.")
flags.DEFINE_enum("lr_schedule", _optimizer.lr_schedule, SCHEDULES, "Shape of the rate after the warm-up.")
flags.DEFINE_integer(
    "warmup_steps", _optimizer.warmup_steps, "Linear warm-up, cut to a tenth of the run.", lower_bound=0
)
flags.DEFINE_float("momentum", _optimizer.momentum, "Of SGD.")
flags.DEFINE_float("weight_decay", _optimizer.weight_decay, "Of kernels, as an L2 term's factor.", lower_bound=0.0)
flags.DEFINE_float("clip_norm", _optimizer.clip_norm, "Global norm of the gradients; 0: no clipping.", lower_bound=0.0)

# Run
flags.DEFINE_float("epochs", _train.epochs, "Passes over the training shards, unless --train_steps is given.")
flags.DEFINE_integer("train_steps", _train.train_steps, "Steps; 0: as --epochs says.", lower_bound=0)
flags.DEFINE_enum("precision", _train.precision, PRECISIONS, "Of the computation; float16 scales the loss.")
flags.DEFINE_enum("distribution", _train.distribution, DISTRIBUTIONS, "auto: mirrored over all devices, if several.")
flags.DEFINE_integer("num_gpus", _train.num_gpus, "GPUs to use; -1: all.", lower_bound=-1)
flags.DEFINE_integer("logical_cpus", _train.logical_cpus, "Split the CPU into N devices, to try replicas.")
flags.DEFINE_integer("steps_per_loop", _train.steps_per_loop, "Steps a call of the compiled loop.", lower_bound=1)
flags.DEFINE_integer("log_every", _train.log_every, "Steps between reports; 0: every loop.", lower_bound=0)
flags.DEFINE_integer("eval_every", _train.eval_every, "Steps between evaluations; 0: ten a run.", lower_bound=0)
flags.DEFINE_integer(
    "checkpoint_every", _train.checkpoint_every, "Steps between checkpoints; 0: with every evaluation.", lower_bound=0
)
flags.DEFINE_integer("keep_checkpoints", _train.keep_checkpoints, "Latest checkpoints to keep.", lower_bound=1)
flags.DEFINE_enum(
    "best_metric",
    _train.best_metric,
    ["coco_ap", "coco_ap50", "voc07_ap50", "voc12_ap50"],
    "Of the evaluation, decides which checkpoint is the best.",
)
flags.DEFINE_bool("xla", _train.xla, "Compile the step with XLA; one replica only.")
flags.DEFINE_bool("eager", _train.eager, "Run step by step without graphs, for debugging.")

REQUIRED = ("train_records", "model_dir")


def _floats(name: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in FLAGS[name].value)
    except ValueError:
        raise ValueError(f"--{name}={','.join(FLAGS[name].value)}: write numbers with commas between them.") from None


def _take(kind, **settings):
    """A dataclass with each field that has a flag of its name set from it."""
    named = {field.name: FLAGS[field.name].value for field in dataclasses.fields(kind) if field.name in FLAGS}
    return kind(**{**named, **settings})


def _augment_from_flags() -> AugmentConfig:
    """The preset, with what has a flag of its own on the command line changed."""
    names = [field.name for field in dataclasses.fields(AugmentConfig)]
    given = {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
    return dataclasses.replace(AugmentConfig.preset(FLAGS.augment), **given)


def config_from_flags(labels: tuple[str, ...] = (), group_sizes: Sequence[int] = ()) -> Config:
    """The flags as a `Config`.

    Args:
      labels: the class names, once they are known.
      group_sizes: how many shards each pattern of --train_records matches, for --train_weights.

    Raises:
      ValueError: naming the flag whose value does not fit.
    """
    scales = _floats("anchor_scales")
    weights = _floats("train_weights")
    num_patterns = len(FLAGS.train_records or ())
    if weights and len(weights) != num_patterns:
        raise ValueError(f"--train_weights has {len(weights)} numbers for {num_patterns} patterns in --train_records.")
    anchor = AnchorConfig(
        sizes=_floats("anchor_sizes"),
        scales=AnchorConfig.scales if FLAGS["anchor_scales"].using_default_value else scales,
        aspect_ratios=_floats("aspect_ratios"),
    )
    return Config(
        labels=labels,
        input=_take(
            InputConfig,
            image_size=parse_image_size(FLAGS.image_size),
            anchor=anchor,
            match=_take(MatchConfig),
            augment=_augment_from_flags(),
            mixture=tuple(zip(weights, group_sizes or [0] * len(weights))),
        ),
        model=_take(ModelConfig),
        loss=_take(LossConfig),
        detect=_take(DetectConfig),
        train=_take(TrainConfig, optimizer=_take(OptimizerConfig)),
    )
