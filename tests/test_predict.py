"""Prediction on files: what is listed is what is drawn, and one bad file spoils nothing."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import painted
import pytest
from PIL import Image

from trainer import export, predict


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


def test_the_pictures_are_never_overwritten(export_dir, pictures):
    before = [path.read_bytes() for path in sorted(pictures.iterdir())]
    with pytest.raises(ValueError, match="choose another --output_dir"):
        predict.predict(export_dir, paths_in(pictures), f"{pictures}/../{pictures.name}")
    assert [path.read_bytes() for path in sorted(pictures.iterdir())] == before


def test_a_folder_without_an_export_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no export.*trainer\.export"):
        predict.predict(str(tmp_path), ["x.jpg"], str(tmp_path / "output"))


def drawn(size, *detections):
    """Pixels u8 of a grey picture of (height, width) after drawing, and the colour of each label."""
    image = Image.new("RGB", size[::-1], (128, 128, 128))
    colours = predict.class_colours(["cat", "dog"])
    predict.draw_detections(image, detections, colours)
    return np.asarray(image), colours


def test_a_box_is_drawn_on_its_edges():
    box = (100, 40, 180, 250)
    pixels, colours = drawn((200, 300), predict.Found("dog", 0.5, box))
    ymin, xmin, ymax, xmax = box
    for inside in (
        pixels[ymin:ymax, xmin],
        pixels[ymin:ymax, xmax - 1],
        pixels[ymin, xmin:xmax],
        pixels[ymax - 1, xmin:xmax],
    ):
        assert (inside == colours["dog"]).all()
    for outside in (pixels[ymin:, xmin - 1], pixels[ymin:, xmax], pixels[ymax, :]):
        assert (outside == 128).all()
    assert (pixels[ymin + 20 : ymax - 20, xmin + 20 : xmax - 20] == 128).all()
    label = pixels[:ymin]  # above the box: filled, with letters on it
    assert (label == colours["dog"]).all(axis=-1).sum() > 100
    assert (label.max(axis=-1) < 64).any() or (label.min(axis=-1) > 192).any()


@pytest.mark.parametrize(
    "box", [(0, 0, 200, 300), (0, 290, 30, 300), (190, 280, 200, 300), (5, 5, 6, 6), (199.2, 299.1, 200, 300)]
)
def test_a_label_stays_in_the_picture(box):
    alone, colours = drawn((200, 300), predict.Found("cat", 0.98, (100, 50, 150, 90)))
    whole_label = (alone[:100] != 128).any(axis=-1)
    height, width = whole_label.any(axis=1).sum(), whole_label.any(axis=0).sum()
    pixels, _ = drawn((200, 300), predict.Found("cat", 0.98, box))
    ys, xs = np.nonzero((pixels == colours["cat"]).all(axis=-1))
    assert np.ptp(ys) + 1 >= height
    assert np.ptp(xs) + 1 >= width


def test_the_best_detection_lies_uppermost():
    box = (50, 50, 150, 150)
    pixels, colours = drawn((200, 300), predict.Found("cat", 0.9, box), predict.Found("dog", 0.4, box))
    assert (pixels[150 - 1, 50:150] == colours["cat"]).all()


def test_labels_grow_with_the_picture():
    heights = []
    for size in ((300, 400), (1500, 2000)):
        pixels, _ = drawn(size, predict.Found("cat", 0.9, (size[0] // 2, 10, size[0] - 10, 200)))
        heights.append((pixels[: size[0] // 2] != 128).any(axis=(1, 2)).sum())
    assert heights[1] > 3 * heights[0]


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)])
def test_the_smallest_pictures_can_be_drawn_on(size):
    pixels, _ = drawn(size, predict.Found("cat", 0.9, (0, 0, *size)))
    assert pixels.shape == (*size, 3)


def test_the_colours_of_many_classes_differ():
    labels = [f"{number}" for number in range(80)]
    colours = np.array(list(predict.class_colours(labels).values()), int)
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=-1) + 1000 * np.eye(len(labels), dtype=int)
    assert distances[:20, :20].min() >= 60
    assert distances.min() >= 10


def test_the_command(export_dir, pictures, tmp_path):
    (pictures / "bad.png").write_text("hello")
    output = tmp_path / "output"
    command = [sys.executable, "-m", "trainer.predict", f"--export_dir={export_dir}", f"--images={pictures}/*.png"]
    done = subprocess.run([*command, f"--output_dir={output}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"5 of 6 pictures, with detections.json, in {output}"
    assert f"skipped {pictures}/bad.png" in done.stderr
    assert len(json.loads((output / "detections.json").read_text())) == 5


def test_the_commands_errors_are_one_line(export_dir, tmp_path, monkeypatch):
    (tmp_path / "bad.jpg").write_text("hello")
    flags = SimpleNamespace(
        export_dir=export_dir, images=["none*"], output_dir=str(tmp_path / "out"), score_threshold=0.3, batch_size=2
    )
    monkeypatch.setattr(predict.absl_flags, "FLAGS", flags)
    with pytest.raises(SystemExit, match=r"^error: --images=none\* matches no file"):
        predict.main(["predict"])
    flags.images = [f"{tmp_path}/*.jpg"]
    with pytest.raises(SystemExit, match=r"^error: none of the 1 files could be read"):
        predict.main(["predict"])
    flags.export_dir = str(tmp_path)
    with pytest.raises(SystemExit, match=r"^error: .* holds no export"):
        predict.main(["predict"])
