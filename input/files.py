"""Files of this machine and of other file systems.

A `SCHEME://` path (gs://, hdfs://, ...) goes through `tf.io.gfile`; TensorFlow is imported for such paths only. A path
into a local zip or tar file is read in place, and never written; see archives.py. Every error is an `OSError`, with the
path in `filename` and the reason in `strerror`.
"""

from __future__ import annotations

import builtins
import concurrent.futures
import contextlib
import errno
import glob as local_glob
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, cast

from input import archives

_MAX_REQUESTS = 64  # to a remote file system at one time
_SECONDS_TO_GATHER = 60.0  # lines for a remote file


def is_remote(path: str) -> bool:
    return "://" in path


@contextlib.contextmanager
def _errors_of_the_system(path: str) -> Iterator[None]:
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        kinds = {tf.errors.NotFoundError: errno.ENOENT, tf.errors.PermissionDeniedError: errno.EACCES}
        number = kinds.get(type(error), errno.EIO)
        reason = os.strerror(number) if number != errno.EIO else error.message.partition("\n")[0]
        raise OSError(number, reason, path) from error


def _gfile(function: str, path: str, *arguments: Any) -> Any:
    """The result of a function of `tf.io.gfile`."""
    import tensorflow as tf

    with _errors_of_the_system(path):
        return getattr(tf.io.gfile, function)(path, *arguments)


@contextlib.contextmanager
def open(path: str, mode: str = "rb") -> Iterator[BinaryIO]:
    """A binary file, closed at the end of the block."""
    if not is_remote(path):
        with builtins.open(path, mode, buffering=1 << 20 if "w" in mode else -1) as file:
            yield cast(BinaryIO, file)
        return
    with _errors_of_the_system(path), _gfile("GFile", path, mode) as file:
        yield file


@contextlib.contextmanager
def create(path: str, partial: str = "") -> Iterator[BinaryIO]:
    """A new binary file; it gets its name only when the block has ended without an error and all of it is stored.

    Args:
      partial: the name until then; by default a random one beside `path`.
    """
    partial = partial or f"{path}.{secrets.token_hex(4)}.partial"
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            if not is_remote(path):
                os.fsync(file.fileno())
        replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            remove(partial)
        raise


def write_text(path: str, text: str) -> None:
    """Writes a text file whole or not at all, and makes its folder."""
    make_dirs(os.path.dirname(path) or ".")
    with create(path) as file:
        file.write(text.encode())


def append(path: str, data: bytes) -> None:
    """Adds to the end of a file all of `data` or, where that fails, nothing. Object stores write the file anew."""
    if is_remote(path):
        earlier = read(path) if exists(path) else b""
        with create(path) as file:
            file.write(earlier + data)
        return
    with builtins.open(path, "ab", buffering=0) as local:
        end = local.tell()
        try:
            while data:
                data = data[local.write(data) :]
        except OSError:
            local.truncate(end)
            raise


class LineFile:
    """A text file to which lines are added. Those that cannot be written, as on a full disk, wait for the next one.

    A local file has each line at once. In an object store lines are gathered for a minute, unless `flush` is called.
    """

    def __init__(self, path: str) -> None:
        self._path, self._waiting, self._tried = path, b"", time.monotonic()

    def add(self, line: str) -> None:
        self._waiting += f"{line}\n".encode(errors="backslashreplace")
        if not is_remote(self._path) or time.monotonic() - self._tried >= _SECONDS_TO_GATHER:
            self.flush()

    def flush(self) -> None:
        self._tried = time.monotonic()
        if self._waiting:
            append(self._path, self._waiting)
            self._waiting = b""


def read(path: str) -> bytes:
    if inside := archives.locate(path):
        return inside[0].read(inside[1])
    with open(path) as file:
        return file.read()


def read_regular(path: str) -> bytes:
    """As `read`, but raises an OSError for a pipe or a device, for whose end `read` could wait for ever."""
    if is_remote(path) or archives.locate(path):
        return read(path)
    with builtins.open(
        path, "rb", buffering=0, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)
    ) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return file.read()


def exists(path: str) -> bool:
    if inside := archives.locate(path):
        return inside[0].is_dir(inside[1]) or any(inside[0].stat(inside[1]))
    return _gfile("exists", path) if is_remote(path) else os.path.exists(path)


def is_dir(path: str) -> bool:
    if inside := archives.locate(path):
        return inside[0].is_dir(inside[1])
    return _gfile("isdir", path) if is_remote(path) else os.path.isdir(path)


def size(path: str) -> int:
    return _gfile("stat", path).length if is_remote(path) else os.path.getsize(path)


def stats(paths: Sequence[str]) -> list[tuple[int, int]]:
    """The size and the time of modification (in ns) of each file; zeros where there is none, or only a broken link."""
    if not any(map(is_remote, paths)):
        return list(map(_stat, paths))
    with concurrent.futures.ThreadPoolExecutor(_MAX_REQUESTS) as threads:
        return list(threads.map(_stat, paths))


def _stat(path: str) -> tuple[int, int]:
    try:
        if is_remote(path):
            remote = _gfile("stat", path)
            return remote.length, remote.mtime_nsec
        if inside := archives.locate(path):
            return inside[0].stat(inside[1])
        local = os.stat(path)
        return local.st_size, local.st_mtime_ns
    except OSError:
        return 0, 0


def names(folder: str) -> list[str]:
    """The names of a folder's files and folders."""
    if inside := archives.locate(folder):
        return inside[0].names(inside[1])
    return [name.rstrip("/") for name in (_gfile("listdir", folder) if is_remote(folder) else os.listdir(folder))]


def glob(pattern: str) -> list[str]:
    return _gfile("glob", pattern) if is_remote(pattern) else local_glob.glob(pattern)


def make_dirs(folder: str) -> None:
    _gfile("makedirs", folder) if is_remote(folder) else os.makedirs(folder, exist_ok=True)


def replace(source: str, target: str) -> None:
    _gfile("rename", source, target, True) if is_remote(source) else os.replace(source, target)


def remove(path: str) -> None:
    _gfile("remove", path) if is_remote(path) else os.unlink(path)


def remove_tree(folder: str) -> None:
    """Removes a folder with all that it holds, if there is such a folder."""
    with contextlib.suppress(FileNotFoundError):
        _gfile("rmtree", folder) if is_remote(folder) else shutil.rmtree(folder)
