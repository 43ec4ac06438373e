"""Prediction on files: the listed detections are those drawn, and a bad file is skipped."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import painted
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from input import augment, files, shards
from input.conversion import convert
from input.conversion.config import ConvertConfig
from input.conversion.workers import Workers
from input.palette import class_colour
from trainer import drawing, export, inference, predict
from trainer.formats import LabelledBox


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory):
    """An export of the stand-in network; its detections score 0.95."""
    folder = str(tmp_path_factory.mktemp("painted") / "export")
    export.export(painted.PaintFinder(), painted.CONFIG, folder)
    return folder


@pytest.fixture(scope="module")
def detector(export_dir):
    return predict.load_export(export_dir)


@pytest.fixture
def pictures(tmp_path):
    """A folder of the painted pictures as PNG files: 0.png ..."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, painting in enumerate(painted.PAINTINGS):
        Image.fromarray(painting.pixels).save(folder / f"{number}.png")
    return folder


def paths_in(folder):
    return sorted(str(path) for path in folder.iterdir())


def test_detections_are_listed_in_pixels_of_each_file(detector, pictures, tmp_path):
    output = tmp_path / "output"
    results = predict.predict(detector, paths_in(pictures), str(output), batch_size=2)
    assert json.loads((output / "detections.json").read_text()) == results
    assert [result["path"] for result in results] == paths_in(pictures)
    for painting, result in zip(painted.PAINTINGS, results):
        assert (result["width"], result["height"]) == (painting.width, painting.height)
        assert len(result["detections"]) == (1 if painting.box else 0)
        for detection in result["detections"]:
            assert detection["label"] == painted.LABELS[painting.category]
            assert detection["score"] == pytest.approx(0.9526, abs=1e-3)
            box = [detection["box"][side] for side in ("ymin", "xmin", "ymax", "xmax")]
            assert box == pytest.approx(painting.box, abs=painting.tolerance)
        with Image.open(output / result["picture"]) as drawn:
            assert drawn.size == (painting.width, painting.height)
            assert (np.asarray(drawn) == painting.pixels).all() == (painting.box is None)


def test_weak_detections_are_left_out(detector, pictures, tmp_path):
    results = predict.predict(detector, paths_in(pictures), str(tmp_path / "output"), score_threshold=0.96)
    assert [result["detections"] for result in results] == [[]] * len(painted.PAINTINGS)


def test_bad_files_are_named_and_skipped(detector, pictures, tmp_path, capsys):
    (pictures / "not_a_picture.jpg").write_text("hello")
    (pictures / "empty.jpg").touch()
    (pictures / "folder.jpg").mkdir()
    Image.fromarray(painted.WIDE.pixels).save(pictures / "huge.gif")
    gif = (pictures / "huge.gif").read_bytes()
    (pictures / "huge.gif").write_bytes(gif[:6] + b"\xe8\xfd" * 2 + gif[10:])  # 65,000 x 65,000
    whole = (pictures / "3.png").read_bytes()
    (pictures / "cut_off.png").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(painted.WIDE.pixels).convert("P").save(pictures / "cut_off.bmp")
    (pictures / "cut_off.bmp").write_bytes((pictures / "cut_off.bmp").read_bytes()[:-500])
    results = predict.predict(detector, paths_in(pictures), str(tmp_path / "output"), batch_size=3)
    assert [os.path.basename(result["path"]) for result in results] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    skipped = capsys.readouterr().err.splitlines()
    reason = "not a whole JPEG, PNG, BMP or GIF picture"
    assert skipped == [
        f"skipped {pictures}/cut_off.bmp: {reason}",
        f"skipped {pictures}/cut_off.png: {reason}",
        f"skipped {pictures}/empty.jpg: {reason}",
        f"skipped {pictures}/folder.jpg: Is a directory",
        f"skipped {pictures}/huge.gif: its header claims more than 100,000,000 pixels",
        f"skipped {pictures}/not_a_picture.jpg: {reason}",
    ]


