"""Any bytes in a shard are read as TensorFlow reads them, or named as damaged; a claimed length costs no memory.

A longer search, as in test_fuzz_converter.py: FUZZ_CASES=20000 pytest tests/test_fuzz_shards.py
"""

from __future__ import annotations

import os
import pathlib
import random
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from voc_tree import encoded, picture

from input import shards, tfrecord

CASES = int(os.environ.get("FUZZ_CASES", "200"))
fuzzed = settings(
    max_examples=CASES,
    derandomize="FUZZ_CASES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),  # they measure time
)
randoms = st.randoms(use_true_random=True)


def make_example(index: int, jpeg: bytes) -> bytes:
    boxes = [(1.5, 2.0, 9.0 + index, 8.0), (0.0, 0.0, 12.0, 16.0)][: index % 3]
    labels = [("cat", "dog")[index % 2]] * len(boxes)
    classes, flags = [index % 2] * len(boxes), [index % 2] * len(boxes)
    annotation = tfrecord.Annotation(
        image_id=f"id-{index}",
        filename=f"id-{index}.jpg",
        height=12,
        width=16,
        boxes=boxes,
        classes=classes,
        class_names=labels,
        difficult=flags,
        truncated=flags,
        poses=["Left"] * len(boxes),
    )
    return tfrecord.encode_example(annotation, jpeg)


EXAMPLES = [make_example(index, encoded(picture(12, 16, seed=index), quality=10)) for index in range(3)]
SHARD = b"".join(map(tfrecord.frame_record, EXAMPLES))


def damage(rng: random.Random, original: bytes) -> bytes:
    """`original` with one to four changes."""
    data = bytearray(original)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        change = rng.choice(("set", "set", "flip", "flip", "insert", "delete", "repeat", "cut"))
        end = at + rng.choice((1, 4, 12, 400))
        if change == "set":
            data[at : at + 1] = rng.randbytes(1)
        elif change == "flip":
            data[at : at + 1] = bytes(byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1])
        elif change == "insert":
            data[at:at] = rng.randbytes(rng.choice((1, 8, 30)))
        elif change == "delete":
            del data[at:end]
        elif change == "repeat":
            data[at:at] = data[at:end]
        else:
            del data[at:]
    return bytes(data)


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    """What the function returns, or None where it names the damage; it must not use more than 8 MiB."""
    tracemalloc.start()
    try:
        result = function(*args)
    except tfrecord.DamagedShardError:
        result = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20
    return result


def read_all(path: str) -> tuple[list[bytes], bool]:
    """The records up to the end, or to the damage; and whether there is damage."""
    records: list[bytes] = []

    def read() -> list[bytes]:
        records.extend(tfrecord.read_records(path))
        return records

    return records, outcome(read) is None


def tensorflow_reads(path: str) -> tuple[list[bytes], bool]:
    records: list[bytes] = []
    try:
        records.extend(record.numpy() for record in tf.data.TFRecordDataset(path))
    except tf.errors.DataLossError:
        return records, True
    # A header cut short is, to TensorFlow, the end of the file.
    return records, sum(len(record) + 16 for record in records) < os.path.getsize(path)


@pytest.fixture
def shard(tmp_path) -> pathlib.Path:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    return tmp_path / "x-00000-of-00001.tfrecord"


def test_damaged_bytes(shard):
    """The records are those of TensorFlow's own reader, up to the record where that gives up."""
    path, seen = str(shard), set()

    @fuzzed
    @given(randoms)
    def try_case(rng):
        shard.write_bytes(damage(rng, SHARD))
        records, damaged = read_all(path)
        assert (records, damaged) == tensorflow_reads(path)
        counts = outcome(shards.count_records, [path])
        # Counting reads only the lengths: damage to the data is not seen, but never makes the records fewer.
        assert counts == [len(records)] if not damaged else counts is None or counts[0] > len(records)
        annotations = outcome(shards.read_annotations, [path])
        assert annotations is None if damaged else len(annotations) == len(records)
        assert outcome(shards.check_shard, path) == (None if damaged else len(records))
        seen.add((len(records), damaged))

    try_case()
    assert seen >= {(0, True), (1, True), (2, True)}


