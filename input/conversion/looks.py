"""Images that look the same: a hash of how an image looks, and the search for pairs whose hashes nearly agree.

The hash is the difference hash (dHash, N. Krawetz, 2013) in both directions: which of 9x9 grey levels are brighter than
the one before. Encoding anew, another size and a slight crop change few of its 128 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

NUM_BITS = 128
MAX_DIFFERENT = 14  # bits; on photographs of blood cells, all much alike, different ones differ in 24 or more
_MIN_SET = 32  # bits; an image of which fewer are set is mostly flat, and many such images have nearly the same hash
_SIDE = 8
_BLOCK = 4096  # hashes that are compared with all others at once
_MAX_COMPARED = 150_000  # images; all pairs of more would take many minutes


def look_of(image: Image.Image) -> str:
    """The hash of an image as 32 hexadecimal digits; the image may be decoded at a part of its size."""
    grey = np.asarray(image.convert("L").resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX))
    bits = [grey[:_SIDE, 1:] > grey[:_SIDE, :-1], grey[1:, :_SIDE] > grey[:-1, :_SIDE]]
    return np.packbits(np.stack(bits)).tobytes().hex()


def find_pairs(looks: Sequence[str], others: Sequence[str] = ()) -> Iterator[tuple[int, int, int]]:
    """The pairs of hashes that differ in at most `MAX_DIFFERENT` bits, in order, with the number of bits.

    Images that are mostly flat are in no pair.

    Args:
      looks: hashes.
      others: hashes to compare each of `looks` with; if there are none, each is compared with those before it.

    Yields:
      The index in `looks`, that in `others` (or the earlier one in `looks`), and the number of bits.
    """
    if len(looks) + len(others) > _MAX_COMPARED:
        return
    rows = _signs(looks)
    columns = _signs(others) if others else rows
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        # The product of two rows of signs is the number of bits that agree, less the number of those that differ.
        agree = block @ (columns if others else columns[: start + len(block)]).T
        for row, column in np.argwhere(agree >= NUM_BITS - 2 * MAX_DIFFERENT):
            if others or column < start + row:
                yield start + int(row), int(column), round((NUM_BITS - float(agree[row, column])) / 2)


def _signs(looks: Sequence[str]) -> np.ndarray:
    """f32 [n, 128]: 1 for a bit that is set, -1 for one that is not; zeros for an image that is mostly flat."""
    data = np.frombuffer(bytes.fromhex("".join(looks)), np.uint8).reshape(-1, NUM_BITS // 8)
    bits = np.unpackbits(data, axis=1)
    return (bits.astype(np.float32) * 2 - 1) * (bits.sum(axis=1, keepdims=True) >= _MIN_SET)