def test_an_export_for_a_fixed_number_of_images_takes_any_number(detector, pictures, tmp_path):
    """Five pictures and, in tiles, one after another: batches of two are filled up."""
    export_dir = str(tmp_path / "export")
    export.export(painted.PaintFinder(), painted.CONFIG, export_dir, batch_size=2)
    in_pairs = predict.load_export(export_dir)
    for tile in (0, 60):
        first, second = (
            predict.predict(either, paths_in(pictures), str(tmp_path / "output"), tile=tile, batch_size=3, write=[])
            for either in (in_pairs, detector)
        )
        assert first == second


def test_class_names_that_the_font_lacks_are_drawn_as_numbers(pictures, tmp_path, capsys):
    export_dir, output = str(tmp_path / "export"), tmp_path / "output"
    labels = ("red", "黄色")
    export.export(painted.PaintFinder(), dataclasses.replace(painted.CONFIG, labels=labels), export_dir)
    path = str(pictures / f"{painted.PAINTINGS.index(painted.WIDE)}.png")
    (result,) = predict.predict(predict.load_export(export_dir), [path], str(output))
    assert (output / "legend.txt").read_text(encoding="utf-8") == "#2 黄色\n"
    assert f"see {output}/legend.txt" in capsys.readouterr().out
    (detection,) = result["detections"]
    assert detection["label"] == "黄色"

    def drawn(text: str) -> np.ndarray:
        """The picture with this class name; the names themselves are drawn where there are no numbers."""
        image = Image.fromarray(painted.WIDE.pixels)
        found = LabelledBox(text, tuple(detection["box"].values()), score=detection["score"])
        predict.draw_detections(image, [found], {text: class_colour(1)}, {})
        return np.asarray(image)

    with Image.open(output / result["picture"]) as image:
        np.testing.assert_array_equal(np.asarray(image), drawn("#2"))
        assert (np.asarray(image) != drawn("黄色")).any()


@pytest.mark.parametrize("label", ["猫", "قط", "बिल्ली", "Кот", "café", "cat 猫"])
def test_which_class_names_are_drawn_as_numbers(label):
    assert drawing.number_labels(["cat", label, "traffic light_2 (b)"]) == {label: "#2"}


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "1"])
def test_a_bmp_with_a_palette_has_its_colours(detector, tmp_path, mode):
    """The network sees them too: red and yellow are the two classes."""
    path, painting = tmp_path / "picture.bmp", painted.WIDE
    image = Image.fromarray(painting.pixels).convert(mode)
    image.save(path)
    (result,) = predict.predict(detector, [str(path)], str(tmp_path / "output"))
    assert [found["label"] for found in result["detections"]] == ["yellow"]  # white contains green
    (read,) = predict._readable([str(path)], 1, predict.tqdm(disable=True))
    np.testing.assert_array_equal(read.pixels, image.convert("RGB"))
    np.testing.assert_array_equal(augment.decode(read.encoded), read.pixels)


def test_a_bmp_with_a_palette_has_a_limit_too(detector, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "MAX_PIXELS", painted.WIDE.height * painted.WIDE.width - 1)
    path = tmp_path / "picture.bmp"
    Image.fromarray(painted.WIDE.pixels).convert("P").save(path)
    assert predict.predict(detector, [str(path)], str(tmp_path / "output")) == []
    assert f"skipped {path}" in capsys.readouterr().err


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_is_applied(orientation, tmp_path):
    """Every corner of the stored picture has a colour of its own; Pillow's own function is the reference."""
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", exif=exif)
    upright = predict.make_upright("x.png", content.getvalue(), pixels)
    with Image.open(content) as image:
        np.testing.assert_array_equal(upright.pixels, np.asarray(ImageOps.exif_transpose(image)))
    np.testing.assert_array_equal(augment.decode(upright.encoded), upright.pixels)


