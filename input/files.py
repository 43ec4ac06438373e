"""Files of this machine by the system's own calls, and those of a `SCHEME://` path (gs://, hdfs://, ...) through
`tf.io.gfile`, for which alone TensorFlow is imported. Whatever goes wrong is an `OSError`.
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
from collections.abc import Iterator, Sequence
from typing import BinaryIO

_REQUESTS = 64  # that wait for a remote file system at a time


def is_remote(path: str) -> bool:
    return "://" in path


@contextlib.contextmanager
def _remote(path: str) -> Iterator:
    """`tf.io.gfile`, whose errors become those of the system."""
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
            yield file
        return
    with _remote(path) as gfile, gfile.GFile(path, mode) as file:
        yield file


@contextlib.contextmanager
def create(path: str, partial: str = "") -> Iterator[BinaryIO]:
    """A binary file that bears another name until the block has ended without an error, and all of it is stored."""
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
    """Size and time of modification, in ns, of each; zeros where there is none, or a broken link or a loop of links."""
    if not any(map(is_remote, paths)):
        return list(map(_stat, paths))
    with concurrent.futures.ThreadPoolExecutor(_REQUESTS) as threads:
        return list(threads.map(_stat, paths))


def names(folder: str) -> list[str]:
    """What a folder holds."""
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
    """Nothing is said where there is no such folder."""
    if not is_remote(folder):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        return
    with contextlib.suppress(FileNotFoundError), _remote(folder) as gfile:
        gfile.rmtree(folder)
