"""Anchor targets against cases worked by hand and an independent float64 reference."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from input import targets
from input.anchors import grid_sizes, make_anchors
from input.config import LOW_QUALITY_TIES, AnchorConfig, InputConfig, MatchConfig
from input.types import BACKGROUND, IGNORED, Batch, Targets

METHODS = ("dense", "sparse")
BOXES = 8  # of an image, padding included

# Every side of an anchor is a multiple of 4, so that float32 makes no rounding error in overlaps and areas.
DYADIC = AnchorConfig(sizes=(16.0, 32.0, 64.0, 128.0, 256.0), scales=(1.0, 1.5), aspect_ratios=(0.25, 1.0, 4.0))
WIDE = AnchorConfig(sizes=(8.0, 24.0, 50.0, 100.0, 300.0), scales=(0.7, 1.3), aspect_ratios=(0.2, 1.0, 3.0, 7.0))


def assign(
    boxes,
    classes,
    difficult,
    box_weights,
    *,
    method,
    anchor_config=DYADIC,
    match_config=MatchConfig(),  # noqa: B008
    image_size=(64, 96),
):
    nothing = tf.zeros([0])  # of no use for targets
    batch = Batch(*([nothing] * len(Batch._fields)))._replace(
        boxes=tf.convert_to_tensor(boxes),
        classes=tf.cast(classes, tf.int32),
        difficult=tf.convert_to_tensor(difficult),
        box_weights=tf.convert_to_tensor(box_weights),
        valid=tf.ones(tf.shape(boxes)[:1], tf.bool),
    )
    config = InputConfig(anchor=anchor_config, match=match_config, image_size=image_size)
    return targets.assign(batch, config, method=method)


def atss_candidates(box, anchor_config, image_size, rounding):
    """Indexes of the candidates, by sorting all locations, and whether rounding may choose others."""
    candidates, first, unsure = [], 0, False
    per_location = anchor_config.anchors_per_location
    for level, (rows, columns) in zip(anchor_config.levels, grid_sizes(anchor_config, image_size)):
        centers = (np.indices((rows, columns)).reshape(2, -1).T + 0.5) * 2**level
        distances = ((centers - (box[:2] + box[2:]) / 2) ** 2).sum(axis=1)
        order = np.argsort(distances, kind="stable")
        candidates.extend(first + location * per_location + i for location in order[:9] for i in range(per_location))
        if len(order) > 9:
            last, following = distances[order[[8, 9]]]
            unsure |= following - last < rounding * (1e-3 + 1e-6 * last)
        first += rows * columns * per_location
    return np.sort(candidates), unsure


def reference(boxes, classes, difficult, box_weights, anchors, config, anchor_config, image_size, rounding):
    """One image in float64, after the rules of input/targets.py, with loops and sorts instead of its reductions.

    Returns class targets, box targets, weights, and the anchors for which rounding may decide differently. `rounding`
    is 0 where coordinates are exact.
    """
    boxes, anchors = boxes.astype(np.float64), anchors.astype(np.float64)
    low = np.maximum(boxes[:, np.newaxis, :2], anchors[:, :2])
    high = np.minimum(boxes[:, np.newaxis, 2:], anchors[:, 2:])
    intersections = np.maximum(high - low, 0).prod(axis=-1)
    sides, anchor_sides = boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]
    ious = intersections / (np.abs(sides.prod(axis=1))[:, np.newaxis] + anchor_sides.prod(axis=1) - intersections)
    real = (classes >= 0) & (sides > 0).all(axis=1)
    ious[~real] = 0
    ordinary = np.flatnonzero(real & ~difficult)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2

    ambiguous = np.zeros(len(anchors), bool)
    may_match = np.ones(ious.shape, bool)
    if config.assignment == "iou":
        positive, ignored = ious >= config.positive_iou, (ious >= config.negative_iou).any(axis=0)
        ambiguous |= (np.abs(ious[ordinary] - config.positive_iou) < 1e-6).any(axis=0)
        ambiguous |= (np.abs(ious - config.negative_iou) < 1e-6).any(axis=0)
    else:
        positive = np.zeros(ious.shape, bool)
        may_match[:] = False
        for box in np.flatnonzero(real):
            candidates, unsure = atss_candidates(boxes[box], anchor_config, image_size, rounding)
            threshold = ious[box, candidates].mean() + ious[box, candidates].std(ddof=1)
            margins = np.concatenate([centers - boxes[box, :2], boxes[box, 2:] - centers], axis=1).min(axis=1)
            may_match[box, candidates] = True
            positive[box] = may_match[box] & (ious[box] >= threshold) & (margins > 0)
            near = (np.abs(ious[box] - threshold) < 1e-6) | (np.abs(margins) < rounding * 1e-3)
            ambiguous |= may_match[box] & near
            ambiguous |= unsure & (ious[box] > 0)
        ignored = positive[difficult].any(axis=0)

    low_quality = {}  # anchor -> [(-IoU, box), ...]
    for box in ordinary if config.force_match else ():
        of_box = np.where(may_match[box], ious[box], 0)
        shortfall = of_box.max() - of_box
        tied = np.flatnonzero((shortfall <= 1e-6) & (of_box > 0))
        if config.low_quality_ties == "nearest" and tied.size:
            distances = ((centers[tied] - (boxes[box, :2] + boxes[box, 2:]) / 2) ** 2).sum(axis=1)
            ambiguous[tied] |= (np.abs(distances - distances.min() - 1e-2) < 1e-3).any()
            tied = tied[distances <= distances.min() + 1e-2]
        for anchor in tied if config.low_quality_ties == "all" else tied[:1]:
            low_quality.setdefault(anchor, []).append((-ious[box, anchor], box))
        if ((np.abs(shortfall - 1e-6) < 5e-7) & (of_box > 0)).any() or of_box.max() < 2e-6:
            ambiguous |= shortfall < 2e-6

    class_targets = np.where(ignored, IGNORED, BACKGROUND)
    matched = np.full(len(anchors), -1)
    for anchor in {*low_quality, *np.flatnonzero(positive[ordinary].any(axis=0))}:
        overlapping = [(-ious[box, anchor], box) for box in ordinary if positive[box, anchor]]
        ranking = sorted(low_quality.get(anchor, overlapping))
        ambiguous[anchor] |= any(0 < other - ranking[0][0] < 1e-6 for other, _ in ranking)
        matched[anchor] = ranking[0][1]

    box_targets, weights = np.zeros((len(anchors), 4)), np.ones(len(anchors))
    anchor, box = np.flatnonzero(matched >= 0), matched[matched >= 0]
    class_targets[anchor], weights[anchor] = classes[box], box_weights[box]
    shifts = (boxes[box, :2] + boxes[box, 2:]) / 2 - centers[anchor]
    box_targets[anchor, :2] = shifts / anchor_sides[anchor]
    box_targets[anchor, 2:] = np.log(sides[box] / anchor_sides[anchor])
    return class_targets, box_targets, weights, ambiguous


def reference_of_batch(images, *, anchor_config, match_config, image_size, rounding=1):
    settings = (make_anchors(anchor_config, image_size), match_config, anchor_config, image_size, rounding)
    references = (reference(*image, *settings) for image in zip(*images))
    return [np.stack(x) for x in zip(*references)]


def random_images(rng, count, image_size, anchor_config, multiple=None):
    """Boxes of all difficult kinds, [count, BOXES, ...]; their corners are multiples of `multiple` px, if given."""
    height, width = image_size
    shape = (count, BOXES)
    centers = rng.uniform(-0.1, 1.1, (*shape, 2)) * [height, width]
    sides = np.exp(rng.uniform(np.log(0.5), np.log(3 * width), (*shape, 1)) + rng.normal(0, 0.5, (*shape, 2)))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=-1)
    kind = rng.integers(0, 12, shape)
    anchors = make_anchors(anchor_config, image_size)
    like_anchors = anchors[rng.integers(0, len(anchors), shape)]
    boxes = np.where((kind == 0)[..., np.newaxis], like_anchors, boxes)
    near_anchors = like_anchors + rng.normal(0, 3, (*shape, 4))
    boxes = np.where((kind <= 4)[..., np.newaxis] & (kind > 0)[..., np.newaxis], near_anchors, boxes)
    boxes = np.where((kind == 5)[..., np.newaxis], np.roll(boxes, 1, axis=1), boxes)  # the same as another
    boxes = np.where((kind == 6)[..., np.newaxis], np.clip(boxes, 0, [height, width] * 2), boxes)  # some become empty
    if multiple:
        boxes = np.round(boxes / multiple) * multiple
    classes = np.where(rng.random(shape) < 0.75, rng.integers(0, 20, shape), -1)
    classes[: count // 50] = -1
    difficult = rng.random(shape) < 0.2
    return (
        boxes.astype(np.float32),
        classes.astype(np.int32),
        difficult,
        rng.choice([0.25, 0.5, 1.0], shape).astype(np.float32),
    )


def assign_in_graph(images, **settings):
    """Targets of both methods, as NumPy arrays."""
    both = (tf.function(functools.partial(assign, method=method, **settings))(*images) for method in METHODS)
    return [Targets(*(x.numpy() for x in assigned)) for assigned in both]


@pytest.mark.parametrize(
    "config",
    [
        MatchConfig(force_match=False),
        *(MatchConfig(low_quality_ties=ties) for ties in LOW_QUALITY_TIES),
        MatchConfig(assignment="atss"),
    ],
    ids=["unforced", *LOW_QUALITY_TIES, "atss"],
)
@pytest.mark.parametrize("multiple", [4, 0.5])
def test_exact_on_dyadic_coordinates(multiple, config):
    images = random_images(np.random.default_rng(0), 300, (64, 96), DYADIC, multiple)
    settings = {"anchor_config": DYADIC, "match_config": config, "image_size": (64, 96)}
    assigned = assign_in_graph(images, **settings)
    class_targets, box_targets, weights, ambiguous = reference_of_batch(images, **settings, rounding=0)
    sure = np.ones(class_targets.shape, bool)
    if config.assignment == "atss":  # its thresholds are not dyadic
        sure = ~ambiguous
        assert sure.mean() > 0.999
    for ours in assigned:
        np.testing.assert_array_equal(ours.class_targets[sure], class_targets[sure])
        np.testing.assert_array_equal(ours.weights[sure], weights[sure])
        np.testing.assert_allclose(ours.box_targets[sure], box_targets[sure], atol=1e-5)


@pytest.mark.parametrize(
    ("anchor_config", "match_config", "image_size"),
    [
        (AnchorConfig(), MatchConfig(), (96, 128)),
        (WIDE, MatchConfig(positive_iou=0.6, negative_iou=0.2), (64, 160)),
        (AnchorConfig(anchor_convention="torchvision"), MatchConfig(), (96, 160)),
        (WIDE, MatchConfig(positive_iou=0.5, negative_iou=0.5, force_match=False), (96, 64)),
        (AnchorConfig(), MatchConfig(low_quality_ties="nearest"), (96, 128)),
        (WIDE, MatchConfig(low_quality_ties="all"), (96, 64)),
        (AnchorConfig(scales=(1.0,), aspect_ratios=(1.0,)), MatchConfig(assignment="atss"), (160, 224)),
        (AnchorConfig(), MatchConfig(assignment="atss", low_quality_ties="nearest"), (96, 128)),
        (WIDE, MatchConfig(assignment="atss", force_match=False), (64, 160)),
    ],
    ids=["default", "wide", "torchvision", "unforced", "nearest", "all", "atss", "atss-nearest", "atss-unforced"],
)
def test_equals_reference(anchor_config, match_config, image_size):
    count = 100 if match_config.assignment == "atss" else 300
    images = random_images(np.random.default_rng(1), count, image_size, anchor_config)
    settings = {"anchor_config": anchor_config, "match_config": match_config, "image_size": image_size}
    assigned = assign_in_graph(images, **settings)
    class_targets, box_targets, weights, ambiguous = reference_of_batch(images, **settings)
    # Many of the boxes have an anchor's centre, so that the ninth and the tenth location are at the same distance.
    assert ambiguous.mean() < (0.3 if match_config.assignment == "atss" else 1e-3)
    sure = ~ambiguous
    for ours in assigned:
        np.testing.assert_array_equal(ours.class_targets[sure], class_targets[sure])
        np.testing.assert_array_equal(ours.weights[sure], weights[sure])
        np.testing.assert_allclose(ours.box_targets[sure], box_targets[sure], atol=1e-4)


# One anchor of 16 x 16 a cell of 8 px: that of row i and column j is (8i - 4, 8j - 4, 8i + 12, 8j + 12).
ONE_SHAPE = AnchorConfig(min_level=3, max_level=3, sizes=(16.0,), scales=(1.0,), aspect_ratios=(1.0,))


def assign_one(boxes, method, classes=None, difficult=None, weights=None, **settings):
    """Class targets [8, 8], box targets [8, 8, 4] and weights [8, 8] of one 64 x 64 image with ONE_SHAPE."""
    count = len(boxes)
    image = (
        np.reshape(boxes, (1, count, 4)).astype(np.float32),
        np.array([range(count) if classes is None else classes], np.int32),
        np.array([[False] * count if difficult is None else difficult]),
        np.array([[1.0] * count if weights is None else weights], np.float32),
    )
    assigned = assign(*image, method=method, anchor_config=ONE_SHAPE, image_size=(64, 64), **settings)
    return [np.reshape(x[0], (8, 8, *x.shape[2:])) for x in assigned]


def only(cells, background=BACKGROUND):
    """An [8, 8] array of `background` but for {(row, column): value}."""
    expected = np.full((8, 8), background)
    for cell, value in cells.items():
        expected[cell] = value
    return expected


@pytest.mark.parametrize("method", METHODS)
class TestRules:
    def test_by_hand(self, method):
        """A box 16 high and 24 wide: IoU 16*16 / (16*24) = 2/3 with two anchors, 1/3 and less with the next ones."""
        classes, box_targets, weights = assign_one([[20, 20, 36, 44]], method, classes=[7], weights=[0.25])
        np.testing.assert_array_equal(classes, only({(3, 3): 7, (3, 4): 7}))
        np.testing.assert_array_equal(weights, only({(3, 3): 0.25, (3, 4): 0.25}, 1.0))
        # Centre (28, 32) against (28, 28) and (28, 36): a shift of +-4 of 16 px; the width is 24 of 16 px.
        np.testing.assert_allclose(box_targets[3, 3], [0, 0.25, 0, np.log(1.5)], rtol=1e-6)
        np.testing.assert_allclose(box_targets[3, 4], [0, -0.25, 0, np.log(1.5)], rtol=1e-6)
        assert np.count_nonzero(box_targets) == 4

    def test_ignored_between_the_thresholds(self, method):
        """16 x 16, 2 px right of an anchor: 14/18; 6 px left of the next: 10/22 = 0.45; a row away: 7/25 = 0.28."""
        classes, box_targets, _ = assign_one([[20, 22, 36, 38]], method)
        np.testing.assert_array_equal(classes, only({(3, 3): 0, (3, 4): IGNORED}))
        assert not box_targets[3, 4].any()

    def test_thresholds_are_included(self, method):
        """16 x 8 inside anchors: exactly 1/2, and 16 x 40 with 16 x 16 inside: exactly 2/5."""
        classes, _, _ = assign_one([[4, 4, 20, 12]], method)
        np.testing.assert_array_equal(classes, only({(1, 0): 0, (1, 1): 0}))
        classes, _, _ = assign_one([[4, 4, 20, 44]], method)
        # A tie of four: the first is a low-quality match, the others are ignored.
        np.testing.assert_array_equal(classes, only({(1, 1): 0, (1, 2): IGNORED, (1, 3): IGNORED, (1, 4): IGNORED}))

    def test_a_box_smaller_than_any_anchor_gets_the_first_of_its_best(self, method):
        classes, box_targets, _ = assign_one([[30, 30, 31, 32]], method)
        np.testing.assert_array_equal(classes, only({(3, 3): 0}))  # the anchors of rows and columns 3 and 4 contain it
        np.testing.assert_allclose(box_targets[3, 3], [2.5 / 16, 3 / 16, np.log(1 / 16), np.log(2 / 16)], rtol=1e-6)
        classes, _, _ = assign_one([[30, 30, 31, 32]], method, match_config=MatchConfig(force_match=False))
        np.testing.assert_array_equal(classes, only({}))

    def test_the_nearest_or_all_of_the_best_anchors(self, method):
        settings = {"match_config": MatchConfig(low_quality_ties="nearest")}
        classes, _, _ = assign_one([[34, 29, 35, 31]], method, **settings)  # centred at (34.5, 30)
        np.testing.assert_array_equal(classes, only({(4, 3): 0}))  # at (36, 28)
        settings = {"match_config": MatchConfig(low_quality_ties="all")}
        classes, _, _ = assign_one([[30, 30, 31, 32], [31, 30, 32, 32]], method, **settings)
        np.testing.assert_array_equal(classes, only({(row, column): 0 for row in (3, 4) for column in (3, 4)}))

    def test_boxes_centred_outside_the_grid(self, method):
        classes, _, _ = assign_one([[-20, -30, 2, 3], [62, 20, 200, 36]], method)
        np.testing.assert_array_equal(classes, only({(0, 0): 0, (7, 3): 1}))

    @pytest.mark.parametrize("extent", [1e5, 1e9, 1e15])
    def test_an_enormous_box_gets_the_first_anchor(self, method, extent):
        # It contains every anchor, so all have the same IoU.
        classes, _, _ = assign_one([[-extent, -extent, extent, extent]], method)
        np.testing.assert_array_equal(classes, only({(0, 0): 0}))

    def test_a_box_that_overlaps_no_anchor_changes_nothing(self, method):
        classes, _, weights = assign_one([[200, 200, 220, 220], [-40, 0, -4, 16]], method, weights=[0.5, 0.5])
        np.testing.assert_array_equal(classes, only({}))
        np.testing.assert_array_equal(weights, np.ones((8, 8)))

    @pytest.mark.parametrize("empty", [[0, 0, 0, 0], [20, 20, 20, 36], [36, 36, 20, 20], [np.nan] * 4])
    def test_padding_and_empty_boxes_take_no_part(self, method, empty):
        classes, box_targets, weights = assign_one(
            [empty, [20, 20, 36, 36]], method, classes=[3, -1], weights=[0.5, 0.5]
        )
        np.testing.assert_array_equal(classes, only({}))
        np.testing.assert_array_equal(box_targets, np.zeros((8, 8, 4)))
        np.testing.assert_array_equal(weights, np.ones((8, 8)))

    def test_anchors_are_assigned_to_the_first_of_identical_boxes(self, method):
        classes, _, _ = assign_one([[20, 20, 36, 36]] * 3, method, classes=[5, 2, 9])
        np.testing.assert_array_equal(classes, only({(3, 3): 5}))

    def test_the_higher_iou_decides_between_two_low_quality_matches_of_one_anchor(self, method):
        small, large = [30, 30, 31, 31], [30, 30, 32, 32]  # both have IoUs below 0.5; (3, 3) is the first of their best
        classes, _, _ = assign_one([small, large], method)
        np.testing.assert_array_equal(classes, only({(3, 3): 1}))

    def test_a_low_quality_match_comes_before_a_higher_iou_of_another_box(self, method):
        # The wide box has an IoU of 2/3 with (3, 3) and (3, 4). The tiny one gets (2, 4) at 16/256, the first of the
        # anchors that contain it: row 2 covers 12 to 28, column 4 covers 28 to 44.
        wide, tiny = [20, 20, 36, 44], [20, 40, 24, 44]
        classes, _, _ = assign_one([wide, tiny], method)
        np.testing.assert_array_equal(classes, only({(2, 4): 1, (3, 3): 0, (3, 4): 0}))
        # The narrow box lies in rows 3 and 4 and columns 3 and 4: it gets (3, 3), and the other box only (3, 4).
        narrow = [28, 28, 36, 32]
        classes, _, _ = assign_one([narrow, [20, 24, 36, 44]], method)
        np.testing.assert_array_equal(classes, only({(3, 3): 0, (3, 4): 1}))

    def test_anchors_on_difficult_boxes_are_ignored(self, method):
        boxes = [[20, 20, 36, 44]]
        classes, box_targets, weights = assign_one(boxes, method, difficult=[True], weights=[0.5])
        np.testing.assert_array_equal(classes, only({(3, 3): IGNORED, (3, 4): IGNORED}))
        assert not box_targets.any()
        np.testing.assert_array_equal(weights, np.ones((8, 8)))
        classes, _, _ = assign_one([[20, 20, 36, 44], [20, 20, 36, 36]], method, difficult=[True, False])
        np.testing.assert_array_equal(classes, only({(3, 3): 1, (3, 4): IGNORED}))


@pytest.mark.parametrize("method", METHODS)
def test_no_boxes(method):
    images = (
        np.zeros((2, 3, 4), np.float32),
        np.full((2, 3), -1),
        np.zeros((2, 3), bool),
        np.zeros((2, 3), np.float32),
    )
    class_targets, box_targets, weights = assign(*images, method=method)
    num_anchors = len(make_anchors(DYADIC, (64, 96)))
    np.testing.assert_array_equal(class_targets, np.full((2, num_anchors), BACKGROUND))
    np.testing.assert_array_equal(box_targets, np.zeros((2, num_anchors, 4)))
    np.testing.assert_array_equal(weights, np.ones((2, num_anchors)))


@pytest.fixture(scope="module")
def images():
    return random_images(np.random.default_rng(2), 6, (64, 96), DYADIC, multiple=0.5)


@pytest.fixture(scope="module")
def eager(images):
    return assign(*images, method="dense")


def assert_same(assigned, expected):
    np.testing.assert_array_equal(assigned.class_targets, expected.class_targets)
    np.testing.assert_array_equal(assigned.weights, expected.weights)
    np.testing.assert_allclose(assigned.box_targets, expected.box_targets, atol=1e-6)
    for tensor, dtype in zip(assigned, (tf.int32, tf.float32, tf.float32)):
        assert tensor.dtype == dtype


def test_eager(images, eager):
    assert_same(assign(*images, method="sparse"), eager)


@pytest.mark.parametrize("method", METHODS)
def test_in_graph_with_any_number_of_images_and_boxes(images, eager, method):
    signature = [
        tf.TensorSpec([None, None, 4]),
        tf.TensorSpec([None, None], tf.int32),
        tf.TensorSpec([None, None], tf.bool),
        tf.TensorSpec([None, None]),
    ]
    graph = tf.function(functools.partial(assign, method=method), input_signature=signature)
    assert_same(graph(*images), eager)
    first_two = graph(*(x[:2, :5] for x in images))
    assert_same(first_two, assign(*(x[:2, :5] for x in images), method="dense"))


@pytest.mark.parametrize("method", METHODS)
def test_in_dataset_map(images, eager, method):
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(3, drop_remainder=True)
    dataset = dataset.map(functools.partial(assign, method=method))
    num_anchors = len(make_anchors(DYADIC, (64, 96)))
    assert [tuple(spec.shape) for spec in dataset.element_spec] == [
        (3, num_anchors),
        (3, num_anchors, 4),
        (3, num_anchors),
    ]
    batches = list(dataset)
    assert_same(Targets(*(tf.concat(x, axis=0) for x in zip(*batches))), eager)


@pytest.mark.parametrize("config", [MatchConfig(), MatchConfig(assignment="atss")], ids=["iou", "atss"])
def test_dense_compiles_under_xla(images, config):
    eager = assign(*images, method="dense", match_config=config)
    compiled = tf.function(functools.partial(assign, method="dense", match_config=config), jit_compile=True)
    assert_same(compiled(*images), eager)


@pytest.mark.parametrize("method", METHODS)
def test_on_two_replicas(images, eager, method, two_replicas):
    halves = [[x[:3] for x in images], [x[3:] for x in images]]
    inputs = two_replicas.experimental_distribute_values_from_function(
        lambda context: tuple(map(tf.constant, halves[context.replica_id_in_sync_group]))
    )
    assigned = tf.function(lambda x: two_replicas.run(functools.partial(assign, method=method), x))(inputs)
    both = (tf.concat(two_replicas.experimental_local_results(x), axis=0) for x in assigned)
    assert_same(Targets(*both), eager)


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_boxes(images, method):
    half = (tf.cast(images[0], tf.float16), *images[1:])
    as_float32 = assign(tf.cast(half[0], tf.float32), *images[1:], method="dense")
    assert_same(assign(*half, method=method), as_float32)


def test_many_boxes_on_a_large_image_are_the_same_by_both_methods():
    images = random_images(np.random.default_rng(3), 40, (512, 320), AnchorConfig())
    images = [x.reshape(2, 20 * BOXES, *x.shape[2:]) for x in images]
    settings = {"anchor_config": AnchorConfig(), "image_size": (512, 320)}
    assert_same(assign(*images, method="sparse", **settings), assign(*images, method="dense", **settings))


def test_unknown_method():
    with pytest.raises(ValueError, match="choose dense or sparse"):
        assign(*random_images(np.random.default_rng(0), 1, (64, 96), DYADIC), method="brute")
