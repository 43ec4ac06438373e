"""A Pascal VOC tree written as COCO and as YOLO, for the converter's tests; written from the formats' descriptions."""

from __future__ import annotations

import json
import pathlib
import shutil
import xml.etree.ElementTree
from typing import Any, NamedTuple


class Drawn(NamedTuple):
    """One annotation of the tree."""

    stem: str
    height: int
    width: int
    objects: list[tuple[str, tuple[float, ...], int]]  # name, xmin ymin xmax ymax as VOC counts, difficult


def read_tree(root: pathlib.Path) -> list[Drawn]:
    found = []
    for path in sorted((root / "Annotations").glob("*.xml")):
        tree = xml.etree.ElementTree.parse(path).getroot()
        height, width = (int(tree.findtext(f"size/{side}", "0")) for side in ("height", "width"))
        objects = [
            (
                item.findtext("name", ""),
                tuple(float(item.findtext(f"bndbox/{corner}", "")) for corner in ("xmin", "ymin", "xmax", "ymax")),
                int(item.findtext("difficult", "0")),
            )
            for item in tree.findall("object")
        ]
        found.append(Drawn(path.stem, height, width, objects))
    return found


def image_name(root: pathlib.Path, stem: str) -> str:
    (path,) = (root / "JPEGImages").glob(f"{stem}.*")
    return path.name


def class_names(drawn: list[Drawn]) -> list[str]:
    return sorted({name for item in drawn for name, _, _ in item.objects})


def coco_document(root: pathlib.Path) -> dict[str, Any]:
    """As COCO's own files: ids that do not start at 0, boxes of the left upper corner, width and height, from 0."""
    drawn = read_tree(root)
    names = class_names(drawn)
    annotations = [
        {
            "id": 0,
            "image_id": 100 + index,
            "category_id": 3 + 2 * names.index(name),
            "bbox": [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1],
            "area": (xmax - xmin + 1) * (ymax - ymin + 1),
            "segmentation": [[xmin - 1, ymin - 1, xmax, ymin - 1, xmax, ymax]],
            "iscrowd": 0,
            "ignore": difficult,
        }
        for index, item in enumerate(drawn)
        for name, (xmin, ymin, xmax, ymax), difficult in item.objects
    ]
    for number, annotation in enumerate(annotations):
        annotation["id"] = number + 1
    return {
        "info": {"description": "drawn"},
        "licenses": [],
        "images": [
            {
                "id": 100 + index,
                "file_name": image_name(root, item.stem),
                "height": item.height,
                "width": item.width,
            }
            for index, item in enumerate(drawn)
        ],
        "annotations": annotations,
        "categories": [
            {"id": 3 + 2 * index, "name": name, "supercategory": "thing"} for index, name in enumerate(names)
        ],
    }


def write_coco(root: pathlib.Path, path: pathlib.Path) -> None:
    path.write_text(json.dumps(coco_document(root)))


def write_yolo(root: pathlib.Path, folder: pathlib.Path) -> None:
    """As Ultralytics describes it: images/ and labels/, and no file for an image without objects."""
    drawn = read_tree(root)
    names = class_names(drawn)
    shutil.copytree(root / "JPEGImages", folder / "images")
    (folder / "labels").mkdir()
    (folder / "data.yaml").write_text(f"path: ../somewhere\nnames: {json.dumps(names)}\nnc: {len(names)}\n")
    for item in drawn:
        lines = []
        for name, (xmin, ymin, xmax, ymax), _ in item.objects:
            shares = (
                (xmin - 1 + xmax) / 2 / item.width,
                (ymin - 1 + ymax) / 2 / item.height,
                (xmax - xmin + 1) / item.width,
                (ymax - ymin + 1) / item.height,
            )
            lines.append(" ".join([str(names.index(name)), *(f"{share:.6f}" for share in shares)]))
        if lines:
            (folder / "labels" / f"{item.stem}.txt").write_text("\n".join(lines) + "\n")
