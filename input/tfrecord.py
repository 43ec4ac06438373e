"""One record on disk: a tf.Example encoded and parsed side by side, and its TFRecord framing.

Keys and meanings are those of the TensorFlow Object Detection API, so that TF Model Garden reads the shards unchanged;
see docs/DATA_FORMAT.md. Everything but `parse_examples` works without TensorFlow, whose import takes longer than
converting a thousand images: the converter's worker processes start at once.
"""

from __future__ import annotations

import functools
import hashlib
import os
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import google_crc32c

from input import files

if TYPE_CHECKING:
    import tensorflow as tf

    from input.types import Records

Box = tuple[float, float, float, float]  # ymin xmin ymax xmax


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


CORNERS = ("ymin", "xmin", "ymax", "xmax")


class DamagedShardError(ValueError):
    """A shard that is cut off or altered; the message names the file, the record and the remedy."""


# Encoding: the protocol buffer wire format of tf.Example, written out because the generated classes come only with
# all of TensorFlow. Keys are written in a fixed order, so equal annotations give equal bytes.
def _varint(value: int) -> bytes:
    if value < 0x80:
        return _SMALL[value]
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_SMALL = [bytes((value,)) for value in range(0x80)]


@functools.lru_cache(maxsize=4096)  # class names and poses come again and again
def _string(text: str) -> bytes:
    data = text.encode()
    return b"\x0a" + _varint(len(data)) + data


# The tags that enclose the values of a feature, from the innermost: one string or packed numbers (field 1), a list
# of bytes, floats or ints (fields 1, 2 and 3). Several strings bring a tag each.
_BYTES, _STRINGS, _FLOATS, _INTS = b"\x0a\x0a", b"\x0a", b"\x0a\x12", b"\x0a\x1a"


@functools.lru_cache(maxsize=4096)  # many records have as many objects
def _head(key: str, tags: bytes, num_bytes: int) -> bytes:
    """What comes before `num_bytes` of values in an entry of the feature map: {1: key, 2: {kind: {1: values}}}."""
    head = b""
    for tag in (*tags, 0x12):
        head = bytes((tag,)) + _varint(len(head) + num_bytes) + head
    head = _string(key) + head
    return b"\x0a" + _varint(len(head) + num_bytes) + head


@functools.lru_cache(maxsize=4096)  # sizes and flags come again and again
def _entry(key: str, tags: bytes, values: bytes) -> bytes:
    return _head(key, tags, len(values)) + values


def _ints(values: Sequence[int]) -> bytes:
    return bytes(values) if max(values, default=0) < 0x80 else b"".join(map(_varint, values))


def encode_example(annotation: Annotation, jpeg: bytes) -> bytes:
    """The serialized tf.Example of one image.

    Args:
      annotation: what the image shows; its boxes already lie inside the image.
      jpeg: the encoded image, stored as it is.
    """
    return b"".join(_encode_pieces(annotation, jpeg))


