"""Workers that live through a whole comparison and take turns, for benchmarks against peers.

Each worker is a process that reads one JSON request a line and answers one JSON line. Rounds run
A B, B A, A B, ..., so that a machine that slows down or speeds up favours nobody. The workers start
on the same number of processors, to which they and their threads are bound.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Memory in 2 MiB pages, and kept once it was had: spares the page faults that the temporary memory
# of each call costs on a CPU. To be had by whoever is compared.
HUGE_PAGES = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4000000000"
    ":glibc.malloc.trim_threshold=4000000000"
}

_ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """A process that answers requests.

    Args:
      command: what to start.
      num_threads: processors that it may use.
      environment: added to this process's own.
    """

    def __init__(
        self, command: Sequence[str], num_threads: int, environment: Mapping[str, str] | None = None
    ):
        processors = sorted(os.sched_getaffinity(0))[:num_threads]
        self._process = subprocess.Popen(
            ["taskset", "-c", ",".join(map(str, processors)), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(num_threads), **(environment or {})},
        )

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the worker's answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"worker ended with code {self._process.wait()}")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process by closing its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answers requests until the input ends; for use inside a worker.

    To each answer are added the seconds and processor seconds it took, as `secs` and `cpu_secs`.
    """
    # What libraries print must not be taken for an answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        start_secs, start_cpu_secs = time.perf_counter(), time.process_time()
        reply = answer(request)
        reply["secs"] = time.perf_counter() - start_secs
        reply["cpu_secs"] = time.process_time() - start_cpu_secs
        print(json.dumps(reply), file=answers, flush=True)


def alternate(
    workers: Mapping[str, Worker], request: Mapping[str, Any], *, rounds: int, warmups: int = 2
) -> dict[str, list[dict[str, Any]]]:
    """Asks all workers the same thing, in turns.

    Returns:
      Name to its answers, one for each round; those of the warm-up are thrown away.
    """
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for number in range(warmups + rounds):
        for name in list(workers) if number % 2 else reversed(list(workers)):
            answer = workers[name].ask(request)
            if number >= warmups:
                answers[name].append(answer)
    return answers


def summary(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns median and least seconds, and median processor seconds."""
    secs = [answer["secs"] for answer in answers]
    cpu_secs = [answer["cpu_secs"] for answer in answers]
    return {
        "median": statistics.median(secs),
        "least": min(secs),
        "cpu": statistics.median(cpu_secs),
    }
