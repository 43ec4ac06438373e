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
# The bits of eight bands. They are mixed, since neighbours in an image are alike: many hashes would share a band.
_BANDS = [[37 * index % NUM_BITS for index in range(start, start + 16)] for start in range(0, NUM_BITS, 16)]
_MANY = 64  # near hashes; where a band gives one so many, the search for nearer ones ends
_MOST_IN_BAND = 256  # hashes that one is compared with for one value of a band; a million random ones give about 15
_AT_ONCE = 1 << 14  # comparisons
# A pair is one number, so that pairs are sorted fast: the first index, the number of bits, and the second index.
_FIRST, _DIFFERENT = 36, 32  # by how much they are shifted


def look_of(image: Image.Image) -> str:
    """The hash of an image as 32 hexadecimal digits; the image may be decoded at a part of its size."""
    grey = np.asarray(image.convert("L").resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX))
    bits = [grey[:_SIDE, 1:] > grey[:_SIDE, :-1], grey[1:, :_SIDE] > grey[:-1, :_SIDE]]
    return np.packbits(np.stack(bits)).tobytes().hex()


def find_pairs(looks: Sequence[str], others: Sequence[str] = ()) -> Iterator[tuple[int, int, int]]:
    """The pairs of hashes that differ in at most `MAX_DIFFERENT` bits, in order, with the number of bits.

    Of each of `looks` there are the ten nearest pairs at most, the nearest first; of one that hundreds agree with, ten
    near ones. Images that are mostly flat are in none.

    Hashes that differ in at most 14 bits either are equal in the last of eight bands of bits, or differ in at most one
    bit of another; otherwise they would differ in 1 + 7 * 2 = 15 bits or more. So each is compared with only those that
    a table of a band's values gives, and the time is nearly proportional to the number of hashes.

    Args:
      looks: hashes.
      others: hashes to compare each of `looks` with; if there are none, each is compared with those before it.

    Yields:
      The index in `looks`, that in `others` (or the earlier one in `looks`), and the number of bits.
    """
    rows, row_indices = _words(looks)
    columns, column_indices = _words(others) if others else (rows, row_indices)
    pairs = np.zeros(0, np.int64)
    left = np.arange(rows.shape[1])  # without those that were found to be near many
    for bits in _BANDS:
        values = _values(columns, bits)
        row_values = _values(rows, bits) if others else values
        order = np.argsort(values, kind="stable")
        starts = np.searchsorted(values[order], np.arange((1 << 16) + 1))
        found = [pairs]
        for flipped in (0,) if bits is _BANDS[-1] else (0, *(1 << bit for bit in range(16))):
            wanted = row_values[left] ^ flipped
            counts = np.minimum(starts[wanted + 1] - starts[wanted], _MOST_IN_BAND)
            num_near = np.zeros(len(row_values), np.int64)
            for part in _parts(counts):
                row = np.repeat(left[part], counts[part])
                before = np.cumsum(counts[part]) - counts[part]
                column = order[np.arange(len(row)) + np.repeat(starts[wanted[part]] - before, counts[part])]
                if not others:
                    row, column = row[column < row], column[column < row]
                different = np.zeros(len(row), np.int64)
                for row_words, column_words in zip(rows, columns):  # few pairs are left for the second
                    different += _count_bits(row_words[row] ^ column_words[column])
                    near = different <= MAX_DIFFERENT
                    row, column, different = row[near], column[near], different[near]
                found.append(_nearest(row << _FIRST | different << _DIFFERENT | column))
                num_near += np.bincount(row, minlength=len(num_near))
            left = left[num_near[left] < _MANY]
        pairs = _nearest(np.concatenate(found))
    for pair in pairs.tolist():
        different, column = divmod(pair & (1 << _FIRST) - 1, 1 << _DIFFERENT)
        yield int(row_indices[pair >> _FIRST]), int(column_indices[column]), different


def _words(looks: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Of each image that is not mostly flat: its hash, u64 [2, n], and its index, [n]."""
    words = np.frombuffer(bytes.fromhex("".join(looks)), np.uint64).reshape(-1, 2).T.copy()
    (indices,) = np.nonzero(_count_bits(words).sum(axis=0) >= _MIN_SET)
    return words[:, indices], indices


def _values(words: np.ndarray, bits: Sequence[int]) -> np.ndarray:
    """The number that these bits of each hash make, i64 [n]."""
    values = np.zeros(words.shape[1], np.int64)
    for bit in bits:
        values = values << 1 | (words[bit // 64] >> np.uint64(bit % 64) & np.uint64(1)).astype(np.int64)
    return values


def _parts(counts: np.ndarray) -> list[slice]:
    """Divides the rows so that those of a part have about `_AT_ONCE` of the `counts` together."""
    ends = np.cumsum(counts)
    edges = np.searchsorted(ends, np.arange(_AT_ONCE, ends[-1:].sum(), _AT_ONCE)).tolist()
    return list(map(slice, [0, *edges], [*edges, len(counts)]))


def _count_bits(words: np.ndarray) -> np.ndarray:
    """How many bits of each number, u64 [...], are set, i64 [...]."""
    words = words - (words >> 1 & 0x5555555555555555)  # the count of every two bits, then of every four and eight
    words = (words & 0x3333333333333333) + (words >> 2 & 0x3333333333333333)
    words = words + (words >> 4) & 0x0F0F0F0F0F0F0F0F
    return (words * 0x0101010101010101 >> 56).astype(np.int64)


def _nearest(pairs: np.ndarray) -> np.ndarray:
    """The pairs in order, each once, and the nearest `_MOST` of each first index."""
    pairs = np.unique(pairs)
    first = pairs >> _FIRST
    return pairs[np.arange(len(pairs)) - np.searchsorted(first, first) < _MOST]
