"""A sentence of documentation."""

import random

import numpy as np

MACHINE = "value of the machine"


class Base:
    """A base class."""

    def method(self):
        """Some text: defined here."""


class _Hidden:
    def hidden(self):
        """Some inherited text."""


class Derived(_Hidden):
    """Derived from another."""

    def own(self, default=object()):  # noqa: B008
        """Text of its own."""


def sampled():
    pass


sampled.__doc__ = f"For example {np.random.default_rng().integers(1 << 60)} or {random.random()}."
