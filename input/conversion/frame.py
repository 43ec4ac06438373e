"""The frame of an annotation's boxes: the size of the image that was labelled. All sizes are (height, width)."""

from __future__ import annotations

from input.conversion.findings import Note, Refused

Size = tuple[int, int]
_UNKNOWN = (0, 0)


def parse_size(height: str, width: str) -> Size:
    """What <size> says; zeros where it does not give both sides as numbers above 0."""
    try:
        size = int(float(height)), int(float(width))
    except (ValueError, OverflowError):
        return _UNKNOWN
    return size if min(size) > 0 else _UNKNOWN


def labelled_size(annotated: Size, actual: Size, path: str, note: Note) -> Size:
    """The size that the boxes refer to, in pixels; they are scaled where it is not the image's.

    Args:
      annotated: what <size> says.
      actual: the size of the stored image.
      path: of the annotation.

    Raises:
      Refused: <size> is that of another image.
    """
    if annotated == actual:
        return actual
    if annotated == _UNKNOWN:
        note("size", f"<size> gives none, the image is {_describe(actual)}")
        return actual
    sizes = f"{_describe(annotated)}, but the image is {_describe(actual)}"
    if max(abs(said - is_) for said, is_ in zip(annotated, actual)) <= 1:
        note("size", sizes)
        return actual
    if not agree(annotated, actual):
        raise Refused(path, "other_size", f"{sizes}: replace the image, or correct or remove <size>")
    note("scaled", sizes)
    return annotated


def agree(one: Size, other: Size) -> bool:
    """Whether one size is the other times a factor, where either may be rounded to whole pixels.

    Of a side that was rounded up or down, up to a pixel is lost. Written without divisions, the products of height and
    width then differ by no more than the longest side.
    """
    (height, width), (other_height, other_width) = one, other
    return abs(height * other_width - width * other_height) <= max(*one, *other)


def _describe(size: Size) -> str:
    height, width = size
    return f"{width}x{height}"
