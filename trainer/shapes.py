"""The data set that the demo draws: circles, crosses and triangles on textured grounds, as Pascal VOC files."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

Corners = tuple[int, int, int, int]  # xmin ymin xmax ymax in pixels, 1-based and inclusive as in Pascal VOC


def _regular(corners: int) -> np.ndarray:
    """The corners of a regular polygon, float [corners, 2] as (x, y), y downwards: 1 from (0, 0), the first on top."""
    angles = np.arange(corners) * 2 * np.pi / corners
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1)


_ARM = 0.35  # half the width of a cross's arms; their length is 1
_QUARTER = np.array([[_ARM, -1], [_ARM, -_ARM], [1, -_ARM]]) / np.hypot(1, _ARM)
_TURN = np.array([[0, 1], [-1, 0]])
_OUTLINES = {
    "circle": _regular(64),
    "cross": np.concatenate([_QUARTER @ np.linalg.matrix_power(_TURN, quarter) for quarter in range(4)]),
    "triangle": _regular(3),
}
_MAX_LEAN = np.pi / 9  # radians to either side; telling small shapes apart at any angle takes long training
CLASSES = tuple(_OUTLINES)
SPLITS = {"train": 0.7, "val": 0.1, "test": 0.2}
_OVERSAMPLING = 4  # a shape is drawn this much larger and then shrunk, for smooth edges
_MAX_OVERLAP = 0.25  # as a share of the smaller of two boxes
_MIN_CONTRAST = 110.0  # distance between the colours of a shape and of the ground, in RGB


def write_shapes(
    output_dir: str | os.PathLike[str], *, num_images: int, image_size: tuple[int, int] = (160, 240), seed: int = 0
) -> None:
    """Writes `num_images` images of `image_size` (height, width) px as Annotations/, JPEGImages/, ImageSets/Main/.

    The image sets train, val and test share the images 7 : 1 : 2. An image depends only on the seed and its number.
    Boxes are tight around the drawn pixels; a shape that lies partly behind another keeps its whole box.
    """
    output_dir = pathlib.Path(output_dir)
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (output_dir / folder).mkdir(parents=True, exist_ok=True)
    names = [f"{number:06d}" for number in range(num_images)]
    for number, name in enumerate(names):
        image, objects = draw(np.random.default_rng([seed, number]), image_size)
        image.save(output_dir / "JPEGImages" / f"{name}.jpg", quality=92)
        _annotation(f"{name}.jpg", image_size, objects).write(output_dir / "Annotations" / f"{name}.xml")
    ends = np.rint(np.cumsum(list(SPLITS.values())) * num_images).astype(int)
    for split, start, end in zip(SPLITS, (0, *ends[:-1]), ends):
        lines = "".join(f"{name}\n" for name in names[start:end])
        (output_dir / "ImageSets" / "Main" / f"{split}.txt").write_text(lines, encoding="ascii")


def draw(rng: np.random.Generator, image_size: tuple[int, int]) -> tuple[Image.Image, list[tuple[str, Corners]]]:
    """An image of `image_size` (height, width) px, and the class name and the corners of each object."""
    height, width = image_size
    ground = rng.uniform(50, 205, 3)
    pixels = ground + _texture(rng, image_size, strength=60)
    objects: list[tuple[str, Corners]] = []
    for _ in range(rng.binomial(12, 0.5)):
        name = CLASSES[rng.integers(len(CLASSES))]
        radius = min(image_size) * 0.15 * 2.4 ** rng.uniform()
        center = rng.uniform([radius, radius], [width - radius, height - radius])
        alpha = _coverage(_OUTLINES[name], center, radius, rng.uniform(-_MAX_LEAN, _MAX_LEAN), image_size)
        ys, xs = np.nonzero(alpha >= 0.5)
        box = int(xs.min()) + 1, int(ys.min()) + 1, int(xs.max()) + 1, int(ys.max()) + 1
        colour = rng.uniform(0, 255, 3)
        overlaps = any(_overlap(box, other) > _MAX_OVERLAP for _, other in objects)
        if overlaps or np.linalg.norm(colour - ground) < _MIN_CONTRAST:
            continue
        fill = colour + _texture(rng, image_size, strength=30)
        pixels += alpha[..., None] * (fill - pixels)
        objects.append((name, box))
    pixels += rng.normal(0, rng.uniform(0, 10), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), objects


def _texture(rng: np.random.Generator, image_size: tuple[int, int], strength: float) -> np.ndarray:
    """Colour noise of three grain sizes, float [h, w, 3] about zero."""
    height, width = image_size
    texture = np.zeros((height, width, 3))
    for cells, share in ((3, 0.5), (9, 0.3), (36, 0.2)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        texture += share * strength * (np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / 127.5 - 1)
    return texture


def _coverage(
    outline: np.ndarray, center: np.ndarray, radius: float, lean: float, image_size: tuple[int, int]
) -> np.ndarray:
    """The share of each pixel that the polygon covers, float [h, w]; it leans by `lean` radians."""
    turn = np.array([[np.cos(lean), np.sin(lean)], [-np.sin(lean), np.cos(lean)]])
    points = (center + radius * outline @ turn) * _OVERSAMPLING
    height, width = image_size
    mask = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in points], fill=255)
    return np.asarray(mask.reduce(_OVERSAMPLING)) / 255


def _overlap(first: Corners, second: Corners) -> float:
    """The area of the intersection as a share of the smaller box's."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]) + 1
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (first, second)]
    return float(np.prod(np.maximum(sides, 0))) / min(areas)


def _annotation(
    filename: str, image_size: tuple[int, int], objects: Sequence[tuple[str, Corners]]
) -> ElementTree.ElementTree:
    root = ElementTree.Element("annotation")

    def add(parent: ElementTree.Element, **texts: str | int) -> None:
        for tag, text in texts.items():
            ElementTree.SubElement(parent, tag).text = str(text)

    add(root, folder="JPEGImages", filename=filename)
    add(ElementTree.SubElement(root, "size"), width=image_size[1], height=image_size[0], depth=3)
    for name, box in objects:
        element = ElementTree.SubElement(root, "object")
        add(element, name=name, pose="Unspecified", truncated=0, difficult=0)
        add(ElementTree.SubElement(element, "bndbox"), **dict(zip(("xmin", "ymin", "xmax", "ymax"), box)))
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)
