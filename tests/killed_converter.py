"""Converts again and again, killed before its 1st, 2nd, ... change to the output folder. A test runs it.

  python killed_converter.py VOC_DIR REFERENCE_DIR OLD_DIR SCRATCH_DIR

REFERENCE_DIR holds the outcome of an uninterrupted run, OLD_DIR that of one with other flags. Prints how many kills
there were with an output folder that is empty at first, and with one that holds the old outcome and is overwritten.
"""

import itertools
import os
import pathlib
import shutil
import signal
import sys

from input.conversion import convert
from input.conversion.config import ConvertConfig
from input.conversion.workers import Workers

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def convert_killed_before(change: int, config: ConvertConfig) -> bool:
    """Whether the process was killed; it is not where there are fewer changes."""
    child = os.fork()
    if not child:
        seen = 0

        def count(event, arguments):
            nonlocal seen
            writes = event in CHANGES or (event == "open" and isinstance(arguments[1], str) and "w" in arguments[1])
            if writes and str(arguments[0]).startswith(config.output_dir):
                seen += 1
                if seen == change:
                    os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = lambda fd: None  # it is slow, and needless where the system itself does not crash
        sys.addaudithook(count)
        convert.convert(config, Workers(1))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def count_kills(voc_dir: str, scratch: pathlib.Path, reference: dict[str, bytes], old: dict[str, bytes]) -> int:
    for change in itertools.count(1):
        output = scratch / str(change)
        if old:
            output.mkdir(parents=True)
            for name, data in old.items():
                (output / name).write_bytes(data)
        config = ConvertConfig(output_dir=str(output), voc_dirs=(voc_dir,), num_shards=3, overwrite=bool(old))
        killed = convert_killed_before(change, config)
        if killed:
            for name, data in contents(output).items() if output.exists() else ():
                whole = data in (reference.get(name), old.get(name))
                assert whole or name.startswith("."), f"kill {change}: {name} is not what it should be"
            assert not convert_killed_before(-1, config)
        assert contents(output) == reference, f"kill {change}: another outcome"
        assert len(os.listdir(output)) == len(reference), f"kill {change}: left {os.listdir(output)}"
        shutil.rmtree(output)
        if not killed:
            return change - 1
    raise AssertionError("unreachable: the loop ends with the first run that is not killed")


def main(voc_dir: str, reference_dir: str, old_dir: str, scratch_dir: str) -> None:
    scratch, reference = pathlib.Path(scratch_dir), contents(pathlib.Path(reference_dir))
    print(count_kills(voc_dir, scratch, reference, {}))
    print(count_kills(voc_dir, scratch, reference, contents(pathlib.Path(old_dir))))


if __name__ == "__main__":
    main(*sys.argv[1:])
