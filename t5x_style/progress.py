"""Progress of long stages: a bar on a terminal, plain lines everywhere else.

One helper for all verbs, so that logs look alike. Training has its own metrics lines.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

Item = TypeVar("Item")


def progress(
    iterable: Iterable[Item],
    total: int | None = None,
    description: str = "",
    unit: str = "items",
    every_secs: float = 10.0,
    stream: TextIO | None = None,
) -> Iterator[Item]:
    """Yields from `iterable` and reports how far it is.

    Args:
      iterable: what to go through.
      total: number of items if known; defaults to `len(iterable)` where it has one.
      description: name of the work, at the start of each line.
      unit: plural noun for the items.
      every_secs: seconds between plain lines; a bar refreshes by itself.
      stream: where to write; standard error by default.
    """
    output: TextIO = stream or sys.stderr
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # pyright: ignore[reportArgumentType]
    if output.isatty():
        from tqdm import tqdm

        # tqdm's monitor thread would outlive the bar and make a later fork unsafe.
        tqdm.monitor_interval = 0
        yield from tqdm(iterable, desc=description, total=total, unit=f" {unit}", file=output)
        return
    yield from _plain_lines(iterable, total, description, unit, every_secs, output)


def _plain_lines(
    iterable: Iterable[Item],
    total: int | None,
    description: str,
    unit: str,
    every_secs: float,
    stream: TextIO,
) -> Iterator[Item]:
    start = last = time.monotonic()
    count = 0
    of_total = "" if total is None else f" of {total}"

    def say() -> None:
        secs = time.monotonic() - start
        print(f"{description}: {count}{of_total} {unit}, {secs:.0f} s", file=stream, flush=True)

    for item in iterable:
        yield item
        count += 1
        if time.monotonic() - last >= every_secs:
            say()
            last = time.monotonic()
    say()
