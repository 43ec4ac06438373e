"""The page of an evaluation: strict XML, safe names, its pictures, and the corrected annotations."""

from __future__ import annotations

import base64
import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import painted
import pytest
from lxml import etree
from PIL import Image

from input import tfrecord
from input.conversion.config import ConvertConfig
from input.conversion.convert import convert
from input.conversion.workers import Workers
from trainer import evaluate, evaluation_page, inference, metrics
from trainer.matching import ImageDetections

LABELS = ("<script>alert(1)</script>", "cat & 'dog'")
ELSEWHERE = (0, 0, 8, 8)
SVG = "{http://www.w3.org/1999/xhtml}"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a run on painted pictures: one label is swapped, one is dropped and one is shifted.

    Those pictures have an ignored region elsewhere. In the last picture an unlabelled object is in such a region.
    """
    folder = tmp_path_factory.mktemp("page")
    paintings = list(painted.PAINTINGS)
    wide, tall, larger = painted.WIDE, painted.TALL, painted.LARGER
    write_shard(
        folder,
        [
            (wide, [wide.box], [0]),  # it is yellow, the second class
            (tall, [], []),
            (larger, [(100, 150, 200, 445 - 1)], [0]),
            *((painting, [painting.box] if painting.box else [], [painting.category]) for painting in paintings[2:]),
            (tall, [], []),
        ],
        regions={0: ELSEWHERE, 1: ELSEWHERE, 2: ELSEWHERE, len(paintings) + 1: (0, 0, tall.height, tall.width)},
    )
    config = dataclasses.replace(painted.CONFIG, labels=LABELS)
    with pytest.MonkeyPatch.context() as patch:
        run = inference.TrainedRun(config, painted.PaintFinder(), 1, f"{folder}/checkpoints/ckpt-1")
        patch.setattr(inference, "load_for_inference", lambda *_, **__: run)
        result = evaluate.evaluate_run(str(folder), [f"{folder}/test-*"], resamples=20)
    return folder, result, (folder / "eval" / "test.html").read_text(encoding="utf-8")


def write_shard(folder, rows, regions):
    path = painted.write_shard(folder / "test-00000-of-00001.tfrecord", [], labels=LABELS)
    with open(path, "wb") as file:
        for number, (painting, boxes, classes) in enumerate(rows):
            count = len(boxes)
            annotation = tfrecord.Annotation(
                image_id=f"a<b>&{number}",
                filename=f"a<b>&{number}.png",
                height=painting.height,
                width=painting.width,
                boxes=boxes,
                classes=classes[:count],
                class_names=[LABELS[category] for category in classes[:count]],
                difficult=[0] * count,
                truncated=[0] * count,
                poses=["Unspecified"] * count,
                regions=[tfrecord.Region(regions[number], "ignore", None)] if number in regions else [],
            )
            png = painted.tf.io.encode_png(painting.pixels).numpy()
            file.write(tfrecord.frame_record(tfrecord.encode_example(annotation, png)))


def test_the_page_is_strict_xml_without_foreign_files_or_scripts(page):
    _, _, text = page
    root = etree.fromstring(text.encode())
    tags = {element.tag for element in root.iter()}
    assert f"{SVG}script" not in tags
    assert "alert(1)" in text  # the class name is shown
    for element in root.iter():
        for name, value in element.attrib.items():
            if name in ("src", "href"):
                assert value.startswith("data:")
    headings = [element.text for element in root.iter(f"{SVG}h2")]
    assert headings[:4] == [
        "Average precision",
        "Precision and recall at an IoU of 0.5",
        "Score thresholds",
        "Confusions",
    ]
    assert headings[4] == "3 suspect labels"


def test_the_suspects_and_their_corrections(page):
    _, _, text = page
    root = etree.fromstring(text.encode())
    captions = ["".join(caption.itertext()) for caption in root.iter(f"{SVG}figcaption")]
    kinds = [re.search(r"(missing|wrong class|shifted|doubled)", caption) for caption in captions[:3]]
    assert {kind[1] for kind in kinds if kind} == {"missing", "wrong class", "shifted"}
    links = [link for link in root.iter(f"{SVG}a") if "corrected" in link.text]
    documents = {}
    for link in links:
        documents[link.get("download")] = etree.fromstring(base64.b64decode(link.get("href").split(",")[1]))
    assert set(documents) == {"a<b>&0.xml", "a<b>&1.xml", "a<b>&2.xml"}
    for number, painting in enumerate((painted.WIDE, painted.TALL, painted.LARGER)):
        document = documents[f"a<b>&{number}.xml"]
        assert document.findtext("filename") == f"a<b>&{number}.png"
        item, region = sorted(document.findall("object"), key=lambda found: found.findtext("name") == "ignore")
        assert [region.findtext(f"bndbox/{corner}") for corner in ("xmin", "xmax")] == ["1", "8"]
        assert item.findtext("name") == LABELS[painting.category]
        box = [int(item.findtext(f"bndbox/{corner}")) for corner in ("ymin", "xmin", "ymax", "xmax")]
        expected = np.add(painting.box, [1, 1, 0, 0])
        np.testing.assert_allclose(box, expected, atol=painting.tolerance + 1)


def test_the_best_threshold_of_each_class_is_in_the_json(page):
    _, result, text = page
    values = result["per_class"][LABELS[1]]
    assert 0 < values["best_f1"] <= 1
    assert 0.05 < values["best_f1_score"] <= 1
    assert f"<b>{values['best_f1']:.3f}</b>" in text


def test_a_page_without_detections_or_objects():
    for truths in (
        [],
        [evaluation_page.shards.GroundTruth("x", 8, 8, np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool))],
    ):
        detections = [ImageDetections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))] * len(truths)
        judgement = metrics.judge(truths, detections, LABELS)
        result = {**metrics.summarize(judgement), "checkpoint": "ckpt-1", "step": 1}
        evaluation = evaluation_page.Evaluation(result, judgement, truths, list(range(len(truths))), [], "test")
        text = "".join(evaluation_page.make_page(evaluation))
        assert "The model contradicts no label." in text
        etree.fromstring(text.encode())


@pytest.mark.parametrize("settings", [{}, {"zero_based": True}, {"store_max_side": 50}, {"tile": 64}], ids=str)
def test_a_corrected_annotation_is_converted_to_the_same_boxes(settings, tmp_path):
    """The model sees an object that is not annotated; the others keep their places."""
    folder = tmp_path / "data"
    folder.mkdir()
    corners = "<xmin>10</xmin><ymin>20</ymin><xmax>50</xmax><ymax>60</ymax>"
    xml = f"<annotation><object><name>cat</name><bndbox>{corners}</bndbox></object></annotation>"
    (folder / "a.xml").write_text(xml)
    Image.new("RGB", (100, 80)).save(folder / "a.png")

    def truths(output):
        with Workers(1) as workers:
            convert(ConvertConfig(voc_dirs=(str(folder),), output_dir=str(output), **settings), workers)
        paths = sorted(map(str, output.glob("*.tfrecord")))
        return paths, evaluation_page.shards.read_annotations(paths)

    paths, found = truths(tmp_path / "first")
    unlabelled = [float(edge) for edge in (2, found[0].width - 9, 12, found[0].width)]
    detections = [ImageDetections(np.float32([unlabelled]), np.float32([0.9]), np.int32([0]))]
    detections += [ImageDetections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int))] * (len(found) - 1)
    judgement = metrics.judge(found, detections, ["cat"])
    result = {**metrics.summarize(judgement), "checkpoint": "ckpt-1", "step": 1}
    evaluation = evaluation_page.Evaluation(result, judgement, found, list(range(len(found))), paths, "all")
    root = etree.fromstring("".join(evaluation_page.make_page(evaluation)).encode())
    links = [link.get("href") for link in root.iter(f"{SVG}a")]
    text = "".join(root.itertext())
    assert ("a tile, which has no XML" in text) == (links == []) == ("tile" in settings)
    assert ("corrected XML in the 50x40 pixels that are stored" in text) == ("store_max_side" in settings)
    if links:
        (folder / "a.xml").write_bytes(base64.b64decode(links[0].split(",")[1]))
        _, (corrected,) = truths(tmp_path / "second")
        np.testing.assert_allclose(corrected.boxes, [*found[0].boxes.tolist(), unlabelled], atol=0.51)


def test_of_many_classes_the_most_frequent_confusions_are_listed(monkeypatch):
    count = evaluation_page.MAX_CLASSES + 1
    matrix = np.zeros((count + 1, count + 1), int)
    np.fill_diagonal(matrix, 6)
    matrix[3, 7], matrix[0, 2], matrix[5, count], matrix[count, 5] = 4, 18, 20, 20
    monkeypatch.setattr(evaluation_page.diagnosis, "confusion_matrix", lambda *_: matrix)
    judgement = SimpleNamespace(labels=[f"<{index}>" for index in range(count)])
    text = "".join(evaluation_page._confusions(judgement, []))
    rows = ["|".join(row.itertext()) for row in etree.fromstring(f"<body>{text}</body>").iter("tr")]
    assert rows == ["object|found as|objects|of all of its class", "<0>|<2>|18|75.0%", "<3>|<7>|4|40.0%"]