def test_boxes_are_in_the_frame_that_viewers_show(detector, tmp_path):
    painting = painted.WIDE
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers turn it clockwise by a quarter
    path = tmp_path / "turned.jpg"
    Image.fromarray(painting.pixels).save(path, exif=exif, quality=95)
    (result,) = predict.predict(detector, [str(path)], str(tmp_path / "output"))
    assert (result["width"], result["height"]) == (painting.height, painting.width)
    ymin, xmin, ymax, xmax = painting.box
    expected = [xmin, painting.height - ymax, xmax, painting.height - ymin]
    assert list(result["detections"][0]["box"].values()) == pytest.approx(expected, abs=painting.tolerance + 2)
    with Image.open(tmp_path / "output" / "turned.jpg") as drawn:
        assert drawn.size == (painting.height, painting.width)
        assert 0x0112 not in drawn.getexif()


def test_annotations_are_read_back_by_the_converter(detector, pictures, tmp_path):
    output = tmp_path / "output"
    results = predict.predict(detector, paths_in(pictures), str(output), write=["voc", "coco", "yolo"])
    assert not list(output.glob("*.png"))
    settings = {"annotations_dir": str(output / "annotations"), "images_dir": str(pictures)}
    with Workers(1) as pool:
        convert.convert(ConvertConfig(output_dir=str(tmp_path / "records"), split="all", **settings), pool)
    truths = {
        t.image_id: t for t in shards.read_annotations(sorted(map(str, (tmp_path / "records").glob("*.tfrecord"))))
    }
    labels = shards.parse_labels(str(tmp_path / "records" / "labels.txt"))
    rows = json.loads((output / "coco_results.json").read_text())
    assert len(truths) == len(results) == 5
    assert len(rows) == 4
    for result in results:
        stem = os.path.splitext(result["picture"])[0]
        truth = truths[stem]
        assert (truth.width, truth.height) == (result["width"], result["height"])
        expected = [list(found["box"].values()) for found in result["detections"]]
        np.testing.assert_allclose(truth.boxes, np.reshape(expected, (-1, 4)), atol=1.01)
        assert [labels[index] for index in truth.classes] == [found["label"] for found in result["detections"]]
        lines = (output / "labels" / f"{stem}.txt").read_text().splitlines()
        assert len(lines) == len(expected)
        for line, box in zip(lines, expected):
            _, x, y, width, height = map(float, line.split())
            edges = np.array([y - height / 2, x - width / 2, y + height / 2, x + width / 2])
            sides = (truth.height, truth.width) * 2
            np.testing.assert_allclose(edges * sides, box, atol=1e-3)
        for row in (row for row in rows if row["image_id"] == stem):
            ymin, xmin, ymax, xmax = expected[0]
            assert row["bbox"] == pytest.approx([xmin, ymin, xmax - xmin, ymax - ymin])
            assert row["category_id"] == painted.LABELS.index(result["detections"][0]["label"]) + 1
    assert (output / "labels.txt").read_text() == "red\nyellow\n"


def test_annotations_of_pictures_in_subfolders_are_paired_with_their_own(detector, tmp_path):
    """By their paths, by which the converter pairs them: both pictures are called a.png."""
    painting = {"a": painted.WIDE, "sub/a": painted.TALL}
    (tmp_path / "pictures" / "sub").mkdir(parents=True)
    for stem, item in painting.items():
        Image.fromarray(item.pixels).save(tmp_path / "pictures" / f"{stem}.png")
    paths = predict.find_pictures([str(tmp_path / "pictures")], recursive=True)
    output = tmp_path / "output"
    predict.predict(detector, paths, str(output), write=["voc", "coco", "yolo"])
    assert {row["image_id"] for row in json.loads((output / "coco_results.json").read_text())} == set(painting)
    assert (output / "labels" / "sub" / "a.txt").exists()
    settings = {"annotations_dir": str(output / "annotations"), "images_dir": str(tmp_path / "pictures")}
    with Workers(1) as pool:
        convert.convert(ConvertConfig(output_dir=str(tmp_path / "records"), split="all", **settings), pool)
    truths = list(shards.iterate_annotations(sorted(map(str, (tmp_path / "records").glob("*.tfrecord")))))
    assert {truth.image_id for truth in truths} == set(painting)
    for truth in truths:
        item = painting[truth.image_id]
        assert (truth.height, truth.width) == (item.height, item.width)
        np.testing.assert_allclose(truth.boxes, [item.box], atol=item.tolerance + 1)


