"""The report: numbers against brute force and the pipeline, the page by a strict parser, boxes against painted ones."""

import base64
import io
import math
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import voc_tree
from absl import flags as absl_flags
from lxml import etree, html
from PIL import Image
from voc_tree import annotation_xml, encoded, object_xml

import flags
from input import anchors, tfrecord, windows
from input.config import AnchorConfig
from input.conversion import config as conversion_config
from input.conversion import convert, report, report_page, report_words, survey
from input.conversion.workers import Workers

ROOT = pathlib.Path(__file__).parents[1]
XHTML = {"x": "http://www.w3.org/1999/xhtml"}
NASTY = "<b>&\"'ünï 猫"


class Made:
    """A converted tree and its report."""

    def __init__(
        self, tree: voc_tree.VocTree, image_size=(64, 64), workers=1, name="out", class_pictures=0, **settings
    ):
        self.out = tree.root.parent / name
        config = conversion_config.ConvertConfig(voc_dirs=(str(tree.root),), output_dir=str(self.out), **settings)
        with Workers(workers) as pool:
            (self.manifest,) = convert.convert(config, pool)
            self.text, self.path = report.write_report(
                str(self.out), self.manifest.split, image_size, pool, class_pictures
            )
        with open(self.path, encoding="utf-8") as file:
            self.html = file.read()
        self.page = etree.fromstring(self.html.encode())

    def words(self, path: str) -> list[str]:
        return ["".join(element.itertext()) for element in self.page.iterfind(path, XHTML)]


@pytest.fixture
def tree(tmp_path) -> voc_tree.VocTree:
    return voc_tree.VocTree(tmp_path / "voc")


def painted(tree: voc_tree.VocTree, count: int, name: str = NASTY, height: int = 120, width: int = 160):
    """Adds images of one object each, a bright block on black; returns where each block is: x, y, width, height."""
    blocks = {}
    for index in range(count):
        stem, y, x = f"img{index:03d}", 7 * index % (height - 50), 11 * index % (width - 60)
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y : y + 40, x : x + 50] = (250, 40 + 20 * index % 200, 30)
        flags = f"<pose>Left</pose><truncated>0</truncated><difficult>{index % 2}</difficult>"
        escaped = name.replace("&", "&amp;").replace("<", "&lt;")
        xml = annotation_xml(
            object_xml(escaped, (x + 1, y + 1, x + 50, y + 40), flags), filename=stem + ".jpg", size=(height, width)
        )
        tree.add(stem, xml, encoded(Image.fromarray(pixels), quality=95))
        blocks[stem] = (x, y, 50, 40)
    return blocks


def some_survey(sizes, boxes_of_each, classes=None) -> survey.Survey:
    counts = np.array([len(boxes) for boxes in boxes_of_each], np.int32)
    total = counts.sum()
    return survey.Survey(
        image_ids=np.array([f"image-{index}" for index in range(len(sizes))]),
        sizes=np.array(sizes, np.int32),
        num_boxes=counts,
        boxes=np.concatenate(boxes_of_each).astype(np.float32),
        classes=np.zeros(total, np.int32) if classes is None else np.array(classes, np.int32),
        difficult=np.zeros(total, np.bool_),
        num_regions=np.zeros(len(sizes), np.int32),
        regions=np.zeros((0, 4), np.float32),
        shard_lengths=np.array([len(sizes)], np.int32),
    )


def random_boxes(rng, count, sides, image_size, ratios=(1.0, 1.0)) -> np.ndarray:
    """Boxes inside the image, log-uniform in side and in aspect ratio."""
    side, ratio = (np.exp(rng.uniform(*np.log(bounds), count)) for bounds in (sides, ratios))
    extent = np.minimum(np.stack([side / np.sqrt(ratio), side * np.sqrt(ratio)], 1), image_size)
    corner = rng.uniform(size=(count, 2)) * (np.array(image_size) - extent)
    return np.concatenate([corner, corner + extent], 1).astype(np.float32)


