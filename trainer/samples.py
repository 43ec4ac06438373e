"""A few images of an evaluation with what was found in them, for people to look at while a run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from input import palette
from input.shards import GroundTruth
from trainer import drawing
from trainer.matching import ImageDetections

NUM_SAMPLES = 8
MIN_SCORE = 0.3  # of the detections that are shown
_SIDE = 480  # px of the longer side of a picture


def choose(
    record_indexes: Sequence[int], ground_truths: Sequence[GroundTruth], detections: Sequence[ImageDetections]
) -> list[dict[str, Any]]:
    """Images at equal distances, the same in each evaluation of a split, as plain values.

    Returns:
      For each its `record` (the index over all shards), `image_id`, `size` [height, width], `objects` [[class, box]]
      and `detections` [[class, score, box]]. Classes count from 0; boxes are in px of the original image.
    """
    chosen = np.unique(np.linspace(0, len(record_indexes) - 1, NUM_SAMPLES).astype(int)) if record_indexes else []
    samples = []
    for index in chosen:
        truth, found = ground_truths[index], detections[index]
        rows = zip(found.classes.tolist(), found.scores.tolist(), found.boxes.tolist())
        samples.append(
            {
                "record": record_indexes[index],
                "image_id": truth.image_id,
                "size": [truth.height, truth.width],
                "objects": [list(item) for item in zip(truth.classes.tolist(), truth.boxes.tolist())],
                "detections": [list(row) for row in rows if row[1] >= MIN_SCORE],
            }
        )
    return samples


def draw(sample: dict[str, Any], encoded: bytes, labels: Sequence[str]) -> Image.Image:
    """The image twice: on the left with its objects, on the right with the detections."""
    height, width = sample["size"]
    scale = min(1.0, _SIDE / max(height, width))
    height, width = max(round(height * scale), 1), max(round(width * scale), 1)
    picture = drawing.shrink(encoded, height, width)
    numbers = drawing.number_labels(labels)
    names = [numbers.get(label, label) for label in labels]
    truth = [(box, names[index], index) for index, box in sample["objects"]]
    found = [(box, f"{names[index]} {score:.2f}", index) for index, score, box in sample["detections"]]
    pair = Image.new("RGB", (2 * width + 4, height), "white")
    for left, objects in ((0, truth), (width + 4, found)):
        drawn = picture.copy()
        scaled = [([edge * scale for edge in box], text, palette.class_colour(index)) for box, text, index in objects]
        drawing.draw_objects(drawn, scaled)
        pair.paste(drawn, (left, 0))
    return pair
