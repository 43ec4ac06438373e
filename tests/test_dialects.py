"""Pascal VOC as labelling tools write it, and what is made of it: see docs/TOOLS.md."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np
import pytest
from voc_tree import encoded, picture

from input import shards
from input.conversion import convert
from input.conversion.config import ConvertConfig
from input.conversion.workers import Workers

SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"
CORNERS = "<xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>25</ymax>"
FLAGS = "<pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult>"
BOX = (5.0, 10.0, 25.0, 30.0)  # of those corners, counted from 1
ZERO_BASED_BOX = (5.25, 10.5, 25.75, 30.5)
FLOATS = "<xmin>10.5</xmin><ymin>5.25</ymin><xmax>30.5</xmax><ymax>25.75</ymax>"


class Tool(NamedTuple):
    """An export with one image and one object; `{}` stands for the XML's path in `files`."""

    files: dict[str, str]  # by path; images have no content here
    split: str
    image_id: str
    box: tuple[float, ...]
    findings: set[str]
    settings: dict = {}  # noqa: RUF012


TOOLS = {
    # labelImg: XML wherever the user wants it, often beside the images; a path of the user's machine.
    "labelImg": Tool(
        {
            "a.jpg": "",
            "a.xml": (
                "<annotation>\n\t<folder>photos</folder>\n\t<filename>a.jpg</filename>\n"
                "\t<path>C:\\Users\\anna\\photos\\a.jpg</path>\n\t<source>\n\t\t<database>Unknown</database>\n\t</source>\n"
                f"\t{SIZE}\n\t<segmented>0</segmented>\n"
                f"\t<object>\n\t\t<name>cat</name>\n\t\t{FLAGS}\n\t\t<bndbox>{CORNERS}</bndbox>\n\t</object>\n</annotation>\n"
            ),
        },
        "all",
        "a",
        BOX,
        {"folder"},
    ),
    # labelme2voc.py: empty tags, floats from 0, and pictures of the annotations beside the images.
    "labelme": Tool(
        {
            "JPEGImages/a.jpg": "",
            "AnnotationsVisualization/a.jpg": "",
            "class_names.txt": "_background_\ncat",
            "Annotations/a.xml": (
                "<annotation><folder/><filename>a.jpg</filename><database/><annotation/><image/>"
                "<size><height>40</height><width>60</width><depth>3</depth></size><segmented/>"
                "<object><name>cat</name><pose/><truncated/><difficult/>"
                f"<bndbox>{FLOATS}</bndbox></object></annotation>"
            ),
        },
        "all",
        "a",
        ZERO_BASED_BOX,
        set(),
        {"zero_based": True},
    ),
    # CVAT, "PASCAL VOC 1.1": no pose, <occluded>, <attributes> with names of their own; subfolders in ids; no depth.
    "CVAT": Tool(
        {
            "JPEGImages/day 1/a.jpg": "",
            "ImageSets/Main/default.txt": "day 1/a\n",
            "labelmap.txt": "# label:color_rgb:parts:actions\ncat:128,0,0::\n",
            "Annotations/day 1/a.xml": (
                "<annotation><folder></folder><filename>day 1/a.jpg</filename><source><database>Unknown</database>"
                "<annotation>Unknown</annotation><image>Unknown</image></source>"
                "<size><width>60</width><height>40</height><depth></depth></size><segmented>0</segmented>"
                "<object><name>cat</name><truncated>0</truncated><occluded>1</occluded>"
                f"<difficult>0</difficult><bndbox>{FLOATS}</bndbox><attributes><attribute><name>rotation</name>"
                "<value>0.0</value></attribute></attributes></object></annotation>"
            ),
        },
        "default",
        "day 1/a",
        ZERO_BASED_BOX,
        {"fields_absent", "path_in_filename"},
        {"image_set": "default", "zero_based": True},
    ),
    # VoTT: image sets for each class, with flags; a path into the export; floats from 0.
    "VoTT": Tool(
        {
            "JPEGImages/a.jpg": "",
            "ImageSets/Main/cat_train.txt": "a.jpg 1",
            "pascal_label_map.pbtxt": "item {\n id: 1\n name: 'cat'\n}\n",
            "Annotations/a.xml": (
                '<annotation verified="yes"><folder>Annotation</folder><filename>a.jpg</filename>'
                "<path>set-PascalVOC-export/Annotations/a.jpg</path><source><database>Unknown</database></source>"
                f"{SIZE}<segmented>0</segmented><object><name>cat</name>{FLAGS}"
                f"<bndbox>{FLOATS}</bndbox></object></annotation>"
            ),
        },
        "cat_train",
        "a",
        ZERO_BASED_BOX,
        {"folder"},
        {"image_set": "cat_train", "zero_based": True},
    ),
    # Roboflow: folders of splits, XML beside the images, a hash in the names, corners in another order, a polygon.
    "Roboflow": Tool(
        {
            "README.roboflow.txt": "",
            "train/a_jpg.rf.0f3c.jpg": "",
            "train/a_jpg.rf.0f3c.xml": (
                "<annotation><folder></folder><filename>a_jpg.rf.0f3c.jpg</filename><path>a_jpg.rf.0f3c.jpg</path>"
                f"<source><database>roboflow.com</database></source>{SIZE}<segmented>0</segmented>"
                f"<object><name>cat</name>{FLAGS}<occluded>0</occluded>"
                "<bndbox><xmin>11</xmin><xmax>30</xmax><ymin>6</ymin><ymax>25</ymax></bndbox>"
                "<polygon><x1>1</x1><y1>1</y1><x2>60</x2><y2>1</y2><x3>60</x3><y3>40</y3></polygon>"
                "</object></annotation>"
            ),
        },
        "train",
        "a_jpg.rf.0f3c",
        BOX,
        set(),
    ),
    # Label Studio: integers from 0, `images` in lower case; older versions write the name without extension.
    "Label Studio": Tool(
        {
            "images/0a1b2c3d-a.jpg": "",
            "Annotations/0a1b2c3d-a.xml": (
                '<?xml version="1.0" encoding="utf-8"?>'
                "<annotation><folder>images</folder><filename>0a1b2c3d-a</filename>"
                "<source><database>MyDatabase</database><annotation>COCO2017</annotation><image>flickr</image>"
                "<flickrid>NULL</flickrid><annotator>1</annotator></source>"
                "<owner><flickrid>NULL</flickrid><name>Label Studio</name></owner>"
                f"{SIZE}<segmented>0</segmented><object><name>cat</name>{FLAGS}"
                f"<bndbox>{CORNERS}</bndbox></object></annotation>"
            ),
        },
        "all",
        "0a1b2c3d-a",
        (6.0, 11.0, 25.0, 30.0),
        {"extension"},
        {"zero_based": True},
    ),
    # Labelbox's exporter: images by their ids, floats from 0, polygons in place of boxes that are no rectangles.
    "Labelbox": Tool(
        {
            "images/ck1.jpeg": "",
            "annotations/ck1.xml": (
                "<annotation>\n  <folder>images</folder>\n  <filename>ck1.jpeg</filename>\n"
                "  <path>/home/anna/images/ck1.jpeg</path>\n  <source><database>Unknown</database></source>\n"
                f"  {SIZE}\n  <segmented>0</segmented>\n  <object><name>cat</name>{FLAGS}\n"
                "    <polygon>\n<x1>10.5</x1>\n<y1>25.75</y1>\n<x2>30.5</x2>\n<y2>10.0</y2>\n<x3>20.0</x3>\n"
                "<y3>5.25</y3>\n    </polygon>\n  </object>\n</annotation>"
            ),
        },
        "all",
        "ck1",
        ZERO_BASED_BOX,
        {"polygon"},
        {"zero_based": True},
    ),
    # roLabelImg: rotated boxes, angles in radians; sizes of 0 come from images that could not be opened.
    "roLabelImg": Tool(
        {
            "a.jpg": "",
            "a.xml": (
                '<annotation verified="no"><folder>x</folder><filename>a</filename><path>/home/x/a.jpg</path>'
                "<source><database>Unknown</database></source><size><width>0</width><height>0</height><depth>0</depth>"
                "</size><segmented>0</segmented><object><type>robndbox</type><name>cat</name>"
                "<pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><robndbox><cx>20.5</cx>"
                "<cy>15.5</cy><w>19</w><h>19</h><angle>0.0</angle></robndbox></object></annotation>"
            ),
        },
        "all",
        "a",
        BOX,
        {"extension", "folder", "rotated_box", "size"},
    ),
}