# Numbers.


@pytest.mark.parametrize("image_size", [(512, 512), (256, 320), (96, 64)])
def test_boxes_are_letterboxed_as_the_pipeline_does(image_size):
    rng = np.random.default_rng(0)
    sizes = [(480, 640), (1, 3000), (7, 5), (333, 500), *rng.integers(1, 2000, (40, 2)).tolist()]
    boxes = [rng.uniform(size=(index % 3, 4)) * [*size, *size] for index, size in enumerate(sizes)]
    expected = []
    for size, rows in zip(sizes, boxes):
        scale = windows.transform_of(windows.fit_window(windows.whole_image(tf.constant(size)), image_size)).numpy()
        assert scale[2:].tolist() == [0, 0]
        expected.append(rows.astype(np.float32) * np.tile(scale[:2], 2))
    np.testing.assert_allclose(
        survey.input_boxes(some_survey(sizes, boxes), image_size), np.concatenate(expected), rtol=1e-6
    )


def test_fit_equals_brute_force_over_all_anchors():
    rng, image_size = np.random.default_rng(1), (96, 128)
    boxes = random_boxes(rng, 400, (4, 120), image_size, (0.2, 5))
    classes = rng.integers(0, 3, 400) * 2  # classes 1 and 3 have no box
    config = AnchorConfig(sizes=(8.0, 24.0, 48.0, 90.0, 200.0), aspect_ratios=(0.4, 1.0, 3.0))
    every = anchors.make_anchors(config, image_size).astype(np.float64)
    low, high = np.maximum(boxes[:, None, :2], every[:, :2]), np.minimum(boxes[:, None, 2:], every[:, 2:])
    shared = np.maximum(high - low, 0).prod(-1)
    area, anchor_area = ((b[:, 2:] - b[:, :2]).astype(np.float64).prod(-1) for b in (boxes, every))
    matched = (shared / (area[:, None] + anchor_area - shared)).max(1) >= 0.5
    fit = survey.measure_fit(boxes, classes, 5, config, image_size)
    assert 0.2 < matched.mean() < 0.9
    np.testing.assert_array_equal(fit.matched, matched)
    np.testing.assert_allclose(
        fit.per_class, [matched[classes == index].mean() if index % 2 == 0 else np.nan for index in range(5)]
    )
    assert fit.worst == np.nanargmin(fit.per_class)


def test_fit_by_hand():
    """Squares on one location of P3, whose smallest anchor has a side of 32: (20 / 32) ** 2 < 0.5 < (24 / 32) ** 2."""
    boxes = np.array([(50, 50, 70, 70), (48, 48, 72, 72)], np.float32)
    fit = survey.measure_fit(boxes, np.array([0, 1]), 2, AnchorConfig(), (128, 128))
    assert fit.matched.tolist() == [False, True]
    assert fit.worst == 0


def test_many_boxes_are_matched_in_parts_as_at_once():
    boxes = random_boxes(np.random.default_rng(2), 20_000, (8, 60), (64, 64))
    parts = survey.measure_fit(boxes, np.zeros(20_000, int), 1, AnchorConfig(), (64, 64)).matched
    np.testing.assert_array_equal(parts, anchors.best_iou_per_box(boxes, AnchorConfig(), (64, 64)) >= 0.5)


@pytest.mark.parametrize(
    ("values", "weights", "k", "centres"),
    [
        ([10, 0, 10, 0, 0], [1, 1, 1, 1, 1], 2, [0, 10]),
        ([0, 1, 10], [3, 1, 1], 2, [0.25, 10]),
        ([5, 5, 5], [1, 1, 1], 3, [5, 5, 5]),
        ([0, 1, 8, 9, 20], [1, 1, 1, 1, 1], 3, [0.5, 8.5, 20]),
    ],
)
def test_k_means_by_hand(values, weights, k, centres):
    np.testing.assert_allclose(survey.k_means(np.array(values, float), np.array(weights, float), k), centres)