def test_names_that_are_not_utf8_do_not_end_the_run(detector, tmp_path):
    folder = os.fsencode(tmp_path)
    for name in (b"caf\xe8", b"caf\xe9"):
        with open(folder + b"/" + name + b".png", "wb") as file:
            Image.fromarray(painted.WIDE.pixels).save(file, "PNG")
    output = tmp_path / "output"
    paths = predict.find_pictures([str(tmp_path)], recursive=False)
    predict.predict(detector, paths, str(output), write=predict.OUTPUTS)
    results = json.loads((output / "detections.json").read_text(encoding="utf-8"))
    assert [result["path"] for result in results] == [f"{tmp_path}/caf\ufffd.png"] * 2
    assert [result["picture"] for result in results] == ["caf\ufffd.png", "caf\ufffd-2.png"]
    for result in results:
        assert (output / result["picture"]).exists()
    assert "<filename>caf\ufffd.png<" in (output / "annotations" / "caf\ufffd-2.xml").read_text(encoding="utf-8")


def test_labels_are_never_overwritten(detector, tmp_path):
    """What the command itself wrote is, when it is called again."""
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "labels.txt").write_text("by hand")
    Image.fromarray(painted.WIDE.pixels).save(tmp_path / "images" / "a.png")
    paths = [str(tmp_path / "images" / "a.png")]
    for kind, name in (("voc", "annotations"), ("yolo", "labels.txt")):
        with pytest.raises(ValueError, match=f"{name} exists, and --write={kind} .*choose another --output_dir"):
            predict.predict(detector, paths, str(tmp_path), write=["pictures", kind])
    assert sorted(os.listdir(tmp_path)) == ["annotations", "images", "labels.txt"]
    for _ in range(2):
        predict.predict(detector, paths, str(tmp_path / "output"), write=["voc", "yolo"])


def test_a_remote_output_folder(detector, pictures, tmp_path):
    """`ram://` stands for gs://."""
    output = f"ram://{tmp_path.name}/output"
    results = predict.predict(detector, paths_in(pictures), output, write=predict.OUTPUTS)
    names = {"annotations", "labels", "labels.txt", "coco_results.json", "detections.json"}
    assert set(files.names(output)) == {*names, *(result["picture"] for result in results)}
    with Image.open(io.BytesIO(files.read(f"{output}/0.png"))) as drawn:
        assert drawn.size == (painted.WIDE.width, painted.WIDE.height)
    files.remove_tree(f"ram://{tmp_path.name}")


def test_a_threshold_for_each_class(detector, pictures, tmp_path):
    path = tmp_path / "test.json"
    path.write_text(json.dumps({"per_class": {"red": {"best_f1_score": 0.99}, "yellow": {"best_f1_score": None}}}))
    thresholds = predict.read_thresholds(str(path))
    assert thresholds == {"red": 0.99}
    results = predict.predict(
        detector, paths_in(pictures), str(tmp_path / "output"), class_thresholds=thresholds, score_threshold=0.5
    )
    assert {found["label"] for result in results for found in result["detections"]} == {"yellow"}
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"test\.json is no evaluation"):
        predict.read_thresholds(str(path))


