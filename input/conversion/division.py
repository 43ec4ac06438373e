"""Which images are held out as `val`: a share of every class, and never one of a group without the others."""

from __future__ import annotations

import collections
import hashlib
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from input import files
from input.conversion import looks
from input.conversion.config import ConversionError
from input.conversion.source import Input

_NEGATIVE = ""  # stands for a class in images without objects


class _Group(NamedTuple):
    """Images that stay together."""

    members: list[Input]
    counts: collections.Counter[str]  # by class, how many of the images show it


def choose_val(
    inputs: Sequence[Input],
    classes: Mapping[str, set[str]],
    fraction: float,
    group_by: str,
    hashes: Mapping[str, str],
) -> set[str]:
    """The ids of the images to hold out.

    As in iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011), the rarest class comes first, and each
    group goes where more of that class is still wanted.

    Args:
      inputs: in the order in which they are considered: a random one.
      classes: by image id, the classes that an image shows.
      fraction: of the images.
      group_by: a regular expression; images for whose id it gives the same text stay together, and so do exact copies.
        One for which it gives no text is in no group.
      hashes: by image id, the hash by looks.py. Near duplicates stay together as long as their group is not larger than
        what is held out: otherwise a set of images that are all much alike could not be divided.

    Raises:
      ConversionError: a split would be empty.
    """
    wanted = round(fraction * len(inputs))
    groups = _make_groups(inputs, classes, group_by, hashes, wanted)
    totals: collections.Counter[str] = collections.Counter()
    for group in groups:
        totals.update(group.counts)
    # How many images of each class are still to come, of those that are not assigned; and how many of them `val` wants.
    left, missing = collections.Counter(totals), {name: fraction * count for name, count in totals.items()}
    val: list[_Group] = []
    train: list[_Group] = []
    waiting = groups
    for name in sorted(totals, key=lambda name: (totals[name], name)):
        of_class = [group for group in waiting if group.counts[name]]
        waiting = [group for group in waiting if not group.counts[name]]
        for group in of_class:
            takes = missing[name] > left[name] * fraction - 1e-9 and missing[name] >= group.counts[name] / 2
            (val if takes else train).append(group)
            left.subtract(group.counts)
            for other, count in group.counts.items() if takes else ():
                missing[other] -= count
    _correct(val, train, wanted)
    if not val or not train:
        raise ConversionError(
            f"--val_fraction={fraction} of {len(inputs)} images in {len(groups)} groups leaves a split empty."
        )
    return {item.image_id for group in val for item in group.members}


def _correct(val: list[_Group], train: list[_Group], wanted: int) -> None:
    """Moves the last groups that fit until `val` has the number of images that is wanted, or nearly."""
    for source, target, sign in ((train, val, 1), (val, train, -1)):
        difference = sign * (wanted - sum(len(group.members) for group in val))
        for group in source[::-1]:
            if len(group.members) <= difference:
                source.remove(group)
                target.append(group)
                difference -= len(group.members)


def _make_groups(
    inputs: Sequence[Input], classes: Mapping[str, set[str]], group_by: str, hashes: Mapping[str, str], limit: int
) -> list[_Group]:
    """The groups, in the order of their first images; near duplicates join them up to `limit` images."""
    parents: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while (parent := parents.setdefault(key, key)) != key:
            key = parent
        return key

    digests = _digests_of_copies(inputs)
    for item in inputs:
        own = ("image", item.image_id)
        found = re.search(group_by, item.image_id) if group_by else None
        if group := found and found[1 if found.re.groups else 0]:  # an optional part that is absent names no group
            parents[root(own)] = root(("group", group))
        if item.image_id in digests:
            parents[root(own)] = root(("copy", digests[item.image_id]))
    sizes = collections.Counter(root(("image", item.image_id)) for item in inputs)
    ids = list(hashes)
    for first, second, _ in looks.find_pairs(list(hashes.values())):
        one, other = root(("image", ids[first])), root(("image", ids[second]))
        if one != other and sizes[one] + sizes[other] <= limit:
            parents[one] = other
            sizes[other] += sizes[one]
    groups: dict[Hashable, _Group] = {}
    for item in inputs:
        group = groups.setdefault(root(("image", item.image_id)), _Group([], collections.Counter()))
        group.members.append(item)
        group.counts.update(classes.get(item.image_id) or {_NEGATIVE})
    return list(groups.values())


def _digests_of_copies(inputs: Sequence[Input]) -> dict[str, bytes]:
    """By image id, the hash of each image file that has the size of another: only those can be copies."""
    by_size: dict[int, list[Input]] = {}
    for item in inputs:
        if item.num_bytes:
            by_size.setdefault(item.num_bytes, []).append(item)
    digests = {}
    for members in by_size.values():
        for item in members if len(members) > 1 else ():
            try:
                digests[item.image_id] = hashlib.sha256(files.read_regular(item.source.image_path)).digest()
            except OSError:
                continue  # the conversion itself reports it
    return digests
