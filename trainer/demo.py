"""python -m trainer.demo: the whole chain, each command printed as you would type it, on drawn pictures or on yours.

`make demo` and `make smoke` run it; it belongs in a checkout, since the first command is the file prepare_tfrecords.py.
"""

import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

from absl import app, flags

from input import shards, tfrecord
from trainer import shapes

FLAGS = flags.FLAGS
REQUIRED_AP50 = 0.85  # of the full demo on the drawn shapes
NUM_PICTURES = 16
SMALL_NETWORK = ("--backbone=resnet18", "--neck_filters=64", "--head_convs=2")


@dataclasses.dataclass(frozen=True)
class Demo:
    """One way to run the chain."""

    name: str
    train_flags: tuple[str, ...]
    num_images: int = 0  # to draw
    required_ap50: float = 0.0


SHAPES = Demo(
    name="shapes",
    num_images=800,
    required_ap50=REQUIRED_AP50,
    train_flags=(
        *SMALL_NETWORK,
        "--image_size=96x160",
        "--anchor_sizes=16,32,64,128,256",
        "--augment=paper",
        "--optimizer=adamw",
        "--learning_rate=0.001",
        "--batch_size=16",
        "--train_steps=450",
        "--warmup_steps=45",
        "--eval_every=225",
    ),
)
SMOKE = Demo(
    name="smoke",
    num_images=60,
    train_flags=(
        *SMALL_NETWORK,
        "--image_size=64x96",
        "--anchor_sizes=12,24,48,96,192",
        "--batch_size=8",
        "--train_steps=20",
        "--steps_per_loop=10",
        "--warmup_steps=2",
        "--eval_every=20",
    ),
)
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
    """Prints a command line and runs it with this interpreter; where it fails, this program ends with its exit code."""
    print(f"\n$ {shlex.join(('python', *arguments))}", flush=True)
    status = subprocess.run([sys.executable, *arguments]).returncode
    if status:
        print("The demo stopped: the command above failed.", file=sys.stderr)
        sys.exit(status)


def choose_image_sets(voc_dir: str) -> tuple[str, ...]:
    """The image sets to train on, to watch while training (not always) and to hold out; none where they are missing."""
    folder = pathlib.Path(voc_dir) / "ImageSets" / "Main"
    for splits in (("train", "val", "test"), ("trainval", "test"), ("train", "test"), ("train", "val")):
        if all((folder / f"{split}.txt").is_file() for split in splits):
            return splits
    return ()


def write_pictures(shards: list[str], output_dir: pathlib.Path) -> None:
    """Writes the first pictures of the shards as files, still encoded."""
    output_dir.mkdir()
    records = (record for shard in shards for record in tfrecord.read_records(shard))
    for record, _ in zip(records, range(NUM_PICTURES)):
        features = tfrecord.decode_example(record, frozenset(["image/filename", "image/encoded"]))
        name = pathlib.Path(features["image/filename"][0].decode()).name
        (output_dir / name).write_bytes(features["image/encoded"][0])


def run_demo(demo: Demo, voc_dir: str) -> None:
    """Runs the chain in demo/NAME, anew, and prints its result as JSON.

    Raises:
      SystemExit: a command failed, or the result is below what `demo` asks for.
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
    splits = choose_image_sets(voc_dir)
    for conversion in [f"--image_set={split}" for split in splits] or ["--val_fraction=0.2"]:
        run("prepare_tfrecords.py", f"--voc_dir={voc_dir}", conversion, f"--output_dir={records}")
    training, *watched, held_out = splits or ("train", "val")
    train_records, test_records = (f"{records}/{split}-*.tfrecord" for split in (training, held_out))
    val_records = [f"--val_records={records}/{split}-*.tfrecord" for split in watched]
    run(
        "-m",
        "trainer.task",
        f"--train_records={train_records}",
        *val_records,
        f"--model_dir={model}",
        *demo.train_flags,
    )
    run("-m", "trainer.evaluate", f"--model_dir={model}", f"--records={test_records}")
    run("-m", "trainer.export", f"--model_dir={model}", f"--output_dir={export}")
    write_pictures(shards.expand_glob(test_records), pathlib.Path(inputs))
    run("-m", "trainer.predict", f"--export_dir={export}", f"--images={inputs}/*", f"--output_dir={pictures}")

    result = json.loads((pathlib.Path(model) / "eval" / f"{held_out}.json").read_text(encoding="utf-8"))
    missed = result["voc12_ap50"] < demo.required_ap50
    if missed:
        print(f"error: voc12_ap50 is below {demo.required_ap50}, which this demo has to reach.", file=sys.stderr)
    print(json.dumps({"voc12_ap50": result["voc12_ap50"], "pictures": pictures}), flush=True)
    if missed:
        sys.exit(1)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}.")
    if not os.path.isfile("prepare_tfrecords.py"):
        sys.exit("error: run the demo in a checkout of the repository, where prepare_tfrecords.py is.")
    voc_dir = os.path.expanduser(FLAGS.voc_dir)
    if voc_dir and not os.path.isdir(os.path.join(voc_dir, "Annotations")):
        sys.exit(
            f"error: {voc_dir} holds no Annotations folder: give the folder with Annotations and JPEGImages in it."
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # at 2 each command starts with three lines about CUDA
    # Where it is not TensorFlow's default already, a step of this small network takes half the CPU time with it.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    run_demo(SMOKE if FLAGS.smoke else YOURS if voc_dir else SHAPES, voc_dir)


if __name__ == "__main__":
    flags.DEFINE_string("voc_dir", "", "Your data in the layout of Pascal VOC; none: pictures are drawn.")
    flags.DEFINE_bool("smoke", False, "A short run that shows only that the chain works.")
    app.run(main)