def test_a_folder_stands_for_its_pictures(tmp_path):
    for name in ("a.JPG", "b.txt", "in/c.png", "in/d.gif"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    names = [os.path.relpath(path, tmp_path) for path in predict.find_pictures([str(tmp_path)], recursive=False)]
    assert names == ["a.JPG"]
    names = [os.path.relpath(path, tmp_path) for path in predict.find_pictures([str(tmp_path)], recursive=True)]
    assert names == ["a.JPG", "in/c.png", "in/d.gif"]
    assert predict.find_pictures([f"{tmp_path}/*.txt"], recursive=False) == [f"{tmp_path}/b.txt"]


def test_a_run_finds_what_its_export_does(export_dir, detector, pictures, tmp_path, monkeypatch):
    run = inference.TrainedRun(painted.CONFIG, painted.PaintFinder(), 1, "ckpt-1")
    monkeypatch.setattr(inference, "load_for_inference", lambda *_: run)
    from_export = predict.predict(detector, paths_in(pictures), str(tmp_path / "a"), write=[])
    assert predict.predict(predict.load_run("RUN"), paths_in(pictures), str(tmp_path / "b"), write=[]) == from_export


def test_a_large_picture_is_looked_at_in_tiles(detector, tmp_path):
    """The box lies across two tiles; as a whole, the picture would be shrunk twenty times."""
    painting = painted.Painting(1200, 2000, (300, 880, 380, 1010), 1)
    path = tmp_path / "large.png"
    Image.fromarray(painting.pixels).save(path)
    (result,) = predict.predict(detector, [str(path)], str(tmp_path / "output"), tile=500, overlap=0.4, batch_size=3)
    (found,) = result["detections"]
    assert list(found["box"].values()) == pytest.approx(painting.box, abs=500 / 64)


def test_an_unsure_detection_in_the_whole_picture_does_not_replace_a_sure_one_of_a_tile(tmp_path):
    """The object is cut in both tiles and whole in the picture, which scores it below the threshold."""
    path = tmp_path / "wide.png"
    Image.fromarray(np.zeros((100, 180, 3), np.uint8)).save(path)
    starts = iter([0, 80])

    def detect(images):
        edges = [(72, 128)] if images.shape[2] == 180 else [(max(70 - x, 0), min(130 - x, 100)) for x in starts]
        count, score = len(edges), 0.06 if images.shape[2] == 180 else 0.95
        return {
            "boxes": tf.constant([[[40.0, xmin, 60.0, xmax]] for xmin, xmax in edges]),
            "scores": tf.fill([count, 1], score),
            "classes": tf.zeros([count, 1], tf.int32),
            "num_detections": tf.ones([count], tf.int32),
        }

    detector = predict.Detector(["thing"], detect, detect)
    (result,) = predict.predict(detector, [str(path)], str(tmp_path / "output"), tile=100)
    assert [found["score"] for found in result["detections"]] == [pytest.approx(0.95)]


def test_files_of_one_name_do_not_overwrite_each_other(detector, tmp_path):
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("x.png", "film.gif"):
            paths.append(str(tmp_path / folder / name))
            Image.fromarray(painted.TINY.pixels).save(paths[-1])
    results = predict.predict(detector, paths, str(tmp_path / "output"))
    names = ["a/x.png", "a/film.gif.jpg", "b/x.png", "b/film.gif.jpg"]
    assert [result["picture"] for result in results] == names
    written = {str(path.relative_to(tmp_path / "output")) for path in (tmp_path / "output").rglob("*.*")}
    assert written == {*names, "detections.json"}
    (tmp_path / "a" / "x.jpg").write_bytes((tmp_path / "a" / "x.png").read_bytes())
    beside = [str(tmp_path / "a" / name) for name in ("x.jpg", "x.png")]
    results = predict.predict(detector, beside, str(tmp_path / "beside"))
    assert [result["picture"] for result in results] == ["x.jpg", "x-2.png"]


def test_brackets_in_the_name_of_a_file_are_no_pattern(pictures):
    path = pictures / "one [1].png"
    path.write_bytes(b"...")
    assert predict.find_pictures([str(path)], recursive=False) == [str(path)]


def test_thresholds_of_another_run_are_refused(detector, pictures, tmp_path):
    with pytest.raises(ValueError, match="--thresholds has a score for zebra, which this model does not know"):
        predict.predict(detector, paths_in(pictures), str(tmp_path / "output"), class_thresholds={"zebra": 0.5})
    assert not (tmp_path / "output").exists()


def test_input_pictures_are_never_overwritten(detector, pictures):
    before = [path.read_bytes() for path in sorted(pictures.iterdir())]
    with pytest.raises(ValueError, match="choose another --output_dir"):
        predict.predict(detector, paths_in(pictures), f"{pictures}/../{pictures.name}")
    for folder in ("one", "two"):
        (pictures / folder).mkdir()
        shutil.copy(pictures / "0.png", pictures / folder)
    with pytest.raises(ValueError, match="choose another --output_dir"):  # each picture would be written in its place
        predict.predict(detector, [f"{pictures}/{folder}/0.png" for folder in ("one", "two")], str(pictures))
    for folder in ("one", "two"):
        (pictures / folder / "0.png").unlink()
        (pictures / folder).rmdir()
    assert [path.read_bytes() for path in sorted(pictures.iterdir())] == before


def test_a_folder_without_an_export_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no export.*trainer\.export"):
        predict.load_export(str(tmp_path))


def test_a_damaged_export_and_another_programs_model_are_refused(tmp_path):
    other = tf.Module()
    other.double = tf.function(lambda x: 2 * x, input_signature=[tf.TensorSpec([])])
    tf.saved_model.save(other, str(tmp_path), signatures={"serving_default": other.double})
    with pytest.raises(ValueError, match=r"cannot be loaded .*serving_images.*: export the run again"):
        predict.load_export(str(tmp_path))
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"cannot be loaded .*: export the run again"):
        predict.load_export(str(tmp_path))


