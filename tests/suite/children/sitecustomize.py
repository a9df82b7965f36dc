"""Imported by each Python process that a test starts: its compilations are logged if JAX is used.

JAX is not imported for that; the import of `jax.monitoring`, whoever asks for it, is waited for.
"""

import importlib.util
import sys


class _MonitoringFinder:
    """Finds `jax.monitoring` once, and has it watched when it has been executed."""

    def find_spec(self, name, path=None, target=None):
        if name != "jax.monitoring":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_watch(module):
            from tests.suite import compile_time

            execute(module)
            compile_time.watch(module)

        spec.loader.exec_module = execute_and_watch
        return spec


sys.meta_path.insert(0, _MonitoringFinder())
