"""The memory that a container may use."""

from __future__ import annotations

import pytest

from input import host

MACHINE = 64 * 2**30


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"sys/fs/cgroup/memory.max": f"{8 * 2**30}\n"}, 8 * 2**30),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": f"{4 * 2**30}\n"}, 4 * 2**30),
    ],
)
def test_the_limit_of_the_container(tmp_path, files, limit):
    for name, text in {"proc/meminfo": f"MemTotal: {MACHINE // 1024} kB\nMemFree: 1 kB\n", **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert host.memory_limit(str(tmp_path)) == limit


def test_this_machine():
    assert host.memory_limit() is None or host.memory_limit() > 0
