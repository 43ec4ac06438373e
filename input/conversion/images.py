"""An image file -> the JPEG that is stored."""

from __future__ import annotations

import io
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from input import files
from input.conversion import jpeg
from input.conversion.config import ReadOptions
from input.conversion.findings import Note, Refused
from input.conversion.frame import Size

_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
IMAGE_EXTENSIONS = tuple(_FORMATS)
_EXIF_ORIENTATION = 0x0112
Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is the limit, and is checked before anything is decoded


class StoredImage(NamedTuple):
    jpeg: bytes
    height: int
    width: int

    @property
    def size(self) -> Size:
        return self.height, self.width


def read_image(path: str, annotated_size: Size, options: ReadOptions, note: Note) -> StoredImage:
    """Reads an image file and gives the JPEG that is stored: the file's own bytes where possible.

    Args:
      annotated_size: (height, width) that the annotation gives. It tells whether the boxes are in the frame of the
        stored pixels or in the frame that the EXIF orientation gives.

    Raises:
      Refused: the file cannot be read or decoded, or the image is too large.
    """
    try:
        data = files.read_regular(path)
    except OSError as error:
        raise Refused(path, "unreadable", error.strerror or str(error)) from error
    if not data:
        raise Refused(path, "empty_image", "the file is empty")
    expected = _FORMATS.get(path[path.rfind(".") :].lower())
    shape = jpeg.plain_shape(data)
    # A truncated file lacks the end-of-image marker. Without that marker every byte is decoded in any case.
    if shape and options.verify == "header" and expected == "JPEG" and jpeg.END_OF_IMAGE in data[-64:]:
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
    image: Image.Image, data: bytes, plain: bool, expected: str | None, annotated_size: Size, note: Note
) -> StoredImage:
    """Decodes the image to its end, and encodes it anew only where it must be.

    Args:
      data: the bytes of the file that `image` was opened from.
      plain: it is a JPEG without Exif data.
      expected: the format that the file's extension names.
    """
    actual = "JPEG" if image.format == "MPO" else image.format  # MPO: several JPEGs in one file; the first counts
    if actual != expected:
        note("disguised_image", f"{actual} {image.mode}")
    height, width = image.height, image.width
    # Pillow applies the orientation of a TIFF itself.
    orientation = 1 if plain or actual == "TIFF" else image.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation in range(5, 9) and annotated_size == (width, height) != (height, width):
        note("exif_rotated", f"orientation {orientation}")
        return _encode(_to_rgb(ImageOps.exif_transpose(image)))
    if orientation in range(2, 9):
        note("exif_ignored", f"orientation {orientation}")
    if actual == "JPEG" and image.mode in ("L", "RGB"):
        # At an eighth of the size every coefficient is decoded, but few pixels are computed. Not decoded as grey: that
        # would hide impossible sampling of the colours.
        image.draft(None, (max(width // 8, 1), max(height // 8, 1)))
        image.load()
        jpeg.check_scan(data)
        if image.mode == "L":
            note("grayscale", "JPEG L")
        return StoredImage(data, height, width)
    if actual == expected:
        note("reencoded", f"{actual} {image.mode}")
    return _encode(_to_rgb(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB. Of 16 bits the upper 8 are kept, and alpha is left out, as TensorFlow's decoders do."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    return image.convert("RGB")


def _encode(image: Image.Image) -> StoredImage:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return StoredImage(out.getvalue(), image.height, image.width)
