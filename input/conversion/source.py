"""What passes from the readers to the converter: the files of a record, and what an annotation says."""

from __future__ import annotations

import os
import re
import unicodedata
from typing import NamedTuple

from input.conversion.frame import Size
from input.manifest import Finding
from input.tfrecord import Box


class Source(NamedTuple):
    """The files of one record; a path is empty where there is no such file."""

    image_id: str
    annotation_path: str
    image_path: str
    document: bytes = b""  # the annotation itself, where one file holds those of many images

    @property
    def path(self) -> str:
        """What is named where the annotation is at fault."""
        return self.annotation_path or self.image_path or self.image_id

    @property
    def name(self) -> str:
        """The last part of `path`."""
        return name_key(os.path.basename(self.path))


class Input(NamedTuple):
    """The files of one record. A name is empty where there is no such file.

    There is one of these for every image of the data set; they share their folders' names, to save memory.
    """

    image_id: str
    annotation_dir: str  # with a separator at its end, as `image_dir`
    annotation_name: str
    image_dir: str
    image_name: str
    document: bytes = b""  # as in `Source`
    num_bytes: int = 0  # of the image
    fingerprint: str = ""  # of the sizes and modification times of the files: when it differs, they changed

    @property
    def source(self) -> Source:
        return Source(
            image_id=self.image_id,
            annotation_path=self.annotation_dir + self.annotation_name if self.annotation_name else "",
            image_path=self.image_dir + self.image_name if self.image_name else "",
            document=self.document,
        )


class Listing(NamedTuple):
    """What a split is made of."""

    inputs: list[Input]  # in order of their ids
    findings: list[Finding]  # about the lists themselves
    classes: tuple[str, ...] = ()  # in their order, "" for one without a name; empty where only annotations name them
    box_first: bool = False  # as in `ReadOptions`

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that have names in UTF-8, each once."""
        return tuple(dict.fromkeys(name for name in self.classes if name and "\ufffd" not in name))


class Object(NamedTuple):
    """One object of an annotation."""

    name: str
    box: Box  # as written, or edges in pixels from 0 inside the image
    difficult: int = 0
    truncated: int = 0
    pose: str = "Unspecified"
    ignored: bool = False  # a region that is neither an object nor background


class Labels(NamedTuple):
    """What an annotation says about its image."""

    size: Size  # that the boxes refer to; zeros where none is given
    objects: list[Object]  # with boxes as written
    zero_based: bool = True  # the boxes are edges counted from 0, not pixels counted from 1
    shares: bool = False  # the boxes are shares of the image's sides, not pixels; there is no size then


def name_key(name: str) -> str:
    """A file's name in the form in which names are compared and stored.

    macOS writes an accent as a character of its own, which is joined to its letter here. Bytes that are not UTF-8
    become U+FFFD.
    """
    if name.isascii():
        return name
    return unicodedata.normalize("NFC", name.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))


def clean_text(text: str) -> str:
    """A text with its white space normalised. What UTF-8 cannot hold becomes U+FFFD."""
    return clean_name(" ".join(text.split()))


def clean_name(text: str) -> str:
    """As `clean_text`, but of a file's name, inside of which white space counts."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text.strip())
