"""The colour of a class, the same in every picture."""

from __future__ import annotations

import colorsys

Colour = tuple[int, int, int]  # red, green and blue, 0 to 255


def class_colour(index: int) -> Colour:
    """The colour of class `index`: hues a golden section apart, in three brightnesses, so that many classes differ."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + index * 0.618034) % 1, 0.9, (1.0, 0.8, 0.6)[index % 3])
    return round(255 * red), round(255 * green), round(255 * blue)
