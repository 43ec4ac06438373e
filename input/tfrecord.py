"""One record on disk: a tf.Example encoded and parsed side by side, and its TFRecord framing.

Keys and meanings are those of the TensorFlow Object Detection API, so that TF Model Garden reads the shards unchanged;
see docs/DATA_FORMAT.md. Only `parse_examples` imports TensorFlow: the import takes longer than converting a thousand
images, and the converter's worker processes do without it.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format

from input import files

if TYPE_CHECKING:
    import tensorflow as tf

    from input.types import Records

CORNERS = ("ymin", "xmin", "ymax", "xmax")
Box = tuple[float, float, float, float]  # in the order of CORNERS


class Region(NamedTuple):
    """A part of an image that is neither an object nor background: anchors and detections inside it do not count."""

    box: Box  # edges in pixels counted from 0, inside the image
    name: str  # of what is there
    class_index: int | None  # 0-based; None where detections of every class are ignored, not of this one alone


class Annotation(NamedTuple):
    """What one image shows; `n` objects."""

    image_id: str
    filename: str
    height: int  # of the stored image, in pixels
    width: int
    boxes: Sequence[Box]  # edges in pixels counted from 0, inside the image
    classes: Sequence[int]  # 0-based
    class_names: Sequence[str]
    difficult: Sequence[int]  # 0 or 1
    truncated: Sequence[int]  # 0 or 1
    poses: Sequence[str]
    regions: Sequence[Region] = ()


class DamagedShardError(ValueError):
    """A shard is cut off or altered; the message names the file, the record and the remedy."""


# tf.Example, as tensorflow/core/example/feature.proto and example.proto define it.
_SCHEMA = """
name: "example.proto"
package: "retinanet"
syntax: "proto3"
message_type { name: "BytesList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "FloatList" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Int64List" field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type {
  name: "Feature"
  oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 type: TYPE_MESSAGE type_name: "BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 type: TYPE_MESSAGE type_name: "FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 type: TYPE_MESSAGE type_name: "Int64List" oneof_index: 0 }
}
message_type {
  name: "Features"
  field { name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE type_name: "FeatureEntry" }
  nested_type {
    name: "FeatureEntry"
    options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING }
    field { name: "value" number: 2 type: TYPE_MESSAGE type_name: "Feature" }
  }
}
message_type { name: "Example" field { name: "features" number: 1 type: TYPE_MESSAGE type_name: "Features" } }
"""


def _make_example_class() -> Any:
    """The protocol buffer class of tf.Example; TensorFlow's own cannot be had without importing TensorFlow."""
    pool = descriptor_pool.DescriptorPool()  # not the default one, in which TensorFlow registers its classes
    pool.Add(text_format.Parse(_SCHEMA, descriptor_pb2.FileDescriptorProto()))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("retinanet.Example"))


_Example = _make_example_class()


def encode_example(annotation: Annotation, jpeg: bytes, sha256: str = "") -> bytes:
    """The serialized tf.Example of one image; equal arguments give equal bytes.

    Args:
      annotation: what the image shows; its boxes already lie inside the image.
      jpeg: the encoded image, stored as it is.
      sha256: of `jpeg`, in hexadecimal, where the caller has it.
    """
    height, width, regions = annotation.height, annotation.width, annotation.regions
    boxes = [*annotation.boxes, *(region.box for region in regions)]
    labels = [*annotation.classes, *(-1 if region.class_index is None else region.class_index for region in regions)]
    num_objects, num_regions = len(annotation.boxes), len(regions)
    byte_lists = {
        "image/encoded": [jpeg],
        "image/filename": [annotation.filename.encode()],
        "image/format": [b"jpeg"],
        "image/key/sha256": [(sha256 or hashlib.sha256(jpeg).hexdigest()).encode()],
        "image/object/class/text": [
            name.encode() for name in (*annotation.class_names, *(region.name for region in regions))
        ],
        "image/object/view": [pose.encode() for pose in annotation.poses] + [b"Unspecified"] * num_regions,
        "image/source_id": [annotation.image_id.encode()],
    }
    float_lists = {
        "image/object/area": [(ymax - ymin) * (xmax - xmin) for ymin, xmin, ymax, xmax in boxes],
        "image/object/bbox/ymin": [ymin / height for ymin, _, _, _ in boxes],
        "image/object/bbox/xmin": [xmin / width for _, xmin, _, _ in boxes],
        "image/object/bbox/ymax": [ymax / height for _, _, ymax, _ in boxes],
        "image/object/bbox/xmax": [xmax / width for _, _, _, xmax in boxes],
    }
    int_lists = {
        "image/height": [height],
        "image/width": [width],
        "image/object/class/label": [index + 1 for index in labels],
        "image/object/difficult": [*annotation.difficult] + [1] * num_regions,
        "image/object/is_crowd": [0] * num_objects + [1] * num_regions,
        "image/object/truncated": [*annotation.truncated] + [0] * num_regions,
    }
    example = _Example()
    features = example.features.feature
    for key, strings in byte_lists.items():
        features[key].bytes_list.value.extend(strings)
    for key, floats in float_lists.items():
        features[key].float_list.value.extend(floats)
    for key, ints in int_lists.items():
        features[key].int64_list.value.extend(ints)
    return example.SerializeToString(deterministic=True)


