"""python -m trainer.task: trains a detector on TFRecords and evaluates it."""

import sys

from absl import app
from absl import flags as absl_flags

import flags

FLAGS = absl_flags.FLAGS
absl_flags.adopt_module_key_flags(flags)


def main(argv):
    """Flags -> config -> run. TensorFlow is imported here, so that `--help` answers at once."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}; flags are written --name=value.")
    try:
        flags.config_from_flags()  # a wrong flag shows before the seconds that TensorFlow takes to start
        from input import shards
        from trainer import train

        groups = [shards.expand_glob(pattern) for pattern in FLAGS.train_records]
        train_paths = [path for group in groups for path in group]
        if len(set(train_paths)) < len(train_paths):
            raise ValueError("--train_records: two patterns match the same file.")
        val_paths = shards.expand_glob(FLAGS.val_records) if FLAGS.val_records else []
        labels = shards.read_labels([*train_paths, *val_paths])
        config = flags.config_from_flags(labels, [len(group) for group in groups])
        train.set_up_devices(config.train)
        result = train.train_and_evaluate(
            config, train_paths=train_paths, val_paths=val_paths, model_dir=FLAGS.model_dir
        )
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")  # says what is wrong and what to do; a traceback would bury it
    if result.stopped_by is not None:
        sys.exit(128 + result.stopped_by)


if __name__ == "__main__":
    app.run(main)
