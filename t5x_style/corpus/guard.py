"""Child processes for work on hostile or unreliable items, and what happens when one goes wrong.

Parsing a stranger's HTML or importing a stranger's module can hang in C code, eat all memory or
crash. Here such work runs in child processes with a CPU limit for each item and a memory limit;
a child that breaks one is killed, the item is refused under a reason, and a fresh child does the
rest of the batch. The children are plain subprocesses, started without the parent's `__main__`
and with a clean path and environment; what travels between them is bytes, never pickles.

The work is a factory `module:name` called once in each child with the settings; it returns
`work(batch, begin, refused) -> bytes`, which calls `begin(i)` before it touches item i, `begin(-1)`
once it is done with items, and does not touch the items in `refused`. What the batches hold is
left to the callers.
"""

import dataclasses
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

Begin = Callable[[int], None]
Work = Callable[[bytes, Begin, Mapping[int, str]], bytes]

_BEGIN, _RESULT, _FAILED = b"b", b"r", b"f"
_EXIT_MEMORY = 77
_BATCH_CPU_SECS = 600.0
_START_SECS = 120.0
_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])
# What a child needs of the parent's environment; tokens and the like have no business there.
_ENVIRONMENT_KEPT = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV", "LANG", "TZ")
_ENVIRONMENT_SET = {
    "PYTHONHASHSEED": "0",  # the order of sets must not differ between runs
    "PYTHONWARNINGS": "ignore",
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    # Some packages ask the network who they are when imported.
    "NO_GCE_CHECK": "true",
    "HF_HUB_OFFLINE": "1",
}


@dataclasses.dataclass(frozen=True)
class GuardLimits:
    """What one item may cost.

    Attributes:
      cpu_secs: processor time, so that a busy machine refuses no more than an idle one.
      wall_secs: time on the clock, for items that sleep or wait.
      memory_bytes: address space above what a fresh child has.
    """

    cpu_secs: float = 10.0
    wall_secs: float = 120.0
    memory_bytes: int = 1 << 31


class GuardedPool:
    """A pool of guarded children; use as a context manager.

    Args:
      factory: "module:name" of the function that makes the work, called with `settings`.
      settings: JSON values for the factory.
      limits: what one item may cost.
      num_workers: children; one for each available core by default.
      fresh_process: whether each batch gets a child of its own, for work that leaves traces.
    """

    def __init__(
        self,
        factory: str,
        settings: Mapping[str, Any],
        limits: GuardLimits | None = None,
        num_workers: int | None = None,
        fresh_process: bool = False,
    ):
        self._factory = factory
        self._settings = dict(settings)
        self._limits = limits or GuardLimits()
        self._num_workers = num_workers or num_cores()
        self._fresh_process = fresh_process
        self._children: list[_Child] = []

    def __enter__(self) -> "GuardedPool":
        return self

    def __exit__(self, *exception: object) -> None:
        for child in self._children:
            child.kill()
        self._children.clear()

    def map(self, batches: Iterable[bytes]) -> Iterator[bytes]:
        """Yields the work's result for each batch, in order; a few batches are under way at once.

        Raises:
          RuntimeError: the work raised, or a child died outside any item.
        """
        waiting = (_Job(index, batch) for index, batch in enumerate(batches))
        retries: deque[_Job] = deque()
        finished: dict[int, bytes] = {}
        next_index = 0
        while True:
            while self._has_room():
                job = retries.popleft() if retries else None
                # A slow batch at the head must not let results pile up behind it.
                if job is None and len(finished) < 2 * self._num_workers:
                    job = next(waiting, None)
                if job is None:
                    break
                self._idle_child().start(job)
            busy = [child for child in self._children if child.job is not None]
            if not busy:
                return
            for job in self._attend(busy):
                if job.result is None:
                    retries.append(job)
                else:
                    finished[job.index] = job.result
            while next_index in finished:
                yield finished.pop(next_index)
                next_index += 1

    def _has_room(self) -> bool:
        is_idle = any(child.job is None for child in self._children)
        return is_idle or len(self._children) < self._num_workers

    def _idle_child(self) -> "_Child":
        for child in self._children:
            if child.job is None:
                return child
        self._children.append(_Child(self._factory, self._settings, self._limits))
        return self._children[-1]

    def _attend(self, busy: list["_Child"]) -> Iterator["_Job"]:
        """Waits for news and yields the jobs that are done, or (no result) to be done again."""
        soonest = min(child.deadline for child in busy)
        ready = wait([c.connection for c in busy], max(0.0, soonest - time.monotonic()))
        for child in busy:
            job = child.job
            assert job is not None
            if child.connection in ready:
                child.hear()
            elif time.monotonic() >= child.deadline:
                child.fail("timeout")
            if child.job is not None:
                continue
            if child.is_dead or self._fresh_process:
                child.kill()
                self._children.remove(child)
            yield job


