"""Runs a model on picture files: draws what it finds on them, and lists it in `detections.json`.

`python -m trainer.predict --export_dir=EXPORT --images=DIR --output_dir=PRED [--score_threshold=0.3]`, or with
`--model_dir=RUN` in place of the export.

`PRED/detections.json` is a list with, for each file, `path`, `width`, `height`, `picture` (its name in PRED) and
`detections`, best first: `label`, `score`, and `box` with `ymin`, `xmin`, `ymax`, `xmax` in pixels. `--write` says what
else is written:

- `pictures`: `PRED/PICTURE`, the pictures with their boxes. Class names that the font cannot write are drawn as
  numbers, which `PRED/legend.txt` explains.
- `coco`: `PRED/coco_results.json`, COCO's format of results; `image_id` is `picture` without its ending.
- `voc`: `PRED/annotations/NAME.xml`, annotations that labelling tools and `prepare_tfrecords.py` read.
- `yolo`: `PRED/labels/NAME.txt`, with `PRED/labels.txt`.

Pictures from several folders keep their subfolders below the one that holds them all, in `picture` and in `NAME`.

An EXIF orientation is applied first, as viewers do: boxes and pictures are in the frame that one sees.
"""

from __future__ import annotations

import glob
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags as absl_flags
from PIL import Image, ImageOps
from tqdm import tqdm

from input import augment, files, shards
from input.palette import Colour, class_colour
from trainer import command, drawing, export, inference, tiles
from trainer.formats import LabelledBox, coco_row, voc_xml, yolo_txt
from trainer.matching import ImageDetections

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")  # pictures of other files are written as JPEG
_READ_SUFFIXES = (*PICTURE_SUFFIXES, ".gif")
OUTPUTS = ("pictures", "coco", "voc", "yolo")
_ORIENTATION = 0x0112  # the EXIF tag
_num_pixels = tf.function(export.num_pixels, input_signature=[tf.TensorSpec([], tf.string)])


class Picture(NamedTuple):
    """A file that could be read."""

    path: str
    encoded: bytes  # upright
    pixels: np.ndarray  # u8 [h, w, 3], upright


class Detector(NamedTuple):
    """A model that is ready to run; the functions return what the signatures of an export do."""

    labels: Sequence[str]
    detect_bytes: Callable[[tf.Tensor], Mapping[str, tf.Tensor]]  # string [b], encoded images
    detect_images: Callable[[tf.Tensor], Mapping[str, tf.Tensor]]  # u8 [b, h, w, 3]


def load_export(export_dir: str) -> Detector:
    """The model in a folder that `trainer.export` wrote.

    Raises:
      FileNotFoundError: `export_dir` holds no export.
      ValueError: it is damaged, or is another program's SavedModel.
    """
    if not files.exists(os.path.join(export_dir, "saved_model.pb")):
        raise FileNotFoundError(
            f"{export_dir} holds no export as a SavedModel: make one with python -m trainer.export."
        )
    try:
        exported = tf.saved_model.load(export_dir)
        detect_bytes, detect_images = (exported.signatures[name] for name in ("serving_default", "serving_images"))
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{export_dir} cannot be loaded ({reason}): export the run again.") from error
    return Detector(
        labels=shards.parse_labels(os.path.join(export_dir, shards.LABELS)),
        detect_bytes=_in_batches(detect_bytes, "image_bytes"),
        detect_images=_in_batches(detect_images, "images"),
    )


