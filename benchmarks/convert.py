"""How close the converter comes to a bare loop that reads, parses and writes the same files.

  python benchmarks/convert.py [--voc_dir=VOCDIR] [--num_images=10000]

Builds a VOC tree of `--num_images` by linking the images of VOCDIR (or 200 drawn ones: 640x480, 13 boxes each) under
new names, beside annotations that name them. Then times these in turn, `--rounds` times, in as many processes each, and
prints medians as JSON on the last line:

- the decode limit: a bare loop that reads the JPEG, parses the XML with lxml to a tree, decodes the JPEG once and
  writes the JPEG as a framed record. It checks nothing, looks at no value and makes no tf.Example. Like the converter
  it flushes each shard to the disk, since the disk is not what is compared;
- the converter as it is by default, with --verify=decode. Goal: decode_ratio_to_limit of at least 0.85;
- the limit: the bare loop without the decoding;
- the values limit: the limit, and names and boxes taken out of the tree, as tutorials do it;
- the converter with --verify=header. Goal: ratio_to_limit of at least 0.30.

The time is that from workers ready to shards published, with the label list given. Also printed: the time to start the
workers and to find the classes; the peak resident memory of all processes together, with all images and with a tenth.

  python benchmarks/convert.py --scale [--num_images=100000] [--num_workers=1]

times whole commands instead: `--num_images` small drawn images (64x48, all different, each with ten boxes that lack
their `<pose>`, which is noted), and a tenth of them, are converted and reported in a process each. The JSON line has
milliseconds per image, the seconds of the report, and the peak memory of all processes together. With one worker the
times are those of the processor, so that other work on the machine does not count.
"""

from __future__ import annotations

import collections
import dataclasses
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
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from lxml import etree
from PIL import Image

from input import tfrecord
from input.conversion import convert, listing, report
from input.conversion.config import ConvertConfig
from input.conversion.source import Source
from input.conversion.workers import Advance, Workers, available_cores

FLAGS = flags.FLAGS
flags.DEFINE_string("voc_dir", "", "VOC folder that the images are taken from. Without it images are drawn.")
flags.DEFINE_string("scratch_dir", "", "Folder for the tree and the shards. Without it the system chooses one.")
flags.DEFINE_integer("num_images", 10_000, "Number of images in the tree.", lower_bound=10)
flags.DEFINE_integer("num_workers", 0, "Number of processes; 0: one for each core.", lower_bound=0)
flags.DEFINE_integer("rounds", 5, "Number of times that everything is timed.", lower_bound=1)
flags.DEFINE_boolean("scale", False, "Compare many small images with a tenth of them.")
flags.DEFINE_string(
    "convert_once_to", "", "Convert --voc_dir to this folder and print the figures; for the benchmark's own use."
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
    """Draws smooth shapes under sensor noise, which give a JPEG about as many bytes as a photograph has."""
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
    """Links the images; copies the annotations, since each has to name its image, as in a real data set."""
    make_folders(folder)
    pairs = [(path.stem, path.read_bytes()) for path in sorted((source / "Annotations").glob("*.xml"))]
    for index in range(count):
        stem, xml = pairs[index % len(pairs)]
        name = f"{index:06d}"
        xml = re.sub(rb"(?<=<filename>)[^<]*", name.encode() + b".jpg", xml)
        (folder / "Annotations" / f"{name}.xml").write_bytes(xml)
        (folder / "JPEGImages" / f"{name}.jpg").symlink_to((source / "JPEGImages" / f"{stem}.jpg").resolve())


def draw_small(folder: pathlib.Path, count: int) -> None:
    """Small images of noise, none like another, with ten boxes each."""
    rng = np.random.default_rng(0)
    make_folders(folder)
    template = OBJECT.replace("\t\t<pose>Unspecified</pose>\n", "")
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8))
        name = f"{index:07d}"
        coarse.resize((64, 48), Image.Resampling.BILINEAR).save(folder / "JPEGImages" / f"{name}.jpg", quality=85)
        corners = rng.integers(1, (50, 34), (10, 2)).tolist()
        objects = "".join(template.format(side % 3, x, y, x + side, y + side) for side, (x, y) in enumerate(corners, 5))
        xml = ANNOTATION.replace("640", "64").replace("480", "48").format(name, name, objects)
        (folder / "Annotations" / f"{name}.xml").write_text(xml)


