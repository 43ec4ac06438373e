"""Prediction on files: the listed detections are those drawn, and a bad file is skipped."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import painted
import pytest
from PIL import Image

from input.palette import class_colour
from trainer import drawing, export, predict


@pytest.fixture(scope="module")
def export_dir(tmp_path_factory):
    """An export of the stand-in network; its detections score 0.95."""
    folder = str(tmp_path_factory.mktemp("painted") / "export")
    export.export(painted.PaintFinder(), painted.CONFIG, folder)
    return folder


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


def test_detections_are_listed_in_pixels_of_each_file(export_dir, pictures, tmp_path):
    output = tmp_path / "output"
    results = predict.predict(export_dir, paths_in(pictures), str(output), batch_size=2)
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


def test_weak_detections_are_left_out(export_dir, pictures, tmp_path):
    results = predict.predict(export_dir, paths_in(pictures), str(tmp_path / "output"), score_threshold=0.96)
    assert [result["detections"] for result in results] == [[]] * len(painted.PAINTINGS)


def test_bad_files_are_named_and_skipped(export_dir, pictures, tmp_path, capsys):
    (pictures / "not_a_picture.jpg").write_text("hello")
    (pictures / "empty.jpg").touch()
    (pictures / "folder.jpg").mkdir()
    whole = (pictures / "3.png").read_bytes()
    (pictures / "cut_off.png").write_bytes(whole[: len(whole) // 2])
    results = predict.predict(export_dir, paths_in(pictures), str(tmp_path / "output"), batch_size=3)
    assert [os.path.basename(result["path"]) for result in results] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    skipped = capsys.readouterr().err.splitlines()
    reason = "not a whole JPEG, PNG, BMP or GIF picture"
    assert skipped == [
        f"skipped {pictures}/cut_off.png: {reason}",
        f"skipped {pictures}/empty.jpg: {reason}",
        f"skipped {pictures}/folder.jpg: Is a directory",
        f"skipped {pictures}/not_a_picture.jpg: {reason}",
    ]


def test_class_names_that_the_font_lacks_are_drawn_as_numbers(pictures, tmp_path, capsys):
    export_dir, output = str(tmp_path / "export"), tmp_path / "output"
    labels = ("red", "黄色")
    export.export(painted.PaintFinder(), dataclasses.replace(painted.CONFIG, labels=labels), export_dir)
    path = str(pictures / f"{painted.PAINTINGS.index(painted.WIDE)}.png")
    (result,) = predict.predict(export_dir, [path], str(output))
    assert (output / "legend.txt").read_text(encoding="utf-8") == "#2 黄色\n"
    assert f"see {output}/legend.txt" in capsys.readouterr().out
    (detection,) = result["detections"]
    assert detection["label"] == "黄色"

    def drawn(text: str) -> np.ndarray:
        """The picture with this class name; the names themselves are drawn where there are no numbers."""
        image = Image.fromarray(painted.WIDE.pixels)
        found = predict.Found(text, detection["score"], tuple(detection["box"].values()))
        predict.draw_detections(image, [found], {text: class_colour(1)}, {})
        return np.asarray(image)

    with Image.open(output / result["picture"]) as image:
        np.testing.assert_array_equal(np.asarray(image), drawn("#2"))
        assert (np.asarray(image) != drawn("黄色")).any()


@pytest.mark.parametrize("label", ["猫", "قط", "बिल्ली", "Кот", "café", "cat 猫"])
def test_which_class_names_are_drawn_as_numbers(label):
    assert drawing.number_labels(["cat", label, "traffic light_2 (b)"]) == {label: "#2"}


def test_pictures_are_drawn_as_stored_whatever_their_exif_orientation(export_dir, tmp_path):
    painting = painted.WIDE
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    path = tmp_path / "turned.jpg"
    Image.fromarray(painting.pixels).save(path, exif=exif, quality=95)
    (result,) = predict.predict(export_dir, [str(path)], str(tmp_path / "output"))
    assert (result["width"], result["height"]) == (painting.width, painting.height)
    box = list(result["detections"][0]["box"].values())
    assert box == pytest.approx(painting.box, abs=painting.tolerance + 2)
    with Image.open(tmp_path / "output" / "turned.jpg") as drawn:
        assert drawn.size == (painting.width, painting.height)
        assert 0x0112 not in drawn.getexif()


def test_files_of_one_name_do_not_overwrite_each_other(export_dir, tmp_path):
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name in ("x.png", "film.gif"):
            paths.append(str(tmp_path / folder / name))
            Image.fromarray(painted.TINY.pixels).save(paths[-1])
    results = predict.predict(export_dir, paths, str(tmp_path / "output"))
    names = ["x.png", "film.gif.jpg", "x-2.png", "film.gif-2.jpg"]
    assert [result["picture"] for result in results] == names
    assert sorted(os.listdir(tmp_path / "output")) == sorted([*names, "detections.json"])


def test_input_pictures_are_never_overwritten(export_dir, pictures):
    before = [path.read_bytes() for path in sorted(pictures.iterdir())]
    with pytest.raises(ValueError, match="choose another --output_dir"):
        predict.predict(export_dir, paths_in(pictures), f"{pictures}/../{pictures.name}")
    assert [path.read_bytes() for path in sorted(pictures.iterdir())] == before


def test_a_folder_without_an_export_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no export.*trainer\.export"):
        predict.predict(str(tmp_path), ["x.jpg"], str(tmp_path / "output"))


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
        export_dir=export_dir, images=["none*"], output_dir=str(tmp_path / "out"), score_threshold=0.3, batch_size=2
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