def suggestion(boxes, classes, image_size):
    """The suggested anchors, and the shares of each class that the default anchors and these match."""
    num_classes = int(classes.max()) + 1
    suggested = survey.suggest_anchors(boxes, classes, num_classes, image_size)
    configs = AnchorConfig(), suggested or AnchorConfig()
    return suggested, *(survey.measure_fit(boxes, classes, num_classes, c, image_size).per_class for c in configs)


def test_small_objects_get_small_anchors():
    rng, image_size = np.random.default_rng(3), (256, 320)
    boxes = np.concatenate([random_boxes(rng, 900, (40, 120), image_size), random_boxes(rng, 60, (14, 24), image_size)])
    suggested, before, after = suggestion(boxes, np.repeat([0, 1], [900, 60]), image_size)
    assert suggested.sizes[0] in (12, 16)
    assert np.allclose(np.divide(suggested.sizes[1:], suggested.sizes[:-1]), 2)
    assert suggested.aspect_ratios == AnchorConfig().aspect_ratios
    assert suggested.scales == AnchorConfig().scales
    assert before[1] < 0.3
    assert after.min() > 0.9


def test_long_objects_get_long_anchors():
    boxes = random_boxes(np.random.default_rng(4), 500, (50, 70), (256, 512), (6, 10))
    suggested, before, after = suggestion(boxes, np.zeros(500, int), (256, 512))
    assert before[0] < 0.1
    assert after[0] > 0.9
    assert all(5 < ratio < 11 for ratio in suggested.aspect_ratios)


def test_no_suggestion_without_gain():
    rng = np.random.default_rng(5)
    fitting = random_boxes(rng, 300, (30, 200), (256, 256))
    assert survey.suggest_anchors(fitting, np.zeros(300, int), 1, (256, 256)) is None
    few_small = np.concatenate([fitting, random_boxes(rng, 8, (15, 16), (256, 256))])  # 2.6% of them
    assert survey.suggest_anchors(few_small, np.zeros(308, int), 1, (256, 256)) is None
    dots = random_boxes(rng, 300, (1, 1.5), (256, 256))
    assert survey.suggest_anchors(dots, np.zeros(300, int), 1, (256, 256)) is None


def test_a_rare_class_counts_as_much_as_a_common_one():
    """A class of 20 boxes beside one of 50,000."""
    rng, image_size = np.random.default_rng(6), (256, 256)
    boxes = np.concatenate(
        [random_boxes(rng, 50_000, (35, 200), image_size), random_boxes(rng, 20, (13, 18), image_size)]
    )
    suggested, before, after = suggestion(boxes, np.repeat([0, 1], [50_000, 20]), image_size)
    assert suggested.sizes[0] < 32
    assert before[1] == 0
    assert after[1] > 0.6


# The terminal.


def test_text(tree):
    painted(tree, 6, name="cat")
    tree.add("negative", annotation_xml("", filename="negative.jpg"))
    tree.add(
        "twice",
        annotation_xml(object_xml("cat"), object_xml("cat"), object_xml("dog", (5, 5, 5, 9)), filename="twice.jpg"),
    )
    tree.add("bad", "<annotation")
    made = Made(tree, on_error="skip", image_size=(120, 160), labels_file=label_file(tree, "cat", "dog"))
    lines = made.text.splitlines()
    assert lines[0] == "all: 8 images (1 without objects), 7 boxes, 8 shards"
    assert lines[1].split() == ["class", "images", "boxes", "median", "side", "at", "120x160", "matched"]
    assert lines[2].split() == ["cat", "7", "7", "█" * 24, "44.7", "100.0%"]  # sqrt(40 * 50)
    assert lines[3].split() == ["dog", "0", "0", "-", "-"]
    assert "  0.9 boxes an image, 1 at most; 42.8% difficult, 14.2% truncated" in lines
    assert (
        "At 120x160 the default anchors match 100.0% of the boxes, of the worst class cat 100.0% (IoU >= 0.5)." in lines
    )
    assert re.search(r"^  refused +not_xml +1 +the XML cannot be parsed$", made.text, re.M)
    assert re.search(r"^  (repaired|dropped) +duplicate_box +1 +an object repeats", made.text, re.M)
    assert re.search(r"^  noted +no_objects +1 ", made.text, re.M)
    assert "    bad.xml: not_xml: " in made.text
    assert len(lines) <= 40


