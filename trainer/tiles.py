"""Detection in pictures much larger than the network's input: in overlapping tiles, whose detections are merged."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from input.tiles import tile_starts
from trainer.matching import ImageDetections

_SAME_OBJECT = 0.5  # share of the smaller box that the intersection covers
_EDGE = 2.0  # px; a box that ends so close to a tile's edge inside the picture may be cut off there


def detect_in_tiles(
    detect: Callable[[np.ndarray], list[ImageDetections]],
    picture: np.ndarray,
    *,
    tile: int,
    overlap: float,
    batch_size: int,
) -> ImageDetections:
    """The detections of one picture: those in its tiles, where small objects are large enough, and in the whole.

    Several tiles may show one object, and an edge may cut it. Of two boxes of a class, from different tiles, that
    overlap by half of the smaller one, one that an edge may have cut is dropped, otherwise the one that scores lower.
    An object larger than the overlap of two tiles may be cut in both; the whole picture has it uncut.

    Args:
      detect: from u8 [b, h, w, 3] to the detections in each image, in its pixels. It leaves out those that score too
        low to be reported, since one of them could otherwise replace a better one that an edge has cut.
      picture: u8 [h, w, 3].
      tile: side of a tile in px; it is smaller where the picture is.
      overlap: least share of a tile that adjacent tiles have in common, at least 0 and below 1.
      batch_size: tiles at a time.

    Returns:
      The detections in pixels of the picture, best first.
    """
    height, width = picture.shape[:2]
    (whole,) = detect(picture[None])
    size = np.array([min(tile, height), min(tile, width)])
    corners = np.array(
        list(itertools.product(tile_starts(height, tile, overlap), tile_starts(width, tile, overlap))), np.float32
    )
    if len(corners) == 1:
        return whole
    parts, sources, cut = [], [], []
    for start in range(0, len(corners), batch_size):
        members = corners[start : start + batch_size]
        images = np.stack([picture[y : y + size[0], x : x + size[1]] for y, x in members.astype(int)])
        for number, ((y, x), found) in enumerate(zip(members, detect(images)), start + 1):
            boxes = found.boxes + np.array([y, x, y, x], np.float32)
            inner = (np.array([y, x]) > 0, np.array([y, x]) + size < (height, width))
            cut_first = (found.boxes[:, :2] < _EDGE) & inner[0]
            cut_last = (found.boxes[:, 2:] > size - _EDGE) & inner[1]
            parts.append(found._replace(boxes=boxes))
            sources.append(np.full(len(boxes), number))
            cut.append(np.any(cut_first | cut_last, axis=1))
    # The whole picture comes last: of equal scores the box of a tile, which is finer, stays.
    parts.append(whole)
    sources.append(np.zeros(len(whole.scores), int))
    cut.append(np.zeros(len(whole.scores), bool))
    merged = ImageDetections(*(np.concatenate(columns) for columns in zip(*parts)))
    kept = _merge(merged, np.concatenate(sources), np.concatenate(cut))
    kept = kept[np.argsort(-merged.scores[kept], kind="stable")]
    return ImageDetections(*(column[kept] for column in merged))


def _merge(found: ImageDetections, sources: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """The rows that remain: whole boxes before cut ones, then the best score first.

    Args:
      found: of all tiles, in pixels of the picture.
      sources: int [d], the tile that each comes from.
      cut: bool [d], whether an edge may have cut it.
    """
    boxes = found.boxes.astype(np.float64)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    dropped = np.zeros(len(boxes), bool)
    kept = []
    for row in np.lexsort((-found.scores, cut)).tolist():
        if dropped[row]:
            continue
        kept.append(row)
        sides = np.minimum(boxes[row, 2:], boxes[:, 2:]) - np.maximum(boxes[row, :2], boxes[:, :2])
        shared = np.prod(np.maximum(sides, 0), axis=1) >= _SAME_OBJECT * np.minimum(areas[row], areas)
        dropped |= shared & (found.classes == found.classes[row]) & (sources != sources[row])
    return np.array(kept, int)