@dataclasses.dataclass
class _Job:
    index: int
    batch: bytes
    refused: dict[int, str] = dataclasses.field(default_factory=dict)
    result: bytes | None = None


class _Child:
    """One child process and the batch it works on."""

    def __init__(self, factory: str, settings: Mapping[str, Any], limits: GuardLimits):
        self.connection, theirs = Pipe()
        self.job: _Job | None = None
        self.deadline = math.inf
        self.is_dead = False
        self._limits = limits
        self._item = -1
        # The parent's path goes to the end: it can add modules, but not take the place of any.
        paths = [_PACKAGE_ROOT, *(path for path in sys.path if path)]
        code = (
            "import sys; sys.path.extend(p for p in sys.argv[2:] if p not in sys.path); "
            "from t5x_style.corpus import guard; guard.serve(int(sys.argv[1]))"
        )
        kept = {name: os.environ[name] for name in _ENVIRONMENT_KEPT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-c", code, str(theirs.fileno()), *paths],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=tempfile.gettempdir(),
            env=kept | _ENVIRONMENT_SET | {"HOME": tempfile.gettempdir()},
        )
        theirs.close()
        order = {
            "factory": factory,
            "settings": settings,
            "parent": os.getpid(),
            **dataclasses.asdict(limits),
        }
        self.connection.send_bytes(json.dumps(order).encode())

    def start(self, job: _Job) -> None:
        self.job, self._item = job, -1
        self.deadline = time.monotonic() + _START_SECS + self._limits.wall_secs
        try:
            self.connection.send_bytes(json.dumps(job.refused).encode())
            self.connection.send_bytes(job.batch)
        except OSError:
            pass  # it died; the end of its pipe is heard next

    def hear(self) -> None:
        """Takes one message; when it ends the job, `job` is None afterwards."""
        assert self.job is not None
        try:
            message = self.connection.recv_bytes()
        except (EOFError, OSError):
            self.fail(self._reason_of_death())
            return
        kind, content = message[:1], message[1:]
        if kind == _BEGIN:
            self._item = int(content)
            self.deadline = time.monotonic() + self._limits.wall_secs
        elif kind == _RESULT:
            self.job.result = content
            self.job, self.deadline = None, math.inf
        else:
            raise RuntimeError(f"a guarded child failed:\n{content.decode('utf-8', 'replace')}")

    def _reason_of_death(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return "timeout"
        # Nobody but the system's own out-of-memory killer sends SIGKILL behind our back.
        return "memory" if code in (_EXIT_MEMORY, -signal.SIGKILL) else "crash"

    def fail(self, reason: str) -> None:
        """Ends the child and refuses the item it was at; the rest of its job is to be redone."""
        job, self.job, self.is_dead = self.job, None, True
        self.kill()
        assert job is not None
        if self._item < 0 or self._item in job.refused:
            raise RuntimeError(
                f"a guarded child ended ({reason}, exit status {self._process.returncode}) outside "
                f"any item of batch {job.index}"
            )
        job.refused[self._item] = reason

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.connection.close()


def num_cores() -> int:
    """Returns the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def serve(file_descriptor: int) -> None:
    """Runs in the child: takes batches from the pipe until the parent closes it."""
    import resource

    connection = Connection(file_descriptor)
    order = json.loads(connection.recv_bytes())
    die_with_parent(order["parent"])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def limit_cpu(secs: float) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        used = sum(os.times()[:2])
        soft = math.ceil(used + secs)
        resource.setrlimit(
            resource.RLIMIT_CPU,
            (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard),
        )

    def begin(item: int) -> None:
        limit_cpu(order["cpu_secs"] if item >= 0 else _BATCH_CPU_SECS)
        connection.send_bytes(_BEGIN + str(item).encode())

    try:
        module, _, name = order["factory"].partition(":")
        work: Work = getattr(importlib.import_module(module), name)(order["settings"])
        _limit_memory(order["memory_bytes"])
        while True:
            refused = {int(i): why for i, why in json.loads(connection.recv_bytes()).items()}
            batch = connection.recv_bytes()
            result = work(batch, begin, refused)
            connection.send_bytes(_RESULT + result)
    except EOFError:
        os._exit(0)
    except MemoryError:
        # No clean-up: a process out of memory may not manage it. The parent knows the item.
        os._exit(_EXIT_MEMORY)
    except BaseException:
        connection.send_bytes(_FAILED + traceback.format_exc().encode())
        os._exit(1)


def _limit_memory(above_bytes: int) -> None:
    """Caps the address space at its present size and `above_bytes` (where the system can)."""
    import resource

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        pages = 0
    most = pages * resource.getpagesize() + above_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def die_with_parent(parent: int) -> None:
    """Asks Linux to kill this process when the parent ends, even in the midst of C code."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the request
        os._exit(1)
