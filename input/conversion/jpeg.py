"""What the markers of a JPEG tell without decoding it; see ITU-T T.81, annex B."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

_START_OF_IMAGE, END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
_START_OF_SCAN = 0xDA
_APP1 = 0xE1
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PLAIN_FRAME = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive, all with Huffman coding
_PROGRESSIVE_FRAME = {0xC2, 0xC6, 0xCA, 0xCE}
# Within a scan 0xFF is followed by 0 (together the data byte 0xFF), by a restart marker's code, or by another 0xFF.
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The marker, the start and the end of each segment's content, up to the header of the first scan.

    Raises:
      ValueError, struct.error: the segments do not follow each other.
    """
    at, marker = len(_START_OF_IMAGE), 0
    while marker != _START_OF_SCAN:
        prefix, marker = struct.unpack_from("BB", data, at)
        if prefix != 0xFF:
            raise ValueError("no marker where there should be one")
        if marker == 0xFF:  # it may be repeated
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield marker, at + 4, at + 2 + length
        at += 2 + length


def plain_shape(data: bytes) -> tuple[int, int, int] | None:
    """(height, width, channels) of a JPEG that every decoder takes as it is: 8 bits, one or three components, no Exif.

    The answer for any other file is None, and Pillow examines that file. Doing so for every file would make the
    conversion with --verify=header a tenth slower.
    """
    if not data.startswith(_START_OF_IMAGE):
        return None
    try:
        for marker, start, _ in _segments(data):
            if marker in _PLAIN_FRAME:
                bits, height, width, channels = struct.unpack_from(">BHHB", data, start)
                plain = height and width and bits == 8 and channels in (1, 3)
                return (height, width, channels) if plain else None
            if marker == _APP1 and data[start : start + 4] == b"Exif":
                return None
    except (ValueError, struct.error):
        pass
    return None


def check_scan(data: bytes) -> None:
    """Checks that the end of a JPEG follows its only scan.

    Pillow stops at the last pixel, but TensorFlow reads on to the end of the image and fails on what it finds there. If
    there are several scans (progressive, or one for each colour), Pillow reads to the end as well.

    Raises:
      ValueError, IndexError, struct.error: something else follows.
    """
    *headers, (_, scan_header, scan) = _segments(data)
    num_components, progressive = 0, False
    for marker, start, _ in headers:
        if marker in _START_OF_FRAME:
            num_components, progressive = data[start + 5], marker in _PROGRESSIVE_FRAME
    several_scans = progressive or data[scan_header] < num_components
    found = _END_OF_SCAN.search(data, scan)
    if not several_scans and not (found and found[0] == END_OF_IMAGE):
        raise ValueError("the image data is cut off or interrupted")
