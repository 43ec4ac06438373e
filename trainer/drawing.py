"""Pictures for people: a record's image made small, and how a box and its label are drawn on one."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from input.palette import Colour

# The converter's --max_pixels was the limit of a record's image, and trainer.predict has one of its own.
Image.MAX_IMAGE_PIXELS = None


def shrink(encoded: bytes, height: int, width: int) -> Image.Image:
    """An encoded image in RGB, of this size; a JPEG is decoded at a part of its size where that is enough."""
    with Image.open(io.BytesIO(encoded)) as image:
        image.draft("RGB", (width, height))
        return image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)


@functools.lru_cache
def load_font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, `size` px high."""
    return ImageFont.load_default(size)


def number_labels(labels: Sequence[str]) -> dict[str, str]:
    """What to write instead of each class name that has a character that the font lacks: "#N", N counted from 1.

    N is the number of the name's line in `labels.txt`. Names that can be written are left out.
    """
    font = load_font(16)
    box = bytes(font.getmask("\uffff"))  # what the font draws for a character that it lacks

    def is_drawable(character: str) -> bool:
        return character.isspace() or bytes(font.getmask(character)) != box

    return {label: f"#{number}" for number, label in enumerate(labels, 1) if not all(map(is_drawable, label))}


def draw_box(image: Image.Image, box: Sequence[float], colour: Colour, line: int) -> None:
    """Draws the edges of a box (ymin, xmin, ymax, xmax in px), `line` px wide and inside it.

    A box of less than a pixel becomes a point.
    """
    ymin, xmin, ymax, xmax = box
    top, left = int(ymin), int(xmin)
    # Pillow's corners are pixels, and the last one belongs to the rectangle.
    corners = (left, top, max(left, round(xmax) - 1), max(top, round(ymax) - 1))
    ImageDraw.Draw(image).rectangle(corners, outline=colour, width=line)


def draw_label(image: Image.Image, box: Sequence[float], text: str, colour: Colour, font_size: float) -> None:
    """Writes the label of a box on a ground of its colour.

    The label stands above the box, or inside it where there is no room above. It lies in the picture if it fits at all.
    """
    draw, font = ImageDraw.Draw(image), load_font(font_size)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    margin = 1 + round(font_size / 8)
    width, height = math.ceil(right - left) + 2 * margin, math.ceil(bottom - top) + 2 * margin
    ymin, xmin = int(box[0]), int(box[1])
    y = ymin - height if ymin >= height else ymin
    y, x = max(0, min(y, image.height - height)), max(0, min(xmin, image.width - width))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    red, green, blue = colour
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"  # luma of ITU-R BT.601
    draw.text((x + margin - left, y + margin - top), text, fill=ink, font=font)


def draw_objects(image: Image.Image, objects: Sequence[tuple[Sequence[float], str, Colour]]) -> None:
    """Draws the box, the label and the colour of each: labels over all boxes, and the first objects over others.

    Lines and letters grow with the image.
    """
    side = (image.width * image.height) ** 0.5
    for box, _, colour in reversed(objects):
        draw_box(image, box, colour, line=max(1, round(side / 250)))
    for box, text, colour in reversed(objects):
        draw_label(image, box, text, colour, font_size=max(10.0, side / 40))
