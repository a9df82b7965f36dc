"""What every test runs under: eight CPU devices, a kept compile cache, quiet logs, no network.

How the suite as a whole runs - costs, order, campaigns - is in `tests/suite`.

The environment is set before any test module is imported, because JAX and TensorFlow read it when
they are first imported. Processes that a test starts inherit it.
"""

import gc
import ipaddress
import os
import socket
from pathlib import Path

import hypothesis
import pytest

from tests.suite import compile_time, costs, optimizations, order, pace

_ROOT = Path(__file__).resolve().parents[1]
_DEVICE_COUNT_FLAG = "--xla_force_host_platform_device_count"


def _set_environment() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if _DEVICE_COUNT_FLAG not in xla_flags:
        os.environ["XLA_FLAGS"] = f"{xla_flags} {_DEVICE_COUNT_FLAG}=8".strip()
    # The checkout's package is the one under test in every process.
    search = [str(_ROOT / "tests" / "suite" / "children"), str(_ROOT)]
    search.append(os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, search))
    # pytest's own cache folder: ignored by git, kept between runs.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".pytest_cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # TFDS and the Hub would otherwise ask a metadata server or the network for what is not here.
    os.environ["NO_GCE_CHECK"] = "true"
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Plots without a display.
    os.environ["MPLBACKEND"] = "Agg"


def pytest_addoption(parser) -> None:
    """Adds the flag that rewrites committed expectations instead of checking them."""
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the golden files that the chosen tests compare with, then look at `git diff`",
    )


def pytest_configure(config) -> None:
    """Registers what measures, sorts and thins the suite, in workers and in what starts them."""
    is_worker = hasattr(config, "workerinput")
    meter = None
    if is_worker or not config.getoption("numprocesses", None):
        meter = costs.Meter()
        config.pluginmanager.register(meter)
    if not is_worker:
        config.pluginmanager.register(pace.Paces())
        config.pluginmanager.register(costs.Summary(meter))


def pytest_collection_modifyitems(session, config, items) -> None:
    """Marks, thins and sorts the tests."""
    costs.mark_slow(items)
    if dropped := pace.thin_campaigns(items):
        config.hook.pytest_deselected(items=dropped)
    order.sort(items)


def pytest_collection_finish(session) -> None:
    """Watches compilations from the first test on; what is there by now is no garbage."""
    import jax.monitoring

    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    compile_time.watch(jax.monitoring)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item) -> None:
    """Chooses how programs are compiled, before any fixture of the test."""
    optimizations.choose(not optimizations.is_exact(item))


def pytest_sessionfinish(session) -> None:
    """Hands over what a worker scaled down."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["scaled_down"] = pace.scaled_down


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hands tests to workers in order."""
    return order.scheduler(config, log)


@costs.import_fixture
def seqio():
    """seqio, which imports TensorFlow."""
    return pytest.importorskip("seqio")


def _is_loopback(address: object) -> bool:
    if not isinstance(address, tuple):
        return True  # A unix socket's path.
    host = str(address[0])
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_network() -> None:
    """Makes a connection that leaves the machine fail at once, with the reason."""
    connect = socket.socket.connect

    def guarded_connect(self: socket.socket, address, *args):
        if not _is_loopback(address):
            raise OSError(f"tests do not use the network: connection to {address!r} refused")
        return connect(self, address, *args)

    socket.socket.connect = guarded_connect  # type: ignore[method-assign]


# A machine may be busy with other things, so no example has a deadline; failures come again.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")
_set_environment()
_refuse_network()
