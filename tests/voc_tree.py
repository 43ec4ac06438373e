"""Small Pascal VOC folders for the converter's tests, drawn with Pillow."""

from __future__ import annotations

import io
import pathlib
import zlib

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]  # xmin ymin xmax ymax, as the XML has them


def picture(height: int = 40, width: int = 60, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth random image: no two seeds alike, and no pixel like the next."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, image_format: str = "JPEG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, image_format, **options)
    return out.getvalue()


def box_xml(box: Box) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), box)
    return "<bndbox>" + "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners) + "</bndbox>"


def object_xml(name: str = "cat", box: Box = (11, 6, 30, 25), flags: str = "", inner: str = "") -> str:
    flags = flags or "<pose>Left</pose><truncated>1</truncated><difficult>0</difficult>"
    return f"<object><name>{name}</name>{flags}{box_xml(box)}{inner}</object>"


def annotation_xml(
    *objects: str, filename: str = "b.jpg", size: tuple[int, int] | None = (40, 60), folder: str = "JPEGImages"
) -> str:
    """`size` is (height, width); without `objects` there is one cat."""
    height_width = f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>" if size else ""
    body = "\n".join(objects or (object_xml(),))
    names = f"<folder>{folder}</folder>\n<filename>{filename}</filename>"
    return f"<annotation>\n{names}\n{height_width}\n{body}\n</annotation>"


class VocTree:
    """A VOC folder; `add` writes one image and its annotation."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.annotations, self.images = root / "Annotations", root / "JPEGImages"
        for folder in (self.annotations, self.images, root / "ImageSets" / "Main"):
            folder.mkdir(parents=True)

    def add(self, stem: str, xml: str | bytes | None = None, image: bytes | None = None, extension: str = ".jpg"):
        if xml is None:
            xml = annotation_xml(filename=stem + extension)
        (self.annotations / f"{stem}.xml").write_bytes(xml.encode() if isinstance(xml, str) else xml)
        image = encoded(picture(seed=zlib.crc32(stem.encode()))) if image is None else image
        (self.images / (stem + extension)).write_bytes(image)

    def add_many(self, count: int):
        """`count` good images, each with boxes of its own."""
        for index in range(count):
            stem = f"img{index:03d}"
            objects = [object_xml(("cat", "dog")[i % 2], (1 + i, 2, 20 + index % 30, 31)) for i in range(index % 4)]
            xml = annotation_xml(*(objects or [""]), filename=stem + ".jpg")
            self.add(stem, xml, encoded(picture(seed=index)))

    def image_set(self, name: str, *lines: str):
        (self.root / "ImageSets" / "Main" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
