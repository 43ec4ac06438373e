"""The SavedModel returns what the model does, in the original pixels, for every kind of file."""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import struct
import sys
import zlib

import numpy as np
import painted
import pytest
import tensorflow as tf
from PIL import Image

from input import augment, shards
from model.config import DetectConfig
from trainer import checkpoints, export, inference
from trainer.config import Config, TrainConfig

# Keeps every detection of an untrained network, so that there is something to compare.
ALL_DETECTIONS = dataclasses.replace(
    painted.CONFIG,
    detect=DetectConfig(score_threshold=0.0, max_detections=10),
    train=TrainConfig(precision="mixed_float16"),
)
OUTPUTS = {"boxes", "scores", "classes", "num_detections", "valid"}


def encode(pixels, image_format, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def photographs(*sizes):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.fixture(scope="module")
def painted_export(tmp_path_factory):
    """An export of the stand-in network."""
    export_dir = str(tmp_path_factory.mktemp("painted") / "export")
    export.export(painted.PaintFinder(), painted.CONFIG, export_dir)
    return tf.saved_model.load(export_dir)


@pytest.fixture(scope="module")
def half_precision_export(tmp_path_factory):
    """The export of a run that trained in mixed float16: its folder, and the run's network in float32."""
    folder = tmp_path_factory.mktemp("half_precision")
    model_dir, export_dir = str(folder / "run"), str(folder / "deep" / "export")
    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = checkpoints.make_model(ALL_DETECTIONS)
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    checkpoints.save_config(ALL_DETECTIONS, model_dir)
    prefix = tf.train.Checkpoint(model=model).save(f"{model_dir}/checkpoints/ckpt")
    assert export.export_run(model_dir, f"{export_dir}/") == prefix
    same_model = checkpoints.make_model(ALL_DETECTIONS)
    same_model.set_weights(model.get_weights())
    return export_dir, same_model


def test_the_export_returns_what_the_model_returns(half_precision_export):
    export_dir, model = half_precision_export
    pictures = photographs((50, 80), (200, 90), (64, 96))
    files = [encode(pictures[0], "JPEG"), encode(pictures[1], "PNG"), encode(pictures[2], "JPEG")]
    decoded = [augment.decode(file) for file in files]
    images, transforms = zip(*(augment.letterbox(image, painted.IMAGE_SIZE) for image in decoded))
    sizes = [image.shape[:2] for image in decoded]
    expected = inference.make_detector(model, ALL_DETECTIONS)(
        tf.stack(images), tf.stack(transforms), tf.constant(sizes)
    )

    exported = tf.saved_model.load(export_dir)
    found = exported.signatures["serving_default"](image_bytes=tf.constant(files))
    assert found.keys() == OUTPUTS
    assert found["num_detections"].numpy().min() > 0
    np.testing.assert_array_equal(found["num_detections"], expected.num_detections)
    np.testing.assert_array_equal(found["classes"], expected.classes)
    np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-5)
    np.testing.assert_allclose(found["boxes"], expected.boxes, atol=1e-2)

    one = exported.signatures["serving_images"](images=pictures[1][np.newaxis])  # PNG is lossless: the same pixels
    assert one.keys() == OUTPUTS
    for key, values in one.items():
        np.testing.assert_allclose(values[0], found[key][1], atol=1e-2)

    for signature in exported.signatures.values():
        graph = signature.graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        types = {node.attr["T"].type for node in nodes}
        assert tf.float32.as_datatype_enum in types
        assert tf.float16.as_datatype_enum not in types


@pytest.mark.parametrize("name", ["serving_default", "serving_images"])
def test_what_is_done_to_each_image_stays_on_the_cpu(painted_export, name):
    graph = painted_export.signatures[name].graph.as_graph_def()
    functions = {function.signature.name: function for function in graph.library.function}

    def called_from(nodes):
        for node in nodes:
            yield node
            values = node.attr.values()
            for called in [value.func.name for value in values if value.HasField("func")]:
                yield from called_from(functions[called].node_def)

    nodes = list(called_from(graph.node))
    # Files go through a map of tf.data, whose functions run on the device of the dataset; images through a loop.
    kinds, attribute, devices = {
        "serving_default": (("ParallelMapDatasetV2",), "f", {"/device:CPU:*", ""}),
        "serving_images": (("While", "StatelessWhile"), "body", {"/device:CPU:*"}),
    }[name]
    stages = [
        (node, list(called_from(functions[node.attr[attribute].func.name].node_def)))
        for node in nodes
        if node.op in kinds
    ]
    # Non-maximum suppression is a loop too.
    ((stage, inside),) = [(node, body) for node, body in stages if any(inner.op.startswith("Resize") for inner in body)]
    assert stage.device == "/device:CPU:*"
    assert {node.device for node in inside} <= devices
    assert any(not node.device for node in nodes if node.op == "Sigmoid" or node.op.startswith("NonMax"))


