"""Processor time that XLA spends compiling, in a worker of the suite and in every process below it.

A test's cost is told without compilation, since that depends on how full the compile cache is.
Each process appends the seconds of each program to one file a worker, named by an environment
variable, so that a process that is killed later has told already.
"""

import os
import threading
import time
from pathlib import Path

LOG_VARIABLE = "T5X_TESTS_COMPILE_LOG"
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"
_watched: set[str] = set()


def watch(monitoring) -> None:
    """Has `jax.monitoring` report every compilation of this process to the log, once."""
    path = os.environ.get(LOG_VARIABLE)
    if not path or path in _watched:
        return
    _watched.add(path)
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    begun = threading.local()
    counted_secs = 0.0

    def on_duration(event: str, duration_secs: float, **_) -> None:
        # XLA compiles on several threads, so its wall time would be too little; and several threads
        # may compile at once, so what one of them has counted is not counted again.
        nonlocal counted_secs
        if event == _LOWERED:
            begun.secs = time.process_time()
        elif event == _COMPILED:
            now_secs = time.process_time()
            begun_secs = begun.__dict__.pop("secs", now_secs - duration_secs)
            secs = now_secs - max(begun_secs, counted_secs)
            counted_secs = now_secs
            os.write(log, f"{max(secs, 0.0):.6f}\n".encode())

    monitoring.register_event_duration_secs_listener(on_duration)


class CompileLog:
    """The seconds of compilation that a worker and the processes below it have logged so far."""

    def __init__(self, path: Path):
        path.touch()
        self._file = path.open()
        self._total_secs = 0.0

    def total_secs(self) -> float:
        """Returns the sum of all whole lines written so far, in processor seconds."""
        while True:
            start = self._file.tell()
            line = self._file.readline()
            if not line.endswith("\n"):
                self._file.seek(start)
                return self._total_secs
            self._total_secs += float(line)
