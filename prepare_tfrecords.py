"""Converts a data set in the format of Pascal VOC, COCO or YOLO to TFRecord shards, or checks shards.

  python prepare_tfrecords.py --voc_dir=VOCDIR --image_set=train --output_dir=OUT
  python prepare_tfrecords.py --coco_json=FILE --images_dir=DIR --output_dir=OUT
  python prepare_tfrecords.py --yolo_dir=DIR --output_dir=OUT
  python prepare_tfrecords.py --check='OUT/train-*.tfrecord'

What the shards hold, and what is done about flaws in the data: docs/DATA_FORMAT.md.
"""

from __future__ import annotations

import dataclasses
import io
import os
import sys
from typing import Any

from absl import flags
from tqdm import tqdm

from input import files, shards
from input.config import parse_image_size
from input.conversion import beam, convert, listing, report
from input.conversion.config import ConvertConfig
from input.conversion.workers import Workers, available_cores
from trainer import command

FLAGS = flags.FLAGS
_default = ConvertConfig(output_dir="", voc_dirs=("VOC",))

flags.DEFINE_multi_string(
    "voc_dir", [], "Folder of a data set, whose annotations and images are found by what is in it; may be repeated."
)
flags.DEFINE_string("coco_json", "", "File of annotations in COCO's format, in place of --voc_dir.")
flags.DEFINE_string("yolo_dir", "", "Folder of a data set in YOLO's format, in place of --voc_dir; it holds data.yaml.")
flags.DEFINE_string("output_dir", "", "Folder for the shards, the label lists, the manifest and the report.")
flags.DEFINE_string("image_set", "", "Name of a list in ImageSets/Main, without .txt. Default: all annotations.")
flags.DEFINE_string("split", _default.split, "Name of the split. Default: that of the image set or folder, else `all`.")
flags.DEFINE_string("image_set_file", "", "Path of the image set, in place of one in ImageSets/Main.")
flags.DEFINE_string("annotations_dir", "", "Folder of the XML files, where it cannot be found in --voc_dir.")
flags.DEFINE_string(
    "images_dir", "", "Folder of the images, where it is not found in --voc_dir or is not that of --coco_json."
)
flags.DEFINE_float(
    "val_fraction",
    _default.val_fraction,
    "Share of the images that becomes the split `val`, where there is no image set; the rest becomes `train`.",
)
flags.DEFINE_string(
    "group_by",
    _default.group_by,
    "Regular expression for the names of images; those for which it gives the same text (its first group's, if it has "
    "one) stay on one side of --val_fraction: one video, one patient.",
)
flags.DEFINE_string("labels", "", "File with the class names, one a line. Default: OUT/labels.txt, else all found.")
flags.DEFINE_multi_string(
    "rename", [], "OLD=NEW: a new name for a class; may be repeated. Classes of one new name become one class."
)
flags.DEFINE_list("ignore_classes", [], "Classes, after renaming, whose boxes become ignored regions.")
flags.DEFINE_boolean(
    "drop_unknown_classes",
    _default.drop_unknown_classes,
    "Make what --dropped_classes_as says of objects whose class is not in the label list; otherwise they are refused.",
)
flags.DEFINE_enum(
    "dropped_classes_as",
    _default.dropped_classes_as,
    ["ignore", "background"],
    "What --drop_unknown_classes makes of the boxes: ignored regions, from which nothing is learnt, or background.",
)
flags.DEFINE_boolean(
    "drop_invalid_objects",
    _default.drop_invalid_objects,
    "Keep an image of which no object can be read as a negative, instead of refusing the file.",
)
flags.DEFINE_enum("on_error", _default.on_error, ["fail", "skip"], "What to do when a file yields no record.")
flags.DEFINE_boolean("strict", _default.strict, "Count a file in which anything was dropped or repaired as an error.")
flags.DEFINE_boolean(
    "zero_based",
    _default.zero_based,
    "Read coordinates as edges counted from 0, instead of VOC's pixels counted from 1.",
)
flags.DEFINE_boolean(
    "drop_empty", _default.drop_empty, "Leave out images without objects, instead of keeping them as negatives."
)
flags.DEFINE_enum(
    "exif",
    _default.exif,
    ["auto", "apply", "ignore"],
    "Whether boxes are in the frame that an EXIF orientation gives. auto: decide from <size> and the boxes, or refuse.",
)
flags.DEFINE_enum(
    "verify", _default.verify, ["header", "decode"], "How to check an image that is stored without encoding it anew."
)
flags.DEFINE_integer("max_pixels", _default.max_pixels, "Refuse images of more pixels.", lower_bound=1)
flags.DEFINE_integer(
    "store_max_side",
    _default.store_max_side,
    "Largest side, in pixels, at which images are stored; larger ones are made smaller. 0: at their own size.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "tile",
    _default.tile,
    "Side, in pixels, of the tiles that larger images are cut into, each a record. 0: images are not cut.",
    lower_bound=0,
)
flags.DEFINE_float("overlap", _default.overlap, "Share of a tile that the next one shows too, at least.")
flags.DEFINE_float("tile_negatives", _default.tile_negatives, "Share of the tiles without objects that is kept.")
flags.DEFINE_integer("jpeg_quality", _default.jpeg_quality, "Quality of JPEGs that are encoded anew.", 1, 100)
flags.DEFINE_integer("num_shards", _default.num_shards, "Number of shards of a split; 0: by --shard_mb.", lower_bound=0)
flags.DEFINE_integer("shard_mb", _default.shard_bytes >> 20, "Target size of a shard, in MiB.", lower_bound=1)
flags.DEFINE_integer("seed", _default.seed, "Seed of the shuffle over shards, and of --val_fraction.")
flags.DEFINE_integer("num_workers", 0, "Number of worker processes; 0: one for each core.", lower_bound=0)
flags.DEFINE_string("beam_runner", "", "Convert on Apache Beam, instead of worker processes: DirectRunner, ...")
flags.DEFINE_multi_string("beam_options", [], "Flags of Beam and its runner, in one string or several.")
flags.DEFINE_boolean("overwrite", _default.overwrite, "Replace a conversion of this split that is already there.")
flags.DEFINE_string("report_image_size", "512", "The --image_size that the report judges anchors at: N or HxW.")
flags.DEFINE_integer(
    "class_pictures", 0, "Number of random pictures of each class that the report's page shows.", lower_bound=0
)
flags.DEFINE_string("check", "", "Pattern of shards to verify; nothing is converted.")