def _encode_pieces(annotation: Annotation, jpeg: bytes) -> tuple[bytes, bytes, bytes]:
    """What is before the image, the image itself, and what is behind it."""
    height, width, boxes = annotation.height, annotation.width, annotation.boxes
    filename, image_id = annotation.filename.encode(), annotation.image_id.encode()
    labels = _ints([index + 1 for index in annotation.classes])
    names, poses = b"".join(map(_string, annotation.class_names)), b"".join(map(_string, annotation.poses))
    size = 4 * len(boxes)
    floats = struct.pack(
        f"<{5 * len(boxes)}f",
        *[(y1 - y0) * (x1 - x0) for y0, x0, y1, x1 in boxes],
        *[box[3] / width for box in boxes],
        *[box[1] / width for box in boxes],
        *[box[2] / height for box in boxes],
        *[box[0] / height for box in boxes],
    )
    rest = (
        _head("image/filename", _BYTES, len(filename)),
        filename,
        _entry("image/format", _BYTES, b"jpeg"),
        _entry("image/height", _INTS, _varint(height)),
        _head("image/key/sha256", _BYTES, 64),
        hashlib.sha256(jpeg).hexdigest().encode(),
        _head("image/object/area", _FLOATS, size),
        floats[:size],
        _head("image/object/bbox/xmax", _FLOATS, size),
        floats[size : 2 * size],
        _head("image/object/bbox/xmin", _FLOATS, size),
        floats[2 * size : 3 * size],
        _head("image/object/bbox/ymax", _FLOATS, size),
        floats[3 * size : 4 * size],
        _head("image/object/bbox/ymin", _FLOATS, size),
        floats[4 * size :],
        _head("image/object/class/label", _INTS, len(labels)),
        labels,
        _head("image/object/class/text", _STRINGS, len(names)),
        names,
        _entry("image/object/difficult", _INTS, _ints(annotation.difficult)),
        _entry("image/object/is_crowd", _INTS, bytes(len(boxes))),
        _entry("image/object/truncated", _INTS, _ints(annotation.truncated)),
        _head("image/object/view", _STRINGS, len(poses)),
        poses,
        _head("image/source_id", _BYTES, len(image_id)),
        image_id,
        _entry("image/width", _INTS, _varint(width)),
    )
    head, rest = _head("image/encoded", _BYTES, len(jpeg)), b"".join(rest)
    return b"\x0a" + _varint(len(head) + len(jpeg) + len(rest)) + head, jpeg, rest


# Parsing, in a TensorFlow graph and without TensorFlow.
def parse_examples(serialized: tf.Tensor) -> Records:
    """A batch of serialized tf.Examples (string [b]) -> Records, for use in `Dataset.map`.

    Labels are 1-based in the files and 0-based in the records. A file without `difficult` has no difficult objects.

    Raises:
      tf.errors.InvalidArgumentError: a record that is no tf.Example, or whose lists differ in length.
    """
    import tensorflow as tf

    from input.types import Records

    floats, ints = tf.io.RaggedFeature(tf.float32), tf.io.RaggedFeature(tf.int64)
    examples = tf.io.parse_example(
        serialized,
        {
            "image/encoded": tf.io.FixedLenFeature([], tf.string),
            "image/height": tf.io.FixedLenFeature([], tf.int64),
            "image/width": tf.io.FixedLenFeature([], tf.int64),
            "image/object/class/label": ints,
            "image/object/difficult": ints,
            **{f"image/object/bbox/{corner}": floats for corner in CORNERS},
        },
    )
    labels, difficult = examples["image/object/class/label"], examples["image/object/difficult"]
    corners = [examples[f"image/object/bbox/{corner}"] for corner in CORNERS]
    different = "lists of different lengths"
    rows = tf.stack([corner.row_splits for corner in corners])
    checks = [
        tf.debugging.assert_equal(rows, labels.row_splits[tf.newaxis], different),
        tf.debugging.assert_less_equal(difficult.row_lengths(), labels.row_lengths(), different),
    ]
    with tf.control_dependencies(checks):
        classes = tf.cast(labels.to_tensor(0), tf.int32) - 1
    shape = tf.shape(classes, tf.int64)
    return Records(
        images=examples["image/encoded"],
        sizes=tf.cast(tf.stack([examples["image/height"], examples["image/width"]], axis=1), tf.int32),
        normalized_boxes=tf.stack([corner.to_tensor(0.0, shape=shape) for corner in corners], axis=-1),
        classes=classes,
        difficult=difficult.to_tensor(0, shape=shape) > 0,
    )


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _read_fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Field numbers and values (an int, or the bytes of a longer value) of one protocol buffer message."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        wire_type = tag & 7
        if wire_type == 0:
            value, at = _read_varint(data, at)
        else:
            if wire_type == 2:
                length, at = _read_varint(data, at)
            else:
                length = {1: 8, 5: 4}[wire_type]
            value, at = data[at : at + length], at + length
            if at > len(data):
                raise IndexError
        yield tag >> 3, value