def test_text_suggests_anchors_where_the_default_ones_fit_poorly(tree):
    """Boxes of 50x40 in images of 160x120, at 64x64: a side of 18 px, and no anchor is below 32."""
    painted(tree, 20, name="cat")
    made = Made(tree, image_size=(64, 64))
    lines = made.text.splitlines()
    at = lines.index("At 64x64 the default anchors match 0.0% of the boxes, of the worst class cat 0.0% (IoU >= 0.5).")
    assert lines[at + 1] == "These would match 100.0% of the boxes, of the worst class cat 100.0%:"
    assert lines[at + 2] == "--anchor_sizes=16,32,64,128,256 --anchor_scales=1,1.25992,1.5874 --aspect_ratios=0.5,1,2"
    assert made.words(".//x:code") == [lines[at + 2], lines[-1]]
    tiny = Made(tree, image_size=(4, 4), name="tiny").text
    assert "Half of the boxes that even the default anchors do not match have a side below 1.1 px; try a larger" in tiny


def test_anchors_are_suggested_when_a_class_that_fits_well_gains_three_points(tree):
    """Ten squares of 44 px and one of 20 px, in images of the size at which the anchors are judged."""
    for index, side in enumerate([44] * 10 + [20]):
        xml = annotation_xml(
            object_xml("cat", (41, 41, 40 + side, 40 + side)), filename=f"{index}.jpg", size=(128, 128)
        )
        tree.add(str(index), xml, encoded(voc_tree.picture(128, 128, seed=index)))
    lines = Made(tree, image_size=(128, 128)).text.splitlines()
    at = lines.index(
        "At 128x128 the default anchors match 90.9% of the boxes, of the worst class cat 90.9% (IoU >= 0.5)."
    )
    assert lines[at + 1] == "These would match 100.0% of the boxes, of the worst class cat 100.0%:"
    assert lines[at + 2].startswith("--anchor_sizes=24,48,96,192,384 ")


def label_file(tree: voc_tree.VocTree, *labels: str) -> str:
    path = tree.root.parent / "labels.txt"
    path.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    return str(path)


def test_text_stays_short_and_aligned(tree):
    labels = ["猫", "è" * 40, "class\x1b[31m", *(f"class {index}" for index in range(30))]
    for index in range(20):
        tree.add(f"bad{index:02d}", "<annotation")
    boxes = [object_xml("猫", (1 + i, 1, 20 + i, 30)) for i in range(9)] + [object_xml("è" * 40)]
    tree.add("good", annotation_xml(*boxes, filename="good.jpg"))
    made = Made(tree, on_error="skip", labels_file=label_file(tree, *labels))
    lines = made.text.splitlines()
    assert lines[0] == "all: 20 of 21 images: the XML cannot be parsed (not_xml)."
    assert lines[-1].startswith("python -m trainer.task ")
    assert len(lines[1:-2]) <= 40
    assert "\x1b" not in made.text
    assert "  and 13 more classes with 0 boxes" in lines
    assert "    and 12 more, which the manifest names" in lines
    rows = lines[2:7]
    assert rows[1].split()[0] == "猫"
    assert rows[2].split()[0] == "è" * 29 + "…"
    images = rows[0].index("images") + len("images")
    assert rows[1][: images - 1].endswith("1")  # one character less, since 猫 is two columns wide
    assert rows[2][:images].endswith("1")


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100.0%"), (0.99999, "99.9%"), (0.29, "29.0%"), (0.0, "0.0%"), (float("nan"), "-")]
)
def test_percentages_are_rounded_down(share, text):
    assert report_words.percent(share) == text


