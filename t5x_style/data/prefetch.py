"""Makes the next batches in a thread while the current one is trained on.

The state that a checkpoint must hold is that of the last batch handed out, not of the last one
made ahead: each batch travels with the state that follows it.
"""

import queue
import threading
from collections.abc import Iterator
from typing import Any, Protocol

from t5x_style.data.batches import Batch


class StatefulBatches(Protocol):
    """What `Prefetch` runs ahead of: `batches.Batches`, or anything with its three methods."""

    def __next__(self) -> Batch: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Prefetch:
    """Iterates over batches made ahead of time; an error in the thread is raised here.

    Args:
      batches: the stream; from now on only this object may use it.
      depth: how many batches to make ahead, at least 1.

    Raises:
      ValueError: depth is below 1.
    """

    def __init__(self, batches: StatefulBatches, depth: int = 2):
        if depth < 1:
            raise ValueError(f"Prefetch.depth = {depth} must be at least 1")
        self._batches, self._depth = batches, depth
        self._state = batches.state()
        self._start()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._failure is not None:
            raise self._failure
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._failure = item
            raise item
        batch, self._state = item
        return batch

    def state(self) -> dict[str, Any]:
        """Returns where the stream stands after the last batch that was handed out."""
        return self._state

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a state; what was made ahead is dropped.

        Raises:
          ValueError: the state is of another stream.
        """
        self.close()
        self._batches.restore(state)
        self._state = state
        self._start()

    def close(self) -> None:
        """Stops the thread; iterating further raises RuntimeError until `restore`."""
        self._stop.set()
        self._thread.join()
        self._failure = RuntimeError("the prefetched stream was closed")

    def _start(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(self._depth)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(self._queue, self._stop), name="prefetch", daemon=True
        )
        self._thread.start()

    def _run(self, made: queue.Queue[Any], stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                item = next(self._batches), self._batches.state()
            except BaseException as error:  # handed to the consumer, who raises it
                item = error
            while not stop.is_set():
                try:
                    made.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if isinstance(item, BaseException):
                return
