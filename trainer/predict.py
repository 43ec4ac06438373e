"""An exported model on picture files: pictures with what was found drawn on them, and `detections.json`.

`python -m trainer.predict --export_dir=EXPORT --images='DIR/*.jpg' --output_dir=PRED [--score_threshold=0.3]`

`PRED/detections.json` is a list with, for each file, `path`, `width`, `height`, `picture` (the file in PRED) and
`detections`, best first: `label`, `score`, and `box` with `ymin`, `xmin`, `ymax`, `xmax` in pixels of the file.

Pictures and boxes are in the pixels as stored, which is what the network saw: an EXIF orientation is not applied.
"""

import colorsys
import glob
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import app
from absl import flags as absl_flags
from PIL import Image, ImageDraw, ImageFont

from input import augment
from trainer import checkpoints

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")  # files of other formats are drawn on as JPEG


class Found(NamedTuple):
    """One detection, in pixels of its file."""

    label: str
    score: float
    box: tuple[float, float, float, float]  # ymin xmin ymax xmax


def predict(
    export_dir: str, paths: Sequence[str], output_dir: str, *, score_threshold: float = 0.3, batch_size: int = 8
) -> list[dict]:
    """Runs an export over picture files; writes the drawn pictures and `detections.json` to `output_dir`.

    A file that is no picture, or a damaged one, is named on stderr and left out.

    Args:
      export_dir: EXPORT, as `trainer.export` writes it.
      paths: JPEG, PNG, BMP or GIF files.
      output_dir: PRED; made if need be.
      score_threshold: weaker detections are neither drawn nor listed. (The export has a threshold of its own.)
      batch_size: pictures at a time.

    Returns:
      The content of `detections.json`.

    Raises:
      FileNotFoundError: `export_dir` holds no export.
      ValueError: `output_dir` is a folder of the pictures, which would be overwritten.
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

    colours = class_colours(labels)
    results, names = [], set()
    for batch in _batches(_readable(paths), batch_size):
        batch_paths, contents, pictures = zip(*batch)
        found = {key: value.numpy() for key, value in detect(image_bytes=tf.constant(contents)).items()}
        for row, (path, picture) in enumerate(zip(batch_paths, pictures)):
            kept = found["scores"][row, : found["num_detections"][row]] >= score_threshold
            columns = (found[key][row, : len(kept)][kept].tolist() for key in ("classes", "scores", "boxes"))
            detections = [Found(labels[index], score, tuple(box)) for index, score, box in zip(*columns)]
            name = _picture_name(path, names)
            image = Image.fromarray(picture)
            draw_detections(image, detections, colours)
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


def _readable(paths) -> Iterator[tuple[str, bytes, np.ndarray]]:
    """(path, content, pixels u8 [h, w, 3]) of each file that decodes, by the decoder that the export uses."""
    for path in paths:
        try:
            with open(path, "rb") as file:
                content = file.read()
            yield path, content, augment.decode(content).numpy()
        except (OSError, tf.errors.InvalidArgumentError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a whole JPEG, PNG, BMP or GIF picture"
            print(f"skipped {path}: {reason}", file=sys.stderr)


def _batches(items, size):
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _picture_name(path, taken):
    """The file's own name; numbered if another folder has given it already. Adds it to `taken`."""
    stem, suffix = os.path.splitext(os.path.basename(path))
    if suffix.lower() not in PICTURE_SUFFIXES:
        stem, suffix = stem + suffix, ".jpg"
    name, number = stem + suffix, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}{suffix}"
    taken.add(name)
    return name


def class_colours(labels: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """A colour (R, G, B in 0..255) for each label: hues a golden section apart, in three brightnesses."""
    return {
        label: tuple(
            round(255 * value) for value in colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.9, (1.0, 0.8, 0.6)[index % 3])
        )
        for index, label in enumerate(labels)
    }


def draw_detections(image: Image.Image, detections: Sequence[Found], colours: dict) -> None:
    """Draws boxes, labels and scores onto an RGB image, best first given: the best comes uppermost, labels over boxes.

    A label stands on its box, or inside it where there is no room above, and never leaves the image if it fits at all.
    """
    draw = ImageDraw.Draw(image)
    size = (image.width * image.height) ** 0.5
    line = max(1, round(size / 250))
    font = ImageFont.load_default(max(10.0, size / 40))
    for label, _, (ymin, xmin, ymax, xmax) in reversed(detections):
        # Pillow's corners are pixels, and the last one belongs to the rectangle.
        corners = (int(xmin), int(ymin), max(int(xmin), round(xmax) - 1), max(int(ymin), round(ymax) - 1))
        draw.rectangle(corners, outline=colours[label], width=line)
    for label, score, (ymin, xmin, _, _) in reversed(detections):
        text = f"{label} {score:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        pad = line + 1
        width, height = math.ceil(right - left) + 2 * pad, math.ceil(bottom - top) + 2 * pad
        y = int(ymin) - height if ymin >= height else int(ymin)
        y, x = max(0, min(y, image.height - height)), max(0, min(int(xmin), image.width - width))
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colours[label])
        red, green, blue = colours[label]
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"  # ITU-R BT.601 luma
        draw.text((x + pad - left, y + pad - top), text, fill=ink, font=font)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}; flags are written --name=value.")
    flags = absl_flags.FLAGS
    paths = sorted({path for pattern in flags.images for path in glob.glob(pattern, recursive=True)})
    paths = [path for path in paths if os.path.isfile(path)]
    if not paths:
        sys.exit(f"error: --images={','.join(flags.images)} matches no file.")
    try:
        results = predict(
            flags.export_dir,
            paths,
            flags.output_dir,
            score_threshold=flags.score_threshold,
            batch_size=flags.batch_size,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(results)} of {len(paths)} pictures, with detections.json, in {flags.output_dir}")
    if not results:
        sys.exit(f"error: none of the {len(paths)} files could be read.")


if __name__ == "__main__":
    absl_flags.DEFINE_string("export_dir", None, "The export: a folder that trainer.export wrote.", required=True)
    absl_flags.DEFINE_multi_string(
        "images", None, "Picture files: a pattern such as 'DIR/*.jpg'; repeatable.", required=True
    )
    absl_flags.DEFINE_string("output_dir", None, "Where pictures and detections.json go.", required=True)
    absl_flags.DEFINE_float("score_threshold", 0.3, "Weaker detections are left out.", lower_bound=0.0)
    absl_flags.DEFINE_integer("batch_size", 8, "Pictures at a time.", lower_bound=1)
    app.run(main)
