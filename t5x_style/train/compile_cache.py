"""Compiled programs kept on disk between starts, and how long compiling took.

What lies in the folder is run when it is read, so it belongs to its user alone.
"""

import functools
import os
import stat
import warnings
from pathlib import Path

import jax

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_KEEP_EVERYTHING = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": 0,
}
_total_secs = 0.0


def default_folder() -> Path:
    """Returns the per-user folder for compiled programs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "t5x_style" / "jax"


def enable() -> None:
    """Turns jax's compilation cache on, in a folder that nobody else can read or write.

    A folder that the user has set (`JAX_COMPILATION_CACHE_DIR`) stays as it is. Where no safe
    folder can be had, a warning says so and programs are compiled at each start.
    """
    _listen()
    # Starting a run compiles dozens of small programs besides the step; together they count.
    for name, value in _KEEP_EVERYTHING.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = default_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid != os.getuid():
            raise PermissionError(f"it belongs to user {status.st_uid}")
        if stat.S_IMODE(status.st_mode) & 0o077:
            folder.chmod(0o700)
    except OSError as error:
        warnings.warn(f"no compilation cache in {folder}: {error}", stacklevel=2)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def compile_secs() -> float:
    """Returns the seconds spent compiling, or reading compiled programs, since `enable`."""
    return _total_secs


@functools.cache
def _listen() -> None:
    def add(event: str, duration_secs: float, **_: str | int) -> None:
        global _total_secs
        if event == _COMPILE_EVENT:
            _total_secs += duration_secs

    jax.monitoring.register_event_duration_secs_listener(add)