def _in_batches(
    signature: tf.types.experimental.ConcreteFunction, name: str
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """A signature of an export as a function of any number of images, at least one.

    Args:
      signature: of an export that takes any number of images, or always N.
      name: of its input.
    """
    size = signature.structured_input_signature[1][name].shape[0]

    def detect(images: tf.Tensor) -> dict[str, tf.Tensor]:
        if size is None:
            return signature(**{name: images})
        count = len(images)
        # The last batch is filled up with the last image.
        rows = tf.minimum(tf.range(-(-count // size) * size), count - 1)
        batches = [signature(**{name: batch}) for batch in tf.split(tf.gather(images, rows), len(rows) // size)]
        return {key: tf.concat([found[key] for found in batches], axis=0)[:count] for key in batches[0]}

    return detect


def load_run(model_dir: str, checkpoint: str | None = None) -> Detector:
    """The model of a run: that of the checkpoint, else the best, else the latest."""
    run = inference.load_for_inference(model_dir, checkpoint)
    module = export.make_serving_module(run.model, run.config)
    return Detector(run.config.labels, module.serve_bytes, module.serve_images)


def predict(
    detector: Detector,
    paths: Sequence[str],
    output_dir: str,
    *,
    score_threshold: float = 0.3,
    class_thresholds: Mapping[str, float] | None = None,
    batch_size: int = 8,
    tile: int = 0,
    overlap: float = 0.2,
    write: Collection[str] = ("pictures",),
) -> list[dict[str, Any]]:
    """Runs a model on picture files and writes `detections.json` and what else is asked for to `output_dir`.

    A file that is no picture, or is damaged, is named on stderr and left out.

    Args:
      detector: the model.
      paths: JPEG, PNG, BMP or GIF files.
      output_dir: PRED; made if need be.
      score_threshold: detections below it are left out. (The model has a threshold of its own.)
      class_thresholds: for some class names another threshold.
      batch_size: the number of pictures, or of tiles, at a time.
      tile: side in px of the tiles in which larger pictures are looked at; 0: every picture as a whole.
      overlap: least share of a tile that adjacent tiles have in common.
      write: some of OUTPUTS.

    Returns:
      The content of `detections.json`.

    Raises:
      ValueError: `output_dir` is the folder of a picture, or holds labels, which would be overwritten; or
        `class_thresholds` names a class that the model does not know.
    """
    root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    _check_output_dir(output_dir, paths, root, write)
    if strangers := [label for label in class_thresholds or {} if label not in detector.labels]:
        raise ValueError(
            f"--thresholds has a score for {strangers[0]}, which this model does not know: give an evaluation of the "
            f"same run. Its classes are {', '.join(detector.labels)}."
        )
    files.make_dirs(output_dir)
    numbers = _number_labels(detector.labels, output_dir) if "pictures" in write else {}
    thresholds = np.array([(class_thresholds or {}).get(label, score_threshold) for label in detector.labels])
    results: list[dict[str, Any]] = []
    names: set[str] = set()
    with tqdm(total=len(paths), unit=" pictures", disable=None) as progress, futures.ThreadPoolExecutor(2) as pool:
        readable = _readable(paths, batch_size, progress)
        writing: list[futures.Future[None]] = []
        while batch := list(itertools.islice(readable, batch_size)):
            all_found = _detect(detector, batch, thresholds, tile, overlap, batch_size)
            for written in writing:  # of the batch before, which were written while the model ran
                written.result()
            writing.clear()
            for picture, found in zip(batch, all_found):
                columns = (column.tolist() for column in (found.classes, found.scores, found.boxes))
                detections = [LabelledBox(detector.labels[index], box, score=s) for index, s, box in zip(*columns)]
                name = _picture_name(os.path.relpath(picture.path, root), names)
                arguments = (picture, detections, detector.labels, numbers, output_dir, name, write)
                writing.append(pool.submit(_write_picture, *arguments))
                results.append(_result(picture, name, detections))
        for written in writing:
            written.result()
    _write_lists(results, detector.labels, output_dir, write)
    return results


def _check_output_dir(output_dir: str, paths: Sequence[str], root: str, write: Collection[str]) -> None:
    """Refuses a folder in which pictures or labels would be overwritten that this command has not written.

    Raises:
      ValueError: names the folder or the file.
    """
    folders = {os.path.dirname(os.path.abspath(path)) for path in paths}
    written = [output_dir, *(os.path.join(output_dir, os.path.relpath(folder, root)) for folder in folders)]
    if not {os.path.realpath(folder) for folder in folders}.isdisjoint(map(os.path.realpath, written)):
        raise ValueError(f"{output_dir} holds the pictures themselves: choose another --output_dir.")
    if files.exists(os.path.join(output_dir, "detections.json")):
        return  # written by this command before
    for kind, name in (("voc", "annotations"), ("yolo", "labels"), ("yolo", "labels.txt")):
        if kind in write and files.exists(path := os.path.join(output_dir, name)):
            raise ValueError(
                f"{path} exists, and --write={kind} would replace what it holds: choose another --output_dir, or "
                "remove it if it is what an interrupted trainer.predict left."
            )


def _number_labels(labels: Sequence[str], output_dir: str) -> dict[str, str]:
    """What is drawn instead of the names that the font lacks letters for; writes the legend if there are such names."""
    numbers = drawing.number_labels(labels)
    if numbers:
        legend = os.path.join(output_dir, "legend.txt")
        files.write_text(legend, "".join(f"{number} {label}\n" for label, number in numbers.items()))
        print(f"Some class names are drawn as numbers, since the font lacks their letters: see {legend}")
    return numbers


def _write_lists(
    results: Sequence[Mapping[str, Any]], labels: Sequence[str], output_dir: str, write: Collection[str]
) -> None:
    """Writes the files that list the detections of all pictures, or the classes."""

    def write_text(name: str, text: str) -> None:
        files.write_text(os.path.join(output_dir, name), text)

    write_text("detections.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    if "coco" in write:
        rows = [
            coco_row(
                os.path.splitext(result["picture"])[0],
                labels.index(found["label"]),
                list(found["box"].values()),
                found["score"],
            )
            for result in results
            for found in result["detections"]
        ]
        write_text("coco_results.json", json.dumps(rows, ensure_ascii=False) + "\n")
    if "yolo" in write:
        write_text("labels.txt", "".join(f"{label}\n" for label in labels))


def _result(picture: Picture, name: str, detections: Sequence[LabelledBox]) -> dict[str, Any]:
    """What `detections.json` says of a picture."""
    height, width = picture.pixels.shape[:2]
    corners = ("ymin", "xmin", "ymax", "xmax")
    found = [{"label": item.label, "score": item.score, "box": dict(zip(corners, item.box))} for item in detections]
    return {"path": _as_utf8(picture.path), "width": width, "height": height, "picture": name, "detections": found}


def _detect(
    detector: Detector, batch: Sequence[Picture], thresholds: np.ndarray, tile: int, overlap: float, batch_size: int
) -> list[ImageDetections]:
    """The detections of each picture, small pictures together and large ones in tiles."""

    def in_images(images: np.ndarray) -> list[ImageDetections]:
        return _to_report(detector.detect_images(tf.constant(images)), thresholds)

    is_large = [bool(tile) and max(picture.pixels.shape) > tile for picture in batch]
    small = [picture.encoded for picture, large in zip(batch, is_large) if not large]
    found = iter(_to_report(detector.detect_bytes(tf.constant(small)), thresholds) if small else [])
    return [
        tiles.detect_in_tiles(in_images, picture.pixels, tile=tile, overlap=overlap, batch_size=batch_size)
        if large
        else next(found)
        for picture, large in zip(batch, is_large)
    ]


def _to_report(outputs: Mapping[str, tf.Tensor], thresholds: np.ndarray) -> list[ImageDetections]:
    """The detections in each image that reach the threshold of their class, f64 [k]; without the padding rows."""
    boxes, scores, classes, counts = (
        outputs[name].numpy() for name in ("boxes", "scores", "classes", "num_detections")
    )
    reported = []
    for row, count in enumerate(counts):
        found = ImageDetections(boxes[row, :count], scores[row, :count], classes[row, :count])
        kept = found.scores >= thresholds[found.classes]
        reported.append(ImageDetections(*(column[kept] for column in found)))
    return reported


def _readable(paths: Sequence[str], ahead: int, progress: tqdm) -> Iterator[Picture]:
    """The pictures that decode, by the decoder that the model uses; the next ones are read while the model runs."""

    def read(path: str) -> Picture | str:
        try:
            with open(path, "rb") as file:
                content = _without_palette(file.read())
            if _num_pixels(content) > export.MAX_PIXELS:
                return f"skipped {path}: its header claims more than {export.MAX_PIXELS:,} pixels"
            return make_upright(path, content, augment.decode(content).numpy())
        except OSError as error:
            return f"skipped {path}: {error.strerror}"
        except (ValueError, tf.errors.InvalidArgumentError):
            return f"skipped {path}: not a whole JPEG, PNG, BMP or GIF picture"

    with futures.ThreadPoolExecutor(max_workers=2) as pool:
        waiting = [pool.submit(read, path) for path in paths[:ahead]]
        for number in range(len(paths)):
            picture = waiting.pop(0).result()
            if number + ahead < len(paths):
                waiting.append(pool.submit(read, paths[number + ahead]))
            progress.update()
            if isinstance(picture, str):
                tqdm.write(picture, file=sys.stderr)
            else:
                yield picture


def _without_palette(content: bytes) -> bytes:
    """A BMP with a palette, or of 16 bits, as one of 24 bits; other files as they are.

    TensorFlow takes the indexes of a palette for grey levels, and reads only BMPs of 8, 24 and 32 bits.

    Raises:
      ValueError: the BMP is damaged.
    """
    if content[:2] != b"BM" or int.from_bytes(content[28:30], "little") >= 24:
        return content
    encoded = io.BytesIO()
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.height * image.width > export.MAX_PIXELS:
                raise ValueError("too large")
            image.convert("RGB").save(encoded, "BMP")
    except Exception as error:  # Pillow raises almost any exception on a damaged header
        raise ValueError("a damaged BMP") from error
    return encoded.getvalue()


def make_upright(path: str, content: bytes, pixels: np.ndarray) -> Picture:
    """The picture as viewers show it: turned as its EXIF orientation says."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises almost any exception on a damaged header, which TensorFlow may ignore
        orientation = 1
    if orientation == 1:
        return Picture(path, content, pixels)
    decoded = Image.fromarray(pixels)
    decoded.getexif()[_ORIENTATION] = orientation
    upright = ImageOps.exif_transpose(decoded)
    encoded = io.BytesIO()
    upright.save(encoded, "BMP")  # without loss, as PNG, which takes thirty times as long
    return Picture(path, encoded.getvalue(), np.asarray(upright))


def _write_picture(
    picture: Picture,
    detections: Sequence[LabelledBox],
    labels: Sequence[str],
    numbers: Mapping[str, str],
    output_dir: str,
    name: str,
    write: Collection[str],
) -> None:
    """Writes what `write` asks for of one picture."""
    height, width = picture.pixels.shape[:2]
    filename = _as_utf8(os.path.basename(picture.path))
    texts = {
        "voc": ("annotations", ".xml", lambda: voc_xml(filename, width, height, detections)),
        "yolo": ("labels", ".txt", lambda: yolo_txt(width, height, detections, labels)),
    }
    for kind, (folder, suffix, make) in texts.items():
        if kind in write:
            path = os.path.join(output_dir, folder, os.path.splitext(name)[0] + suffix)
            files.write_text(path, make())
    if "pictures" in write:
        image = Image.fromarray(picture.pixels)
        colours = {label: class_colour(index) for index, label in enumerate(labels)}
        draw_detections(image, detections, colours, numbers)
        encoded = io.BytesIO()
        image.save(encoded, Image.registered_extensions()[os.path.splitext(name)[1].lower()], quality=95)
        path = os.path.join(output_dir, name)
        files.make_dirs(os.path.dirname(path))
        with files.open(path, "wb") as file:
            file.write(encoded.getvalue())


def _as_utf8(path: str) -> str:
    """A path as files in UTF-8 can name it: bytes that are no UTF-8 become U+FFFD."""
    return os.fsencode(path).decode("utf-8", "replace")


def _picture_name(path: str, taken: set[str]) -> str:
    """The name of a file's picture, with a number if its stem is in `taken`, to which the stem is added.

    Args:
      path: of the file, from the folder that holds all pictures.
    """
    stem, suffix = os.path.splitext(_as_utf8(path))
    if suffix.lower() not in PICTURE_SUFFIXES:
        stem, suffix = stem + suffix, ".jpg"
    unique, number = stem, 1
    while unique in taken:
        number += 1
        unique = f"{stem}-{number}"
    taken.add(unique)
    return unique + suffix


def draw_detections(
    image: Image.Image, detections: Sequence[LabelledBox], colours: Mapping[str, Colour], numbers: Mapping[str, str]
) -> None:
    """Draws boxes, labels and scores onto an RGB image; `numbers` has what is written instead of some class names."""
    texts = (f"{numbers.get(found.label, found.label)} {found.score:.2f}" for found in detections)
    drawing.draw_objects(image, [(found.box, text, colours[found.label]) for found, text in zip(detections, texts)])


def find_pictures(patterns: Iterable[str], recursive: bool) -> list[str]:
    """The files that the patterns match, sorted; a folder stands for the pictures in it.

    Raises:
      FileNotFoundError: nothing matches.
    """
    patterns = list(patterns)
    paths: set[str] = set()
    for pattern in patterns:
        if not os.path.isdir(pattern):
            matches = [pattern] if os.path.isfile(pattern) else glob.glob(pattern, recursive=True)
            paths.update(filter(os.path.isfile, matches))
            continue
        for folder, folders, names in os.walk(pattern):
            paths.update(os.path.join(folder, name) for name in names if name.lower().endswith(_READ_SUFFIXES))
            if not recursive:
                folders.clear()
    if not paths:
        raise FileNotFoundError(f"--images={','.join(patterns)} matches no file: check the pattern.")
    return sorted(paths)


def read_thresholds(path: str) -> dict[str, float]:
    """The score of the best F1 of each class that has one, from `RUN/eval/SPLIT.json`.

    Raises:
      ValueError: the file is no evaluation.
    """
    with open(path, encoding="utf-8") as file:
        try:
            per_class = json.load(file)["per_class"]
            scores = {label: values["best_f1_score"] for label, values in per_class.items()}
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{path} is no evaluation: run python -m trainer.evaluate, which writes it.") from None
    return {label: score for label, score in scores.items() if score is not None}


def main() -> None:
    flags = absl_flags.FLAGS
    if bool(flags.export_dir) == bool(flags.model_dir):
        raise ValueError("give either --export_dir or --model_dir.")
    if flags.export_dir and flags.checkpoint:
        raise ValueError("--checkpoint belongs to --model_dir; an export has the weights of one checkpoint.")
    if wrong := [name for name in flags.write if name not in OUTPUTS]:
        raise ValueError(f"--write={wrong[0]}: choose some of {', '.join(OUTPUTS)}.")
    paths = find_pictures(flags.images, flags.recursive)
    results = predict(
        load_export(flags.export_dir) if flags.export_dir else load_run(flags.model_dir, flags.checkpoint),
        paths,
        flags.output_dir,
        score_threshold=flags.score_threshold,
        class_thresholds=read_thresholds(flags.thresholds) if flags.thresholds else None,
        batch_size=flags.batch_size,
        tile=flags.tile,
        overlap=flags.overlap,
        write=flags.write,
    )
    print(f"{len(results)} of {len(paths)} pictures, with detections.json, in {flags.output_dir}")
    if not results:
        raise ValueError(f"none of the {len(paths)} files could be read: give JPEG, PNG, BMP or GIF pictures.")


if __name__ == "__main__":
    absl_flags.DEFINE_string("export_dir", None, "Folder that trainer.export wrote.")
    absl_flags.DEFINE_string("model_dir", None, "The run's folder, in place of an export.")
    absl_flags.DEFINE_string("checkpoint", None, "The run's checkpoint; default: the best, else the latest.")
    absl_flags.DEFINE_multi_string(
        "images", None, "A picture, a folder or a pattern such as 'DIR/*.jpg'; may be repeated.", required=True
    )
    absl_flags.DEFINE_bool("recursive", False, "Look into the folders inside a folder too.")
    absl_flags.DEFINE_string("output_dir", None, "Folder for what is written.", required=True)
    absl_flags.DEFINE_float(
        "score_threshold", 0.3, "Score below which detections are left out.", lower_bound=0.0, upper_bound=1.0
    )
    absl_flags.DEFINE_string(
        "thresholds", None, "RUN/eval/SPLIT.json: take each class's score threshold from its best F1 there."
    )
    absl_flags.DEFINE_integer("batch_size", 8, "Number of pictures or tiles at a time.", lower_bound=1)
    absl_flags.DEFINE_integer("tile", 0, "Side in pixels of the tiles of larger pictures. 0: no tiles.", lower_bound=0)
    absl_flags.DEFINE_float(
        "overlap", 0.2, "Least share of a tile that adjacent tiles have in common.", lower_bound=0.0, upper_bound=0.9
    )
    absl_flags.DEFINE_list("write", ["pictures"], f"What to write besides detections.json: {', '.join(OUTPUTS)}.")
    command.run(main)
