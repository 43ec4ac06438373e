"""python -m trainer.task: trains a detector on TFRecords and evaluates it."""

from __future__ import annotations

import sys

from absl import flags as absl_flags

import flags
from trainer import command

FLAGS = absl_flags.FLAGS
absl_flags.adopt_module_key_flags(flags)


def main() -> None:
    flags.config_from_flags()  # a wrong flag is refused before the seconds that TensorFlow takes to start
    from input import shards
    from trainer import distribution, train

    groups = [shards.expand_glob(pattern) for pattern in FLAGS.train_records]
    train_paths = [path for group in groups for path in group]
    if len(set(train_paths)) < len(train_paths):
        raise ValueError("--train_records: two patterns match the same file.")
    val_paths = shards.expand_glob(FLAGS.val_records) if FLAGS.val_records else []
    labels = shards.read_labels([*train_paths, *val_paths])
    config = flags.config_from_flags(labels, [len(group) for group in groups])
    distribution.set_up_devices(config.train)
    result = train.train_and_evaluate(config, train_paths=train_paths, val_paths=val_paths, model_dir=FLAGS.model_dir)
    if result.stopped_by is not None:
        sys.exit(128 + result.stopped_by)


if __name__ == "__main__":
    absl_flags.mark_flags_as_required(["train_records", "model_dir"])
    command.run(main)
