"""All commands in a row, each printed as you would type it, on pictures that the demo draws or on yours.

`make demo` and `make smoke` run it. It needs a checkout, since its first command is the file prepare_tfrecords.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Collection

from absl import flags

from input import files, shards, tfrecord
from input.conversion import layout
from trainer import command, shapes

FLAGS = flags.FLAGS
NUM_PICTURES = 16
SMALL_NETWORK = ("--backbone=resnet18", "--neck_filters=64", "--head_convs=2")


@dataclasses.dataclass(frozen=True)
class Demo:
    """One way to run the commands."""

    name: str
    train_flags: tuple[str, ...]
    num_images: int = 0  # how many to draw; 0: the data are given
    required_ap50: float = 0.0  # voc12_ap50 below which the demo fails


SHAPES = Demo(
    name="shapes",
    num_images=1600,
    required_ap50=0.9,
    train_flags=(
        *SMALL_NETWORK,
        "--image_size=96x160",
        # The shapes are about as wide as high, and 25 to 70 px in the network's input. Most are found on P3, whose
        # anchors are the closest to each other.
        "--anchor_sizes=32,64,128,256,512",
        "--aspect_ratios=1",
        "--nms=agnostic",
        "--nms_iou=0.3",
        "--augment=paper",
        "--optimizer=adamw",
        "--learning_rate=0.001",
        "--batch_size=16",
        "--train_steps=450",
        "--warmup_steps=45",
        "--eval_every=225",
    ),
)
SMOKE = Demo(name="smoke", num_images=60, train_flags=("--flagfile=recipes/smoke.flags",))
YOURS = Demo(
    name="voc",
    train_flags=(
        *SMALL_NETWORK,
        "--image_size=192",
        "--anchor_sizes=12,24,48,96,192",
        "--optimizer=adamw",
        "--learning_rate=0.001",
        "--batch_size=8",
        "--train_steps=300",
        "--warmup_steps=30",
        "--eval_every=300",
    ),
)


def run(*arguments: str) -> None:
    """Prints a command line and runs it with this interpreter; if it fails, this program ends with its exit code."""
    print(f"\n$ {shlex.join(('python', *arguments))}", flush=True)
    status = subprocess.run([sys.executable, *arguments]).returncode
    if status:
        print("The demo stopped: the command above failed.", file=sys.stderr)
        sys.exit(status)


def choose_splits(names: Collection[str]) -> tuple[str, ...]:
    """The splits for training, for evaluation while training (where there are three), and to hold out; or ()."""
    for splits in (("train", "val", "test"), ("trainval", "test"), ("train", "test"), ("train", "val")):
        if set(splits) <= set(names):
            return splits
    return ()


def conversion_flags(voc_dir: str) -> list[list[str]]:
    """The flags of each call of the converter that together make the splits of a data set.

    Raises:
      ConversionError: no annotations were found, or in several places.
    """
    lists = os.path.join(layout.unwrap(voc_dir), "ImageSets", "Main")
    names = files.names(lists) if files.is_dir(lists) else []
    if image_sets := choose_splits([name[: -len(".txt")] for name in names if name.endswith(".txt")]):
        return [[f"--image_set={split}"] for split in image_sets]
    if layout.find_folders(voc_dir)[0].split:
        return [[]]  # the converter makes a split of each folder
    return [["--val_fraction=0.2"]]


def write_pictures(paths: list[str], output_dir: pathlib.Path) -> None:
    """Writes the first pictures of some shards as files, without decoding them."""
    output_dir.mkdir()
    records = itertools.chain.from_iterable(map(tfrecord.read_records, paths))
    for record in itertools.islice(records, NUM_PICTURES):
        features = tfrecord.decode_example(record, frozenset(["image/filename", "image/encoded"]))
        name = pathlib.Path(features["image/filename"][0].decode()).name
        (output_dir / name).write_bytes(features["image/encoded"][0])


def run_demo(demo: Demo, voc_dir: str) -> None:
    """Runs all commands in demo/NAME, whose earlier content is removed, and prints the result as JSON.

    Raises:
      ValueError: the data set has no split to hold out, or no annotations were found.
      SystemExit: a command failed, or the result is below `demo.required_ap50`.
    """
    root = pathlib.Path("demo") / demo.name
    if root.exists():
        shutil.rmtree(root)
    root.mkdir(parents=True)
    if demo.num_images:
        voc_dir = str(root / "VOC")
        print(f"Drawing {demo.num_images} pictures with Pascal VOC annotations in {voc_dir}")
        shapes.write_shapes(voc_dir, num_images=demo.num_images)

    records, model, export, inputs, pictures = (
        str(root / name) for name in ("records", "run", "export", "held_out", "pictures")
    )
    for conversion in conversion_flags(voc_dir):
        run("prepare_tfrecords.py", f"--voc_dir={voc_dir}", *conversion, f"--output_dir={records}")
    splits = shards.shards_by_split(records)
    if not (chosen := choose_splits(splits)):
        raise ValueError(f"{voc_dir} has the splits {', '.join(splits)}: the demo needs train, and val or test.")
    training, *watched, held_out = chosen
    train_records, test_records = (f"{records}/{split}-*.tfrecord" for split in (training, held_out))
    val_records = [f"--val_records={records}/{split}-*.tfrecord" for split in watched]
    settings = [f"--train_records={train_records}", *val_records, f"--model_dir={model}", *demo.train_flags]
    run("-m", "trainer.task", *settings)
    run("-m", "trainer.evaluate", f"--model_dir={model}", f"--records={test_records}")
    run("-m", "trainer.export", f"--model_dir={model}", f"--output_dir={export}")
    write_pictures(shards.expand_glob(test_records), pathlib.Path(inputs))
    evaluation = f"{model}/eval/{held_out}.json"
    shown = [f"--images={inputs}/*", f"--output_dir={pictures}", f"--thresholds={evaluation}"]
    run("-m", "trainer.predict", f"--export_dir={export}", *shown)

    result = json.loads(pathlib.Path(evaluation).read_text(encoding="utf-8"))
    print(json.dumps({**{name: result[name] for name in ("voc12_ap50", "coco_ap")}, "pictures": pictures}), flush=True)
    if result["voc12_ap50"] < demo.required_ap50:
        sys.exit(f"error: voc12_ap50 is below {demo.required_ap50}, which this demo must reach.")


def main() -> None:
    if not os.path.isfile("prepare_tfrecords.py"):
        raise FileNotFoundError("run the demo in a checkout of the repository, where prepare_tfrecords.py is.")
    voc_dir = os.path.expanduser(FLAGS.voc_dir)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # at 2 each command starts with three lines about CUDA
    # oneDNN halves the CPU time of a step of this small network; on some CPUs it is not TensorFlow's default.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    run_demo(SMOKE if FLAGS.smoke else YOURS if voc_dir else SHAPES, voc_dir)


if __name__ == "__main__":
    flags.DEFINE_string(
        "voc_dir", "", "Folder of your data, as for prepare_tfrecords.py; without it the demo draws its own."
    )
    flags.DEFINE_bool("smoke", False, "Make a short run, which shows only that all commands work.")
    command.run(main)
