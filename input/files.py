"""Files of this machine and of other file systems.

A `SCHEME://` path (gs://, hdfs://, ...) goes through `tf.io.gfile`; TensorFlow is imported for such paths only. Every
error is an `OSError`, with the path in `filename` and the reason in `strerror`.
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
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, cast

_MAX_REQUESTS = 64  # to a remote file system at one time


def is_remote(path: str) -> bool:
    return "://" in path


@contextlib.contextmanager
def _remote(path: str) -> Iterator[Any]:
    """`tf.io.gfile`; its errors are raised as the system's."""
    import tensorflow as tf

    try:
        yield tf.io.gfile
    except tf.errors.OpError as error:
        kinds = {tf.errors.NotFoundError: errno.ENOENT, tf.errors.PermissionDeniedError: errno.EACCES}
        number = kinds.get(type(error), errno.EIO)
        reason = os.strerror(number) if number != errno.EIO else error.message.partition("\n")[0]
        raise OSError(number, reason, path) from error


@contextlib.contextmanager
def open(path: str, mode: str = "rb") -> Iterator[BinaryIO]:
    """A binary file, closed at the end of the block."""
    if not is_remote(path):
        with builtins.open(path, mode, buffering=1 << 20 if "w" in mode else -1) as file:
            yield cast(BinaryIO, file)
        return
    with _remote(path) as gfile, gfile.GFile(path, mode) as file:
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


def read(path: str) -> bytes:
    with open(path) as file:
        return file.read()


def read_regular(path: str) -> bytes:
    """As `read`, but raises an OSError for a pipe or a device, for whose end `read` could wait for ever."""
    if is_remote(path):
        return read(path)
    with builtins.open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return file.read()


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def exists(path: str) -> bool:
    if not is_remote(path):
        return os.path.exists(path)
    with _remote(path) as gfile:
        return gfile.exists(path)


def is_dir(path: str) -> bool:
    if not is_remote(path):
        return os.path.isdir(path)
    with _remote(path) as gfile:
        return gfile.isdir(path)


def size(path: str) -> int:
    if not is_remote(path):
        return os.path.getsize(path)
    with _remote(path) as gfile:
        return gfile.stat(path).length


def _stat(path: str) -> tuple[int, int]:
    try:
        if not is_remote(path):
            status = os.stat(path)
            return status.st_size, status.st_mtime_ns
        with _remote(path) as gfile:
            status = gfile.stat(path)
            return status.length, status.mtime_nsec
    except OSError:
        return 0, 0


def stats(paths: Sequence[str]) -> list[tuple[int, int]]:
    """The size and the time of modification (in ns) of each file; zeros where there is none, or only a broken link."""
    if not any(map(is_remote, paths)):
        return list(map(_stat, paths))
    with concurrent.futures.ThreadPoolExecutor(_MAX_REQUESTS) as threads:
        return list(threads.map(_stat, paths))


def names(folder: str) -> list[str]:
    """The names of a folder's files and folders."""
    if not is_remote(folder):
        return os.listdir(folder)
    with _remote(folder) as gfile:
        return [name.rstrip("/") for name in gfile.listdir(folder)]


def glob(pattern: str) -> list[str]:
    if not is_remote(pattern):
        return local_glob.glob(pattern)
    with _remote(pattern) as gfile:
        return gfile.glob(pattern)


def make_dirs(folder: str) -> None:
    if not is_remote(folder):
        os.makedirs(folder, exist_ok=True)
        return
    with _remote(folder) as gfile:
        gfile.makedirs(folder)


def replace(source: str, target: str) -> None:
    if not is_remote(source):
        os.replace(source, target)
        return
    with _remote(source) as gfile:
        gfile.rename(source, target, overwrite=True)


def remove(path: str) -> None:
    if not is_remote(path):
        os.unlink(path)
        return
    with _remote(path) as gfile:
        gfile.remove(path)


def remove_tree(folder: str) -> None:
    """Removes a folder with all that it holds, if there is such a folder."""
    if not is_remote(folder):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        return
    with contextlib.suppress(FileNotFoundError), _remote(folder) as gfile:
        gfile.rmtree(folder)
