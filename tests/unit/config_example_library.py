"""A verb in which a library, not the verb, raises a ValueError; no part of the package."""

import json


def verb() -> None:
    """Stands for a bug: damaged JSON that nothing has guarded against."""
    json.loads("{")
