"""Measures what --store_max_side saves on large photographs: bytes, the converter's time, and images/s in training.

  python benchmarks/store_smaller.py [--num_images=32] [--image_size=640] [--sides=640,1280]

Draws photographs of 12 megapixels (4032x3024; smooth shapes under sensor noise, which give a JPEG about as many bytes),
converts them as they are and with each of --sides, and reads the records with the host stage of training, with scale
jitter 0.5-2.0. All take turns. The last line printed is JSON; each ratio is the median, over the turns, of that to the
conversion as it is.

  nice python benchmarks/store_smaller.py --voc_dir=BCCD --output_dir=DIR [--train_steps=160]

measures AP instead: a small detector is trained on the photographs stored at the size of its input, and on them as they
are, and both are evaluated on the test images as they are. The JSON line has both APs, how far the first is above the
second, and the 95% interval of that by a paired bootstrap over the test images, as `trainer.compare` gives it. A run
that DIR holds already is not repeated.
"""

from __future__ import annotations

import collections
import json
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
from absl import app, flags
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from benchmarks import runs
from input import pipeline, shards
from input.config import AugmentConfig, InputConfig
from input.conversion import convert
from input.conversion.config import ConvertConfig
from input.conversion.workers import Workers, available_cores

FLAGS = flags.FLAGS
flags.DEFINE_integer("num_images", 32, "Number of photographs.", lower_bound=8)
flags.DEFINE_integer("image_size", 640, "Height and width of the network's input.")
flags.DEFINE_list("sides", ["640", "1280"], "The values of --store_max_side to try.")
flags.DEFINE_integer("batches", 12, "Number of batches of 8 images in a turn.")
flags.DEFINE_integer("rounds", 3, "Number of turns.")
flags.DEFINE_integer("num_workers", 0, "Number of processes that convert; 0: one for each core.", lower_bound=0)
flags.DEFINE_string("voc_dir", "", "For AP: a folder in VOC's layout with the sets trainval and test.")
flags.DEFINE_string("output_dir", "", "For AP: the folder for the shards and the runs.")
flags.DEFINE_string("weights", "imagenet", "For AP: weights of the backbone, as --backbone_weights takes them.")
flags.DEFINE_string("backbone", "efficientnet_lite0", "For AP: the backbone.")
flags.DEFINE_integer("train_steps", 160, "For AP: steps of each run, of 8 images each.", lower_bound=20)

HEIGHT, WIDTH, BATCH_SIZE = 3024, 4032, 8
ANNOTATION = """<annotation><filename>{0}.jpg</filename><size><width>4032</width><height>3024</height></size>
<object><name>thing</name><bndbox><xmin>500</xmin><ymin>400</ymin><xmax>1500</xmax><ymax>2000</ymax></bndbox></object>
</annotation>"""


def draw(folder: pathlib.Path, count: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(smooth + rng.integers(-6, 7, (HEIGHT, WIDTH, 1), np.int16), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index}.jpg", quality=85)
        (folder / f"{index}.xml").write_text(ANNOTATION.format(index))


def time_conversion(source: pathlib.Path, output: str, side: int, workers: Workers) -> tuple[float, int]:
    """Seconds and bytes of the shards."""
    config = ConvertConfig(output_dir=output, voc_dirs=(str(source),), store_max_side=side, overwrite=True)
    start = time.perf_counter()
    (manifest,) = convert.convert(config, workers)
    return time.perf_counter() - start, sum(shard.num_bytes for shard in manifest.shards)


def images_per_s(output: str) -> float:
    augment = AugmentConfig(horizontal_flip=0.5, scale_min=0.5, scale_max=2.0)
    config = InputConfig(image_size=(FLAGS.image_size, FLAGS.image_size), augment=augment)
    paths = shards.expand_glob(f"{output}/*.tfrecord")
    batches = iter(pipeline.make_dataset(paths, config, training=True, batch_size=BATCH_SIZE))
    for _ in range(3):
        next(batches)
    start = time.perf_counter()
    for _ in range(FLAGS.batches):
        next(batches)
    return FLAGS.batches * BATCH_SIZE / (time.perf_counter() - start)


def compare_ap(voc_dir: pathlib.Path, folder: pathlib.Path) -> dict[str, object]:
    whole, smaller, steps = folder / "as_it_is", folder / "smaller", FLAGS.train_steps
    runs.convert(voc_dir, "trainval", whole / "shards")
    runs.convert(voc_dir, "test", whole / "shards")
    runs.convert(voc_dir, "trainval", smaller / "shards", "--store_max_side=256")  # as SMALL_DETECTOR's input
    records = f"{whole}/shards/test-*.tfrecord"
    settings = (
        *(*runs.SMALL_DETECTOR, f"--backbone={FLAGS.backbone}", f"--backbone_weights={FLAGS.weights}"),
        *(f"--train_steps={steps}", f"--warmup_steps={steps // 10}"),
    )
    figures: dict[str, object] = {"train_steps": steps, "backbone": FLAGS.backbone}
    for run in (whole, smaller):
        own = (*settings, f"--train_records={run}/shards/trainval-*.tfrecord")
        figures[f"coco_ap_{run.name}"] = round(runs.train_and_evaluate(run / "run", own, records=records)["coco_ap"], 4)
    compared = runs.compare(whole / "run", smaller / "run", records)["coco_ap"]
    figures["difference"] = round(compared["difference"], 4)
    figures["interval"] = [round(bound, 4) for bound in compared["interval"]]
    return figures


def main(_: list[str]) -> None:
    if FLAGS.voc_dir:
        print(json.dumps(compare_ap(pathlib.Path(FLAGS.voc_dir).resolve(), pathlib.Path(FLAGS.output_dir).resolve())))
        return
    sides = [0, *map(int, FLAGS.sides)]
    turns: dict[int, list[tuple[float, float, float]]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch, Workers(FLAGS.num_workers or available_cores()) as workers:
        source = pathlib.Path(scratch) / "photographs"
        draw(source, FLAGS.num_images)
        time_conversion(source, f"{scratch}/started", 64, workers)
        for number in range(FLAGS.rounds):
            for side in sides if number % 2 else sides[::-1]:
                seconds, num_bytes = time_conversion(source, f"{scratch}/{side}", side, workers)
                turns[side].append((num_bytes, seconds, images_per_s(f"{scratch}/{side}")))
                print(side, [round(value, 2) for value in turns[side][-1]], flush=True)
    figures: dict[str, float] = {"as_it_is_images_per_s": statistics.median(turn[2] for turn in turns[0])}
    for side in sides[1:]:
        for index, name in enumerate(("bytes", "conversion_time", "images_per_s")):
            ratios = [own[index] / whole[index] for own, whole in zip(turns[side], turns[0])]
            figures[f"{name}_ratio_at_{side}"] = statistics.median(ratios)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    app.run(main)
