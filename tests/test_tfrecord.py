"""The records against TensorFlow's own reader, writer and tf.train.Example."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from input import shards, tfrecord
from input.types import IGNORED

BYTES, FLOATS, INTS = "bytes_list", "float_list", "int64_list"
# What the TensorFlow Object Detection API and TF Model Garden read.
SCHEMA = {
    "image/encoded": BYTES,
    "image/filename": BYTES,
    "image/format": BYTES,
    "image/height": INTS,
    "image/key/sha256": BYTES,
    "image/object/area": FLOATS,
    "image/object/bbox/xmax": FLOATS,
    "image/object/bbox/xmin": FLOATS,
    "image/object/bbox/ymax": FLOATS,
    "image/object/bbox/ymin": FLOATS,
    "image/object/class/label": INTS,
    "image/object/class/text": BYTES,
    "image/object/difficult": INTS,
    "image/object/is_crowd": INTS,
    "image/object/truncated": INTS,
    "image/object/view": BYTES,
    "image/source_id": BYTES,
    "image/width": INTS,
}
JPEG = b"\xff\xd8 not really \xff\xd9"
TWO_OBJECTS = tfrecord.Annotation(
    image_id="é 1",
    filename="é 1.jpg",
    height=200,
    width=400,
    boxes=[(20, 40, 100, 300), (0, 0, 200, 400)],
    classes=[2, 0],
    class_names=["zèbre", "cat"],
    difficult=[0, 1],
    truncated=[1, 0],
    poses=["Left", "Unspecified"],
)
WITH_REGIONS = TWO_OBJECTS._replace(
    regions=[tfrecord.Region((1, 2, 3, 4), "cow", None), tfrecord.Region((5, 6, 7, 8), "cat", 0)]
)
NO_OBJECTS = tfrecord.Annotation("none", "none.jpg", 30, 50, [], [], [], [], [], [])


def tensorflow_reads(serialized: bytes) -> dict[str, list]:
    """All features, by tf.train.Example."""
    read = {}
    for key, feature in tf.train.Example.FromString(serialized).features.feature.items():
        kind = feature.WhichOneof("kind")
        read[key] = list(getattr(feature, kind).value) if kind else []
    return read


def test_keys_and_types():
    for annotation in (TWO_OBJECTS, NO_OBJECTS):
        example = tf.train.Example.FromString(tfrecord.encode_example(annotation, JPEG))
        assert {key: feature.WhichOneof("kind") for key, feature in example.features.feature.items()} == SCHEMA


def test_values():
    assert tensorflow_reads(tfrecord.encode_example(TWO_OBJECTS, JPEG)) == {
        "image/encoded": [JPEG],
        "image/filename": ["é 1.jpg".encode()],
        "image/format": [b"jpeg"],
        "image/height": [200],
        "image/key/sha256": [hashlib.sha256(JPEG).hexdigest().encode()],
        "image/object/area": [80 * 260, 200 * 400],
        "image/object/bbox/xmax": [0.75, 1],
        "image/object/bbox/xmin": [pytest.approx(0.1), 0],
        "image/object/bbox/ymax": [0.5, 1],
        "image/object/bbox/ymin": [pytest.approx(0.1), 0],
        "image/object/class/label": [3, 1],
        "image/object/class/text": ["zèbre".encode(), b"cat"],
        "image/object/difficult": [0, 1],
        "image/object/is_crowd": [0, 0],
        "image/object/truncated": [1, 0],
        "image/object/view": [b"Left", b"Unspecified"],
        "image/source_id": ["é 1".encode()],
        "image/width": [400],
    }


@st.composite
def random_annotations(draw):
    height, width = draw(st.integers(1, 70_000)), draw(st.integers(1, 70_000))
    share = st.floats(0, 1, width=32)
    boxes = draw(st.lists(st.tuples(share, share, share, share), max_size=200))
    classes = [draw(st.integers(0, 70_000)) for _ in boxes[:3]] + [1] * len(boxes[3:])
    flags = [index % 2 for index in range(len(boxes))]
    text = draw(st.text(max_size=200))
    return tfrecord.Annotation(
        image_id=text,
        filename=text,
        height=height,
        width=width,
        boxes=[(y0 * height, x0 * width, y1 * height, x1 * width) for y0, x0, y1, x1 in boxes],
        classes=classes,
        class_names=[text] * len(boxes),
        difficult=flags,
        truncated=flags[::-1],
        poses=["Left"] * len(boxes),
    )


@settings(max_examples=60, deadline=None)
@given(random_annotations(), st.binary(max_size=20_000))
def test_encoding_and_decoding_agree_with_tensorflow(annotation, jpeg):
    serialized = tfrecord.encode_example(annotation, jpeg)
    read = tensorflow_reads(serialized)
    assert read["image/encoded"] == [jpeg]
    assert read["image/object/class/label"] == [index + 1 for index in annotation.classes]
    assert read["image/object/truncated"] == annotation.truncated
    assert [text.decode() for text in read["image/object/class/text"]] == annotation.class_names
    ymax = np.array([box[2] / annotation.height for box in annotation.boxes], np.float32)
    np.testing.assert_array_equal(np.array(read["image/object/bbox/ymax"], np.float32), ymax)
    theirs = tf.train.Example.FromString(serialized)
    assert theirs.SerializeToString(deterministic=True) == serialized
    assert tfrecord.decode_example(theirs.SerializeToString(), frozenset(SCHEMA)) == read


def test_only_the_wanted_features_are_decoded():
    serialized = tfrecord.encode_example(TWO_OBJECTS, JPEG)
    assert tfrecord.decode_example(serialized, frozenset(["image/width", "no such key"])) == {"image/width": [400]}


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.integers(0, 700).map(lambda cut: tfrecord.encode_example(TWO_OBJECTS, JPEG)[:cut]))
def test_decoding_any_bytes_gives_what_tensorflow_reads_or_a_value_error(data):
    try:
        expected = tensorflow_reads(data)
    except DecodeError:
        with pytest.raises(ValueError, match=r"not a tf\.Example"):
            tfrecord.decode_example(data, frozenset(SCHEMA))
    else:
        decoded = tfrecord.decode_example(data, frozenset(expected))
        assert repr(sorted(decoded.items())) == repr(sorted(expected.items()))  # as text, in which a NaN equals a NaN


@pytest.mark.parametrize("in_graph", [False, True])
def test_parse_examples(in_graph):
    serialized = tf.constant([tfrecord.encode_example(annotation, JPEG) for annotation in (TWO_OBJECTS, NO_OBJECTS)])
    if in_graph:
        (records,) = tf.data.Dataset.from_tensors(serialized).map(tfrecord.parse_examples)
    else:
        records = tfrecord.parse_examples(serialized)
    assert records.images.numpy().tolist() == [JPEG, JPEG]
    np.testing.assert_allclose(records.normalized_boxes[0], [[0.1, 0.1, 0.5, 0.75], [0, 0, 1, 1]])
    np.testing.assert_array_equal(records.classes, [[2, 0], [-1, -1]])
    np.testing.assert_array_equal(records.difficult, [[False, True], [False, False]])
    np.testing.assert_array_equal(records.sizes, [[200, 400], [30, 50]])
    dtypes = (records.sizes.dtype, records.normalized_boxes.dtype, records.classes.dtype, records.difficult.dtype)
    assert dtypes == (tf.int32, tf.float32, tf.int32, tf.bool)


@pytest.mark.parametrize("in_graph", [False, True])
def test_parse_ignored_regions(in_graph):
    """They follow the objects; a padding box is none."""
    serialized = tf.constant([tfrecord.encode_example(item, JPEG) for item in (WITH_REGIONS, NO_OBJECTS, TWO_OBJECTS)])
    if in_graph:
        (records,) = tf.data.Dataset.from_tensors(serialized).map(tfrecord.parse_examples)
    else:
        records = tfrecord.parse_examples(serialized)
    ignored = [IGNORED, IGNORED]
    np.testing.assert_array_equal(records.classes, [[2, 0, *ignored], [-1] * 4, [2, 0, -1, -1]])
    difficult = [[False, True, True, True], [False] * 4, [False, True, False, False]]
    np.testing.assert_array_equal(records.difficult, difficult)
    np.testing.assert_allclose(records.normalized_boxes[0, 2] * (200, 400, 200, 400), (1, 2, 3, 4), rtol=1e-6)


def test_ignored_regions_are_no_objects(tmp_path):
    path = tmp_path / "x.tfrecord"
    path.write_bytes(tfrecord.frame_record(tfrecord.encode_example(WITH_REGIONS, JPEG)))
    (truth,) = shards.read_annotations([str(path)])
    np.testing.assert_allclose(truth.boxes, TWO_OBJECTS.boxes, rtol=1e-6)
    np.testing.assert_array_equal(truth.difficult, [False, True])
    np.testing.assert_allclose(truth.regions, [(1, 2, 3, 4), (5, 6, 7, 8)], rtol=1e-6)
    np.testing.assert_array_equal(truth.region_classes, [-1, 0])
    assert shards.read_classes([str(path)], 3) == [[2, 0]]


def test_how_a_record_says_what_is_ignored():
    read = tensorflow_reads(tfrecord.encode_example(WITH_REGIONS, JPEG))
    assert read["image/object/class/label"] == [3, 1, 0, 1]
    assert read["image/object/is_crowd"] == [0, 0, 1, 1]
    assert read["image/object/difficult"] == [0, 1, 1, 1]
    assert read["image/object/class/text"] == ["zèbre".encode(), b"cat", b"cow", b"cat"]
    assert read["image/object/area"][2:] == [4, 4]


def test_a_batch_without_any_object():
    records = tfrecord.parse_examples(tf.constant([tfrecord.encode_example(NO_OBJECTS, JPEG)] * 3))
    assert records.normalized_boxes.shape == (3, 0, 4)
    assert records.classes.shape == records.difficult.shape == (3, 0)


def changed(**features) -> bytes:
    """The record of two objects, some of its features replaced, or left out where None; as others might write it."""
    example = tf.train.Example.FromString(tfrecord.encode_example(TWO_OBJECTS, JPEG))
    for name, replacement in features.items():
        key = name.replace("__", "/")
        if replacement is None:
            del example.features.feature[key]
        else:
            getattr(example.features.feature[key], SCHEMA[key]).value[:] = replacement
    return example.SerializeToString()


def test_files_of_others_without_difficult(tmp_path):
    serialized = changed(image__object__difficult=None)
    np.testing.assert_array_equal(tfrecord.parse_examples(tf.constant([serialized])).difficult, [[False, False]])
    (tmp_path / "x.tfrecord").write_bytes(tfrecord.frame_record(serialized))
    (truth,) = shards.read_annotations([str(tmp_path / "x.tfrecord")])
    np.testing.assert_array_equal(truth.difficult, [False, False])


@pytest.mark.parametrize(
    "damage",
    [
        {"image__object__bbox__xmin": [0.1]},
        {"image__object__class__label": [1]},
        {"image__object__difficult": [0, 1, 1]},
        {"image__object__class__label": None},
    ],
)
def test_lists_of_different_lengths_are_refused(damage, tmp_path):
    serialized = changed(**damage)
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(tf.data.Dataset.from_tensors([serialized]).map(tfrecord.parse_examples))
    (tmp_path / "x.tfrecord").write_bytes(tfrecord.frame_record(serialized))
    with pytest.raises(tfrecord.DamagedShardError, match=r"x\.tfrecord: record 0"):
        shards.read_annotations([str(tmp_path / "x.tfrecord")])


@pytest.fixture
def shard(tmp_path) -> str:
    """Two records, written by us."""
    path = tmp_path / "train-00000-of-00001.tfrecord"
    path.write_bytes(
        b"".join(tfrecord.frame_record(tfrecord.encode_example(item, JPEG * 900)) for item in (TWO_OBJECTS, NO_OBJECTS))
    )
    return str(path)


def test_framing_is_tensorflows(shard, tmp_path):
    records = [record.numpy() for record in tf.data.TFRecordDataset(shard)]
    assert records == list(tfrecord.read_records(shard))
    assert [list(tfrecord.read_records(shard, start)) for start in (1, 2, 3)] == [records[1:], [], []]
    assert tfrecord.count_records_in_file(shard) == len(records) == 2
    theirs = str(tmp_path / "theirs.tfrecord")
    with tf.io.TFRecordWriter(theirs) as writer:
        for record in records:
            writer.write(record)
    assert pathlib.Path(shard).read_bytes() == pathlib.Path(theirs).read_bytes()


def test_read_annotations(shard):
    two, none = shards.read_annotations([shard])
    assert (two.image_id, two.height, two.width) == ("é 1", 200, 400)
    np.testing.assert_allclose(two.boxes, TWO_OBJECTS.boxes, rtol=1e-6)
    np.testing.assert_array_equal(two.classes, [2, 0])
    np.testing.assert_array_equal(two.difficult, [False, True])
    assert (none.boxes.shape, none.classes.shape, none.difficult.shape) == ((0, 4), (0,), (0,))
    for truth in (two, none):
        assert (truth.boxes.dtype, truth.classes.dtype, truth.difficult.dtype) == (np.float32, np.int32, np.bool_)


def read_everything(path: str) -> list[bytes]:
    return list(tfrecord.read_records(path))


@pytest.mark.parametrize("read", [read_everything, tfrecord.count_records_in_file])
def test_a_cut_shard_is_named(shard: str, read: Callable[[str], Any]):
    whole = pathlib.Path(shard).read_bytes()
    first = len(whole) - len(tfrecord.frame_record(tfrecord.encode_example(NO_OBJECTS, JPEG * 900)))
    for size in (5, 100, first - 1, first + 7, first + 12, len(whole) - 1):
        pathlib.Path(shard).write_bytes(whole[:size])
        with pytest.raises(
            tfrecord.DamagedShardError, match=rf"00001\.tfrecord: damaged at record {int(size > first)}"
        ):
            read(shard)


def test_altered_bytes_are_named(shard):
    whole = pathlib.Path(shard).read_bytes()
    for at in (3, 10, 40, len(whole) - 2):
        pathlib.Path(shard).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(tfrecord.DamagedShardError, match=rf"record {int(at > 100)}: the checksum of its"):
            read_everything(shard)


def test_an_empty_shard_has_no_records(tmp_path):
    path = tmp_path / "train-00000-of-00001.tfrecord"
    path.touch()
    assert tfrecord.count_records_in_file(str(path)) == 0
    assert shards.read_annotations([str(path)]) == []