def _read_values(kind: int, data: memoryview) -> list[bytes] | list[float] | list[int]:
    """The values of a BytesList (kind 1), FloatList (2) or Int64List (3); numbers may be packed or single."""
    values: list = []
    for _, value in _read_fields(data):
        if kind == 1:
            values.append(memoryview(value).tobytes())  # fails for a number, where `bytes` would give so many zeros
        elif kind == 2:
            values.extend(struct.unpack(f"<{len(value) // 4}f", value))
        elif isinstance(value, int):
            values.append(value)
        else:
            at = 0
            while at < len(value):
                number, at = _read_varint(value, at)
                values.append(number)
    return values


def decode_example(serialized: bytes, keys: frozenset[str]) -> dict[str, list]:
    """The features called `keys` of a tf.Example, as lists of bytes, floats or non-negative ints.

    Raises:
      ValueError: the bytes are no tf.Example.
    """
    features = {}
    try:
        for _, feature_map in _read_fields(memoryview(serialized)):
            for _, entry in _read_fields(feature_map):
                pair = dict(_read_fields(entry))
                key = str(pair[1], "utf-8")
                if key in keys:
                    lists = _read_fields(pair.get(2, memoryview(b"")))
                    features[key] = [value for kind, data in lists for value in _read_values(kind, data)]
    except (IndexError, KeyError, TypeError, UnicodeDecodeError, ValueError, struct.error) as error:
        raise ValueError("not a tf.Example") from error
    return features


# Shards: TFRecord framing. A record is its length (u64), a masked crc32c of that, the data, a masked crc32c of it.
def _checksum(*pieces: bytes) -> bytes:
    crc = 0
    for piece in pieces:
        crc = google_crc32c.extend(crc, piece)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)  # masked


def frame_record(data: bytes) -> bytes:
    """`data` as one record of a TFRecord file."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, _checksum(length), data, _checksum(data)))


def frame_example(annotation: Annotation, jpeg: bytes) -> tuple[bytes, bytes, bytes]:
    """`frame_record(encode_example(annotation, jpeg))` in three pieces: `jpeg` is the second, and is not copied."""
    before, jpeg, after = pieces = _encode_pieces(annotation, jpeg)
    length = struct.pack("<Q", sum(map(len, pieces)))
    return b"".join((length, _checksum(length), before)), jpeg, after + _checksum(*pieces)


def _read_length(file: BinaryIO, size: int, path: str, index: int) -> int | None:
    """The length of the record at the position of a file of `size` bytes, or None at its end."""
    header = file.read(12)
    if not header:
        return None
    if len(header) < 12:
        raise DamagedShardError(_damage(path, index, "the file is cut off"))
    if header[8:] != _checksum(header[:8]):
        raise DamagedShardError(_damage(path, index, "the checksum of its length is wrong"))
    length = struct.unpack("<Q", header[:8])[0]
    if file.tell() + length + 4 > size:  # known before so much memory is asked for
        raise DamagedShardError(_damage(path, index, "the file is cut off"))
    return length


def _damage(path: str, index: int, what: str) -> str:
    return f"{path}: damaged at record {index}: {what}; delete this file and run prepare_tfrecords.py again."


def read_records(path: str) -> Iterator[bytes]:
    """The records of one shard, checksums verified.

    Raises:
      DamagedShardError: names the file and the first damaged record.
    """
    with files.open(path) as file:
        index, size = 0, files.size(path)
        while (length := _read_length(file, size, path, index)) is not None:
            data = file.read(length)
            if file.read(4) != _checksum(data):
                raise DamagedShardError(_damage(path, index, "the checksum of its data is wrong"))
            yield data
            index += 1


def walk_records(path: str) -> int:
    """The number of records of a shard, from the lengths alone."""
    with files.open(path) as file:
        count, size = 0, files.size(path)
        while (length := _read_length(file, size, path, count)) is not None:
            file.seek(length + 4, os.SEEK_CUR)
            count += 1
    return count
