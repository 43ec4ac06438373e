"""Anchors against arithmetic done by hand and a float64 formula."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from input import anchors
from input.config import AnchorConfig

WIDE = AnchorConfig(sizes=(8.0, 24.0, 50.0, 100.0, 300.0), scales=(0.7, 1.3), aspect_ratios=(0.2, 1.0, 3.0, 7.0))


def test_first_location_by_hand():
    """P3's first cell is centred at (4, 4); area 32^2 and width / height 1/2, 1, 2, then the next scale."""
    first = anchors.make_anchors(AnchorConfig(), (64, 96))[:4]
    short, long, side = 32 / 2**0.5, 32 * 2**0.5, 32 * 2 ** (1 / 3) / 2**0.5
    assert short == pytest.approx(22.627417)
    assert long == pytest.approx(45.254834)
    expected = [
        [4 - 22.627417, 4 - 11.3137085, 4 + 22.627417, 4 + 11.3137085],
        [-12, -12, 20, 20],
        [4 - 11.3137085, 4 - 22.627417, 4 + 11.3137085, 4 + 22.627417],
        [4 - side, 4 - side / 2, 4 + side, 4 + side / 2],
    ]
    np.testing.assert_allclose(first, expected, rtol=1e-6)


def test_torchvisions_convention_equals_torchvision():
    """Golden values: `AnchorGenerator` of torchvision 0.28 for a 96x160 image, in its order of corners, x before y."""
    config = AnchorConfig(anchor_convention="torchvision")
    made = anchors.make_anchors(config, (96, 160))
    first = [[-11, -23, 11, 23], [-14, -28, 14, 28], [-18, -35, 18, 35], [-16] * 2 + [16] * 2, [-20] * 2 + [20] * 2,
             [-25] * 2 + [25] * 2, [-23, -11, 23, 11], [-28, -14, 28, 14], [-35, -18, 35, 18]]  # fmt: skip
    # It orders aspect ratios, height / width, outside sizes.
    from_ours = [(2 - ratio) * 3 + scale for scale in range(3) for ratio in range(3)]
    np.testing.assert_array_equal(made[:9], np.array(first)[from_ours])
    expected_sums = [[118560, 49440, 209760, 140640], [15960, -1320, 61800, 44520], [-2895, -7215, 20175, 15855],
                     [-6360, -7926, 12084, 10518], [-5424, -6144, 6864, 6144]]  # fmt: skip
    counts = [9 * rows * columns for rows, columns in anchors.grid_sizes(config, (96, 160))]
    for level, expected in zip(np.split(made, np.cumsum(counts)[:-1]), expected_sums):
        np.testing.assert_array_equal(level.astype(np.float64).sum(axis=0)[[1, 0, 3, 2]], expected)


def test_torchvisions_convention_refuses_anchors_that_round_to_nothing():
    with pytest.raises(ValueError, match=r"rounds the sides .* use larger --anchor_sizes"):
        AnchorConfig(sizes=(2.0, 8.0, 16.0, 32.0, 64.0), anchor_convention="torchvision")


def test_order_is_level_row_column_scale_ratio():
    config = AnchorConfig(min_level=3, max_level=4, sizes=(8.0, 16.0), scales=(1.0, 2.0), aspect_ratios=(1.0, 4.0))
    made = anchors.make_anchors(config, (16, 24))
    # P3 has 2 x 3 cells, P4 1 x 2 (24 / 16 rounded up), with 4 anchors each.
    assert made.shape == (2 * 3 * 4 + 1 * 2 * 4, 4)
    centers, sizes = (made[:, :2] + made[:, 2:]) / 2, made[:, 2:] - made[:, :2]
    np.testing.assert_array_equal(
        centers[::4], [[4, 4], [4, 12], [4, 20], [12, 4], [12, 12], [12, 20], [8, 8], [8, 24]]
    )
    for shapes, first in (([[8, 8], [4, 16], [16, 16], [8, 32]], 0), ([[16, 16], [8, 32], [32, 32], [16, 64]], 24)):
        np.testing.assert_array_equal(sizes[first : first + 4], shapes)


def test_number_of_anchors_at_512_equals_that_of_other_implementations():
    made = anchors.make_anchors(AnchorConfig(), (512, 512))
    assert made.shape == (49104, 4)
    assert made.dtype == np.float32


def test_grids_round_up():
    assert anchors.grid_sizes(AnchorConfig(), (96, 160)) == [(12, 20), (6, 10), (3, 5), (2, 3), (1, 2)]


@pytest.mark.parametrize("config", [AnchorConfig(), WIDE])
def test_equals_float64(config):
    expected = [
        ((i + 0.5) * 2**level, (j + 0.5) * 2**level, size * scale / ratio**0.5, size * scale * ratio**0.5)
        for level, size in zip(range(3, 8), config.sizes)
        for i, j in itertools.product(range(-(-96 // 2**level)), range(-(-160 // 2**level)))
        for scale in config.scales
        for ratio in config.aspect_ratios
    ]
    y, x, height, width = np.array(expected).T
    expected = np.stack([y - height / 2, x - width / 2, y + height / 2, x + width / 2], axis=-1)
    np.testing.assert_allclose(anchors.make_anchors(config, (96, 160)), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("config", [AnchorConfig(), WIDE, AnchorConfig(anchor_convention="torchvision")])
def test_best_iou_per_box_equals_brute_force(config):
    rng = np.random.default_rng(0)
    centers = rng.uniform(-40, 200, (3000, 2))
    sides = np.exp(rng.uniform(-2, 7, (3000, 2)))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=-1)
    boxes[:10, 2] = boxes[:10, 0]
    boxes[10:20] = boxes[10:20, [2, 3, 0, 1]]
    all_anchors = anchors.make_anchors(config, (96, 160)).astype(np.float64)
    low = np.maximum(boxes[:, np.newaxis, :2], all_anchors[:, :2])
    high = np.minimum(boxes[:, np.newaxis, 2:], all_anchors[:, 2:])
    intersections = np.maximum(high - low, 0).prod(axis=-1)
    areas = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=-1)
    unions = areas[:, np.newaxis] + (all_anchors[:, 2:] - all_anchors[:, :2]).prod(axis=-1) - intersections
    expected = (intersections / unions).max(axis=1)
    best = anchors.best_iou_per_box(boxes, config, (96, 160))
    np.testing.assert_allclose(best, expected, atol=1e-5)
    assert not best[:20].any()
    assert best[20:].any()


def test_no_boxes():
    assert anchors.best_iou_per_box([], AnchorConfig(), (64, 64)).shape == (0,)


def test_needs_no_tensorflow():
    """The converter's report uses anchors, and its workers should start at once."""
    code = "import sys; from input import anchors, config; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(anchors.__file__).parents[1])
