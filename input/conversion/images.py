"""An image file -> the JPEG that is stored."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from input.conversion.config import ReadOptions
from input.conversion.findings import Note, Refused, read_file

_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".bmp": "BMP", ".gif": "GIF", ".webp": "WEBP"}
_FORMATS |= {".tif": "TIFF", ".tiff": "TIFF"}
IMAGE_EXTENSIONS = tuple(_FORMATS)
_EXIF_ORIENTATION = 0x0112
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the markers of a JPEG's frame headers
Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is the limit, and is checked before anything is decoded


# The image.
class StoredImage(NamedTuple):
    jpeg: bytes
    height: int
    width: int


def _plain_jpeg_shape(data: bytes) -> tuple[int, int, int] | None:
    """(height, width, channels) of a JPEG that every decoder takes as it is: 8 bits, one or three components, no Exif.

    Anything else gives None, and Pillow has a closer look. See ITU-T T.81, annex B, for the markers.
    """
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xC0, 0xC1, 0xC2):  # start of a frame, baseline or progressive
            height, width = data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8]
            plain = height and width and data[at + 4] == 8 and data[at + 9] in (1, 3)
            return (height, width, data[at + 9]) if plain else None
        if marker == 0xE1 and data[at + 4 : at + 8] == b"Exif":
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _check_scan(data: bytes) -> None:
    """Looks at what Pillow left of a JPEG: it stops at the last pixel, where TensorFlow reads on to the image's end.

    An image of several scans (progressive, or a scan for each colour) is read to its end by Pillow as well.

    Raises:
      ValueError, IndexError: the end of the image does not follow the only scan. See ITU-T T.81, annex B.
    """
    at, num_components, progressive = 2, 0, False
    while (marker := data[at + 1]) != 0xDA:  # start of a scan
        if data[at] != 0xFF:
            raise ValueError("no marker where there should be one")
        if marker in _FRAMES:
            num_components, progressive = data[at + 9], marker & 3 == 2
        at += 1 if marker == 0xFF else 2 + (data[at + 2] << 8 | data[at + 3])  # 0xFF may be repeated
    several = progressive or data[at + 4] < num_components
    at += 2 + (data[at + 2] << 8 | data[at + 3])
    scan = np.frombuffer(data, np.uint8, offset=at)
    follow = scan[np.flatnonzero(scan[:-1] == 0xFF) + 1]
    markers = follow[(follow != 0) & (follow != 0xFF) & (follow & 0xF8 != 0xD0)]  # but for restarts within the scan
    if not several and (not len(markers) or markers[0] != 0xD9):
        raise ValueError("the image data is cut off or interrupted")


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; of 16 bits the upper 8 are kept, and alpha is left out, as TensorFlow's decoders do."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _encode(image: Image.Image) -> StoredImage:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return StoredImage(out.getvalue(), image.height, image.width)


def read_image(path: str, annotated_size: tuple[int, int], options: ReadOptions, note: Note) -> StoredImage:
    """An image file -> the JPEG that is stored: the file's own bytes where possible.

    Args:
      annotated_size: (height, width) that the annotation gives, which tells whose frame the boxes are in.

    Raises:
      Refused: it cannot be read, decoded, or is too large.
    """
    data = read_file(path)
    if not data:
        raise Refused(path, "empty_image", "the file is empty")
    expected = _FORMATS.get(path[path.rfind(".") :].lower())
    shape = _plain_jpeg_shape(data)
    # A truncated file lacks the end-of-image marker, so that without it every byte is decoded in any case.
    if shape and options.verify == "header" and expected == "JPEG" and b"\xff\xd9" in data[-64:]:
        height, width, channels = shape
        _check_pixels(path, height, width, options)
        if channels == 1:
            note("grayscale", "JPEG L")
        return StoredImage(data, height, width)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters raises
            with Image.open(io.BytesIO(data), formats=tuple(_FORMATS.values())) as image:
                _check_pixels(path, image.height, image.width, options)
                return _store(image, data, shape is not None, expected, annotated_size, note)
    except Refused:
        raise
    except Image.UnidentifiedImageError as error:
        raise Refused(path, "not_an_image", f"it starts with {data[:8]!r}") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise Refused(path, "damaged_image", f"{type(error).__name__}: {error}") from error


def _check_pixels(path: str, height: int, width: int, options: ReadOptions) -> None:
    if height * width > options.max_pixels:
        raise Refused(path, "too_many_pixels", f"{width}x{height}: raise --max_pixels={options.max_pixels}")


def _store(
    image: Image.Image, data: bytes, plain: bool, expected: str | None, annotated_size: tuple[int, int], note: Note
) -> StoredImage:
    """Decodes the image to its end, and encodes it anew only where it must be."""
    actual = "JPEG" if image.format == "MPO" else image.format  # MPO: several JPEGs in one file; the first counts
    if actual != expected:
        note("disguised_image", f"{actual} {image.mode}")
    height, width = image.height, image.width
    # Pillow turns a TIFF by itself.
    orientation = 1 if plain or actual == "TIFF" else image.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation in range(5, 9) and annotated_size == (width, height) != (height, width):
        note("exif_rotated", f"orientation {orientation}")
        return _encode(_to_rgb(ImageOps.exif_transpose(image)))
    if orientation in range(2, 9):
        note("exif_ignored", f"orientation {orientation}")
    if actual == "JPEG" and image.mode in ("L", "RGB"):
        # Decodes every coefficient, but computes few pixels. As grey, flaws in how colours are sampled would go unseen.
        image.draft(None, (max(width // 8, 1), max(height // 8, 1)))
        image.load()
        _check_scan(data)
        if image.mode == "L":
            note("grayscale", "JPEG L")
        return StoredImage(data, height, width)
    if actual == expected:
        note("reencoded", f"{actual} {image.mode}")
    return _encode(_to_rgb(image))