def read_values(root: etree._Element) -> list[tuple[str | int, ...]]:
    return [
        (
            item.findtext("name"),
            *(int(item.findtext(f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax")),
        )
        for item in root.findall("object")
    ]


class BareTask(NamedTuple):
    sources: list[Source]
    shard_path: str
    limit: str  # "limit", "values_limit" or "decode_limit"


def bare_loop(task: BareTask, advance: Advance) -> None:
    with open(task.shard_path, "wb") as shard:
        for source in task.sources:
            with open(source.image_path, "rb") as file:
                data = file.read()
            with open(source.annotation_path, "rb") as file:
                root = etree.fromstring(file.read())
            if task.limit == "values_limit":
                read_values(root)
            elif task.limit == "decode_limit":
                Image.open(io.BytesIO(data)).load()
            shard.write(tfrecord.frame_record(data))
        shard.flush()
        os.fsync(shard.fileno())


def time_bare_loop(sources: list[Source], limit: str, output: str, workers: Workers) -> float:
    """Images per second."""
    tasks = [
        BareTask(sources=sources[index::NUM_SHARDS], shard_path=os.path.join(output, str(index)), limit=limit)
        for index in range(NUM_SHARDS)
    ]
    start = time.perf_counter()
    workers.map(bare_loop, tasks, len(sources), "bare loop")
    return len(sources) / (time.perf_counter() - start)


def time_converter(config: ConvertConfig, workers: Workers) -> float:
    """Images per second."""
    start = time.perf_counter()
    (manifest,) = convert.convert(config, workers)
    return manifest.num_images / (time.perf_counter() - start)


def nap(seconds: float, advance: Advance) -> None:
    time.sleep(seconds)


def start_workers(workers: Workers, num_workers: int) -> float:
    """Seconds until every worker has been at work."""
    start = time.perf_counter()
    workers.map(nap, [0.5] * num_workers, num_workers, "starting workers")
    return time.perf_counter() - start - 0.5


def own_peak_memory(_: Any = None, advance: Advance | None = None) -> float:
    """MB, as the system counts them; the count of `resource` includes what the parent had at the start."""
    status = pathlib.Path("/proc/self/status").read_text()
    time.sleep(0.5)  # so that each worker is asked
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


class Once(NamedTuple):
    """One conversion in a process of its own."""

    convert_s: float
    report_s: float
    peak_mb: float  # of all processes together


def convert_once(voc_dir: str, output_dir: str, num_workers: int) -> Once:
    clock = time.perf_counter if num_workers > 1 else time.process_time
    start = clock()
    with Workers(num_workers) as workers:
        convert.convert(ConvertConfig(output_dir=output_dir, voc_dirs=(voc_dir,)), workers)
        converted = clock()
        if FLAGS.scale:
            report.write_report(output_dir, "all", (512, 512), workers)
        done = clock()
        peaks = workers.map(own_peak_memory, range(num_workers), num_workers, "asking workers")
    peak = own_peak_memory() + sum(peaks) if num_workers > 1 else peaks[0]
    return Once(converted - start, done - converted, peak)


def run_once(tree: pathlib.Path, scratch: pathlib.Path, num_workers: int) -> Once:
    with tempfile.TemporaryDirectory(dir=scratch) as output:
        command = [sys.executable, __file__, f"--voc_dir={tree}", f"--num_workers={num_workers}"]
        command += [f"--convert_once_to={output}", f"--scale={FLAGS.scale}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Once(*json.loads(done.stdout.splitlines()[-1]))


def compare_scales(scratch: pathlib.Path, num_images: int, num_workers: int) -> dict[str, float]:
    figures: dict[str, float] = {"num_images": num_images, "num_workers": num_workers}
    for name, count in (("_of_a_tenth", num_images // 10), ("", num_images)):
        draw_small(scratch / f"small{name}", count)
        once = run_once(scratch / f"small{name}", scratch, num_workers)
        figures[f"convert_ms_per_image{name}"] = 1000 * once.convert_s / count
        figures[f"report_s{name}"] = once.report_s
        figures[f"peak_rss_mb{name}"] = once.peak_mb
        print(name or "all", once, flush=True)
    figures["time_ratio"] = figures["convert_ms_per_image"] / figures["convert_ms_per_image_of_a_tenth"]
    return figures


def benchmark(voc_dir: str, scratch: pathlib.Path, num_images: int, num_workers: int, rounds: int) -> dict[str, float]:
    if not voc_dir:
        draw_voc(scratch / "drawn", 200)
    for name, count in (("voc", num_images), ("tenth", num_images // 10)):
        link_voc(pathlib.Path(voc_dir or scratch / "drawn"), scratch / name, count)
    config = ConvertConfig(output_dir="", voc_dirs=(str(scratch / "voc"),), labels_file=str(scratch / "labels.txt"))
    (listed,) = listing.list_inputs(config, Workers(1)).values()
    sources = [item.source for item in listed.inputs]
    rates: dict[str, list[float]] = collections.defaultdict(list)
    with Workers(num_workers) as workers:
        start_up = start_workers(workers, num_workers)
        start = time.perf_counter()
        labels = convert.find_classes(listed.inputs, workers)
        finding = time.perf_counter() - start
        (scratch / "labels.txt").write_text("\n".join(labels))
        for number in range(rounds):
            for name in ("limit", "header", "values_limit", "decode_limit", "decode"):
                with tempfile.TemporaryDirectory(dir=scratch) as output:
                    if name in ("header", "decode"):
                        settings = dataclasses.replace(config, output_dir=output, verify=name)
                        rates[name].append(time_converter(settings, workers))
                    else:
                        rates[name].append(time_bare_loop(sources, name, output, workers))
            print(f"round {number + 1}:", {name: round(values[-1]) for name, values in rates.items()}, flush=True)

    def ratio(ours: str, limit: str) -> float:
        """The median over rounds; a machine that is busy for a while slows both rates of a round."""
        return statistics.median(our / their for our, their in zip(rates[ours], rates[limit]))

    return {
        "images_per_s": statistics.median(rates["header"]),
        "limit_images_per_s": statistics.median(rates["limit"]),
        "ratio_to_limit": ratio("header", "limit"),
        "ratio_to_values_limit": ratio("header", "values_limit"),
        "decode_images_per_s": statistics.median(rates["decode"]),
        "decode_ratio_to_limit": ratio("decode", "decode_limit"),
        "peak_rss_mb": run_once(scratch / "voc", scratch, num_workers).peak_mb,
        "peak_rss_mb_with_a_tenth": run_once(scratch / "tenth", scratch, num_workers).peak_mb,
        "start_up_s": start_up,
        "find_classes_s": finding,
        "num_workers": num_workers,
    }


def main(_: list[str]) -> None:
    values = FLAGS
    num_workers = values.num_workers or available_cores()
    if values.convert_once_to:
        print(json.dumps(convert_once(values.voc_dir, values.convert_once_to, num_workers)))
        return
    with tempfile.TemporaryDirectory(dir=values.scratch_dir or None) as scratch:
        if values.scale:
            figures = compare_scales(pathlib.Path(scratch), values.num_images, num_workers)
        else:
            figures = benchmark(values.voc_dir, pathlib.Path(scratch), values.num_images, num_workers, values.rounds)
    print(json.dumps({name: round(figure, 3) for name, figure in figures.items()}))


if __name__ == "__main__":
    app.run(main)
