"""Timing of compiled functions in this process, for benchmarks without a peer."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax


class Timing(NamedTuple):
    """Median of several calls, and what the compiler set aside for one.

    Attributes:
      secs: wall time.
      cpu_secs: of all threads of this process.
      temp_bytes: temporary memory, arguments and results not counted.
    """

    secs: float
    cpu_secs: float
    temp_bytes: int


def measure(function: Callable[..., Any], args: Sequence[jax.Array], *, rounds: int) -> Timing:
    """Compiles a function for its arguments and calls it, once more than `rounds` to warm up."""
    compiled = jax.jit(function).lower(*args).compile()
    secs, cpu_secs = [], []
    for _ in range(rounds + 1):
        start_secs, start_cpu_secs = time.perf_counter(), time.process_time()
        jax.block_until_ready(compiled(*args))
        secs.append(time.perf_counter() - start_secs)
        cpu_secs.append(time.process_time() - start_cpu_secs)
    memory = compiled.memory_analysis()
    return Timing(
        statistics.median(secs[1:]),
        statistics.median(cpu_secs[1:]),
        memory.temp_size_in_bytes if memory else 0,
    )
