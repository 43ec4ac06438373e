"""Where the tiles of a large picture are."""

from __future__ import annotations

import math

import numpy as np


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Where tiles start along a side of `length` px: evenly, and adjacent ones share at least `overlap` of a tile."""
    if length <= tile:
        return [0]
    count = 1 + math.ceil((length - tile) / max(1, math.floor(tile * (1 - overlap))))
    return [round(start) for start in np.linspace(0, length - tile, count)]
