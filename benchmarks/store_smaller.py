"""Measures what --store_max_side saves on large photographs: bytes, the converter's time, and images/s in training.

  python benchmarks/store_smaller.py [--num_images=32] [--image_size=640] [--sides=640,1280]

Draws photographs of 12 megapixels (4032x3024; smooth shapes under sensor noise, which give a JPEG about as many bytes),
converts them as they are and with each of --sides, and reads the records with the host stage of training, with scale
jitter 0.5-2.0. All take turns. The last line printed is JSON; each ratio is the median, over the turns, of that to the
conversion as it is.
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


def main(_: list[str]) -> None:
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