# The page.


def test_page_is_whole_and_needs_nothing_else(tree):
    painted(tree, 9)
    made = Made(tree)
    assert made.html.startswith("<!DOCTYPE html>\n")
    parsed = html.fromstring(made.html)
    assert len(parsed.xpath("//figure")) == len(made.page.findall(".//x:figure", XHTML)) == 9
    links = made.page.xpath("//@href | //@src")
    assert len(links) == 9
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert not re.search(r"<script|<link|@import|url\(|\son\w+=", made.html)
    assert len(made.page.xpath("//x:h2", namespaces=XHTML)) == 5
    plots = made.page.xpath("//x:div[@class='plots']/x:svg", namespaces=XHTML)
    assert len(plots) == 2
    for plot in plots:
        counts = [
            int(title.text.split()[-2 if "not" not in title.text else -3])
            for title in plot.iterfind(".//x:title", XHTML)
        ]
        assert sum(counts) == 9


def test_names_are_shown_as_they_are(tree):
    painted(tree, 3)
    tree.add("a&b <i>", annotation_xml(object_xml("dog"), filename="a&amp;b &lt;i>.jpg"))
    made = Made(tree)
    assert NASTY in made.words(".//x:td")
    assert f"{NASTY} 1" in made.words(".//x:figcaption")[0] + made.words(".//x:figcaption")[1]
    assert any(words.startswith("a&b <i> 60 x 40") for words in made.words(".//x:figcaption"))
    assert made.page.find(".//x:i", XHTML) is None
    assert report_words.clean("a\x00\x1b\n\ud800\ufffe") == "a" + "\ufffd" * 5


def test_boxes_lie_on_what_is_stored(tree):
    """Each picture has its own id and a rectangle round its own block; pictures are reduced."""
    blocks = painted(tree, 12, height=900, width=1300)
    made = Made(tree, num_shards=5)
    figures = made.page.findall(".//x:figure", XHTML)
    assert len(figures) == 12
    for figure in figures:
        stem = figure.find(".//x:b", XHTML).text
        pixels = np.asarray(
            Image.open(io.BytesIO(base64.b64decode(figure.find(".//x:image", XHTML).get("href").partition(",")[2])))
        )
        assert pixels.shape == (277, 400, 3)
        rect = figure.find(".//x:rect", XHTML)
        drawn = np.array([float(rect.get(name)) for name in ("x", "y", "width", "height")])
        np.testing.assert_allclose(drawn, np.array(blocks[stem]) * 400 / 1300, atol=0.15)
        ys, xs = np.nonzero(pixels[..., 0] > 125)
        found = np.array([xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1])
        np.testing.assert_allclose(drawn, found, atol=1)
        assert rect.get("class") == ("difficult" if int(stem[3:]) % 2 else "plain")


def test_ignored_regions_are_counted_and_shown(tree):
    blocks = painted(tree, 2, "cat")
    region = object_xml("ignore", (1, 101, 160, 120))
    path = tree.annotations / "img001.xml"
    path.write_text(path.read_text().replace("</annotation>", f"{region}</annotation>"))
    made = Made(tree)
    assert f"{len(blocks)} boxes, 1 ignored regions, 2 shards" in made.text
    assert "1 ignored regions" in made.html
    (drawn,) = (rect for rect in made.page.iterfind(".//x:rect", XHTML) if rect.get("class") == "ignored")
    place = [float(drawn.get(name)) for name in ("x", "y", "width", "height")]
    assert place == [0, 100, 160, 20]


