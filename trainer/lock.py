"""One trainer in a run's folder."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator

from input import files
from trainer.reporting import log

_BEAT_S = 10.0  # between two signs of life in a remote folder
_BEATS_TO_WAIT = 3  # without a sign, and the trainer that wrote the file is dead


@contextlib.contextmanager
def sole_trainer(model_dir: str) -> Iterator[Callable[[], None]]:
    """Refuses a second trainer in the same folder.

    The kernel drops the lock on a local file with the process, however it ends. Where a shared folder passes locks on
    (NFS 4, SMB), trainers of several machines exclude each other too. A remote folder (gs://) has no locks: there the
    file is written anew every few seconds, and a trainer that finds one waits until it is clear that nobody does so.

    Gives:
      A function to be called between two loops, which raises a ValueError where another trainer has taken the folder
      over. In a remote folder this is how one of two gives way that started at the same time.

    Raises:
      ValueError: another process trains there.
    """
    files.make_dirs(model_dir)
    path = os.path.join(model_dir, "trainer.lock")
    now = datetime.datetime.now().isoformat(" ", "seconds")
    owner = f"process {os.getpid()} on {socket.gethostname()}, since {now}"
    if files.is_remote(model_dir):
        with contextlib.closing(_SignsOfLife(path, owner)) as signs:
            yield signs.require_own
        return
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _refusal(path, file.read()) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): make sure that no second run trains there", model_dir, error)
        file.truncate(0)
        file.write(f"{owner}\n")
        file.flush()
        yield lambda: None


def _refusal(path: str, content: str) -> ValueError:
    owner = content.partition("\n")[0]
    return ValueError(
        f"another run trains in {os.path.dirname(path)} ({owner}): wait for its end, or use another --model_dir."
    )


class _SignsOfLife:
    """A file that a thread writes anew at each beat, for as long as it finds there what it wrote itself.

    No clocks of two machines are compared, and a trainer that was killed delays the next one by a few beats.

    Raises:
      ValueError: another process does so already.
    """

    def __init__(self, path: str, owner: str) -> None:
        self._path = path
        if found := self._read():
            log.info("%s is there: waiting %.0f s for a sign of its trainer", path, _BEAT_S * _BEATS_TO_WAIT)
            for _ in range(_BEATS_TO_WAIT):
                time.sleep(_BEAT_S)
                if self._read() not in (found, ""):
                    raise _refusal(path, found)
        self._head = f"{owner}\n{secrets.token_hex(8)}\n"  # how all that is written here begins
        self._others = ""  # what another trainer has written
        self._number = 0
        self._write()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, daemon=True)
        self._thread.start()

    def _read(self) -> str:
        try:
            return files.read(self._path).decode()
        except FileNotFoundError:
            return ""

    def _write(self) -> None:
        files.write_text(self._path, f"{self._head}{self._number}\n")

    def _keep_beating(self) -> None:
        while not self._ended.wait(_BEAT_S):
            with contextlib.suppress(OSError):  # the network is down; if for long, another may take over
                self.beat()

    def beat(self) -> None:
        found = self._read()
        if found and not found.startswith(self._head):
            self._others = found
        elif not self._others:
            self._number += 1
            self._write()

    def require_own(self) -> None:
        if self._others:
            raise _refusal(self._path, self._others)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._read().startswith(self._head):
                files.remove(self._path)