def config_from_flags() -> ConvertConfig:
    """The flags as a `ConvertConfig`.

    Raises:
      ConversionError: names the flags that do not fit together.
    """
    settings: dict[str, Any] = {
        field.name: FLAGS[field.name].value for field in dataclasses.fields(ConvertConfig) if field.name in FLAGS
    }
    settings["rename"] = tuple(FLAGS.rename)
    settings["ignore_classes"] = tuple(" ".join(name.split()) for name in FLAGS.ignore_classes)
    return ConvertConfig(
        voc_dirs=tuple(FLAGS.voc_dir), labels_file=FLAGS.labels, shard_bytes=FLAGS.shard_mb << 20, **settings
    )


def check(patterns: str) -> list[str]:
    """Verifies shards and prints how many are sound; returns what is wrong, a line for each problem.

    Args:
      patterns: of shards, comma separated; a folder stands for all its shards.
    """
    paths: list[str] = []
    for pattern in patterns.split(","):
        splits = shards.shards_by_split(pattern) if files.is_dir(pattern) else {}
        paths += [os.path.join(pattern, name) for names in splits.values() for name in names]
        paths += [] if splits else shards.expand_glob(pattern)
    problems = shards.find_wrong_sets(paths)
    num_records = 0
    for path in tqdm(paths, desc="checking", unit=" shards", disable=None):
        try:
            num_records += shards.check_shard(path)
        except (ValueError, OSError) as error:
            problems[path] = str(error)
    num_sound = len(set(paths) - problems.keys())
    print(f"{num_sound} of {len(paths)} shards are sound, with {num_records} records.")
    return [*problems.values()]


def convert_and_report(config: ConvertConfig, image_size: tuple[int, int], workers: Workers) -> None:
    """Converts, and prints the report of each split, whose page lies beside the shards."""
    for line in listing.describe_folders(config):
        print(line, flush=True)
    splits = [manifest.split for manifest in convert.convert(config, workers)]
    with convert.locked(config.output_dir):
        for split in splits:
            text, path = report.write_report(config.output_dir, split, image_size, workers, FLAGS.class_pictures)
            print(f"{text}\nPictures and plots: {path}")


def make_workers() -> Workers:
    if FLAGS.beam_runner:
        return beam.BeamWorkers(FLAGS.beam_runner, FLAGS.beam_options, FLAGS.output_dir)
    return Workers(FLAGS.num_workers or available_cores())


def main() -> None:
    image_size = parse_image_size(FLAGS.report_image_size, "report_image_size")
    if FLAGS.check:
        if problems := check(FLAGS.check):
            sys.exit("\n".join(problems))
        return
    if not FLAGS.output_dir:
        raise ValueError("--output_dir is missing: name a folder for the shards.")
    if FLAGS.beam_options and not FLAGS.beam_runner:
        raise ValueError("--beam_options goes with --beam_runner.")
    config = config_from_flags()
    try:
        with make_workers() as workers:
            convert_and_report(config, image_size, workers)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues.")


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a class name's letters is no reason to fail
    command.run(main)
