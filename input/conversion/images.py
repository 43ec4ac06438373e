"""An image file -> the JPEG that is stored, or that is cut into tiles."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from input import files
from input.conversion import jpeg, looks
from input.conversion.config import ReadOptions
from input.conversion.findings import Note, Refused
from input.conversion.frame import Frame, Size, is_turned
from input.conversion.source import Input
from input.conversion.workers import Advance

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_FORMATS = dict(zip(_EXTENSIONS, ("JPEG", "JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "TIFF")))
IMAGE_EXTENSIONS = (*_FORMATS, ".heic", ".heif", ".avif")
# Formats that are not read, by their brand in ISO/IEC 14496-12's `ftyp` box.
_OTHER_FORMATS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
}
_EXIF_ORIENTATION = 0x0112
_UNDO = {  # what undoes an orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is the limit, and is checked before anything is decoded


class StoredImage(NamedTuple):
    encoded: bytes  # a JPEG, or a BMP of an image that had to be decoded and is to be cut into tiles
    height: int
    width: int
    source_size: Size  # of the file's image, in the same frame; larger where the image was made smaller
    source_bytes: int  # of the file
    look: str = ""  # its hash by looks.py; empty where the image was not decoded
    swappable: bool = False  # its EXIF orientation swaps height and width, whether or not that was done

    @property
    def size(self) -> Size:
        return self.height, self.width


def read_image(path: str, frame: Frame, options: ReadOptions, note: Note) -> StoredImage:
    """Reads an image file and gives the JPEG that is stored: the file's own bytes, unless it must be encoded anew.

    Args:
      frame: what the annotation tells; it decides whether an EXIF orientation is applied.

    Raises:
      Refused: the file cannot be read or decoded, the image is too large, or it is unclear how it is to be turned.
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
        if not (_is_too_large((height, width), options) or is_cut((height, width), options)):
            if channels == 1:
                note("grayscale", "JPEG L")
            return StoredImage(data, height, width, (height, width), len(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters raises
            with Image.open(io.BytesIO(data), formats=tuple(_FORMATS.values())) as image:
                _check_pixels(path, image.height, image.width, options)
                _check_range(path, image)
                turn = _decide_turn(path, image, frame, options) if shape is None else _Turn(1, False)
                _check_16_bits(path, image, data)
                return _store(image, data, turn, expected, options, note)
    except Refused:
        raise
    except Image.UnidentifiedImageError as error:
        other = _OTHER_FORMATS.get(data[8:12]) if data[4:8] == b"ftyp" else None
        detail = f"it is {other}: convert it to JPEG" if other else f"it starts with {data[:8]!r}"
        raise Refused(path, "not_an_image", detail) from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise Refused(path, "damaged_image", f"{type(error).__name__}: {error}") from error


def looks_of(inputs: Sequence[Input], advance: Advance, max_pixels: int) -> dict[str, str]:
    """By image id, the hash by looks.py of every image file that can be decoded; a JPEG is decoded at an eighth."""
    found = {}
    for item in inputs:
        try:
            data = files.read_regular(item.source.image_path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(data), formats=tuple(_FORMATS.values())) as image:
                    if image.height * image.width <= max_pixels:
                        image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
                        found[item.image_id] = looks.look_of(image)
        except Exception:  # as in `read_image`; the conversion itself reports it
            continue
    advance(len(inputs))
    return found


def _check_pixels(path: str, height: int, width: int, options: ReadOptions) -> None:
    if height * width > options.max_pixels:
        detail = f"{width}x{height}, but --max_pixels is {options.max_pixels}: raise it"
        raise Refused(path, "too_many_pixels", detail)


def _check_range(path: str, image: Image.Image) -> None:
    """Refuses a TIFF of numbers that may be from 0 to 1 or to 255 as well as of the whole range of their type."""
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(BITSPERSAMPLE, (1,))[0]
        if image.mode in ("I", "F") or bits == 12:
            detail = f"TIFF {image.mode} of {bits} bits: convert it to unsigned 8 or 16 bits"
            raise Refused(path, "unknown_range", detail)


def _check_16_bits(path: str, image: Image.Image, data: bytes) -> None:
    """Refuses an image of 16 bits that holds numbers of 12 or fewer, as cameras write them: it would become black."""
    if isinstance(image, TiffImageFile):
        is_16_bit = 16 in image.tag_v2.get(BITSPERSAMPLE, (1,))
    else:
        is_16_bit = image.format == "PNG" and data[24] == 16  # in the header chunk, always the first
    if not is_16_bit:
        return
    if image.mode.startswith("I"):
        highest = int(np.asarray(image).max())
    else:  # in colour or with alpha; Pillow keeps the upper 8 bits, which do not tell black from small numbers
        highest = int(np.asarray(image.convert("RGB")).max()) * 256 + 255
    if 0 < highest < 4096:
        detail = f"16 bits, but no number above {highest}: scale them so that white is 65535, or convert it to 8 bits"
        raise Refused(path, "unknown_range", detail)


class _Turn(NamedTuple):
    """What to do about an EXIF orientation."""

    orientation: int  # 1 to 8; 1 turns nothing
    apply: bool

    @property
    def swaps(self) -> bool:
        """The orientation swaps height and width, whether or not it is applied."""
        return self.orientation >= 5


def _decide_turn(path: str, image: Image.Image, frame: Frame, options: ReadOptions) -> _Turn:
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation not in _UNDO:
        return _Turn(1, False)
    if options.exif != "auto":
        return _Turn(orientation, options.exif == "apply")
    stored = image.height, image.width
    if image.format == "TIFF" and orientation >= 5:  # of which Pillow gives the size after turning
        stored = stored[::-1]
    apply = is_turned(orientation, stored, frame)
    if apply is None:
        detail = f"orientation {orientation}: --exif=apply if the boxes fit the turned image, otherwise --exif=ignore"
        raise Refused(path, "exif_unclear", detail)
    return _Turn(orientation, apply)


def _store(
    image: Image.Image, data: bytes, turn: _Turn, expected: str | None, options: ReadOptions, note: Note
) -> StoredImage:
    """Decodes the image to its end, and encodes it anew only where it must be.

    Args:
      data: the bytes of the file that `image` was opened from.
      expected: the format that the file's extension names.
    """
    actual = "JPEG" if image.format == "MPO" else image.format  # MPO: several JPEGs in one file; the first counts
    if actual != expected:
        note("disguised_image", f"{actual} {image.mode}")
    if turn.orientation > 1:
        note("exif_rotated" if turn.apply else "exif_ignored", f"orientation {turn.orientation}")
    white_is_zero = isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
    size = image.height, image.width
    shrinks = _is_too_large(size, options)
    if shrinks:
        # A JPEG is decoded at a half, a quarter or an eighth where that leaves enough pixels for a good filter.
        image.draft(None, _fit(size, 1.5 * options.store_max_side)[::-1])
    if turn.apply:
        if actual != "TIFF":  # which Pillow turns itself
            image, size = ImageOps.exif_transpose(image), size[::-1] if turn.swaps else size
        return _encode(_to_rgb(image, white_is_zero), size, data, turn, options)
    if actual == "JPEG" and image.mode in ("L", "RGB"):
        if not shrinks:
            # At an eighth of the size every coefficient is decoded, but few pixels are computed. Not decoded as grey:
            # that would hide impossible sampling of the colours.
            image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
        image.load()
        jpeg.check_scan(data)
        if image.mode == "L":
            note("grayscale", "JPEG L")
        if shrinks:
            return _encode(image, size, data, turn, options)
        return StoredImage(data, *size, size, len(data), looks.look_of(image), turn.swaps)
    if actual == expected:
        note("reencoded", f"{actual} {image.mode}")
    if actual == "TIFF" and turn.orientation > 1:
        image.load()
        image, size = image.transpose(_UNDO[turn.orientation]), size[::-1] if turn.swaps else size
    return _encode(_to_rgb(image, white_is_zero), size, data, turn, options)


def _to_rgb(image: Image.Image, white_is_zero: bool) -> Image.Image:
    """8-bit RGB. Of 16 bits the upper 8 are kept, and alpha is left out, as TensorFlow's decoders do."""
    if image.mode.startswith("I"):
        levels = (np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8)
        image = Image.fromarray(255 - levels if white_is_zero else levels)  # of 8 bits Pillow does it
    return image.convert("RGB")


def _is_too_large(size: Size, options: ReadOptions) -> bool:
    return 0 < options.store_max_side < max(size)


def is_cut(size: Size, options: ReadOptions) -> bool:
    """Whether an image of this size, as stored, is cut into tiles."""
    return 0 < options.tile < max(size)


def _fit(size: Size, max_side: float) -> Size:
    """The size of an image whose longer side was made `max_side`; never a larger one."""
    scale = min(max_side / max(size), 1.0)
    height, width = size
    return max(round(height * scale), 1), max(round(width * scale), 1)


def _encode(image: Image.Image, source_size: Size, data: bytes, turn: _Turn, options: ReadOptions) -> StoredImage:
    """The image encoded, after it was made smaller where it is too large to be stored.

    Args:
      image: may have been decoded at a part of `source_size` already.
      data: the bytes of the file.
    """
    if _is_too_large(source_size, options):
        height, width = _fit(source_size, options.store_max_side)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    if is_cut((image.height, image.width), options):
        image.save(out, "BMP")  # which loses nothing; the tiles are encoded
    else:
        image.save(out, "JPEG", quality=options.jpeg_quality)
    look = looks.look_of(image)
    return StoredImage(out.getvalue(), image.height, image.width, source_size, len(data), look, turn.swaps)
