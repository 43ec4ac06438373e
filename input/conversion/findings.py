"""What may be wrong with the files of a data set, and what is done about each."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping

from input.manifest import Finding, Findings

# Each reason, with what it means and what is done. Refused files give no record. An object or file that was dropped is
# left out. The record of repaired files differs from what they say. A note is for information only. Reports keep the
# order of the reasons.
REFUSED = {
    "missing_annotation": "the image set lists it, but there is no such XML file",
    "empty_annotation": "the XML file is empty",
    "not_xml": "the XML cannot be parsed",
    "other_schema": "the XML is not a Pascal VOC annotation",
    "entities": "the XML defines entities, which are not allowed",
    "unknown_class": "a class is not in the label list",
    "not_utf8": "a class name or a file's name is not UTF-8",
    "duplicate_id": "another file has this name without its extension; image ids must be unique",
    "missing_image": "the image that an annotation or a list names is not there",
    "empty_image": "the image file is empty",
    "not_an_image": "the image is not a JPEG, PNG, BMP, GIF, WebP or TIFF",
    "damaged_image": "the image cannot be decoded to its end",
    "too_many_pixels": "the image exceeds --max_pixels",
    "unknown_range": "it is unknown which of the image's numbers are black and white",
    "unreadable": "the system cannot read the file",
    "all_objects_dropped": "none of its objects could be read: see --drop_invalid_objects",
    "exif_unclear": "the boxes may be in the frame that the EXIF orientation gives, or not: see --exif",
    "other_size": "the annotation gives a size of another shape than the image, so the boxes cannot belong to it",
}
DROPPED = {
    "bad_number": "a coordinate is not a finite number; the box was dropped",
    "missing_corner": "a coordinate is absent; the box was dropped",
    "missing_name": "an object has no class; it was dropped",
    "unknown_class_ignored": "an object's class is not in the label list; its box became an ignored region",
    "unknown_class_dropped": "an object's class is not in the label list; it was dropped, its place is background",
    "degenerate_box": "a box has max = min as written, to 1/100 pixel; it was dropped",
    "swapped_outside": "a box has max < min as written and reaches out of the image; it was dropped",
    "outside_box": "a box lies wholly outside the image; it was dropped",
    "duplicate_box": "an object repeats another's class and box; it was dropped",
    "no_such_image": "annotations belong to images that the file does not list; they were dropped",
    "same_stem": "a file has the name of another, but for the extension; it was left out",
    "in_subfolder": "an XML file is in a subfolder, and no image in one of the same name; it was left out",
}
REPAIRED = {
    "encoding": "bytes that are not UTF-8, outside of names, were replaced",
    "size": "the annotation gives no size, or one wrong by a pixel; that of the image was used",
    "scaled": "the image was resized after labelling; the boxes were scaled to it",
    "filename": "<filename> names another image; the image with the XML's name was used",
    "image_name": "no image has the XML's name; the one that <filename> names was used",
    "disguised_image": "the image is of another format than its extension says; it is stored as JPEG",
    "exif_rotated": "the boxes are in the frame that the EXIF orientation gives; the image was rotated as it says",
    "comma_number": "a coordinate has a decimal comma; it was read as a point",
    "swapped_box": "a box has max < min as written; its corners were put right",
    "clipped_box": "a box reached out of the image; it was clipped",
    "listed_twice": "the image set lists it more than once; it was converted once",
}
NOTED = {
    "extension": "the annotation names the image with no or another extension",
    "reencoded": "the image was encoded anew as 8-bit RGB JPEG",
    "tiled": "the image was cut into tiles, each a record",
    "grayscale": "the image has one channel; it was kept, and readers repeat the channel three times",
    "path_in_filename": "the annotation names a folder of the image; only the end of the path was used",
    "exif_ignored": "the EXIF orientation was not applied: the boxes are in the frame of the stored pixels",
    "exponent_number": "a coordinate is written with an exponent",
    "zero_coordinate": "a coordinate is 0, which 1-based data cannot have: see --zero_based",
    "fields_absent": "difficult, truncated or pose is absent; 0, 0 and Unspecified were used",
    "tag_case": "a tag is in another case, such as <Object>; it was read all the same",
    "polygon": "an object has a polygon, but no box; the upright box around it was used",
    "rotated_box": "an object has a rotated box; the upright box around it was used",
    "deleted_object": "an object is marked as <deleted>; it was left out",
    "parts": "an object has <part> boxes, which are not objects",
    "no_label_file": "an image has no text file, which in YOLO means no objects",
    "unlabelled_split": "a test split without text files was left out",
    "no_annotation": "an image has no XML file; it was left out",
    "similar_classes": "two classes differ only in case or spaces; both were kept",
    "unused_class": "--ignore_classes names a class that is not in the label list, and of which no region was found",
    "maybe_zero_based": "many coordinates are 0 and none is the image's width or height: see --zero_based",
    "same_image": "the image has the same bytes as another; both were kept",
    "same_image_elsewhere": "an image of another split has the same bytes; it was kept in both",
    "near_duplicate": "the image looks like another, perhaps encoded anew, resized or cropped a little; both were kept",
    "near_duplicate_elsewhere": "an image of another split looks like it; it was kept in both",
    "no_objects": "the image has no objects; it was kept as a negative",
    "dropped_empty": "the image has no objects; it was left out, as --drop_empty says",
    "folder": "<folder> names another folder; <folder> is never used",
}
# What is noted not of one image alone, and therefore named in the short report too.
DUPLICATES = {"same_image", "same_image_elsewhere", "near_duplicate", "near_duplicate_elsewhere"}
NAMED_NOTES = {"unlabelled_split", "no_annotation", "similar_classes", "unused_class", "maybe_zero_based", *DUPLICATES}
# The reasons for which an object is dropped that nobody asked to drop, and of which nothing is kept.
INVALID_OBJECTS = {
    *("bad_number", "missing_corner", "missing_name", "degenerate_box", "swapped_outside", "outside_box"),
}
KINDS = {"refused": REFUSED, "dropped": DROPPED, "repaired": REPAIRED, "noted": NOTED}

KEPT = 1000  # findings of each reason that a manifest names; where there are more, a file beside it names all

Note = Callable[[str, str], None]  # records a finding: takes its reason and its detail


class Refused(Exception):
    """The files give no record."""

    def __init__(self, path: str, reason: str, detail: str) -> None:
        super().__init__(path, reason, detail)
        self.path, self.reason, self.detail = path, reason, detail


class Tally:
    """Findings counted by reason, of each of which only the first few, in their order, are kept."""

    def __init__(self, findings: Iterable[Finding] = ()):
        self.counts: collections.Counter[str] = collections.Counter()
        self.num_images: collections.Counter[str] = collections.Counter()
        self._by_reason: dict[str, list[Finding]] = {}
        self.add(findings)

    @property
    def kept(self) -> list[Finding]:
        return [finding for members in self._by_reason.values() for finding in sorted(members)[:KEPT]]

    def add(self, findings: Iterable[Finding]) -> None:
        """Adds findings; all that an image has of a reason must come in one call."""
        found = list(findings)
        self.counts.update(finding.reason for finding in found)
        self.num_images.update(reason for reason, _ in {(finding.reason, finding.image_id) for finding in found})
        self._keep(found)

    def merge(self, counts: Mapping[str, int], num_images: Mapping[str, int], kept: Iterable[Finding]) -> None:
        """Adds what another tally of other images holds."""
        self.counts.update(counts)
        self.num_images.update(num_images)
        self._keep(kept)

    def _keep(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            members = self._by_reason.setdefault(finding.reason, [])
            members.append(finding)
            if len(members) > 2 * KEPT:
                members.sort()
                del members[KEPT:]

    def of_kind(self, kind: str) -> Findings:
        """What a manifest says of a kind."""
        reasons = [reason for reason in KINDS[kind] if self.counts[reason]]
        return Findings(
            counts={reason: self.counts[reason] for reason in reasons},
            files=tuple(sorted(finding for finding in self.kept if finding.reason in reasons)),
            num_images={reason: self.num_images[reason] for reason in reasons},
        )