def test_what_storing_smaller_saves_or_would_save(tree):
    painted(tree, 3, "cat", 2000, 3000)
    ((side, share),) = re.findall(r"--store_max_side=(\d+), .* would leave (.*)% of the pixels", Made(tree).text)
    assert int(side) == 2 * survey.SIDES[-1]  # the objects are small
    assert float(share) == math.floor(1000 * (2048 / 3000) ** 2) / 10
    made = Made(tree, name="smaller", store_max_side=600)
    files = sum(path.stat().st_size for path in tree.images.iterdir()) / 2**20
    stored = sum(shard.num_bytes for shard in made.manifest.shards) / 2**20
    sentence = (
        f"3 images were made smaller: {files:.1f} MiB of files became {stored:.1f} MiB of records, with 4.0% of the"
    )
    assert sentence in made.text
    assert sentence in made.html
    assert "--store_max_side" not in made.text


def test_repaired_images_are_shown_with_what_was_done(tree, monkeypatch):
    painted(tree, 4, name="cat")
    for stem in ("bent", "cut", "torn"):
        tree.add(stem, annotation_xml(object_xml("cat", (5, 5, 99, 9)), filename=stem + ".jpg"))
    tree.add("bad", "<annotation")
    monkeypatch.setattr(report_page, "MAX_REPAIRED", 2)
    monkeypatch.setattr(report_page, "NUM_SAMPLES", 3)
    made = Made(tree, on_error="skip")
    assert made.words(".//x:h2")[-3:] == [
        "3 random images",
        "3 images with repairs or dropped objects, the first 2 of them",
        "Training",
    ]
    captions = made.words(".//x:figcaption")
    assert len(captions) == 5
    assert captions[3].endswith("bent.xml: clipped_box: xmin 5 ymin 5 xmax 99 ymax 9 in 60x40")
    assert captions[4].startswith("cut ")
    assert "bad.xml: not_xml" in made.words(".//x:li")[0]
    rows = made.page.xpath("//x:tr[x:td[1]='repaired' or x:td[1]='refused']/x:td[3]", namespaces=XHTML)
    assert [row.text for row in rows] == ["1", "3"]


def test_other_workers_and_other_runs_give_the_same_page(tree):
    painted(tree, 30)
    first, again, parallel = Made(tree), Made(tree), Made(tree, workers=2, name="other")
    assert first.html == again.html == parallel.html.replace(str(parallel.out), str(first.out))
    assert first.text == again.text == parallel.text.replace(str(parallel.out), str(first.out))
    assert sorted(set(os.listdir(first.out)) - {shard.name for shard in first.manifest.shards}) == [
        "all.manifest.json",
        "all.report.html",
        "label_map.pbtxt",
        "labels.txt",
    ]


def test_random_images_depend_on_the_seed(tree):
    painted(tree, 40)
    ids = [[b.text for b in Made(tree, seed=seed, name=f"out{seed}").page.iterfind(".//x:b", XHTML)] for seed in (0, 1)]
    samples = [[name for name in names if name.startswith("img")] for names in ids]
    assert all(len(names) == len(set(names)) == report_page.NUM_SAMPLES for names in samples)
    assert samples[0] != samples[1]


def test_pictures_of_each_class_on_demand(tree, monkeypatch):
    """A class in five images and one in one, three pictures of each."""
    monkeypatch.setattr(report_page, "NUM_SAMPLES", 0)
    for index in range(5):
        objects = [object_xml("cat"), object_xml("cat", (31, 6, 50, 25)), *([object_xml("dog")] if index == 3 else [])]
        tree.add(str(index), annotation_xml(*objects, filename=f"{index}.jpg"))
    made = Made(tree, class_pictures=3)
    assert made.words(".//x:h2")[-4:-1] == ["0 random images", "cat: 3 random images", "dog: 1 random images"]
    captions = made.words(".//x:figcaption")
    assert len({caption.split()[0] for caption in captions[:3]}) == 3
    assert all("cat 2" in caption for caption in captions)
    assert len(captions) == 4
    assert captions[3].startswith("3 ")
    assert "dog 1" in captions[3]


