"""Work that goes wrong on command, for the tests of the guard: runs in its children."""

import json
import os
import signal
import sys
import time


def make_work(settings):
    """Doubles numbers; other items are orders to misbehave."""
    if settings.get("broken"):
        raise ImportError("this factory cannot be made")
    hoard = []

    def work(batch, begin, refused):
        results = []
        for number, item in enumerate(json.loads(batch)):
            if number in refused:
                results.append(refused[number])
                continue
            begin(number)
            if item == "spin":
                while True:
                    pass
            elif item == "sleep":
                time.sleep(1000)
            elif item == "eat":
                while True:
                    hoard.append(bytearray(1 << 24))
            elif item == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif item == "exit":
                os._exit(3)
            elif item == "raise":
                raise ArithmeticError("work failed")
            elif item == "pid":
                results.append(os.getpid())
            elif item == "environment":
                results.append(dict(os.environ))
            elif item == "path":
                results.append(sys.path)
            else:
                results.append(2 * item)
        begin(-1)
        if settings.get("die_after"):
            os._exit(5)
        return json.dumps(results).encode()

    return work
