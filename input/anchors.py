"""The anchors of the pyramid's levels. In NumPy, because they are constants of a configuration and an image size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from input.config import AnchorConfig


def grid_sizes(config: AnchorConfig, image_size: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows and columns of each level's feature map: [(ceil(height / stride), ceil(width / stride)), ...]."""
    height, width = image_size
    return [(-(-height // 2**level), -(-width // 2**level)) for level in config.levels]


def num_anchors_by_level(config: AnchorConfig, image_size: tuple[int, int]) -> list[int]:
    """The number of each level's anchors."""
    return [rows * columns * config.anchors_per_location for rows, columns in grid_sizes(config, image_size)]


def grid_steps(config: AnchorConfig, image_size: tuple[int, int]) -> np.ndarray:
    """Distances of neighbouring anchors in y and x, f32 [levels, 2] px."""
    if config.anchor_convention == "torchvision":
        steps = [[side // cells for side, cells in zip(image_size, grid)] for grid in grid_sizes(config, image_size)]
        return np.array(steps, np.float32)
    return np.array([[2**level] * 2 for level in config.levels], np.float32)


def grid_offset(config: AnchorConfig) -> float:
    """Where the first anchors are centred, in steps from the image's upper left corner."""
    return 0.0 if config.anchor_convention == "torchvision" else 0.5


def anchor_shapes(config: AnchorConfig) -> np.ndarray:
    """Heights and widths of the anchors, f32 [levels, anchors per location, 2] px, the aspect ratio varying fastest."""
    is_torchvision = config.anchor_convention == "torchvision"
    shapes = []
    for base in config.sizes:
        sizes = [int(base * scale) if is_torchvision else base * scale for scale in config.scales]
        shapes.append([(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in config.aspect_ratios])
    # torchvision rounds half the sides, halves to even numbers, as NumPy does.
    return (2 * np.round(np.array(shapes) / 2) if is_torchvision else np.array(shapes)).astype(np.float32)


def locations(config: AnchorConfig, image_size: tuple[int, int]) -> list[np.ndarray]:
    """The centres of each level's anchors, f32 [rows, columns, 2] px: ((i + offset) * step, (j + offset) * step)."""
    return [
        (np.moveaxis(np.mgrid[:rows, :columns], 0, -1).astype(np.float32) + grid_offset(config)) * step
        for step, (rows, columns) in zip(grid_steps(config, image_size), grid_sizes(config, image_size))
    ]


def make_anchors(config: AnchorConfig, image_size: tuple[int, int]) -> np.ndarray:
    """All anchors of an image, f32 [a, 4], (ymin, xmin, ymax, xmax) in px; they may reach outside it.

    The order is that of the heads' outputs: level, row, column, scale, aspect ratio, the last varying fastest.
    The anchors of row i and column j are centred at ((i + 0.5) * stride, (j + 0.5) * stride); in torchvision's
    convention (torchvision/models/detection/anchor_utils.py) at (i * step, j * step), where a step is the image's side
    divided by the grid's, without the rest.

    Args:
      config: sizes, scales and aspect ratios.
      image_size: (height, width) px.
    """
    anchors = []
    for shapes, centers in zip(anchor_shapes(config), locations(config, image_size)):
        corners = centers[:, :, np.newaxis] - shapes / 2, centers[:, :, np.newaxis] + shapes / 2
        anchors.append(np.concatenate(corners, axis=-1).reshape(-1, 4))
    return np.concatenate(anchors).astype(np.float32)


def best_iou_per_box(boxes: npt.ArrayLike, config: AnchorConfig, image_size: tuple[int, int]) -> np.ndarray:
    """The highest IoU of each box with any anchor, f64 [n]: how well the anchors fit these boxes.

    Among the anchors of one shape the nearest overlaps most, so only the nearest cell of each level is compared.

    Args:
      boxes: [n, 4] px of an image of `image_size`; empty ones get 0.
      config: sizes, scales and aspect ratios.
      image_size: (height, width) px.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 1, 4)
    sides = boxes[..., 2:] - boxes[..., :2]  # [n, 1, 2]
    centers = (boxes[..., 2:] + boxes[..., :2]) / 2
    best = np.zeros(len(boxes))
    offset = grid_offset(config)
    grids = zip(anchor_shapes(config), grid_steps(config, image_size), grid_sizes(config, image_size))
    for shapes, step, grid in grids:
        nearest = (np.clip(np.floor(centers / step + 0.5 - offset), 0, np.array(grid) - 1) + offset) * step
        overlaps = np.minimum((sides + shapes) / 2 - np.abs(nearest - centers), np.minimum(sides, shapes))  # [n, s, 2]
        intersections = np.maximum(overlaps, 0).prod(axis=-1)
        ious = intersections / (sides.prod(axis=-1) + shapes.prod(axis=-1) - intersections)
        best = np.maximum(best, ious.max(axis=-1))
    return np.where(sides.min(axis=(1, 2)) > 0, best, 0.0)
