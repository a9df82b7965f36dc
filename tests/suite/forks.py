"""Processes that use JAX, started in a fraction of the time that its import takes.

A server process imports what is slow to import, once for each worker of the suite, and forks for
each process that a test asks for, before any backend of JAX is up. To a test it looks like
`subprocess.Popen`: a process of its own that can be killed, stopped and waited for.

    process = forks.start("tests.faults.job", [folder, settings], {"XLA_FLAGS": ""})
    text, _ = process.communicate(timeout=60)
"""

import atexit
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.suite import optimizations

_ROOT = Path(__file__).resolve().parents[2]
_PRELOADED = ("tests.faults.job", "tests.faults.ppo_run")
_LIMIT_BYTES = 1 << 20


class ForkedProcess:
    """A process that the server forked; the part of `subprocess.Popen` that tests use."""

    def __init__(self, server: "_Server", pid: int, output: int):
        self.pid = pid
        self._server = server
        self._output = output

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None until the end has been noticed."""
        return self._server.exit_codes.get(self.pid)

    def poll(self) -> int | None:
        """Returns the exit code, or None while the process runs."""
        self._server.listen(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end; raises `subprocess.TimeoutExpired` after so many seconds."""
        end_secs = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end_secs is not None and time.monotonic() > end_secs:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self._server.listen(0.5)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Waits for the end and returns what was printed on either stream, and None."""
        self.wait(timeout)
        with open(self._output, encoding="utf-8", errors="replace", closefd=False) as file:
            file.seek(0)
            return file.read(), None

    def send_signal(self, number: int) -> None:
        """Sends a signal unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kills the process, without a word."""
        self.send_signal(signal.SIGKILL)


class _Server:
    """The client's side of the server process."""

    def __init__(self):
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.suite.forks", str(other.fileno())]
        self._process = subprocess.Popen(command, cwd=_ROOT, pass_fds=[other.fileno()])
        other.close()
        self._outputs: list[int] = []
        self._started: int | None = None
        self.exit_codes: dict[int, int] = {}
        self.processor_secs = 0.0

    def start(self, module, arguments, environment) -> ForkedProcess:
        output = os.memfd_create("output")
        self._outputs.append(output)
        request = json.dumps([module, [*map(str, arguments)], dict(environment)]).encode()
        assert len(request) < _LIMIT_BYTES
        socket.send_fds(self._socket, [request], [output])
        while self._started is None:
            self.listen(None)
        pid, self._started = self._started, None
        return ForkedProcess(self, pid, output)

    def listen(self, timeout_secs: float | None) -> bool:
        """Takes one message of the server, if there is one within so many seconds."""
        self._socket.settimeout(timeout_secs)
        try:
            message = self._socket.recv(_LIMIT_BYTES)
        except (BlockingIOError, TimeoutError):
            return False
        if not message:
            raise RuntimeError(f"the fork server ended with code {self._process.wait()}")
        pid, exit_code, secs = json.loads(message)
        if exit_code is None:
            self._started = pid
        else:
            self.exit_codes[pid] = exit_code
            self.processor_secs += secs
        return True

    def stop(self) -> None:
        self._socket.close()
        self._process.wait()
        for output in self._outputs:
            os.close(output)


_server: _Server | None = None


def start(
    module: str, arguments: Sequence[object], environment: Mapping[str, str]
) -> ForkedProcess:
    """Calls a module's `main` with arguments, as strings, and variables beside this process's."""
    global _server
    if _server is None:
        _server = _Server()
        atexit.register(stop)
    return _server.start(module, arguments, {**os.environ, **environment})


def processor_secs() -> float:
    """Returns what ended processes have spent, which the system adds to the server's children."""
    if _server is None:
        return 0.0
    while _server.listen(0.0):
        pass
    return _server.processor_secs


def stop() -> None:
    """Ends the server, so that what it spent is this process's."""
    global _server
    if _server is not None:
        _server.stop()
        _server = None


def _serve(channel: socket.socket) -> tuple[str, list[str], dict[str, str]] | None:
    """Forks for each request; returns None to the server at its end, the request to each child."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    selector = selectors.DefaultSelector()
    selector.register(channel, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    living = set()
    while True:
        ready = {key.fileobj for key, _ in selector.select()}
        if woken in ready:
            os.read(woken, 1 << 16)
            while living:
                pid, status, used = os.wait4(-1, os.WNOHANG)
                if not pid:
                    break
                living.discard(pid)
                code, secs = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
                channel.send(json.dumps([pid, code, secs]).encode())
        if channel not in ready:
            continue
        request, outputs, _, _ = socket.recv_fds(channel, _LIMIT_BYTES, 1)
        if not request:
            for pid in living:
                os.kill(pid, signal.SIGKILL)
            return None
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in (1, 2):
                os.dup2(outputs[0], number)
            for descriptor in (outputs[0], woken, waker):
                os.close(descriptor)
            selector.close()
            channel.close()
            return json.loads(request)
        living.add(pid)
        os.close(outputs[0])
        channel.send(json.dumps([pid, None, 0.0]).encode())


def _main() -> None:
    for name in _PRELOADED:
        importlib.import_module(name)
    channel = socket.socket(fileno=int(sys.argv[1]))
    if request := _serve(channel):
        # From here on a process like any other, to the normal end of the interpreter.
        module, arguments, environment = request
        os.environ.clear()
        os.environ.update(environment)
        optimizations.follow_environment()
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        importlib.import_module(module).main(arguments)


if __name__ == "__main__":
    _main()