def test_no_boxes_at_all(tree):
    for stem in ("a", "b"):
        tree.add(stem, annotation_xml("", filename=stem + ".jpg"))
    made = Made(tree, labels_file=label_file(tree, "cat"))
    assert made.text.splitlines()[1:3] == [
        "all: 2 images (2 without objects), 0 boxes, 2 shards",
        "No boxes, so nothing for anchors to match.",
    ]
    assert all("no objects" in words for words in made.words(".//x:figcaption"))
    assert made.page.find(".//x:div[@class='plots']", XHTML) is None


def test_what_many_images_share_stands_first(tree):
    """Of twelve images two reach out of the image, one is no XML, and all but that one name another folder."""
    for index in range(11):
        box = (5, 5, 99 if index < 2 else 50, 30)
        tree.add(str(index), annotation_xml(object_xml("cat", box), filename=f"{index}.jpg", folder="elsewhere"))
    tree.add("bad", "<annotation")
    made = Made(tree, on_error="skip")
    flaw = "2 of 12 images: a box reached out of the image; it was clipped (clipped_box)."
    assert made.text.splitlines()[0] == f"all: {flaw}"
    assert made.text.splitlines()[1].startswith("all: 11 images ")
    assert made.page.find("x:body", XHTML)[1].text == flaw
    found = [
        line.split()[:3] for line in made.text.splitlines() if line.startswith(("  refused", "  repaired", "  no"))
    ]
    assert found == [["refused", "not_xml", "1"], ["repaired", "clipped_box", "2"], ["noted", "folder", "11"]]


