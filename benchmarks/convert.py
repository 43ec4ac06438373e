"""How close the converter comes to merely reading, parsing and writing the files.

  python benchmarks/convert.py [--voc_dir=VOCDIR] [--num_images=10000]

Builds a VOC tree of `--num_images` by linking the images of VOCDIR (or 200 drawn ones: 640x480, 13 boxes each) under
new names, beside annotations that name them. Then alternates, `--rounds` times, in as many processes, and prints
medians as JSON on its last line:

- the limit: a bare loop that reads the JPEG, parses the XML with lxml (to a tree: no value is looked at) and writes a
  framed record; no checks, no tf.Example. Like the converter it flushes each shard to the disk, since the disk is not
  what is compared;
- the values limit: the bare loop that also takes the names and boxes out of the tree, as tutorials do;
- the decode limit: the bare loop and one full decode of the JPEG;
- the converter, with --verify=header and with --verify=decode.

Timed from workers ready to shards published, with the label list given. Beside that: what starting the workers and
finding the classes take, and the peak resident memory of all processes together, here and with a tenth of the images.
"""

import collections
import io
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags
from lxml import etree
from PIL import Image

from input import tfrecord
from input.conversion import config as conversion_config
from input.conversion import convert, listing
from input.conversion.workers import Workers, available_cores

flags.DEFINE_string("voc_dir", "", "Where the images come from; none: they are drawn.")
flags.DEFINE_string("scratch_dir", "", "Where the tree and the shards are written; none: the system's choice.")
flags.DEFINE_integer("num_images", 10_000, "Images of the tree.", lower_bound=10)
flags.DEFINE_integer("num_workers", 0, "Processes; 0: one for each core.", lower_bound=0)
flags.DEFINE_integer("rounds", 5, "How often everything is timed.", lower_bound=1)
flags.DEFINE_string(
    "convert_once_to", "", "Convert --voc_dir and print the peak memory; the benchmark calls itself so."
)

NUM_SHARDS = 8
OBJECT = """\t<object>
\t\t<name>class{}</name>
\t\t<pose>Unspecified</pose>
\t\t<truncated>0</truncated>
\t\t<difficult>0</difficult>
\t\t<bndbox>
\t\t\t<xmin>{}</xmin>
\t\t\t<ymin>{}</ymin>
\t\t\t<xmax>{}</xmax>
\t\t\t<ymax>{}</ymax>
\t\t</bndbox>
\t</object>
"""
ANNOTATION = """<annotation>
\t<folder>JPEGImages</folder>
\t<filename>{}.jpg</filename>
\t<path>/home/someone/JPEGImages/{}.jpg</path>
\t<source>
\t\t<database>Unknown</database>
\t</source>
\t<size>
\t\t<width>640</width>
\t\t<height>480</height>
\t\t<depth>3</depth>
\t</size>
\t<segmented>0</segmented>
{}</annotation>
"""


def make_folders(folder: pathlib.Path) -> None:
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)


