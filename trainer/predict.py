"""Runs an exported model on picture files: draws what it finds on them, and lists it in `detections.json`.

`python -m trainer.predict --export_dir=EXPORT --images='DIR/*.jpg' --output_dir=PRED [--score_threshold=0.3]`

`PRED/detections.json` is a list with, for each file, `path`, `width`, `height`, `picture` (the file in PRED) and
`detections`, best first: `label`, `score`, and `box` with `ymin`, `xmin`, `ymax`, `xmax` in pixels of the file.
Class names that the font cannot write are drawn as numbers, which `PRED/legend.txt` explains.

Pictures and boxes are in the pixels as stored, which is what the network saw: an EXIF orientation is not applied.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags as absl_flags
from PIL import Image

from input import augment
from input.palette import Colour, class_colour
from trainer import checkpoints, command, drawing

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")  # pictures of other files are written as JPEG


class Found(NamedTuple):
    """One detection, in pixels of its file."""

    label: str
    score: float
    box: tuple[float, float, float, float]  # ymin xmin ymax xmax


def predict(
    export_dir: str, paths: Sequence[str], output_dir: str, *, score_threshold: float = 0.3, batch_size: int = 8
) -> list[dict[str, Any]]:
    """Runs an export on picture files; writes the pictures with boxes and `detections.json` to `output_dir`.

    If class names are drawn as numbers (`drawing.number_labels`), `legend.txt` there has a line for each of them.

    A file that is no picture, or is damaged, is named on stderr and left out.

    Args:
      export_dir: EXPORT, as `trainer.export` writes it.
      paths: JPEG, PNG, BMP or GIF files.
      output_dir: PRED; made if need be.
      score_threshold: detections below it are neither drawn nor listed. (The export has a threshold of its own.)
      batch_size: the number of pictures at a time.

    Returns:
      The content of `detections.json`.

    Raises:
      FileNotFoundError: `export_dir` holds no export.
      ValueError: `output_dir` is the folder of a picture, which would be overwritten.
    """
    if not os.path.exists(os.path.join(export_dir, "saved_model.pb")):
        raise FileNotFoundError(f"{export_dir} holds no export: make one with python -m trainer.export.")
    if os.path.realpath(output_dir) in {os.path.realpath(os.path.dirname(path)) for path in paths}:
        raise ValueError(f"{output_dir} holds the pictures themselves: choose another --output_dir.")
    with open(os.path.join(export_dir, "labels.txt"), encoding="utf-8") as file:
        labels = file.read().splitlines()
    exported = tf.saved_model.load(export_dir)
    detect = exported.signatures["serving_default"]
    os.makedirs(output_dir, exist_ok=True)

    colours = {label: class_colour(index) for index, label in enumerate(labels)}
    numbers = drawing.number_labels(labels)
    if numbers:
        legend = os.path.join(output_dir, "legend.txt")
        checkpoints.write_file(legend, "".join(f"{number} {label}\n" for label, number in numbers.items()))
        print(f"Some class names are drawn as numbers, since the font lacks their letters: see {legend}")
    results: list[dict[str, Any]] = []
    names: set[str] = set()
    readable = _readable(paths)
    while batch := list(itertools.islice(readable, batch_size)):
        batch_paths, contents, pictures = zip(*batch)
        found = {key: value.numpy() for key, value in detect(image_bytes=tf.constant(contents)).items()}
        for row, (path, picture) in enumerate(zip(batch_paths, pictures)):
            kept = found["scores"][row, : found["num_detections"][row]] >= score_threshold
            columns = (found[key][row, : len(kept)][kept].tolist() for key in ("classes", "scores", "boxes"))
            detections = [Found(labels[index], score, tuple(box)) for index, score, box in zip(*columns)]
            name = _picture_name(path, names)
            image = Image.fromarray(picture)
            draw_detections(image, detections, colours, numbers)
            image.save(os.path.join(output_dir, name), quality=95)
            results.append(
                {
                    "path": path,
                    "width": image.width,
                    "height": image.height,
                    "picture": name,
                    "detections": [
                        {"label": label, "score": score, "box": dict(zip(("ymin", "xmin", "ymax", "xmax"), box))}
                        for label, score, box in detections
                    ],
                }
            )
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    checkpoints.write_file(os.path.join(output_dir, "detections.json"), text)
    return results


def _readable(paths: Iterable[str]) -> Iterator[tuple[str, bytes, np.ndarray]]:
    """(path, content, pixels u8 [h, w, 3]) of each file that decodes, by the decoder that the export uses."""
    for path in paths:
        try:
            with open(path, "rb") as file:
                content = file.read()
            yield path, content, augment.decode(content).numpy()
        except (OSError, tf.errors.InvalidArgumentError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a whole JPEG, PNG, BMP or GIF picture"
            print(f"skipped {path}: {reason}", file=sys.stderr)


def _picture_name(path: str, taken: set[str]) -> str:
    """The file's own name, with a number if it is in `taken` (from another folder); adds it to `taken`."""
    stem, suffix = os.path.splitext(os.path.basename(path))
    if suffix.lower() not in PICTURE_SUFFIXES:
        stem, suffix = stem + suffix, ".jpg"
    name, number = stem + suffix, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}{suffix}"
    taken.add(name)
    return name


def draw_detections(
    image: Image.Image, detections: Sequence[Found], colours: Mapping[str, Colour], numbers: Mapping[str, str]
) -> None:
    """Draws boxes, labels and scores onto an RGB image: labels over all boxes, and the first detections over others.

    Lines and letters grow with the image. `numbers` has what is written instead of some class names.
    """
    side = (image.width * image.height) ** 0.5
    for found in reversed(detections):
        drawing.draw_box(image, found.box, colours[found.label], line=max(1, round(side / 250)))
    for found in reversed(detections):
        text = f"{numbers.get(found.label, found.label)} {found.score:.2f}"
        drawing.draw_label(image, found.box, text, colours[found.label], font_size=max(10.0, side / 40))


def main() -> None:
    flags = absl_flags.FLAGS
    matches = {path for pattern in flags.images for path in glob.glob(pattern, recursive=True)}
    paths = sorted(path for path in matches if os.path.isfile(path))
    if not paths:
        raise FileNotFoundError(f"--images={','.join(flags.images)} matches no file: check the pattern.")
    results = predict(
        flags.export_dir, paths, flags.output_dir, score_threshold=flags.score_threshold, batch_size=flags.batch_size
    )
    print(f"{len(results)} of {len(paths)} pictures, with detections.json, in {flags.output_dir}")
    if not results:
        raise ValueError(f"none of the {len(paths)} files could be read: give JPEG, PNG, BMP or GIF pictures.")


if __name__ == "__main__":
    absl_flags.DEFINE_string("export_dir", None, "Folder that trainer.export wrote.", required=True)
    absl_flags.DEFINE_multi_string(
        "images", None, "Pattern of picture files, such as 'DIR/*.jpg'; may be repeated.", required=True
    )
    absl_flags.DEFINE_string("output_dir", None, "Folder for the pictures and detections.json.", required=True)
    absl_flags.DEFINE_float("score_threshold", 0.3, "Score below which detections are left out.", lower_bound=0.0)
    absl_flags.DEFINE_integer("batch_size", 8, "Number of pictures at a time.", lower_bound=1)
    command.run(main)
