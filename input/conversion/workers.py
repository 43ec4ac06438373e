"""Worker processes of this machine."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from tqdm import tqdm

# Workers.
_progress = None  # in a worker: the shared count of images done


def _start_worker(progress) -> None:
    global _progress
    _progress = progress
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    gc.freeze()
    gc.set_threshold(100_000)  # images leave no circles behind, so that there is next to nothing to collect

    def leave_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _advance(count: int) -> None:
    with _progress.get_lock():
        _progress.value += count


def _work(function, argument) -> Any:
    return function(argument, _advance)


class Workers:
    """Up to `num_workers` processes that apply a function to arguments; started when first needed.

    They are spawned, never forked: the caller may run TensorFlow.
    """

    def __init__(self, num_workers: int):
        self._num_workers = num_workers
        self._num_started = 0
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, exception_type, *_) -> None:
        if self._pool:
            processes = list(self._pool._processes.values())
            self._pool.shutdown(wait=exception_type is None, cancel_futures=True)
            if exception_type is not None:
                for process in processes:
                    process.kill()

    def _start(self, wanted: int) -> None:
        if self._pool:
            self._pool.shutdown()
        context = multiprocessing.get_context("spawn")
        self._progress = context.Value("q", 0)
        self._pool = concurrent.futures.ProcessPoolExecutor(wanted, context, _start_worker, (self._progress,))
        self._num_started = wanted

    def map(self, function, arguments: Sequence[Any], total: int, what: str) -> list[Any]:
        """`function(argument, advance)` of each argument; shows how many of `total` images are done."""
        wanted = min(self._num_workers, len(arguments))
        with tqdm(total=total, desc=what, unit=" images", disable=None) as bar:
            if wanted <= 1:
                return [function(argument, bar.update) for argument in arguments]
            if wanted > self._num_started:
                self._start(wanted)
            start = self._progress.value
            futures = [self._pool.submit(_work, function, argument) for argument in arguments]
            waiting: Iterable = futures
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, 0.2, concurrent.futures.FIRST_EXCEPTION)
                bar.update(self._progress.value - start - bar.n)
                for future in done:
                    future.result()
            return [future.result() for future in futures]


def available_cores() -> int:
    """The cores that this process may use; a container often allows fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