def draw_voc(folder: pathlib.Path, count: int) -> None:
    """Smooth shapes under sensor noise: about the bytes of a camera's JPEG."""
    rng = np.random.default_rng(0)
    make_folders(folder)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC)).astype(int)
        noisy = np.clip(smooth + rng.integers(-6, 7, (480, 640, 1)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / "JPEGImages" / f"{index}.jpg", quality=85)
        corners = np.sort(rng.integers(1, (640, 480), (13, 2, 2)), axis=1)
        corners[:, 1] += 1  # never degenerate
        objects = "".join(OBJECT.format(rng.integers(3), *box) for box in corners.reshape(-1, 4))
        (folder / "Annotations" / f"{index}.xml").write_text(ANNOTATION.format(index, index, objects))


def link_voc(source: pathlib.Path, folder: pathlib.Path, count: int) -> None:
    """The annotations are copied, since each has to name its image, as it does in a data set."""
    make_folders(folder)
    pairs = [(path.stem, path.read_bytes()) for path in sorted((source / "Annotations").glob("*.xml"))]
    for index in range(count):
        stem, xml = pairs[index % len(pairs)]
        name = f"{index:06d}"
        xml = re.sub(rb"(?<=<filename>)[^<]*", name.encode() + b".jpg", xml)
        (folder / "Annotations" / f"{name}.xml").write_bytes(xml)
        (folder / "JPEGImages" / f"{name}.jpg").symlink_to((source / "JPEGImages" / f"{stem}.jpg").resolve())


def read_values(root: etree._Element) -> list:
    return [
        (
            item.findtext("name"),
            *(int(item.findtext(f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax")),
        )
        for item in root.findall("object")
    ]


def bare_loop(task, advance) -> None:
    sources, shard_path, kind = task
    with open(shard_path, "wb") as shard:
        for source in sources:
            with open(source.image_path, "rb") as file:
                data = file.read()
            with open(source.xml_path, "rb") as file:
                root = etree.fromstring(file.read())
            if kind == "values":
                read_values(root)
            elif kind == "decode":
                Image.open(io.BytesIO(data)).load()
            shard.write(tfrecord.frame_record(data))
        shard.flush()
        os.fsync(shard.fileno())


def time_bare_loop(sources, kind: str, output: str, workers: Workers) -> float:
    tasks = [(sources[index::NUM_SHARDS], os.path.join(output, str(index)), kind) for index in range(NUM_SHARDS)]
    start = time.perf_counter()
    workers.map(bare_loop, tasks, len(sources), "bare loop")
    return len(sources) / (time.perf_counter() - start)


def time_converter(config: conversion_config.ConvertConfig, workers: Workers) -> float:
    start = time.perf_counter()
    (manifest,) = convert.convert(config, workers)
    return manifest["num_images"] / (time.perf_counter() - start)


def nap(seconds: float, advance) -> None:
    time.sleep(seconds)


def start_workers(workers: Workers, num_workers: int) -> float:
    """Seconds until every worker has been at work."""
    start = time.perf_counter()
    workers.map(nap, [0.5] * num_workers, num_workers, "starting workers")
    return time.perf_counter() - start - 0.5


def own_peak_memory(_, advance) -> float:
    """MB. The system's own count, since that of `resource` starts with what the parent had."""
    status = pathlib.Path("/proc/self/status").read_text()
    time.sleep(0.5)  # so that each worker is asked
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def print_peak_memory(voc_dir: str, output_dir: str, num_workers: int) -> None:
    """MB, of this process and its workers together."""
    with Workers(num_workers) as workers:
        convert.convert(conversion_config.ConvertConfig(output_dir, (voc_dir,)), workers)
        peaks = workers.map(own_peak_memory, range(num_workers), num_workers, "asking workers")
    print(own_peak_memory(None, None) + sum(peaks) if num_workers > 1 else peaks[0])


def peak_memory(tree: pathlib.Path, scratch: pathlib.Path, num_workers: int) -> float:
    with tempfile.TemporaryDirectory(dir=scratch) as output:
        command = [sys.executable, __file__, f"--voc_dir={tree}", f"--num_workers={num_workers}"]
        done = subprocess.run([*command, f"--convert_once_to={output}"], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def benchmark(voc_dir: str, scratch: pathlib.Path, num_images: int, num_workers: int, rounds: int) -> dict[str, float]:
    if not voc_dir:
        draw_voc(scratch / "drawn", 200)
    for name, count in (("voc", num_images), ("tenth", num_images // 10)):
        link_voc(pathlib.Path(voc_dir or scratch / "drawn"), scratch / name, count)
    config = {"voc_dirs": (str(scratch / "voc"),), "labels_file": str(scratch / "labels.txt")}
    (listed,) = listing.list_inputs(conversion_config.ConvertConfig("", **config)).values()
    sources = [item.source for item in listed.inputs]
    rates = collections.defaultdict(list)
    with Workers(num_workers) as workers:
        start_up = start_workers(workers, num_workers)
        start = time.perf_counter()
        labels = convert.find_classes(listed.inputs, workers)
        finding = time.perf_counter() - start
        (scratch / "labels.txt").write_text("\n".join(labels))
        for number in range(rounds):
            for name in ("limit", "header", "values", "decode_limit", "decode"):
                with tempfile.TemporaryDirectory(dir=scratch) as output:
                    if name in ("header", "decode"):
                        settings = conversion_config.ConvertConfig(output, **config, verify=name)
                        rates[name].append(time_converter(settings, workers))
                    else:
                        rates[name].append(time_bare_loop(sources, name.replace("_limit", ""), output, workers))
            print(f"round {number + 1}:", {name: round(values[-1]) for name, values in rates.items()}, flush=True)

    def ratio(ours: str, limit: str) -> float:
        """The median over rounds: neighbours in time, so that a machine that is busy for a while slows both."""
        return statistics.median(our / their for our, their in zip(rates[ours], rates[limit]))

    return {
        "images_per_s": statistics.median(rates["header"]),
        "limit_images_per_s": statistics.median(rates["limit"]),
        "ratio_to_limit": ratio("header", "limit"),
        "ratio_to_values_limit": ratio("header", "values"),
        "decode_images_per_s": statistics.median(rates["decode"]),
        "decode_ratio_to_limit": ratio("decode", "decode_limit"),
        "peak_rss_mb": peak_memory(scratch / "voc", scratch, num_workers),
        "peak_rss_mb_with_a_tenth": peak_memory(scratch / "tenth", scratch, num_workers),
        "start_up_s": start_up,
        "find_classes_s": finding,
        "num_workers": num_workers,
    }


def main(_):
    values = flags.FLAGS
    num_workers = values.num_workers or available_cores()
    if values.convert_once_to:
        print_peak_memory(values.voc_dir, values.convert_once_to, num_workers)
        return
    with tempfile.TemporaryDirectory(dir=values.scratch_dir or None) as scratch:
        figures = benchmark(values.voc_dir, pathlib.Path(scratch), values.num_images, num_workers, values.rounds)
    print(json.dumps({name: round(figure, 3) for name, figure in figures.items()}))


if __name__ == "__main__":
    app.run(main)
