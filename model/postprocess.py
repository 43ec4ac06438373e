"""From predictions to detections: the best candidates, decoding, non-maximum suppression."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from input import boxes
from model.config import DetectConfig
from model.types import Detections, Predictions


def detect(
    predictions: Predictions,
    anchors: tf.Tensor,
    config: DetectConfig,
    image_size: tuple[int, int],
    *,
    num_anchors_by_level: Sequence[int],
) -> Detections:
    """The best detections of each image.

    Of all pairs of anchor and class, or of those of each level, the `pre_nms_top_k` with the highest scores go through
    greedy non-maximum suppression, within their class or all together. Detections score above `score_threshold`; boxes
    are clipped to the image, and boxes without area are dropped.

    Args:
      predictions: f32 [b, a, k] and [b, a, 4].
      anchors: f32 [a, 4] px.
      config: thresholds and counts.
      image_size: (height, width) of the network's input, px.
      num_anchors_by_level: the levels' anchors follow one another.

    Returns:
      Detections, d = `max_detections`.
    """
    num_classes = predictions.class_logits.shape[-1]
    first, candidates = 0, []
    for count in num_anchors_by_level if config.pre_nms == "per_level" else [predictions.class_logits.shape[1]]:
        logits, anchor_index, classes = _best_pairs(
            predictions.class_logits[:, first : first + count], config.pre_nms_top_k
        )
        candidates.append((logits, anchor_index + first, classes))
        first += count
    logits, anchor_index, classes = (tf.concat(values, axis=1) for values in zip(*candidates))
    scores = tf.sigmoid(logits)

    decoded = boxes.decode(
        tf.gather(predictions.box_deltas, anchor_index, batch_dims=1), tf.gather(anchors, anchor_index)
    )
    decoded = boxes.clip(decoded, image_size)
    scores = tf.where(boxes.area(decoded) > 0, scores, 0.0)

    compared = decoded
    if config.nms == "per_class":
        # One suppression for all classes: the boxes of each class are moved to an image of their own. These images form
        # a square and not a row, because float32 resolves large coordinates coarsely.
        grid = math.ceil(math.sqrt(num_classes))
        cell = tf.cast(tf.stack([classes // grid, classes % grid] * 2, axis=-1), tf.float32)
        compared = decoded + cell * tf.constant([*image_size, *image_size], tf.float32)

    def suppress(image: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        boxes, scores = image
        settings = {
            "boxes": boxes,
            "max_output_size": config.max_detections,
            "score_threshold": config.score_threshold,
            "pad_to_max_output_size": True,
        }
        if config.soft_nms_sigma:
            # No detection is dropped for its IoU alone. There is no kernel for a GPU.
            kept, soft_scores, count = tf.raw_ops.NonMaxSuppressionV5(
                scores=scores, iou_threshold=1.0, soft_nms_sigma=config.soft_nms_sigma, **settings
            )
            return kept, soft_scores, count
        kept, count = tf.raw_ops.NonMaxSuppressionV4(scores=scores, iou_threshold=config.nms_iou, **settings)
        return kept, tf.gather(scores, kept), count

    size = config.max_detections
    kept, scores, num_detections = tf.map_fn(
        suppress,
        (compared, scores),
        fn_output_signature=(tf.TensorSpec([size], tf.int32), tf.TensorSpec([size]), tf.TensorSpec([], tf.int32)),
    )
    is_detection = tf.range(config.max_detections) < num_detections[:, tf.newaxis]
    return Detections(
        boxes=tf.where(is_detection[..., tf.newaxis], tf.gather(decoded, kept, batch_dims=1), 0.0),
        scores=tf.where(is_detection, scores, 0.0),
        classes=tf.where(is_detection, tf.gather(classes, kept, batch_dims=1), -1),
        num_detections=num_detections,
    )


def _best_pairs(class_logits: tf.Tensor, top_k: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The highest of logits [b, a, k], best first, their anchors' indexes and their classes: [b, p] each."""
    _, num_anchors, num_classes = class_logits.shape
    # The best pairs belong to the anchors whose best class scores highest. So one top-k over a and one over
    # top_anchors * k replace one over a * k. Both take the first of equals; the anchors are sorted, so that equal pairs
    # keep their order.
    top_anchors = min(top_k, num_anchors)
    _, anchor_index = tf.math.top_k(tf.reduce_max(class_logits, axis=-1), top_anchors, sorted=False)
    anchor_index = tf.sort(anchor_index, axis=-1)
    logits = tf.reshape(tf.gather(class_logits, anchor_index, batch_dims=1), [-1, top_anchors * num_classes])
    logits, pair_index = tf.math.top_k(logits, min(top_k, top_anchors * num_classes))
    return logits, tf.gather(anchor_index, pair_index // num_classes, batch_dims=1), pair_index % num_classes
