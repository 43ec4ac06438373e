"""One image and its annotation -> what a record holds. The same policies for every format; every flaw is named.

There is no TensorFlow here, so that worker processes start in a fraction of a second.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from input.conversion import coco, images, voc, yolo
from input.conversion.config import ReadOptions
from input.conversion.findings import INVALID_OBJECTS, Refused
from input.conversion.frame import Frame, Size, labelled_size
from input.conversion.objects import place_objects, scale_objects
from input.conversion.source import Object, Source, name_key
from input.manifest import Finding
from input.tfrecord import Annotation, Region

_READERS = {"voc": voc.read, "coco": coco.read, "yolo": yolo.read}


class Example(NamedTuple):
    """What is written for one source."""

    annotation: Annotation
    encoded: bytes  # the image; a JPEG, unless it is to be cut into tiles
    findings: list[Finding]
    source_size: Size  # of the image before it was made smaller, if it was
    source_bytes: int  # of the image's file
    look: str  # the image's hash by looks.py; may be empty


def read_example(source: Source, options: ReadOptions) -> Example:
    """Reads and checks the files of one record.

    Raises:
      Refused: the files give no record.
    """
    name = source.name
    if "\ufffd" in source.image_id:
        raise Refused(source.path, "not_utf8", "the file's name is not UTF-8: rename it")
    image_name = name_key(os.path.basename(source.image_path))
    findings: list[Finding] = []

    def note(reason: str, detail: str) -> None:
        findings.append(Finding(source.image_id, name, reason, detail))

    def note_image(reason: str, detail: str) -> None:
        findings.append(Finding(source.image_id, image_name, reason, detail))

    labels = _READERS[options.format](source, options, note)
    ends = [max(column) for column in zip(*(item.box for item in labels.objects))]  # of ymin, xmin, ymax, xmax
    frame = Frame(size=labels.size, extent=(max(ends[::2]), max(ends[1::2])) if ends else None)
    image = images.read_image(source.image_path, frame, options, note_image)
    if labels.shares:
        size, written = image.source_size, scale_objects(labels.objects, image.source_size)
    else:
        size, written = labelled_size(frame.size, image.source_size, image.swappable, source.path, note), labels.objects
    written_objects, written_regions = ([item for item in written if item.ignored is kind] for kind in (False, True))
    objects = place_objects(written_objects, size, image.size, labels.zero_based, note)
    invalid = [finding for finding in findings if finding.reason in INVALID_OBJECTS]
    regions = place_objects(written_regions, size, image.size, labels.zero_based, note)
    if invalid and not objects and not options.drop_invalid_objects:
        flaws = "; ".join(f"{finding.reason}: {finding.detail}" for finding in invalid[:3])
        more = f"; and {len(invalid) - 3} more" if len(invalid) > 3 else ""
        raise Refused(source.path, "all_objects_dropped", f"{flaws}{more}")
    annotation = Annotation(
        image_id=source.image_id,
        filename=image_name,
        height=image.height,
        width=image.width,
        boxes=[item.box for item in objects],
        classes=[options.classes[item.name] for item in objects],
        class_names=[item.name for item in objects],
        difficult=[item.difficult for item in objects],
        truncated=[item.truncated for item in objects],
        poses=[item.pose for item in objects],
        regions=[_make_region(item, options) for item in regions],
    )
    return Example(annotation, image.encoded, findings, image.source_size, image.source_bytes, image.look)


def _make_region(item: Object, options: ReadOptions) -> Region:
    """A crowd, as COCO has it, is of its class; what was asked to be ignored is of none."""
    asked = item.name in options.ignore_classes
    return Region(item.box, item.name, None if asked else options.classes.get(item.name))
