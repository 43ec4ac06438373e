"""Anchors of the pyramid's levels. NumPy alone: they are constants of a configuration and an image size."""

import numpy as np


def grid_sizes(config, image_size):
    """Rows and columns of each level's feature map: [(ceil(height / stride), ceil(width / stride)), ...]."""
    height, width = image_size
    return [(-(-height // 2**level), -(-width // 2**level)) for level in config.levels]


def anchor_shapes(config):
    """Heights and widths of the anchors, f32 [levels, anchors per location, 2] px, the aspect ratio varying fastest."""
    return np.array(
        [
            [
                (size * scale / ratio**0.5, size * scale * ratio**0.5)
                for scale in config.scales
                for ratio in config.aspect_ratios
            ]
            for size in config.sizes
        ],
        np.float32,
    )


def make_anchors(config, image_size):
    """All anchors of an image, f32 NumPy array [a, 4], (ymin, xmin, ymax, xmax) in px; they may reach outside it.

    The order is that of the heads' outputs: level, row, column, scale, aspect ratio, the last varying fastest.
    The anchors of row i and column j are centred at ((i + 0.5) * stride, (j + 0.5) * stride).

    Args:
      config: AnchorConfig.
      image_size: (height, width) px.
    """
    anchors = []
    for level, shapes, (rows, columns) in zip(config.levels, anchor_shapes(config), grid_sizes(config, image_size)):
        centers = (np.stack(np.mgrid[:rows, :columns], axis=-1).astype(np.float32) + 0.5) * 2**level
        corners = centers[:, :, np.newaxis] - shapes / 2, centers[:, :, np.newaxis] + shapes / 2
        anchors.append(np.concatenate(corners, axis=-1).reshape(-1, 4))
    return np.concatenate(anchors).astype(np.float32)
