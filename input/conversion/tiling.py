"""Large images cut into tiles, each a record of its own: small objects are then large against the image."""

from __future__ import annotations

import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from input.config import AugmentConfig
from input.conversion.config import ConversionError, ReadOptions
from input.conversion.example import Example
from input.conversion.findings import Refused
from input.conversion.images import is_cut
from input.conversion.source import Input
from input.manifest import Finding
from input.tfrecord import Annotation, Box, Region
from input.tiles import tile_starts

_TILE = re.compile(r"_x\d+_y\d+$")  # how the id of a tile ends: its left and upper edge in the image


def source_id(record_id: str) -> str:
    """The id of the image that a tile was cut from."""
    return _TILE.sub("", record_id)


def check_ids(inputs: Iterable[Input]) -> None:
    """Refuses images that are called as the tiles of another would be.

    Raises:
      ConversionError: names the image.
    """
    ids = {item.image_id for item in inputs}
    for image_id in sorted(ids):
        if source_id(image_id) != image_id and source_id(image_id) in ids:
            raise ConversionError(
                f"--tile would call a tile of {source_id(image_id)} as the image {image_id} is called: rename that."
            )


def cut(example: Example, options: ReadOptions) -> list[Example]:
    """The tiles of an example whose image is larger than one; otherwise the example itself.

    A tile without objects is kept with the probability `options.tile_negatives`, decided by a hash of its id.
    """
    whole = example.annotation
    if not is_cut((whole.height, whole.width), options):
        return [example]
    tops, lefts = (tile_starts(side, options.tile, options.overlap) for side in (whole.height, whole.width))
    tiles, num_without_objects = [], 0
    with _opened(example) as image:
        for top, left in itertools.product(tops, lefts):
            ymax, xmax = min(top + options.tile, whole.height), min(left + options.tile, whole.width)
            annotation = cut_annotation(whole, (top, left, ymax, xmax))
            num_without_objects += not annotation.boxes
            if annotation.boxes or _chance(annotation.image_id) < options.tile_negatives:
                out = io.BytesIO()
                image.crop((left, top, xmax, ymax)).save(out, "JPEG", quality=options.jpeg_quality)
                tiles.append(example._replace(annotation=annotation, encoded=out.getvalue()))
    detail = f"{len(tops) * len(lefts)} tiles, {num_without_objects} of them without objects; {len(tiles)} were kept"
    example.findings.append(Finding(whole.image_id, whole.filename, "tiled", detail))
    return tiles


def _opened(example: Example) -> Image.Image:
    """The image, decoded.

    Raises:
      Refused: it cannot be decoded whole, though it could at an eighth of its size.
    """
    try:
        image = Image.open(io.BytesIO(example.encoded))
        image.load()
    except Exception as error:  # Pillow's decoders raise almost anything
        detail = f"{type(error).__name__}: {error}"
        raise Refused(example.annotation.filename, "damaged_image", detail) from error
    return image


def cut_annotation(whole: Annotation, tile: tuple[int, int, int, int]) -> Annotation:
    """What a tile shows.

    As in a crop during training, an object is still one if its centre or a quarter of it is inside. What is seen of any
    other is an ignored region.

    Args:
      whole: what the image shows.
      tile: its edges ymin, xmin, ymax, xmax in the image, in pixels.
    """
    top, left, ymax, xmax = tile
    shown, visible = _clip(whole.boxes, tile)
    boxes = np.reshape(whole.boxes, (-1, 4))
    areas, shown_areas = (np.prod(corners[:, 2:] - corners[:, :2], axis=1) for corners in (boxes, shown))
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    is_object = np.all((centers >= (top, left)) & (centers < (ymax, xmax)), axis=1)
    is_object |= shown_areas >= AugmentConfig.min_visible * areas
    objects, slivers = np.flatnonzero(visible & is_object), np.flatnonzero(visible & ~is_object)
    is_clipped = shown_areas < areas * (1 - 1e-9)
    regions, seen = _clip([region.box for region in whole.regions], tile)
    image_id = f"{whole.image_id}_x{left}_y{top}"
    return Annotation(
        image_id=image_id,
        filename=f"{image_id}.jpg",
        height=ymax - top,
        width=xmax - left,
        boxes=[_box(shown[index]) for index in objects],
        classes=[whole.classes[index] for index in objects],
        class_names=[whole.class_names[index] for index in objects],
        difficult=[whole.difficult[index] for index in objects],
        truncated=[int(whole.truncated[index] or is_clipped[index]) for index in objects],
        poses=[whole.poses[index] for index in objects],
        regions=[
            *(whole.regions[index]._replace(box=_box(regions[index])) for index in np.flatnonzero(seen)),
            *(Region(_box(shown[index]), whole.class_names[index], None) for index in slivers),
        ],
    )


def _clip(boxes: Sequence[Box], tile: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes clipped to a tile, in its pixels: f64 [n, 4], and bool [n]: whether anything of them is in it."""
    top, left, ymax, xmax = tile
    size = ymax - top, xmax - left
    clipped = np.clip(np.reshape(boxes, (-1, 4)) - (top, left, top, left), 0.0, np.tile(size, 2))
    return clipped, np.all(clipped[:, 2:] > clipped[:, :2], axis=1)


def _box(values: np.ndarray) -> Box:
    ymin, xmin, ymax, xmax = values.tolist()
    return ymin, xmin, ymax, xmax


def _chance(image_id: str) -> float:
    """A number in 0..1 that follows from the id."""
    return int.from_bytes(hashlib.sha256(f"tile {image_id}".encode()).digest()[:8], "big") / 2**64
