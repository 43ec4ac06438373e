"""The frame of an annotation's boxes: how the image that was labelled was turned, and its size.

All sizes are (height, width).
"""

from __future__ import annotations

from typing import NamedTuple

from input.conversion.findings import Note, Refused

Size = tuple[int, int]
_UNKNOWN = (0, 0)


class Frame(NamedTuple):
    """What an annotation tells about its image."""

    size: Size  # what <size> says; zeros where it says nothing
    extent: tuple[float, float] | None  # the largest ymax and xmax as written; None without objects

    def fits(self, size: Size) -> bool:
        """Whether the boxes lie inside an image of this size, or at most a pixel outside."""
        return self.extent is None or all(end <= side + 1 for end, side in zip(self.extent, size))


def is_turned(orientation: int, stored: Size, frame: Frame) -> bool | None:
    """Whether the boxes are in the frame that an EXIF orientation gives; None where that cannot be known.

    Labelling tools differ in whether they apply the orientation. From 5 on it swaps height and width, so that <size>
    or, where that is absent, the boxes themselves can tell. From 2 to 4 nothing can.

    Args:
      orientation: 1 to 8; 1 turns nothing.
      stored: the size of the image without the orientation.
    """
    if orientation < 5:
        return False if orientation == 1 or frame.extent is None else None
    sizes = {False: stored, True: stored[::-1]}
    if frame.size == _UNKNOWN:
        answers = [answer for answer, size in sizes.items() if frame.fits(size)]
    else:
        exact = [answer for answer, size in sizes.items() if frame.size == size]
        answers = exact if len(exact) == 1 else [answer for answer, size in sizes.items() if agree(frame.size, size)]
        if not answers:
            return False  # <size> is that of another image, which is refused for that reason
        if not frame.fits(frame.size) and frame.fits(frame.size[::-1]):
            return None  # the boxes contradict <size>
    if len(answers) == 1:
        return answers[0]
    return False if frame.extent is None else None


def parse_size(height: str, width: str) -> Size:
    """What <size> says; zeros where it does not give both sides as numbers above 0."""
    try:
        size = int(float(height)), int(float(width))
    except (ValueError, OverflowError):
        return _UNKNOWN
    return size if min(size) > 0 else _UNKNOWN


def labelled_size(annotated: Size, actual: Size, swappable: bool, path: str, note: Note) -> Size:
    """The size that the boxes refer to, in pixels; they are scaled where it is not the image's.

    Args:
      annotated: what <size> says.
      actual: the size of the stored image.
      swappable: an EXIF orientation swaps height and width, so that <size> may have them either way.
      path: of the annotation.

    Raises:
      Refused: <size> is that of another image.
    """
    if swappable and not agree(annotated, actual):
        annotated = annotated[::-1]
    if annotated == actual:
        return actual
    if annotated == _UNKNOWN:
        note("size", f"none is given, the image is {_describe(actual)}")
        return actual
    sizes = f"{_describe(annotated)}, but the image is {_describe(actual)}"
    if max(abs(said - is_) for said, is_ in zip(annotated, actual)) <= 1:
        note("size", sizes)
        return actual
    if not agree(annotated, actual):
        raise Refused(path, "other_size", f"{sizes}: replace the image, or correct or remove the size")
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
