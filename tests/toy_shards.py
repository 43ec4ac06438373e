"""Small shards for tests of the input and of training, written with TensorFlow's own classes."""

import pathlib

import numpy as np
import tensorflow as tf

LABELS = ("round", "square")


def example(image_id, pixels, boxes, classes, difficult=None, image_format="jpeg"):
    """A serialized tf.Example; `boxes` [n, 4] in pixels, `classes` 0-based."""
    height, width = pixels.shape[:2]
    encode = {"jpeg": lambda: tf.io.encode_jpeg(pixels, quality=95), "png": lambda: tf.io.encode_png(pixels)}
    corners = (np.asarray(boxes, np.float32).reshape(-1, 4) / [height, width, height, width]).T
    difficult = [0] * len(classes) if difficult is None else difficult
    values = {
        "image/encoded": [encode[image_format]().numpy()],
        "image/source_id": [image_id.encode()],
        "image/height": [height],
        "image/width": [width],
        "image/object/class/label": [int(index) + 1 for index in classes],
        "image/object/difficult": [int(flag) for flag in difficult],
        **{f"image/object/bbox/{name}": row for name, row in zip(("ymin", "xmin", "ymax", "xmax"), corners)},
    }
    features = {}
    for key, items in values.items():
        if "bbox" in key:
            features[key] = tf.train.Feature(float_list=tf.train.FloatList(value=items))
        elif key in ("image/encoded", "image/source_id"):
            features[key] = tf.train.Feature(bytes_list=tf.train.BytesList(value=items))
        else:
            features[key] = tf.train.Feature(int64_list=tf.train.Int64List(value=items))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def blocks(index, height=48, width=64):
    """Image number `index`: a grey ground that depends on the number, and one or two plain blocks as objects."""
    rng = np.random.default_rng(index)
    pixels = np.full((height, width, 3), 20 + 10 * index % 200, np.uint8)
    boxes, classes = [], []
    for _ in range(1 + index % 2):
        side = int(rng.integers(height // 4, height // 2))
        y, x = int(rng.integers(0, height - side)), int(rng.integers(0, width - side))
        category = int(rng.integers(0, len(LABELS)))
        pixels[y : y + side, x : x + side] = (230, 40, 40) if category else (40, 40, 230)
        boxes.append((y, x, y + side, x + side))
        classes.append(category)
    return pixels, boxes, classes


def write_shards(folder: pathlib.Path, num_images=10, num_shards=3, split="train") -> list[str]:
    """Writes shards of `blocks`, image by image to each shard in turn, and labels.txt; returns the paths in order."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in LABELS), encoding="utf-8")
    paths = []
    for shard in range(num_shards):
        path = folder / f"{split}-{shard:05d}-of-{num_shards:05d}.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for index in range(shard, num_images, num_shards):
                writer.write(example(f"image-{index}", *blocks(index)))
        paths.append(str(path))
    return paths
