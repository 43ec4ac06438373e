"""python -m trainer.task: trains a detector on TFRecords and evaluates it, or says what the network would cost."""

from __future__ import annotations

import sys
from typing import Any

from absl import flags as absl_flags

import flags
from trainer import command

FLAGS = absl_flags.FLAGS
NUM_CLASSES = 80  # of --print_model without records: those of COCO
absl_flags.adopt_module_key_flags(flags)
absl_flags.DEFINE_bool(
    "print_model",
    False,
    "Print the network's parameters and FLOPs, and which batch fits into which GPU, instead of training. This needs no "
    "GPU and no --train_records (without them, 80 classes); --num_gpus is the number of replicas to plan for.",
)


@absl_flags.multi_flags_validator(["train_records", "model_dir", "print_model"])
def _paths_are_given(values: dict[str, Any]) -> bool:
    missing = [name for name in ("train_records", "model_dir") if values[name] is None]
    if missing and not values["print_model"]:
        raise absl_flags.ValidationError(
            " ".join(f"Flag --{name} must have a value other than None." for name in missing)
        )
    return True


def print_model() -> None:
    from input import shards
    from trainer import initial_weights, model_cost

    paths = [path for pattern in FLAGS.train_records or () for path in shards.expand_glob(pattern, split="train")]
    labels = shards.read_labels(paths) if paths else tuple(f"class {index}" for index in range(NUM_CLASSES))
    config, _ = initial_weights.prepare(flags.config_from_flags(labels), FLAGS.model_dir)
    print(model_cost.describe(config, num_replicas=max(config.train.num_gpus, config.train.logical_cpus)))


def main() -> None:
    flags.config_from_flags()  # a wrong flag is refused before the seconds that TensorFlow takes to start
    if FLAGS.print_model:
        print_model()
        return
    from input import shards
    from trainer import distribution, train

    groups = [shards.expand_glob(pattern, split="train") for pattern in FLAGS.train_records]
    train_paths = [path for group in groups for path in group]
    if len(set(train_paths)) < len(train_paths):
        raise ValueError("--train_records: two patterns match the same file.")
    val_paths = shards.expand_glob(FLAGS.val_records, split="val") if FLAGS.val_records else []
    labels = shards.read_labels([*train_paths, *val_paths])
    config = flags.config_from_flags(labels, [len(group) for group in groups])
    distribution.set_up_devices(config.train)
    result = train.train_and_evaluate(config, train_paths=train_paths, val_paths=val_paths, model_dir=FLAGS.model_dir)
    if result.stopped_by is not None:
        sys.exit(128 + result.stopped_by)


if __name__ == "__main__":
    command.run(main)
