"""A manifest names few findings of each reason; a file beside it names all."""

from __future__ import annotations

import json

import pytest
import voc_tree
from voc_tree import annotation_xml, object_xml

from input.conversion import convert, findings, report
from input.conversion.config import ConversionError, ConvertConfig
from input.conversion.workers import Workers
from input.manifest import Finding, Findings, read_manifest


def test_a_tally_counts_all_and_keeps_the_first(monkeypatch):
    monkeypatch.setattr(findings, "KEPT", 2)
    clipped = [Finding(image_id, f"{image_id}.xml", "clipped_box", detail) for image_id in "cba" for detail in "12"]
    tally = findings.Tally(clipped[:4])
    other = findings.Tally([*clipped[4:], Finding("", "train", "similar_classes", "")])
    tally.merge(other.counts, other.num_images, other.kept)
    tally.add([])
    assert tally.of_kind("repaired") == Findings({"clipped_box": 6}, tuple(clipped[4:]), {"clipped_box": 3})
    assert tally.of_kind("noted").num_images == {"similar_classes": 1}
    assert tally.of_kind("refused") == Findings({}, (), {})


def test_many_findings_go_to_a_file_beside_the_manifest(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "KEPT", 3)
    tree = voc_tree.VocTree(tmp_path / "voc")
    for index in range(12):
        clipped = object_xml(box=(-5, 6, 30, 25))
        tree.add(f"i{index:02d}", annotation_xml(clipped, clipped.replace("cat", "dog"), filename=f"i{index:02d}.jpg"))
    config = ConvertConfig(output_dir=str(tmp_path / "out"), voc_dirs=(str(tree.root),), overwrite=True)
    with Workers(1) as workers:
        (manifest,) = convert.convert(config, workers)
        text, _ = report.write_report(config.output_dir, manifest.split, (64, 64), workers)
    assert manifest == read_manifest(f"{tmp_path}/out/all.manifest.json")
    assert manifest.repaired.counts == {"clipped_box": 24}
    assert manifest.repaired.num_images == {"clipped_box": 12}
    assert [finding.image_id for finding in manifest.repaired.files] == ["i00", "i00", "i01"]
    path = tmp_path / "out" / "all.findings.jsonl"
    rows = [Finding(**json.loads(line)) for line in path.read_text().splitlines()]
    clipped_ids = sorted(row.image_id for row in rows if row.reason == "clipped_box")
    assert clipped_ids == sorted(f"i{index:02d}" for index in range(12) for _ in range(2))
    assert "12 of 12 images: a box reached out of the image" in text
    assert "and 16 more, which all.findings.jsonl names" in text
    # Once the files are right, the file of findings goes.
    for index in range(12):
        tree.add(f"i{index:02d}", annotation_xml(filename=f"i{index:02d}.jpg"))
    convert.convert(config, Workers(1))
    assert not path.exists()


def test_many_problems_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "KEPT", 3)
    tree = voc_tree.VocTree(tmp_path / "voc")
    for index in range(9):
        tree.add(f"i{index}", "no XML" if index else None)
    with pytest.raises(ConversionError, match=r"i3.xml: not_xml: (.|\n)*and 5 more such files in all"):
        convert.convert(ConvertConfig(output_dir=str(tmp_path / "out"), voc_dirs=(str(tree.root),)), Workers(1))