def decode_example(serialized: bytes, keys: frozenset[str]) -> dict[str, list]:
    """The features called `keys` of a tf.Example, as lists of bytes, floats or ints.

    Raises:
      ValueError: the bytes are no tf.Example.
    """
    try:
        features = _Example.FromString(serialized).features.feature
    except message.DecodeError as error:
        raise ValueError("not a tf.Example") from error
    decoded = {}
    for key in keys:
        if key in features:
            kind = features[key].WhichOneof("kind")
            decoded[key] = list(getattr(features[key], kind).value) if kind else []
    return decoded


def parse_examples(serialized: tf.Tensor) -> Records:
    """A batch of serialized tf.Examples (string [b]) -> Records, for use in `Dataset.map`.

    Labels are 1-based in the files and 0-based in the records. A file without `difficult` has no difficult objects. An
    ignored region, whose `is_crowd` is 1, has the class IGNORED and is difficult.

    Raises:
      tf.errors.InvalidArgumentError: a record that is no tf.Example, or whose lists differ in length.
    """
    import tensorflow as tf

    from input.types import BACKGROUND, IGNORED, Records

    floats, ints = tf.io.RaggedFeature(tf.float32), tf.io.RaggedFeature(tf.int64)
    examples = tf.io.parse_example(
        serialized,
        {
            "image/encoded": tf.io.FixedLenFeature([], tf.string),
            "image/height": tf.io.FixedLenFeature([], tf.int64),
            "image/width": tf.io.FixedLenFeature([], tf.int64),
            "image/object/class/label": ints,
            "image/object/difficult": ints,
            "image/object/is_crowd": ints,
            **{f"image/object/bbox/{corner}": floats for corner in CORNERS},
        },
    )
    labels = examples["image/object/class/label"]
    difficult, is_crowd = examples["image/object/difficult"], examples["image/object/is_crowd"]
    corners = [examples[f"image/object/bbox/{corner}"] for corner in CORNERS]
    different = "lists of different lengths"
    rows = tf.stack([corner.row_splits for corner in corners])
    checks = [
        tf.debugging.assert_equal(rows, labels.row_splits[tf.newaxis], different),
        tf.debugging.assert_less_equal(difficult.row_lengths(), labels.row_lengths(), different),
        tf.debugging.assert_less_equal(is_crowd.row_lengths(), labels.row_lengths(), different),
    ]
    with tf.control_dependencies(checks):
        classes = tf.cast(labels.to_tensor(BACKGROUND + 1), tf.int32) - 1
    shape = tf.shape(classes, tf.int64)
    ignored = is_crowd.to_tensor(0, shape=shape) > 0
    return Records(
        images=examples["image/encoded"],
        sizes=tf.cast(tf.stack([examples["image/height"], examples["image/width"]], axis=1), tf.int32),
        normalized_boxes=tf.stack([corner.to_tensor(0.0, shape=shape) for corner in corners], axis=-1),
        classes=tf.where(ignored, IGNORED, classes),
        difficult=(difficult.to_tensor(0, shape=shape) > 0) | ignored,
    )


# TFRecord framing. A record is its length (u64), a masked crc32c of that, the data, a masked crc32c of the data.


def masked_crc32c(data: bytes) -> bytes:
    """The checksum of TFRecord files, 4 bytes."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def frame_record(data: bytes) -> bytes:
    """`data` as one record of a TFRecord file."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, masked_crc32c(length), data, masked_crc32c(data)))


def read_records(path: str, start: int = 0) -> Iterator[bytes]:
    """The records of one shard from index `start` on, checksums verified; those before are skipped unread.

    Raises:
      DamagedShardError: names the file and the first damaged record.
    """
    with files.open(path) as file:
        index, size = 0, files.size(path)
        while (length := _read_length(file, size, path, index)) is not None:
            if index < start:
                file.seek(length + 4, os.SEEK_CUR)
            else:
                data = file.read(length)
                if file.read(4) != masked_crc32c(data):
                    raise _damage(path, index, "the checksum of its data is wrong")
                yield data
            index += 1


def count_records_in_file(path: str) -> int:
    """The number of records of one shard; reads only their lengths.

    Raises:
      DamagedShardError: as `read_records`, but damage to the data of a record is not seen.
    """
    with files.open(path) as file:
        count, size = 0, files.size(path)
        while (length := _read_length(file, size, path, count)) is not None:
            file.seek(length + 4, os.SEEK_CUR)
            count += 1
    return count


def _read_length(file: BinaryIO, size: int, path: str, index: int) -> int | None:
    """The length of the record at the position of a file of `size` bytes; None at the end of the file."""
    header = file.read(12)
    if not header:
        return None
    if len(header) < 12:
        raise _damage(path, index, "the file is cut off")
    if header[8:] != masked_crc32c(header[:8]):
        raise _damage(path, index, "the checksum of its length is wrong")
    length: int = struct.unpack("<Q", header[:8])[0]
    if file.tell() + length + 4 > size:  # checked before memory for `length` bytes is allocated
        raise _damage(path, index, "the file is cut off")
    return length


def _damage(path: str, index: int, what: str) -> DamagedShardError:
    return DamagedShardError(
        f"{path}: damaged at record {index}: {what}; delete this file and run prepare_tfrecords.py again."
    )
