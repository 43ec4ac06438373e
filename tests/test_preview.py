"""The contact sheets: they show what training is fed, and their counts agree with counts by hand."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import published
import pytest
import tensorflow as tf
import tiny
import toy_shards
from PIL import Image

import flags
from input import anchors, batch_augment, pipeline
from input.config import AnchorConfig, AugmentConfig, InputConfig
from input.targets import assign
from model import pretrained
from trainer import preview, preview_data, preview_sheets

# One square anchor at each location: 16 px on P3, centred at 4, 12, 20 ..., 32 px on P4, centred at 8, 24, 40 ...
CONFIG = tiny.config(
    input=InputConfig(
        image_size=(64, 128),
        batch_size=1,
        max_boxes=6,
        shuffle_buffer=4,
        anchor=AnchorConfig(sizes=(16.0, 32.0, 64.0, 128.0, 256.0), scales=(1.0,), aspect_ratios=(1.0,)),
        augment=AugmentConfig.preset("none"),
    )
)
ROUND, SQUARE = range(2)
BOXES = [
    (12, 12, 28, 28),  # an anchor of P3 itself; no other has an IoU above 1/3
    (12, 12, 28, 28),  # its twin, which gets no anchor
    (50, 50, 54, 54),  # at most 16 / 256 with any anchor
    (32, 64, 48, 80),  # difficult
    (24, 8, 56, 40),  # an anchor of P4 itself
]
CLASSES = [ROUND, ROUND, SQUARE, SQUARE, SQUARE]
STATES = ["matched", "unmatched", "forced", "difficult", "matched"]


def with_augment(**settings):
    return dataclasses.replace(CONFIG.input, augment=AugmentConfig(**settings))


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def paths(tmp_path_factory, pixels):
    """Shards of one image with BOXES."""
    folder = tmp_path_factory.mktemp("records")
    (folder / "labels.txt").write_text("round\nsquare\n")
    path = folder / "train-00000-of-00001.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        difficult = [state == "difficult" for state in STATES]
        writer.write(toy_shards.example("cells", pixels, BOXES, CLASSES, difficult, image_format="png"))
    return [str(path)]


@pytest.fixture(scope="module")
def picture(paths):
    (only,) = preview_data.receive(paths, CONFIG.input, 1)
    return only


def test_boxes_and_anchors_worked_by_hand(picture, pixels):
    np.testing.assert_array_equal(picture.pixels, pixels)
    np.testing.assert_array_equal(picture.boxes, BOXES)
    assert picture.classes.tolist() == CLASSES
    assert picture.states.tolist() == STATES
    np.testing.assert_array_equal(picture.levels, [3, 3, 4])
    assert picture.assigned_boxes.tolist() == [0, 2, 4]
    np.testing.assert_allclose(picture.ious, [1, 16 / 256, 1])
    np.testing.assert_allclose(picture.anchors[[0, 2]], [BOXES[0], BOXES[4]])


def test_a_box_is_matched_by_the_rule_of_the_run(paths):
    """The box of 4 px is far below an IoU of 0.5, but ATSS gives it a threshold that its nearest anchor reaches."""
    config = dataclasses.replace(CONFIG.input, match=dataclasses.replace(CONFIG.input.match, assignment="atss"))
    (picture,) = preview_data.receive(paths, config, 1)
    assert picture.states[[0, 2, 3, 4]].tolist() == ["matched", "matched", "difficult", "matched"]
    assert preview_sheets.draw_legend(config, 600).height > 0


def test_summary_worked_by_hand(picture):
    summary = preview.summarize([picture, picture], CONFIG)
    assert summary == {
        "num_images": 2,
        "num_boxes": 8,
        "num_matched": 4,
        "num_forced": 2,
        "num_unmatched": 2,
        "num_difficult": 2,
        "matched_share": 0.5,
        "median_size": 16.0,
        "positive_anchors": {"P3": 4, "P4": 2, "P5": 0, "P6": 0, "P7": 0},
        "per_class": {
            "round": {
                "num_boxes": 4,
                "num_matched": 2,
                "num_forced": 0,
                "num_unmatched": 2,
                "num_difficult": 0,
                "matched_share": 0.5,
                "median_size": 16.0,
            },
            "square": {
                "num_boxes": 4,
                "num_matched": 2,
                "num_forced": 2,
                "num_unmatched": 0,
                "num_difficult": 2,
                "matched_share": 0.5,
                "median_size": 18.0,  # of 4 and 32
            },
        },
    }
    lines = preview.format_summary(summary, CONFIG.input).splitlines()
    assert lines[1].split() == ["round", "4", "2", "0", "2", "0", "50.0%", "16", "px"]
    assert lines[3].split() == ["all", "classes", "8", "4", "2", "2", "2", "50.0%", "16", "px"]
    assert lines[6].split() == ["P3", "16", "px", "4"]
    assert lines[-1].startswith("The anchors do not fit: round, square, all classes.")


def test_summary_without_boxes(picture):
    bare = picture._replace(
        boxes=picture.boxes[:0],
        classes=picture.classes[:0],
        states=picture.states[:0],
        anchors=picture.anchors[:0],
        levels=picture.levels[:0],
        assigned_boxes=picture.assigned_boxes[:0],
        ious=picture.ious[:0],
    )
    summary = preview.summarize([bare], CONFIG)
    assert summary["num_boxes"] == 0
    assert summary["matched_share"] is None
    assert summary["per_class"]["round"]["median_size"] is None
    assert "do not fit" not in preview.format_summary(summary, CONFIG.input)


def test_an_anchor_is_assigned_to_the_nearest_box_of_its_class():
    boxes = np.array([(0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 10, 10), (0, 0, 10, 11), (0, 0, 10, 11)], np.float32)
    classes = np.array([0, 1, 1, 1, 1])
    difficult = np.array([False, True, False, False, False])
    matched = boxes[[0, 2, 3, 4]] * np.float32(1 + 1e-6)
    assigned = preview_data.find_assigned_boxes(np.array([0, 1, 1, 1]), matched, boxes, classes, difficult)
    assert assigned.tolist() == [0, 2, 3, 3]


def test_a_flip_is_shown(paths, pixels):
    (flipped,) = preview_data.receive(paths, with_augment(horizontal_flip=1.0), 1)
    np.testing.assert_array_equal(flipped.pixels, pixels[:, ::-1])
    np.testing.assert_array_equal(flipped.boxes[0], (12, 128 - 28, 28, 128 - 12))
    assert flipped.states[0] == "matched"


def test_preview_shows_the_images_and_positive_anchors_of_training(tmp_path):
    records = toy_shards.write_shards(tmp_path)
    config = dataclasses.replace(tiny.CONFIG.input, augment=AugmentConfig.preset("strong"))
    pictures = list(preview_data.receive(records, config, 5))
    assert len(pictures) == 5
    batches = pipeline.make_dataset(records, config, training=True, batch_size=config.batch_size)
    batches = pipeline.mix_what_fits(batches, config.augment)
    fed = []
    for batch in batches.take(3):
        batch = batch_augment.augment(batch, config.augment)
        targets = assign(batch, config, method="dense")
        fed += zip(batch.record_index.numpy(), batch.images.numpy(), targets.class_targets.numpy(), batch.boxes.numpy())
    every_anchor = anchors.make_anchors(config.anchor, config.image_size)
    for seen, (record_index, image, class_targets, boxes) in zip(pictures, fed):
        assert seen.record_index == record_index
        difference = np.abs(batch_augment.normalize(seen.pixels).numpy() - image)
        assert difference.max() <= 0.51 / 255 / min(batch_augment.STDDEV_RGB)  # rounded to whole numbers
        np.testing.assert_array_equal(seen.boxes, boxes[: len(seen.boxes)])
        positive = class_targets >= 0
        np.testing.assert_array_equal(seen.anchors, every_anchor[positive])
        np.testing.assert_array_equal(seen.classes[seen.assigned_boxes], class_targets[positive])


def test_levels_are_those_of_the_anchors():
    config = AnchorConfig()
    sides = np.diff(anchors.make_anchors(config, (96, 160)).reshape(-1, 2, 2), axis=1)[:, 0]
    levels = preview_data.anchor_levels(config, (96, 160))
    assert len(levels) == len(sides)
    np.testing.assert_array_equal(np.floor(np.log2(np.sqrt(sides.prod(axis=1)) * 1.01)) - 2, levels)  # P3 from 32 px
    assert preview_data.anchor_sizes(config)[:2] == ["32-51", "64-102"]


def test_boxes_are_drawn_in_the_colour_of_their_state(picture):
    zoom = preview_sheets.zoom_of(CONFIG.input.image_size)
    assert zoom == 4
    drawn = np.asarray(preview_sheets.draw_picture(picture, CONFIG.labels))
    assert drawn.shape == (64 * zoom, 128 * zoom, 3)
    for box, state in zip(picture.boxes[1:], STATES[1:]):  # the first is covered by its twin
        ymin, xmin, ymax, xmax = (round(float(side) * zoom) for side in box)
        colour = preview_sheets.STATE_COLOURS[state]
        y_below, x_right = (ymin + 3 * ymax) // 4, (xmin + 3 * xmax) // 4  # clear of labels
        for y, x in ((ymax - 1, x_right), (y_below, xmin), (y_below, xmax - 1)):
            assert tuple(drawn[y, x]) == colour, (state, y, x)
    assert tuple(drawn[52 * zoom, 52 * zoom]) == preview_sheets.LEVEL_COLOURS[3]  # the dots
    assert tuple(drawn[40 * zoom, 24 * zoom]) == preview_sheets.LEVEL_COLOURS[4]


def test_pixels_outside_boxes_stay_as_they_are(picture, pixels):
    drawn = np.asarray(preview_sheets.draw_picture(picture, CONFIG.labels))
    enlarged = pixels.repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_array_equal(drawn[:, 90 * 4 :], enlarged[:, 90 * 4 :])
    assert (drawn == enlarged).mean() > 0.8


@pytest.mark.parametrize("width", [560, 1000, 2000])
def test_the_legend_is_never_cut(width):
    legend = np.asarray(preview_sheets.draw_legend(CONFIG.input, width))
    assert legend.shape[1] == width
    assert (legend[:, -1] == preview_sheets.GROUND).all()
    assert (legend[-1] == preview_sheets.GROUND).all()
    shown = {tuple(colour) for colour in legend.reshape(-1, 3)}
    assert {*preview_sheets.STATE_COLOURS.values(), *preview_sheets.LEVEL_COLOURS.values()} <= shown


def test_an_empty_shard_is_refused(paths, tmp_path):
    empty = tmp_path / "empty.tfrecord"
    empty.write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.tfrecord: it is empty"):
        preview.write_preview([*paths, str(empty)], CONFIG, str(tmp_path / "sheets"), 1)


def test_sheets_and_counts_on_disk(paths, tmp_path):
    output = tmp_path / "a" / "b"
    output.mkdir(parents=True)
    for name in ("sheet-007.jpg", "mine.jpg"):
        (output / name).write_text("of an earlier call, or not ours")
    summary = preview.write_preview(paths, CONFIG, str(output), 14)  # one record: fourteen epochs
    assert sorted(os.listdir(output)) == ["mine.jpg", "preview.json", "sheet-000.jpg", "sheet-001.jpg"]
    assert json.loads((output / "preview.json").read_text()) == json.loads(json.dumps(summary))
    assert (summary["num_images"], summary["num_boxes"], summary["num_unmatched"]) == (14, 56, 14)
    assert summary["sheets"] == ["sheet-000.jpg", "sheet-001.jpg"]
    assert summary["input"]["image_size"] == (64, 128)
    sizes = []
    for name in summary["sheets"]:
        with Image.open(output / name) as sheet:
            sizes.append(sheet.size)
    tile = (4 * 64 + preview_sheets.CAPTION_HEIGHT, 4 * 128 + preview_sheets.GAP)
    assert [(size[1] // tile[0], size[0] // tile[1]) for size in sizes] == [(4, 3), (1, 2)]
    assert sizes[0][0] <= preview_sheets.SHEET_SIZE[1]


def test_the_command(paths, tmp_path):
    command = [sys.executable, "-m", "trainer.preview", f"--records={paths[0]}", f"--output_dir={tmp_path}"]
    settings = ["--image_size=64x128", "--anchor_sizes=16,32,64,128,256", "--batch_size=2", "--num_images=2"]
    done = subprocess.run([*command, *settings, "--augment=paper"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"images: 2, contact sheets: 1, in {tmp_path}\n")
    summary = json.loads((tmp_path / "preview.json").read_text())
    assert summary["num_boxes"] == 8
    assert summary["input"]["augment"]["horizontal_flip"] == 0.5
    assert list(summary["per_class"]) == ["round", "square"]


def test_class_names_that_the_font_lacks_are_drawn_as_numbers(paths, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(preview_sheets, "draw_tile", lambda *args: drawn.append(args[2]) or Image.new("RGB", (9, 9)))
    monkeypatch.setattr(
        flags, "config_from_flags", lambda labels=(): dataclasses.replace(CONFIG, labels=("圆形", "square"))
    )
    wanted = SimpleNamespace(records=paths, output_dir=str(tmp_path / "out"), num_images=1)
    monkeypatch.setattr(preview.absl_flags, "FLAGS", wanted)
    preview.main()
    assert drawn == [["#1", "square"]]
    assert json.loads((tmp_path / "out" / "preview.json").read_text())["legend"] == {"#1": "圆形"}
    assert capsys.readouterr().out.splitlines()[-1] == "Classes drawn as numbers: #1 圆形"


def test_the_anchors_are_those_of_the_detector_to_start_from(paths, tmp_path, monkeypatch):
    weights = tmp_path / "detector.safetensors"
    tensors = published.random_tensors(published.detector_shapes((2, 2, 2, 2), bottleneck=False))
    pretrained.save(str(weights), pretrained.translate(tensors, "published").weights)
    wanted = SimpleNamespace(records=paths, output_dir=str(tmp_path / "out"), num_images=1)
    monkeypatch.setattr(preview.absl_flags, "FLAGS", wanted)

    def run(path):
        config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, init_checkpoint=str(path)))
        monkeypatch.setattr(flags, "config_from_flags", lambda labels=(): config)
        preview.main()

    run(weights)
    summary = json.loads((tmp_path / "out" / "preview.json").read_text())
    assert summary["input"]["anchor"]["anchor_convention"] == "torchvision"
    assert summary["num_matched"] < STATES.count("matched")  # torchvision's anchors are shifted by half a stride
    with pytest.raises(FileNotFoundError, match="which --backbone_weights or --init_checkpoint names"):
        run(tmp_path / "none.safetensors")


def test_a_wrong_flag_is_named_before_anything_is_written(paths, tmp_path):
    command = [sys.executable, "-m", "trainer.preview", f"--records={paths[0]}", f"--output_dir={tmp_path}/out"]
    done = subprocess.run([*command, "--image_size=wide"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: --image_size=wide: write N or HxW")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_missing_records_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(flags, "config_from_flags", lambda labels=(): CONFIG)
    wanted = SimpleNamespace(records=[f"{tmp_path}/none-*"], output_dir=f"{tmp_path}/out", num_images=1)
    monkeypatch.setattr(preview.absl_flags, "FLAGS", wanted)
    with pytest.raises(FileNotFoundError, match=r"^no file matches .*none-\*"):
        preview.main()
