"""The limit of a container's memory, from control groups of both versions."""

from __future__ import annotations

import pathlib

import pytest

from input import memory

MACHINE = memory.limit("/nowhere")
SMALL, SMALLER = 3 * 2**20, 2**20  # bytes; no machine has so little


def write(root: pathlib.Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return str(root)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": SMALL}, SMALL),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": "max"}, MACHINE),
        ({"proc/self/cgroup": "0::/"}, MACHINE),
        (
            {
                "proc/self/cgroup": "0::/pod/container",
                "sys/fs/cgroup/pod/container/memory.max": "max",
                "sys/fs/cgroup/pod/memory.max": SMALL,
            },
            SMALL,
        ),
        (
            {
                "proc/self/cgroup": "0::/pod/container",
                "sys/fs/cgroup/pod/container/memory.max": SMALLER,
                "sys/fs/cgroup/pod/memory.max": SMALL,
            },
            SMALLER,
        ),
        (
            {
                "proc/self/cgroup": "7:cpu,cpuacct:/docker/1\n5:memory:/docker/1\n0::/docker/1",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": SMALL,  # only the container's own part is mounted
            },
            SMALL,
        ),
        (
            {
                "proc/self/cgroup": "5:memory:/",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": 2**63 - 4096,  # what version 1 writes for no limit
            },
            MACHINE,
        ),
    ],
)
def test_the_smallest_limit_of_the_groups_counts(tmp_path: pathlib.Path, files: dict[str, str], expected: int) -> None:
    assert memory.limit(write(tmp_path, files)) == expected


def test_this_machine_has_memory() -> None:
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    total = int(next(line for line in lines if line.startswith("MemTotal")).split()[1]) * 1024
    assert 0 < memory.limit() <= MACHINE
    assert pytest.approx(total, rel=0.05) == MACHINE
