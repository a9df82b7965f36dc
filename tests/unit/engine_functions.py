"""What the tests of the engine run in other processes."""

import os
import signal
import time
from pathlib import Path


def square(number):
    return number * number


def fail_on_three(number):
    if number == 3:
        raise ValueError("three is refused")
    return number


def die_once(item):
    """Kills its process the first time it is called for an item that says so."""
    number, folder = item
    mark = Path(folder) / f"died-{number}"
    if number % 4 == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return number


def die_always(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number
