"""Zip and tar files read in place, as if each were a folder: in `data.zip/Annotations/a.xml` data.zip is one."""

from __future__ import annotations

import errno
import functools
import os
import re
import tarfile
import threading
import zipfile
from typing import NamedTuple

_ENDING = re.compile(r"\.(?:zip|tar)(?=/|\Z)", re.IGNORECASE)
_MAX_BYTES = 1 << 30  # of one file inside: a small archive may claim to hold a huge one


class _Member(NamedTuple):
    size: int
    stamp: int  # differs when the content does, or nearly always
    place: zipfile.ZipInfo | int  # of a tar file the offset


class Archive:
    """The files in an archive; its list is read once, and each process opens it by itself."""

    def __init__(self, path: str):
        """
        Raises:
          OSError: the archive cannot be read.
        """
        self._path = path
        self._lock = threading.Lock()
        self._members: dict[str, _Member] = {}
        try:
            if path.lower().endswith(".zip"):
                self._zip: zipfile.ZipFile | None = zipfile.ZipFile(path)
                for entry in self._zip.infolist():
                    if not entry.is_dir():
                        self._add(entry.filename, _Member(entry.file_size, entry.CRC, entry))
            else:
                self._zip = None
                with tarfile.open(path, "r:") as tar:  # a compressed one could not be read out of order
                    for member in tar:
                        if member.isreg() and not member.issparse():
                            self._add(member.name, _Member(member.size, int(member.mtime), member.offset_data))
                        elif member.islnk() and (target := self._members.get(_inner_path(member.linkname))):
                            self._add(member.name, target)  # a hard link: tar stores the bytes of its first name only
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError, NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # Python 3.9 goes wherever a list sends it
                raise
            raise OSError(errno.EINVAL, f"not a sound archive ({error})", path) from error
        self._folders: dict[str, set[str]] = {"": set()}
        for name in self._members:
            while name:
                folder, _, last = name.rpartition("/")
                self._folders.setdefault(folder, set()).add(last)
                name = folder

    def _add(self, name: str, member: _Member) -> None:
        if path := _inner_path(name):
            self._members[path] = member

    def is_dir(self, name: str) -> bool:
        return name in self._folders

    def names(self, folder: str) -> list[str]:
        """The names of a folder's files and folders.

        Raises:
          FileNotFoundError: there is no such folder.
        """
        if folder not in self._folders:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self._path}/{folder}")
        return sorted(self._folders[folder])

    def stat(self, name: str) -> tuple[int, int]:
        """The size of a file and what stands for its time of modification; zeros where there is no such file."""
        member = self._members.get(name)
        return (member.size, member.stamp) if member else (0, 0)

    def read(self, name: str) -> bytes:
        """
        Raises:
          OSError: there is no such file, or it cannot be read.
        """
        path = f"{self._path}/{name}"
        member = self._members.get(name)
        if not member:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if member.size > _MAX_BYTES:
            raise OSError(errno.EFBIG, f"it claims to have {member.size:,} bytes", path)
        try:
            if self._zip:
                with self._lock:
                    return self._zip.read(member.place)  # type: ignore[arg-type]  # a ZipInfo
            with open(self._path, "rb") as file:
                file.seek(member.place)  # type: ignore[arg-type]  # an offset
                data = file.read(member.size)
            if len(data) < member.size:
                raise EOFError("the archive is cut off")
            return data
        except Exception as error:  # zipfile and zlib raise several kinds, for encrypted members RuntimeError
            raise OSError(errno.EIO, f"cannot be read from the archive ({error})", path) from error


def _inner_path(name: str) -> str:
    """The path of a member; empty where its name leads out of the archive."""
    parts = [part for part in name.replace("\\", "/").split("/") if part != "."]
    return "/".join(parts) if all(parts) and ".." not in parts else ""


def locate(path: str) -> tuple[Archive, str] | None:
    """The archive that a path leads into, and the path inside it; None for any other path.

    Raises:
      OSError: the archive cannot be read.
    """
    if ".zip" not in (lower := path.lower()) and ".tar" not in lower:  # which is quicker, for nearly all paths
        return None
    for ending in _ENDING.finditer(path):
        archive = path[: ending.end()]
        if os.path.isfile(archive):  # a folder may be called so too
            stat = os.stat(archive)
            return _open(archive, stat.st_size, stat.st_mtime_ns), path[ending.end() :].strip("/")
    return None


@functools.lru_cache(maxsize=4)
def _open(path: str, size: int, modified: int) -> Archive:
    return Archive(path)
