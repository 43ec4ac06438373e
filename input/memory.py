"""How much memory this process may use."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator


def limit(root: str = "/") -> int:
    """The bytes of memory of this machine, or of this process's container where that has fewer.

    A container is a Linux control group (cgroup v1 or v2), whose limit neither `/proc/meminfo` nor TensorFlow tells.

    Args:
      root: where `proc` and `sys` are.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_limits(pathlib.Path(root))])


def _limits(root: pathlib.Path) -> Iterator[int]:
    """The limits of the process's control groups, and of those that these are part of."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # not Linux
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if not controllers:  # v2
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):  # v1
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        folder = base / path.lstrip("/")
        # Inside a container the path may be that of the host, of which only the container's own part is mounted.
        for parent in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
                yield int((parent / name).read_text())
            if parent == base:
                break
