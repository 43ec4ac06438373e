"""The contact sheets of a preview: pictures with their boxes and anchors, in rows under a legend."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from input.config import InputConfig
from input.palette import Colour
from trainer import drawing
from trainer.preview_data import DIFFICULT, FORCED, MATCHED, UNMATCHED, Picture, anchor_sizes

GROUND: Colour = (24, 24, 24)
TEXT: Colour = (225, 225, 225)
STATE_COLOURS: dict[str, Colour] = {
    MATCHED: (255, 255, 255),
    FORCED: (255, 140, 0),
    UNMATCHED: (255, 30, 30),
    DIFFICULT: (150, 150, 150),
}
# These colours are bright, and far from the red and the orange of the boxes.
LEVEL_COLOURS: dict[int, Colour] = {
    3: (255, 255, 102),
    4: (102, 255, 108),
    5: (102, 242, 255),
    6: (121, 102, 255),
    7: (255, 102, 230),
}
_DRAWING_ORDER = (DIFFICULT, MATCHED, FORCED, UNMATCHED)  # the states that need attention are drawn over the others

TILE_SIDE = 560  # px to which a picture's longer side is enlarged, by a whole factor
SHEET_SIZE = (1600, 2000)  # px (height, width) of a sheet without its legend, at most, unless one picture is larger
FONT_SIZE, LINE_HEIGHT, GAP = 14, 20, 8  # px
CAPTION_HEIGHT = 3 * LINE_HEIGHT + GAP


def zoom_of(image_size: tuple[int, int]) -> int:
    """The factor by which pictures of (height, width) px are enlarged; it is whole, so that pixels stay squares."""
    return max(1, round(TILE_SIDE / max(image_size)))


def tiles_per_sheet(image_size: tuple[int, int]) -> tuple[int, int]:
    """How many rows and columns of pictures of (height, width) px fit on a sheet."""
    height, width = (side * zoom_of(image_size) for side in image_size)
    return max(1, SHEET_SIZE[0] // (height + CAPTION_HEIGHT)), max(1, SHEET_SIZE[1] // (width + GAP))


def draw_sheet(tiles: Sequence[Image.Image], config: InputConfig) -> Image.Image:
    """The tiles under the legend, in rows of nearly equal length."""
    tile_width, tile_height = tiles[0].size
    rows = math.ceil(len(tiles) / tiles_per_sheet(config.image_size)[1])
    columns = math.ceil(len(tiles) / rows)
    legend = draw_legend(config, columns * (tile_width + GAP) + GAP)
    sheet = Image.new("RGB", (legend.width, legend.height + rows * tile_height), GROUND)
    sheet.paste(legend)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (GAP + column * (tile_width + GAP), legend.height + row * tile_height))
    return sheet


def draw_tile(picture: Picture, image_id: str, labels: Sequence[str]) -> Image.Image:
    """The picture over its image id and its counts."""
    drawn = draw_picture(picture, labels)
    tile = Image.new("RGB", (drawn.width, drawn.height + CAPTION_HEIGHT), GROUND)
    tile.paste(drawn)
    states = [
        (f"{state} {count}", colour)
        for state, colour in STATE_COLOURS.items()
        if (count := (picture.states == state).sum())
    ]
    levels = [(f"P{level} {(picture.levels == level).sum()}", colour) for level, colour in LEVEL_COLOURS.items()]
    lines = (
        [(image_id, TEXT)],
        [(f"boxes: {len(picture.boxes)}", TEXT), *states],
        [(f"positive anchors: {len(picture.anchors)}", TEXT), *levels],
    )
    draw = ImageDraw.Draw(tile)
    for number, words in enumerate(lines):
        x, y = 0.0, drawn.height + number * LINE_HEIGHT + 2
        for text, colour in words:
            x = _write(draw, (x, y), text, colour) + 2 * GAP
    return tile


def draw_picture(picture: Picture, labels: Sequence[str]) -> Image.Image:
    """The picture enlarged, with its boxes, the best anchor of each, and dots at the centres of positive anchors."""
    height, width = picture.pixels.shape[:2]
    zoom = zoom_of((height, width))
    image = Image.fromarray(picture.pixels).resize((width * zoom, height * zoom), Image.Resampling.NEAREST)
    for box in range(len(picture.boxes)):
        own = np.flatnonzero(picture.assigned_boxes == box)
        if len(own):
            best = own[picture.ious[own].argmax()]
            drawing.draw_box(image, picture.anchors[best] * zoom, LEVEL_COLOURS[picture.levels[best]], line=1)
    order = sorted(range(len(picture.boxes)), key=lambda box: _DRAWING_ORDER.index(picture.states[box]))
    for box in order:
        drawing.draw_box(image, picture.boxes[box] * zoom, GROUND, line=3)  # so that it shows on light grounds too
        drawing.draw_box(image, picture.boxes[box] * zoom, STATE_COLOURS[picture.states[box]], line=2)
    centers = np.round((picture.anchors[:, :2] + picture.anchors[:, 2:]) / 2)  # whole numbers, but for rounding errors
    dots, counts = np.unique(np.column_stack([picture.levels, centers]), axis=0, return_counts=True)
    draw = ImageDraw.Draw(image)
    for (level, y, x), count in zip(dots, counts):
        _dot(draw, x * zoom, y * zoom, 1 + math.sqrt(count), LEVEL_COLOURS[level])
    num_anchors = np.bincount(picture.assigned_boxes, minlength=len(picture.boxes))
    for box in order:
        text, colour = f"{labels[picture.classes[box]]} {num_anchors[box]}", STATE_COLOURS[picture.states[box]]
        drawing.draw_label(image, picture.boxes[box] * zoom, text, colour, FONT_SIZE - 2)
    return image


def draw_legend(config: InputConfig, width: int) -> Image.Image:
    """What the signs and colours mean, `width` px wide and as high as it needs."""
    levels = zip(LEVEL_COLOURS.items(), anchor_sizes(config.anchor))
    threshold = "its threshold" if config.match.assignment == "atss" else f"{config.match.positive_iou:g}"
    boxes = [
        ("box", STATE_COLOURS[MATCHED], f"matched: an anchor's IoU reaches {threshold}"),
        ("box", STATE_COLOURS[FORCED], "forced: only its best anchor, below that"),
        ("box", STATE_COLOURS[UNMATCHED], "unmatched: no anchor is assigned to it"),
        ("box", STATE_COLOURS[DIFFICULT], "difficult: left out"),
        ("", TEXT, "number: anchors that are assigned to the box"),
    ]
    anchors = [
        *(("dot", colour, f"P{level}: {sizes} px") for (level, colour), sizes in levels),
        ("", TEXT, "dot: centre of positive anchors, larger for several"),
        ("", TEXT, "thin outline: a box's best anchor"),
    ]
    legend = Image.new("RGB", (width, 2 * GAP + len(boxes + anchors) * LINE_HEIGHT), GROUND)
    draw = ImageDraw.Draw(legend)
    y = GAP
    for entries in (boxes, anchors):
        x: float = GAP
        for sign, colour, meaning in entries:
            indent = 26 if sign else 0
            length = indent + draw.textlength(meaning, font=drawing.load_font(FONT_SIZE))
            if x > GAP and x + length > width:
                x, y = GAP, y + LINE_HEIGHT
            if sign == "box":
                draw.rectangle((x, y + 2, x + 18, y + 15), outline=colour, width=2)
            elif sign == "dot":
                _dot(draw, x + 10, y + 9, 4, colour)
            x = _write(draw, (x + indent, y), meaning, colour) + 3 * GAP
        y += LINE_HEIGHT
    return legend.crop((0, 0, width, y + GAP))


def _write(draw: ImageDraw.ImageDraw, position: tuple[float, float], text: str, colour: Colour) -> float:
    """Writes a text at `position` (x, y) and returns the x of its end."""
    font = drawing.load_font(FONT_SIZE)
    draw.text(position, text, fill=colour, font=font)
    return position[0] + draw.textlength(text, font=font)


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: Colour) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline=GROUND)