def test_the_command(export_dir, pictures, tmp_path):
    (pictures / "bad.png").write_text("hello")
    output = tmp_path / "output"
    command = [sys.executable, "-m", "trainer.predict", f"--export_dir={export_dir}", f"--images={pictures}/*.png"]
    done = subprocess.run([*command, f"--output_dir={output}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"5 of 6 pictures, with detections.json, in {output}"
    assert f"skipped {pictures}/bad.png" in done.stderr
    assert len(json.loads((output / "detections.json").read_text())) == 5
    assert not (output / "legend.txt").exists()  # the names are in English


def test_the_command_says_what_is_wrong(export_dir, tmp_path, monkeypatch):
    (tmp_path / "bad.jpg").write_text("hello")
    flags = SimpleNamespace(
        export_dir=export_dir,
        model_dir=None,
        checkpoint=None,
        images=["none*"],
        recursive=False,
        output_dir=str(tmp_path / "out"),
        score_threshold=0.3,
        thresholds=None,
        batch_size=2,
        tile=0,
        overlap=0.2,
        write=["pictures"],
    )
    monkeypatch.setattr(predict.absl_flags, "FLAGS", flags)
    with pytest.raises(FileNotFoundError, match=r"^--images=none\* matches no file"):
        predict.main()
    flags.images = [f"{tmp_path}/*.jpg"]
    with pytest.raises(ValueError, match=r"^none of the 1 files could be read"):
        predict.main()
    flags.export_dir = str(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no export"):
        predict.main()
    flags.model_dir = "RUN"
    with pytest.raises(ValueError, match="give either --export_dir or --model_dir"):
        predict.main()
    flags.model_dir, flags.checkpoint = None, "ckpt-1"
    with pytest.raises(ValueError, match="--checkpoint belongs to --model_dir"):
        predict.main()
    flags.checkpoint, flags.write = None, ["pictures", "xml"]
    with pytest.raises(ValueError, match="--write=xml: choose some of pictures, coco, voc, yolo"):
        predict.main()
