"""What this machine, or the container that it is, allows."""

from __future__ import annotations

from pathlib import Path

# Of version 2 and version 1 of Linux's control groups.
_LIMIT_FILES = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_limit(root: str = "/") -> int | None:
    """The memory in bytes that this process may use by its container's limit; None where there is none.

    TensorFlow asks for the machine's memory, of which a container may have a small part.

    Args:
      root: where `sys` and `proc` are.
    """
    machine = None
    try:
        for line in Path(root, "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                machine = int(line.split()[1]) * 1024
    except OSError:
        pass
    for name in _LIMIT_FILES:
        try:
            text = Path(root, name).read_text().strip()
        except OSError:
            continue
        # Without a limit version 2 says "max", and version 1 a number that no machine reaches.
        if text.isdigit() and (machine is None or int(text) < machine):
            return int(text)
    return None