def test_the_files_of_an_export(half_precision_export):
    export_dir = pathlib.Path(half_precision_export[0])
    assert {path.name for path in export_dir.iterdir()} >= {
        "saved_model.pb",
        "variables",
        "labels.txt",
        "config.json",
        "metrics.json",
    }
    assert [path.name for path in export_dir.parent.iterdir()] == ["export"]
    assert shards.parse_labels(str(export_dir / "labels.txt")) == painted.LABELS
    assert Config.from_json((export_dir / "config.json").read_text()) == ALL_DETECTIONS


def test_only_an_export_is_replaced(tmp_path):
    model = painted.PaintFinder()
    export.export(model, painted.CONFIG, str(tmp_path / "export"))
    model.logit.assign(5.0)
    export.export(model, painted.CONFIG, str(tmp_path / "export"))
    found = tf.saved_model.load(str(tmp_path / "export")).signatures["serving_images"](
        images=painted.TINY.pixels[np.newaxis]
    )
    np.testing.assert_allclose(found["scores"][0, 0], tf.sigmoid(5.0))
    assert [path.name for path in tmp_path.iterdir()] == ["export"]

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("...")
    (tmp_path / "export" / "notes.txt").write_text("...")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    for folder, file in (("precious", "thesis.txt"), ("export", "notes.txt"), ("mine", "config.json")):
        with pytest.raises(ValueError, match=f"{folder} holds {file}, which belongs to no export"):
            export.export(model, painted.CONFIG, str(tmp_path / folder))
        assert (tmp_path / folder / file).exists()


def test_boxes_are_in_the_pixels_of_each_file(painted_export):
    """Wide, tall, tiny and larger pictures in one batch."""
    files = tf.constant([encode(painting.pixels, "PNG") for painting in painted.PAINTINGS])
    found = painted_export.signatures["serving_default"](image_bytes=files)
    for row, painting in enumerate(painted.PAINTINGS):
        count = found["num_detections"][row].numpy()
        assert count == (1 if painting.box else 0)
        expected = np.reshape(painting.box or (), (-1, 4))
        np.testing.assert_allclose(found["boxes"][row, :count], expected, atol=painting.tolerance)
        assert found["classes"][row].numpy().tolist() == [painting.category] * count + [-1] * (10 - count)
        assert not np.any(found["boxes"][row, count:])


@pytest.mark.parametrize("size", [(32, 1000), (1000, 32), (3, 2), (64, 96), (97, 61)])
def test_a_box_over_the_whole_picture_comes_back_exactly(painted_export, size):
    """Its edges go to the network's input and back."""
    painting = painted.Painting(*size, (0, 0, *size))
    found = painted_export.signatures["serving_images"](images=painting.pixels[np.newaxis])
    np.testing.assert_allclose(found["boxes"][0, 0], [0, 0, *size], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("image_format", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("BMP", "RGB", {}),
        ("GIF", "P", {}),
    ],
)
def test_every_format_and_colour_mode(painted_export, image_format, mode, options):
    painting = painted.Painting(80, 120, (16, 24, 64, 96), 1)
    image = Image.fromarray(painting.pixels).convert(mode)
    if image_format == "GIF":  # an animation, of which the first frame counts
        options = {"save_all": True, "append_images": [Image.fromarray(painted.EMPTY.pixels).resize((120, 80))]}
    found = painted_export.signatures["serving_default"](
        image_bytes=tf.constant([encode(image, image_format, **options)])
    )
    assert found["num_detections"].numpy().tolist() == [1]
    assert found["classes"][0, 0] == 1
    np.testing.assert_allclose(found["boxes"][0, 0], painting.box, atol=painting.tolerance)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP"])
def test_grayscale_becomes_three_channels(painted_export, image_format):
    white = Image.fromarray(painted.LARGER.pixels).convert("L").point(lambda value: 255 if value else 0)
    found = painted_export.signatures["serving_default"](image_bytes=tf.constant([encode(white, image_format)]))
    assert found["classes"][0, 0] == 1  # white contains green
    np.testing.assert_allclose(found["boxes"][0, 0], painted.LARGER.box, atol=painted.LARGER.tolerance)


def test_an_empty_batch(painted_export):
    found = painted_export.signatures["serving_default"](image_bytes=tf.constant([], tf.string))
    assert {key: tuple(value.shape) for key, value in found.items()} == {
        "boxes": (0, 10, 4),
        "scores": (0, 10),
        "classes": (0, 10),
        "num_detections": (0,),
        "valid": (0,),
    }


def huge_jpeg():
    """A small JPEG whose header claims 65,000 pixels a side."""
    content = bytearray(encode(painted.WIDE.pixels, "JPEG"))
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = struct.pack(">HH", 65000, 65000)
    return bytes(content)