def test_images_with_more_boxes_than_training_keeps(tree):
    counts = (100, 101, 123)
    for count in counts:
        boxes = [object_xml("cat", (1 + i % 12, 1 + i // 12, 40, 30)) for i in range(count)]
        tree.add(str(count), annotation_xml(*boxes, filename=f"{count}.jpg"))
    made = Made(tree)
    sentence = "2 images hold more than 100 boxes, of which the smallest are not learnt; --max_boxes=123 keeps all."
    assert sentence in made.text.splitlines()
    assert sentence in made.words(".//x:p")
    assert " --max_boxes=123 " in made.text.splitlines()[-1]


@pytest.fixture
def parse():
    """The config that a command for trainer.task gives, and the flags themselves."""

    def config(command: str):
        python, module, name, *arguments = shlex.split(command)
        assert (python, module, name) == ("python", "-m", "trainer.task")
        absl_flags.FLAGS.unparse_flags()
        absl_flags.FLAGS([name, *arguments])
        return flags.config_from_flags(), absl_flags.FLAGS

    yield config
    for flag in absl_flags.FLAGS.flags_by_module_dict()["flags"]:
        flag.unparse()


def test_the_report_ends_with_a_command_that_trains_on_this_data(tree, parse):
    """The objects have a side of 21 px where the images are 320 px wide: the default anchors are too large."""
    for index in range(150):
        xml = annotation_xml(object_xml("cat", (41, 41, 80, 80)), filename=f"{index}.jpg", size=(400, 600))
        tree.add(str(index), xml, encoded(voc_tree.picture(400, 600, seed=index)))
    made = Made(tree, split="train", name="out put")
    sentence, command = made.text.splitlines()[-2:]
    assert sentence == "To train on this data (docs/RECIPES.md explains the numbers):"
    assert made.words(".//x:p")[-2:] == [sentence, command]
    config, given = parse(command)
    assert given.train_records == [f"{made.out}/train-*.tfrecord"]
    assert (given.val_records, given.model_dir) == ([], "RUN")
    assert config.input.image_size == (224, 320)
    assert config.input.anchor.sizes == (24.0, 48.0, 96.0, 192.0, 384.0)
    assert (config.input.batch_size, config.train.train_steps) == (8, 600)
    assert (config.train.optimizer.optimizer, config.train.optimizer.learning_rate) == ("adamw", 0.001)


def test_a_split_to_hold_out_goes_with_the_training(tree, parse):
    painted(tree, 12)
    for split in ("test", "train", "val", "trainval"):
        tree.image_set(split, *(f"img{index:03d}" for index in range(12)))
    texts = {split: Made(tree, image_set=split).text.splitlines() for split in ("test", "train", "val", "trainval")}
    out = tree.root.parent / "out"
    for split in ("test", "val"):
        assert texts[split][-2:] == [
            "This flag evaluates a run on this split while it trains:",
            f"--val_records='{out}/{split}-*.tfrecord'",
        ]
    for split in ("train", "trainval"):
        assert parse(texts[split][-1])[1].val_records == [f"{out}/test-*.tfrecord"]
    assert parse(Made(tree, image_set="train").text.splitlines()[-1])[1].val_records == [f"{out}/val-*.tfrecord"]


@pytest.mark.parametrize(
    ("sizes", "side", "chosen"),
    [
        ([(480, 640)], 40, (256, 320)),
        ([(480, 640)], 24, (384, 512)),
        ([(480, 640)], 4, (768, 1024)),
        ([(640, 480)], 40, (320, 256)),
        ([(480, 640), (640, 480)], 40, (320, 320)),
        ([(100, 4000)], 90, (32, 800)),
    ],
)
def test_the_size_of_the_input_follows_the_images_and_the_smallest_objects(sizes, side, chosen):
    boxes = [np.array([(0, 0, side, side)] * 9 + [(0, 0, 90, 90)] * 11)] * len(sizes)
    data = some_survey(sizes, boxes, ([0] * 9 + [1] * 11) * len(sizes))
    assert survey.choose_image_size(data, 3) == chosen


def test_an_image_that_cannot_be_decoded_is_named_so(tree):
    """With --verify=header such an image is stored."""
    whole = encoded(voc_tree.picture(400, 600))
    tree.add(
        "torn",
        annotation_xml(filename="torn.jpg", size=(400, 600)),
        image=whole[: whole.index(b"\xff\xc4")] + b"\xff\xd9",
    )
    made = Made(tree, verify="header")
    assert made.words(".//x:figure//x:text") == ["cannot be decoded"]


def test_damaged_shard_is_named(tree):
    painted(tree, 3)
    made = Made(tree)
    shard = made.out / made.manifest.shards[1].name
    shard.write_bytes(shard.read_bytes()[:-9])
    with Workers(1) as workers, pytest.raises(tfrecord.DamagedShardError, match=shard.name):
        report.write_report(str(made.out), made.manifest.split, (64, 64), workers)


def test_command_reports_each_split(tree):
    painted(tree, 12, name="猫")
    out = tree.root.parent / "out"
    command = [sys.executable, "prepare_tfrecords.py", f"--voc_dir={tree.root}", f"--output_dir={out}"]
    command += ["--val_fraction=0.25", "--num_workers=1"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}

    def run(*arguments):
        return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)

    done = run("--report_image_size=50x64")
    assert done.returncode == 0, done.stderr
    for split, count in (("train", 9), ("val", 3)):
        assert f"{split}: {count} images (0 without objects), {count} boxes" in done.stdout
        assert f"Pictures and plots: {out}/{split}.report.html\n" in done.stdout
        assert "猫" in (out / f"{split}.report.html").read_text(encoding="utf-8")
    assert done.stdout.count("At 64x64 the default anchors match") == 2
    assert {name for name in os.listdir(out) if not name.endswith(".tfrecord")} == {
        "label_map.pbtxt",
        "labels.txt",
        *(f"{split}.{kind}" for split in ("train", "val") for kind in ("manifest.json", "report.html")),
    }
    refused = run("--report_image_size=huge")
    assert refused.returncode == 1
    assert "--report_image_size=huge: write N or HxW" in refused.stderr
