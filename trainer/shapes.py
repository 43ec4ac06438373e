"""A small Pascal VOC data set, drawn: circles, crosses and triangles on textured grounds. Nothing is downloaded."""

import pathlib
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw


def _regular(corners):
    """A regular polygon about (0, 0), float [corners, 2] as (x, y), y downwards: one corner on top, 1 away."""
    angles = np.arange(corners) * 2 * np.pi / corners
    return np.stack([np.sin(angles), -np.cos(angles)], axis=1)


_ARM = 0.35  # half the width of a cross's arms, whose length is 1
_QUARTER = np.array([[_ARM, -1], [_ARM, -_ARM], [1, -_ARM]]) / np.hypot(1, _ARM)
_TURN = np.array([[0, 1], [-1, 0]])
_OUTLINES = {
    "circle": _regular(64),
    "cross": np.concatenate([_QUARTER @ np.linalg.matrix_power(_TURN, quarter) for quarter in range(4)]),
    "triangle": _regular(3),
}
_LEAN = np.pi / 9  # at most, to either side: turned at will, small shapes take long to tell apart
CLASSES = tuple(_OUTLINES)
SPLITS = {"train": 0.7, "val": 0.1, "test": 0.2}
_OVERSAMPLING = 4  # a shape is drawn this much larger and shrunk: smooth edges
_MAX_OVERLAP = 0.25  # of the smaller of two boxes
_MIN_CONTRAST = 110.0  # distance of a shape's colour from the ground's, in RGB


def write_shapes(output_dir, *, num_images: int, image_size: tuple[int, int] = (160, 240), seed: int = 0) -> None:
    """Writes `num_images` images of `image_size` (height, width) px as Annotations/, JPEGImages/, ImageSets/Main/.

    The image sets train, val and test share the images 7 : 1 : 2. An image depends on (seed, its number) alone.
    Box corners are 1-based and inclusive, as in Pascal VOC, and tight around the drawn pixels; a shape that lies
    partly behind another keeps its whole box.
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


def draw(rng: np.random.Generator, image_size: tuple[int, int]):
    """One image and its objects: a Pillow image of `image_size` (height, width) and a list of
    (class name, (xmin, ymin, xmax, ymax)) in pixels, 1-based and inclusive."""
    height, width = image_size
    ground = rng.uniform(50, 205, 3)
    pixels = ground + _texture(rng, image_size, strength=60)
    objects = []
    for _ in range(rng.binomial(12, 0.5)):
        name = CLASSES[rng.integers(len(CLASSES))]
        radius = min(image_size) * 0.15 * 2.4 ** rng.uniform()
        center = rng.uniform([radius, radius], [width - radius, height - radius])
        alpha = _coverage(_OUTLINES[name], center, radius, rng.uniform(-_LEAN, _LEAN), image_size)
        ys, xs = np.nonzero(alpha >= 0.5)
        box = tuple(int(edge) + 1 for edge in (xs.min(), ys.min(), xs.max(), ys.max()))
        color = rng.uniform(0, 255, 3)
        if np.linalg.norm(color - ground) < _MIN_CONTRAST or any(_overlap(box, o) > _MAX_OVERLAP for _, o in objects):
            continue
        fill = color + _texture(rng, image_size, strength=30)
        pixels += alpha[..., None] * (fill - pixels)
        objects.append((name, box))
    pixels += rng.normal(0, rng.uniform(0, 10), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), objects


def _texture(rng, image_size, strength):
    """Colour noise of three grain sizes, float [h, w, 3] about zero."""
    height, width = image_size
    texture = np.zeros((height, width, 3))
    for cells, share in ((3, 0.5), (9, 0.3), (36, 0.2)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        texture += share * strength * (np.asarray(noise.resize((width, height), Image.BICUBIC)) / 127.5 - 1)
    return texture


def _coverage(outline, center, radius, lean, image_size):
    """How much of each pixel the polygon covers, leaning by `lean` radians, float [h, w] in 0..1."""
    turn = np.array([[np.cos(lean), np.sin(lean)], [-np.sin(lean), np.cos(lean)]])
    points = (center + radius * outline @ turn) * _OVERSAMPLING
    height, width = image_size
    mask = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    ImageDraw.Draw(mask).polygon([tuple(point) for point in points], fill=255)
    return np.asarray(mask.reduce(_OVERSAMPLING)) / 255


def _overlap(first, second):
    """Intersection over the smaller box's area."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]) + 1
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (first, second)]
    return np.prod(np.maximum(sides, 0)) / min(areas)


def _annotation(filename, image_size, objects):
    root = ElementTree.Element("annotation")

    def add(parent, **texts):
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
