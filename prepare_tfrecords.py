"""Converts a Pascal VOC data set to TFRecord shards, or checks shards.

  python prepare_tfrecords.py --voc_dir=VOCDIR --image_set=train --output_dir=OUT
  python prepare_tfrecords.py --check='OUT/train-*.tfrecord'

What the shards hold, and what is done about flaws in the data: docs/DATA_FORMAT.md.
"""

import dataclasses
import sys

from absl import app, flags
from tqdm import tqdm

from input import shards, tfrecord
from input.config import parse_image_size
from input.conversion import beam, convert, report
from input.conversion import config as conversion_config
from input.conversion.workers import Workers, available_cores

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(conversion_config.ConvertConfig)}

flags.DEFINE_multi_string("voc_dir", [], "Folder with Annotations/, JPEGImages/ and ImageSets/Main/; may be repeated.")
flags.DEFINE_string("output_dir", "", "Where the shards, labels.txt, the manifest and the report go.")
flags.DEFINE_string("image_set", "", "A list in ImageSets/Main, without .txt; names the split. None: all annotations.")
flags.DEFINE_string("image_set_file", "", "The list itself, in place of the one in ImageSets/Main.")
flags.DEFINE_string("annotations_dir", "", "In place of VOCDIR/Annotations.")
flags.DEFINE_string("images_dir", "", "In place of VOCDIR/JPEGImages.")
flags.DEFINE_float("val_fraction", 0.0, "Without an image set: this share of images becomes `val`, the rest `train`.")
flags.DEFINE_string("labels", "", "File with the class names, one a line. Default: OUT/labels.txt, else all found.")
flags.DEFINE_boolean(
    "drop_unknown_classes", False, "Drop objects whose class is not in the list, in place of an error."
)
flags.DEFINE_enum("on_error", _DEFAULTS["on_error"], ["fail", "skip"], "What to do when a file yields no record.")
flags.DEFINE_boolean("strict", False, "Count a mended file as an error.")
flags.DEFINE_boolean("zero_based", False, "Coordinates are edges counted from 0, not VOC's pixels counted from 1.")
flags.DEFINE_boolean("drop_empty", False, "Leave out images without objects, in place of keeping them as negatives.")
flags.DEFINE_enum(
    "verify", _DEFAULTS["verify"], ["header", "decode"], "How an image that is stored as it is is checked."
)
flags.DEFINE_integer("max_pixels", _DEFAULTS["max_pixels"], "Refuse larger images.", lower_bound=1)
flags.DEFINE_integer("num_shards", 0, "Number of shards of a split; 0: by --shard_mb.", lower_bound=0)
flags.DEFINE_integer("shard_mb", _DEFAULTS["shard_bytes"] >> 20, "Target size of a shard, in MiB.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of the shuffle over shards, and of --val_fraction.")
flags.DEFINE_integer("num_workers", 0, "Worker processes; 0: one for each core.", lower_bound=0)
flags.DEFINE_string("beam_runner", "", "Convert on Apache Beam, in place of worker processes: DirectRunner, ...")
flags.DEFINE_multi_string("beam_options", [], "Flags of Beam and its runner, in one string or several.")
flags.DEFINE_boolean("overwrite", False, "Replace a conversion of this split that is already there.")
flags.DEFINE_string("report_image_size", "512", "The report judges anchors at this --image_size: N or HxW.")
flags.DEFINE_string("check", "", "Convert nothing; verify the shards that match this pattern.")


def config_from_flags(values: flags.FlagValues) -> conversion_config.ConvertConfig:
    renamed = {
        "voc_dirs": tuple(values.voc_dir),
        "labels_file": values.labels,
        "shard_bytes": values.shard_mb << 20,
    }
    same = {name: values[name].value for name in _DEFAULTS if name not in renamed}
    return conversion_config.ConvertConfig(**renamed, **same)


def check(patterns: str) -> list[str]:
    """Verifies shards and prints how many are sound; returns what is wrong, a line for each damaged shard."""
    paths = shards.expand_glob(patterns)
    problems, num_records = [], 0
    for path in tqdm(paths, desc="checking", unit=" shards", disable=None):
        try:
            num_records += shards.check_shard(path)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    print(f"{len(paths) - len(problems)} of {len(paths)} shards are sound, with {num_records} records.")
    return problems


def make_workers(values: flags.FlagValues):
    if values.beam_runner:
        return beam.BeamWorkers(values.beam_runner, values.beam_options, values.output_dir)
    return Workers(values.num_workers or available_cores())


def main(argv):
    values = flags.FLAGS
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: flags start with --.")
    try:
        image_size = parse_image_size(values.report_image_size, "report_image_size")
    except ValueError as error:
        raise app.UsageError(str(error)) from None
    try:
        if values.check:
            if problems := check(values.check):
                sys.exit("\n".join(problems))
            return
        if not values.output_dir:
            raise app.UsageError("give --output_dir.")
        if values.beam_options and not values.beam_runner:
            raise app.UsageError("--beam_options goes with --beam_runner.")
        config = config_from_flags(values)
        with make_workers(values) as workers:
            manifests = convert.convert(config, workers)
            with convert.locked(config.output_dir):
                for manifest in manifests:
                    text, path = report.write_report(config.output_dir, manifest, image_size, workers)
                    print(f"{text}\nPictures and plots: {path}")
    except KeyboardInterrupt:
        sys.exit("prepare_tfrecords: interrupted; the same command continues.")
    except (conversion_config.ConversionError, tfrecord.DamagedShardError, OSError) as error:
        sys.exit(f"prepare_tfrecords: {error}")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a class name's letters is no reason to fail
    app.run(main)
