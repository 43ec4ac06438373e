"""Worker processes of this machine, with one progress bar for all of them."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar

from tqdm import tqdm

_CHUNK = 256  # images; large enough that handing them to a process takes next to no time

Advance = Callable[[int], object]  # tells the progress bar how many more images are done
_Argument = TypeVar("_Argument")
_Result = TypeVar("_Result")

_progress: Any = None  # in a worker: the shared count of images done


def available_cores() -> int:
    """The cores that this process may use; a container often allows fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Up to `num_workers` processes that apply a function to arguments; they are started when first needed.

    They are spawned, never forked: the caller may run TensorFlow.
    """

    def __init__(self, num_workers: int):
        self._num_workers = num_workers
        self._num_started = 0
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool:
            processes = list(self._pool._processes.values())
            self._pool.shutdown(wait=error is None, cancel_futures=True)
            if error is not None:
                for process in processes:
                    process.kill()

    def map(
        self,
        function: Callable[[_Argument, Advance], _Result],
        arguments: Sequence[_Argument],
        total: int,
        what: str,
    ) -> list[_Result]:
        """`function(argument, advance)` of each argument; shows how many of `total` images are done."""
        wanted = min(self._num_workers, len(arguments))
        with tqdm(total=total, desc=what, unit=" images", disable=None) as bar:
            if wanted <= 1:
                return [function(argument, bar.update) for argument in arguments]
            pool = self._started_pool(wanted)
            start = self._progress.value
            futures = [pool.submit(_work, function, argument) for argument in arguments]
            waiting: Iterable[concurrent.futures.Future] = futures
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, 0.2, concurrent.futures.FIRST_EXCEPTION)
                bar.update(self._progress.value - start - bar.n)
                for future in done:
                    future.result()
            return [future.result() for future in futures]

    def map_chunks(
        self, function: Callable[[Sequence[_Argument], Advance], _Result], items: Sequence[_Argument], what: str
    ) -> list[_Result]:
        """As `map`, but the function takes a chunk of the items at a time; each item is an image."""
        chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
        return self.map(function, chunks, len(items), what)

    def _started_pool(self, wanted: int) -> concurrent.futures.ProcessPoolExecutor:
        """The pool, with at least `wanted` processes."""
        if self._pool is None or wanted > self._num_started:
            if self._pool:
                self._pool.shutdown()
            context = multiprocessing.get_context("spawn")
            self._progress = context.Value("q", 0)
            self._pool = concurrent.futures.ProcessPoolExecutor(wanted, context, _start_worker, (self._progress,))
            self._num_started = wanted
        return self._pool


def _start_worker(progress: Any) -> None:
    global _progress
    _progress = progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    # Images leave no reference cycles behind, so there is next to nothing to collect.
    gc.freeze()
    gc.set_threshold(100_000)

    def leave_with_parent() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None, "only a worker process calls this"
        parent.join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _work(function: Callable[[_Argument, Advance], _Result], argument: _Argument) -> _Result:
    return function(argument, _advance)


def _advance(count: int) -> None:
    with _progress.get_lock():
        _progress.value += count