def huge_png():
    """A small PNG whose header, with a right checksum, claims 60,000 pixels a side."""
    content = bytearray(encode(painted.WIDE.pixels, "PNG"))
    content[16:24] = struct.pack(">II", 60000, 60000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def huge_gif():
    """A small GIF whose header claims 65,000 pixels a side."""
    content = bytearray(encode(painted.WIDE.pixels, "GIF"))
    content[6:10] = struct.pack("<HH", 65000, 65000)
    return bytes(content)


def test_a_damaged_or_oversized_file_does_not_affect_the_others(painted_export):
    detect = painted_export.signatures["serving_default"]
    good, other = encode(painted.WIDE.pixels, "PNG"), encode(painted.TALL.pixels, "JPEG", quality=95)
    files = [b"", good, huge_jpeg(), b"hello", other, good[: len(good) // 2], huge_png(), b"\xff\xd8\xff", huge_gif()]
    found = detect(image_bytes=tf.constant(files))
    assert found["valid"].numpy().tolist() == [index in (1, 4) for index in range(9)]
    alone = detect(image_bytes=tf.constant([good, other]))
    for name in OUTPUTS:
        np.testing.assert_array_equal(found[name].numpy()[[1, 4]], alone[name])
    assert alone["num_detections"].numpy().tolist() == [1, 1]
    for row in (0, 2, 3, 5, 6, 7, 8):
        assert not np.any(found["boxes"][row])
        assert not np.any(found["scores"][row])
        assert np.all(found["classes"][row].numpy() == -1)
        assert found["num_detections"][row] == 0
    nothing = detect(image_bytes=tf.constant([b"hello"]))
    assert (nothing["valid"].numpy().tolist(), nothing["num_detections"].numpy().tolist()) == ([False], [0])


@pytest.mark.parametrize(
    ("content", "pixels"),
    [
        (huge_jpeg(), 65000**2),
        (huge_png(), 60000**2),
        (huge_gif(), 65000**2),
        (encode(painted.WIDE.pixels, "PNG"), 60 * 400),
        (encode(painted.WIDE.pixels, "BMP"), 0),
    ],
    ids=["jpeg", "png", "gif", "small png", "bmp"],
)
def test_the_pixels_that_a_header_claims(content, pixels):
    assert export.num_pixels(tf.constant(content)).numpy() == pixels


@pytest.mark.parametrize("content", ['{"a": 1}', "[1]", "1", "not JSON", ""])
def test_other_files_beside_the_evaluations_are_ignored(tmp_path, content):
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "mine.json").write_text(content)
    (tmp_path / "eval" / "test.json").write_text('{"step": 20}')
    run = inference.TrainedRun(painted.CONFIG, painted.PaintFinder(), 20, "RUN/best/ckpt-20")
    assert export.read_metrics(str(tmp_path), run)["splits"] == {"test": {"step": 20}}


@pytest.mark.parametrize("averaged", [True, False])
def test_metrics_are_those_of_the_weights_that_are_exported(tmp_path, averaged):
    """Of one step there are averaged weights, which training evaluates, and plain ones."""
    config = dataclasses.replace(painted.CONFIG, train=TrainConfig(ema_decay=0.9))
    run = inference.TrainedRun(config, painted.PaintFinder(), 20, "RUN/best/ckpt-20", averaged)
    line = {"step": 20, "eval/loss": 1.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    files = {"a": {"averaged": True}, "b": {"averaged": False}, "of an earlier version": {}}
    (tmp_path / "eval").mkdir()
    for name, values in files.items():
        (tmp_path / "eval" / f"{name}.json").write_text(json.dumps({"step": 20, **values}))
    known = export.read_metrics(str(tmp_path), run)
    assert known["averaged"] == averaged
    assert known["validation"] == (line if averaged else {})
    assert set(known["splits"]) == ({"a", "of an earlier version"} if averaged else {"b"})


def test_nothing_is_left_behind_by_an_error(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tf.saved_model, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export.export(painted.PaintFinder(), painted.CONFIG, str(tmp_path / "export"))
    with pytest.raises(ValueError, match="tflite_int8 needs --records"):
        export.export(painted.PaintFinder(), painted.CONFIG, str(tmp_path / "export"), kind="tflite_int8")
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named_before_the_run_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    (tmp_path / "thesis.txt").write_text("...")
    for folder, kind, message in (
        ("export", "tflite_int8", "tflite_int8 needs --records"),
        ("export", "onnx", "onnx needs a converter"),
        ("", "saved_model", "belongs to no export"),
    ):
        with pytest.raises(ValueError, match=message):
            export.export_run(str(tmp_path / "no_run"), str(tmp_path / folder), kind=kind)