def write(root: pathlib.Path, tool: Tool) -> None:
    for name, content in tool.files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture()) if name.endswith((".jpg", ".jpeg")) else content.encode())


@pytest.mark.parametrize("name", TOOLS)
def test_an_export_is_read(tmp_path, name):
    tool = TOOLS[name]
    write(tmp_path / "export", tool)
    config = ConvertConfig(output_dir=str(tmp_path / "out"), voc_dirs=(str(tmp_path / "export"),), **tool.settings)
    (manifest,) = convert.convert(config, Workers(1))
    (record,) = shards.read_annotations(shards.expand_glob(f"{tmp_path}/out/*.tfrecord"))
    assert (manifest.split, manifest.labels, record.image_id) == (tool.split, ("cat",), tool.image_id)
    np.testing.assert_allclose(record.boxes, [tool.box], atol=1e-4)
    kinds = ("refused", "dropped", "repaired", "noted")
    assert {reason for kind in kinds for reason in manifest.findings(kind).counts} == tool.findings


def test_every_tool_is_documented():
    document = (pathlib.Path(__file__).parents[1] / "docs" / "TOOLS.md").read_text(encoding="utf-8")
    for name in TOOLS:
        assert f"| {name} |" in document


def test_a_folder_for_each_class_or_day(tmp_path):
    """Images of one name in two of them are two images."""
    for folder in ("monday", "tuesday"):
        for name, content in TOOLS["labelImg"].files.items():
            path = tmp_path / "export" / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            image = encoded(picture(seed=len(folder)))
            path.write_bytes(image if name.endswith(".jpg") else content.encode())
    (manifest,) = convert.convert(
        ConvertConfig(output_dir=str(tmp_path / "out"), voc_dirs=(str(tmp_path / "export"),)), Workers(1)
    )
    assert set(manifest.inputs) == {"monday/a", "tuesday/a"}
    assert manifest.noted.counts == {"folder": 2}


def test_old_copies_in_a_subfolder_are_left_out(tmp_path):
    """Their images are not in a subfolder of the same name."""
    tool = TOOLS["Label Studio"]
    write(tmp_path / "export", tool)
    (tmp_path / "export" / "Annotations" / "old").mkdir()
    for path in (tmp_path / "export" / "Annotations").glob("*.xml"):
        (path.parent / "old" / path.name).write_bytes(path.read_bytes())
    (manifest,) = convert.convert(
        ConvertConfig(output_dir=str(tmp_path / "out"), voc_dirs=(str(tmp_path / "export"),)), Workers(1)
    )
    assert (manifest.num_images, manifest.dropped.counts) == (1, {"in_subfolder": 1})
