"""Where the tasks of a stage run: in the processes of this machine, or (`dask_executor`) of many.

An executor does one thing, `map`: it calls a function for each of many items and gives the results
in order. All else (`verbs`) is made of that and of files, so that which executor ran a stage, with
how many workers and through how many deaths of them, leaves no trace in its output.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from t5x_style.corpus.guard import die_with_parent, num_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Runs functions of a module (or partials of them) on items; use as a context manager."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Yields the function's result for each item, in order.

        An item whose worker dies is given to another; what the function raises is raised here.
        """
        ...

    def __enter__(self) -> "Executor": ...

    def __exit__(self, *exception: object) -> None: ...


class LocalExecutor:
    """Processes of this machine, started when first needed.

    Memory: what one task needs (`verbs.Job` says how much that is) times the number of workers.

    Args:
      num_workers: processes; one for each core by default. With 1 everything runs in this process,
        which is also the way to give a model of a stage the machine's accelerator.
      max_deaths: so many workers may die, killed for want of memory for instance, without an item
        being finished in between before the run is given up.
    """

    def __init__(self, num_workers: int | None = None, max_deaths: int = 3):
        self.num_workers = num_workers or num_cores()
        self._max_deaths = max_deaths
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "LocalExecutor":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        if min(self.num_workers, len(items)) <= 1:
            yield from map(function, items)
            return
        results: dict[int, Any] = {}
        start, deaths = 0, 0
        while start < len(items):
            futures: dict[int, Future] = {}
            try:
                for number in range(start, len(items)):
                    if number not in results:
                        futures[number] = self._workers().submit(function, items[number])
                while start < len(items):
                    yield results.pop(start) if start in results else futures[start].result()
                    start, deaths = start + 1, 0
            except BrokenProcessPool as death:
                self._pool, deaths = None, deaths + 1
                if deaths >= self._max_deaths:
                    raise RuntimeError(
                        f"{deaths} workers died one after the other, the last at "
                        f"{str(items[start])[:500]}: if they were short of memory, lower "
                        "executors.LocalExecutor.num_workers or the sizes of the job's tasks"
                    ) from death
                results |= {n: future.result() for n, future in futures.items() if _is_done(future)}
            finally:
                for future in futures.values():
                    future.cancel()

    def _workers(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Spawned, as a fork would copy the locks of whatever threads this process has.
            self._pool = ProcessPoolExecutor(
                self.num_workers,
                multiprocessing.get_context("spawn"),
                initializer=_begin_worker,
                initargs=(os.getpid(),),
            )
        return self._pool


def _is_done(future: Future) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _begin_worker(parent: int) -> None:
    die_with_parent(parent)
    pa.set_cpu_count(1)
