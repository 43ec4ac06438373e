"""The page of an evaluation: strict XML, safe names, its pictures, and the corrected annotations."""

from __future__ import annotations

import base64
import dataclasses
import re

import numpy as np
import painted
import pytest
from lxml import etree

from input import tfrecord
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
