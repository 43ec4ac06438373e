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
_MOST = 10  # pairs of an image with others; enough to connect those that are all alike
_PAIRS_AT_ONCE = 1 << 22
_MAX_COMPARED = 150_000  # images; all pairs of more would take many minutes


def look_of(image: Image.Image) -> str:
    """The hash of an image as 32 hexadecimal digits; the image may be decoded at a part of its size."""
    grey = np.asarray(image.convert("L").resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX))
    bits = [grey[:_SIDE, 1:] > grey[:_SIDE, :-1], grey[1:, :_SIDE] > grey[:-1, :_SIDE]]
    return np.packbits(np.stack(bits)).tobytes().hex()


def find_pairs(looks: Sequence[str], others: Sequence[str] = ()) -> Iterator[tuple[int, int, int]]:
    """The pairs of hashes that differ in at most `MAX_DIFFERENT` bits, in order, with the number of bits.

    Of each of `looks` there are the ten nearest pairs at most, the nearest first. Images that are mostly flat are in
    none.

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
    step = max(_PAIRS_AT_ONCE // max(len(columns), 1), 1)
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        # The product of two rows of signs is the number of bits that agree, less the number of those that differ.
        agree = block @ (columns if others else columns[: start + len(block)]).T
        if not others:
            agree[:, start:] = np.tril(agree[:, start:], -1)  # of two images the later one has the pair
        near = agree >= NUM_BITS - 2 * MAX_DIFFERENT
        for row in np.flatnonzero(near.any(axis=1)).tolist():
            found = np.flatnonzero(near[row])
            for column in found[np.argsort(-agree[row, found], kind="stable")[:_MOST]].tolist():
                yield start + row, column, round((NUM_BITS - float(agree[row, column])) / 2)


def _signs(looks: Sequence[str]) -> np.ndarray:
    """f32 [n, 128]: 1 for a bit that is set, -1 for one that is not; zeros for an image that is mostly flat."""
    data = np.frombuffer(bytes.fromhex("".join(looks)), np.uint8).reshape(-1, NUM_BITS // 8)
    bits = np.unpackbits(data, axis=1)
    return (bits.astype(np.float32) * 2 - 1) * (bits.sum(axis=1, keepdims=True) >= _MIN_SET)
