"""Programs are compiled without XLA's expensive optimizations, unless a test says that it is exact.

That takes a quarter of the time to compile and is all that most tests need. Tests marked `exact`,
where bits, golden values or plans are compared, are compiled as they are for users. Between the two
every compiled program is dropped, so that none of one kind is met by a test of the other.
"""

import os
import sys

VARIABLE = "JAX_DISABLE_MOST_OPTIMIZATIONS"


def is_exact(item) -> bool:
    """Returns whether a test's programs are compiled as they are for users."""
    return item.get_closest_marker("exact") is not None


def choose(are_skipped: bool) -> None:
    """Sets how this process and those that it starts compile from here on."""
    if os.environ.get(VARIABLE) == str(int(are_skipped)):
        return
    os.environ[VARIABLE] = str(int(are_skipped))
    follow_environment()


def follow_environment() -> None:
    """Has JAX do what the environment says, also if it has been imported before."""
    if jax := sys.modules.get("jax"):
        jax.config.update("jax_disable_most_optimizations", os.environ.get(VARIABLE) == "1")
        jax.clear_caches()
