"""One function over many shards, in processes, with the results in order."""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int | None = None
) -> Iterator[Result]:
    """Yields `function(item)` of each item, in order.

    Args:
      function: of a module's top level, so that other processes find it.
      items: plain values.
      num_workers: processes; one for each available core by default. With one, or one item, the
        work is done here.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    num_workers = min(num_workers or available or 1, len(items))
    if num_workers < 2:
        yield from map(function, items)
        return
    # Threads of libraries do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        yield from _kept_busy(pool, function, items, 4 * num_workers)


def _kept_busy(
    pool: concurrent.futures.Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    most_ahead: int,
) -> Iterator[Result]:
    """Submits a bounded number of items ahead, so that results do not pile up."""
    waiting: list[concurrent.futures.Future[Result]] = []
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= most_ahead:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()
