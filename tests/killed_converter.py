"""Converts again and again, killed before its 1st, 2nd, ... change to the output folder. A test runs it.

  python killed_converter.py VOC_DIR REFERENCE_DIR SCRATCH_DIR

REFERENCE_DIR is the outcome of an uninterrupted run. Prints the number of kills.
"""

import itertools
import os
import pathlib
import signal
import sys

from input import convert

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def convert_killed_before(change: int, voc_dir: str, output_dir: str) -> bool:
    """Whether the process was killed; it is not where there are fewer changes."""
    child = os.fork()
    if not child:
        seen = 0

        def count(event, arguments):
            nonlocal seen
            writes = event in CHANGES or (event == "open" and isinstance(arguments[1], str) and "w" in arguments[1])
            if writes and str(arguments[0]).startswith(output_dir):
                seen += 1
                if seen == change:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        convert.convert(convert.ConvertConfig(output_dir, (voc_dir,), num_shards=3), convert.Workers(1))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def main(voc_dir: str, reference_dir: str, scratch_dir: str) -> None:
    reference = contents(pathlib.Path(reference_dir))
    for change in itertools.count(1):
        output = pathlib.Path(scratch_dir) / str(change)
        killed = convert_killed_before(change, voc_dir, str(output))
        if killed and output.exists():
            for name, data in contents(output).items():
                assert name.startswith(".") or data == reference[name], (
                    f"kill {change}: {name} is not what it should be"
                )
            assert not convert_killed_before(-1, voc_dir, str(output))
        elif killed:
            continue
        assert contents(output) == reference, f"kill {change}: another outcome"
        assert len(os.listdir(output)) == len(reference), f"kill {change}: left {os.listdir(output)}"
        if not killed:
            print(change - 1)
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
