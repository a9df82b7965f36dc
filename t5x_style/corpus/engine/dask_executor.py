"""Where the tasks of a stage run when one machine is not enough: the workers of a Dask cluster.

Dask starts tasks, and starts them again elsewhere when a worker dies; rows travel through files as
they do on one machine (`verbs`), so that nothing of a shuffle lives in the memory of a worker and
the death of the scheduler, or of all, costs the unfinished tasks only. Scheduler and workers are
whatever dask.distributed runs on: shells on several machines, Slurm, Kubernetes. All must see the
same folders under the same names and have this package installed.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from t5x_style.corpus.engine.executors import Item, Result


class DaskExecutor:
    """The workers of a running cluster; use as a context manager.

    Args:
      scheduler: address ("tcp://host:8786"), or path of the scheduler file that `dask scheduler
        --scheduler-file` wrote.
      connect_secs: how long to wait for the scheduler and a first worker.
    """

    def __init__(self, scheduler: str, connect_secs: float = 60.0):
        self._scheduler = scheduler
        self._connect_secs = connect_secs
        self._client: Any = None

    def __enter__(self) -> "DaskExecutor":
        from distributed import Client

        if "://" in self._scheduler:
            where: dict[str, Any] = {"address": self._scheduler}
        elif os.path.isfile(self._scheduler):
            where = {"scheduler_file": self._scheduler}
        else:
            raise ValueError(
                f"dask_executor.DaskExecutor.scheduler = {self._scheduler!r} is neither an address "
                'such as "tcp://host:8786" nor a scheduler file: start one with `dask scheduler '
                "--scheduler-file FILE`"
            )
        try:
            self._client = Client(**where, timeout=self._connect_secs, set_as_default=False)
            self._client.wait_for_workers(1, timeout=self._connect_secs)
        except (OSError, TimeoutError) as error:
            self.__exit__()
            raise ValueError(
                f"dask_executor.DaskExecutor.scheduler = {self._scheduler!r}: no scheduler with a "
                f"worker there within {self._connect_secs:g} s ({error}); start workers with `dask "
                "worker` and the same address or file"
            ) from error
        return self

    def __exit__(self, *exception: object) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        assert self._client is not None, "to be used as a context manager"
        # Not by value: equal calls are different tasks, as the files they find may have changed.
        futures = self._client.map(function, items, pure=False)
        try:
            while futures:
                yield futures[0].result()
                del futures[0]
        finally:
            self._client.cancel(futures)