@pytest.mark.parametrize("length", [2**31, 2**40, 2**63 - 1, 2**64 - 1], ids=str)
def test_length_that_passes_its_checksum(shard, length):
    """A length is compared with the size of the file before memory is allocated."""
    header = struct.pack("<Q", length)
    first = tfrecord.frame_record(EXAMPLES[0])
    for rest in (b"", b"too little"):
        shard.write_bytes(first + header + tfrecord.masked_crc32c(header) + rest)
        assert read_all(str(shard)) == ([EXAMPLES[0]], True)
        assert outcome(shards.count_records, [str(shard)]) is None
        assert outcome(shards.read_annotations, [str(shard)]) is None
        with pytest.raises(
            tfrecord.DamagedShardError, match=r"x-.*\.tfrecord: damaged at record 1: the file is cut off"
        ):
            shards.check_shard(str(shard))


def test_damaged_examples_in_sound_frames(shard):
    """Records whose checksums are right, but which are no tf.Examples, or unusual ones."""
    originals = [make_example(index, b"jpeg") for index in range(3)]  # a short image: most of the damage is elsewhere
    seen = set()

    @fuzzed
    @given(randoms)
    def try_case(rng):
        shard.write_bytes(tfrecord.frame_record(damage(rng, rng.choice(originals))))
        annotations = outcome(shards.read_annotations, [str(shard)])
        seen.add(annotations is None)
        for annotation in annotations or ():
            count = len(annotation.classes)
            assert annotation.boxes.shape == (count, 4)
            assert annotation.difficult.shape == (count,)
            arrays = annotation.boxes, annotation.classes, annotation.difficult
            assert [array.dtype for array in arrays] == [np.float32, np.int32, np.bool_]
            assert isinstance(annotation.image_id, str)

    try_case()
    assert seen == {True, False}


def field(number: int, wire_type: int, payload: bytes) -> bytes:
    length = bytes([len(payload)]) if wire_type == 2 else b""
    return bytes([number << 3 | wire_type]) + length + payload


def feature(key: bytes, value: bytes) -> bytes:
    """A tf.Example with one feature."""
    return field(1, 2, field(1, 2, field(1, 2, key) + field(2, 2, value)))


HUGE = b"\xff\xff\xff\xff\x7f"  # 2**35 - 1 as a varint
ODD = {
    "a number for bytes": feature(b"image/source_id", field(1, 2, field(1, 0, HUGE))),
    "a number for a list": feature(b"image/height", field(3, 0, HUGE)),
    "a number that never ends": feature(b"image/height", field(3, 2, field(1, 2, b"\xff" * 90))),
    "a label beyond 32 bits": feature(b"image/object/class/label", field(3, 2, field(1, 0, HUGE))),
    "text for a height": feature(b"image/height", field(1, 2, field(1, 2, b"x"))),
    "a number for an id": feature(b"image/source_id", field(3, 2, field(1, 0, b"\5"))),
    "a group": field(1, 3, b""),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_examples(shard, case):
    """Of several features with one name the last counts, so what is appended here decides."""
    shard.write_bytes(tfrecord.frame_record(EXAMPLES[1] + ODD[case]))
    with pytest.raises(tfrecord.DamagedShardError, match="record 0 is not a detection record"):
        shards.read_annotations([str(shard)])
    assert outcome(shards.read_annotations, [str(shard)]) is None


def test_fields_that_tensorflow_ignores_are_ignored(shard):
    """A key that is a number is, in protocol buffers, an unknown field."""
    unknown = field(1, 2, field(1, 2, field(1, 0, HUGE) + field(2, 2, b"")))
    examples = [tf.train.Example.FromString(data).features.feature for data in (EXAMPLES[1], EXAMPLES[1] + unknown)]
    assert all(examples[1][key] == value for key, value in examples[0].items())
    shard.write_bytes(tfrecord.frame_record(EXAMPLES[1]) + tfrecord.frame_record(EXAMPLES[1] + unknown))
    first, second = shards.read_annotations([str(shard)])
    np.testing.assert_equal(second._asdict(), first._asdict())
