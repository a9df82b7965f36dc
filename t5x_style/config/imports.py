"""Which modules a gin file may name, and what to say when one cannot be imported.

With dynamic registration a gin file is code: `import subprocess` and a reference to it run any
command. So import statements are held against a list of prefixes before anything is imported, and
what a name resolves to must come from a listed package too (`artifacts.os.system` does not). That
is a fence against files that do more than they say; it is no sandbox: read a stranger's gin file as
you would read a stranger's Python.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

from t5x_style.config.errors import Place, Problem, did_you_mean, nearest

PACKAGE = "t5x_style"
# What recipes need: our own rooms, and the functions of the libraries that a model or an
# optimiser is built from.
DEFAULT_ALLOWED = (PACKAGE, "jax", "flax", "optax")


def is_allowed(module: str, allowed: Iterable[str]) -> bool:
    """Whether a module is one of the allowed ones or lies inside one."""
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in allowed)


def refusal(module: str, place: Place, allowed: Sequence[str]) -> Problem:
    """Returns the problem that a module outside the allow-list is."""
    return Problem(
        f"gin files may not import {module} (allowed: {', '.join(allowed)})",
        place,
        f"if you trust this file: --gin_allow_imports={module.split('.')[0]}",
    )


def import_module(module: str, place: Place) -> ModuleType | Problem:
    """Imports a module for a gin file; says what to do where that fails."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not (module == missing or module.startswith(f"{missing}.")):
            return Problem(
                f"{module} needs {missing}, which is not installed", place, _install_advice(missing)
            )
    parent, _, name = module.rpartition(".")
    while parent and not _is_module(parent):
        parent, _, name = parent.rpartition(".")
    if parent and hasattr(importlib.import_module(parent), name):
        grandparent, _, last = parent.rpartition(".")
        return Problem(
            f"{module} is no module; gin imports modules, not what is in them",
            place,
            f"write `from {grandparent} import {last}` and name it as {last}.{name}",
        )
    if not parent:
        return Problem(f"there is no module {module}", place, _install_advice(module))
    last = module.rpartition(".")[2]
    known = (
        modules_named(last)
        or modules_named(name)
        or [f"{parent}.{near}" for near in nearest(name, _children(parent)) if near]
    )
    lines = ["from {} import {}".format(*path.rsplit(".", 1)) for path in known]
    advice = f"did you mean `{'` or `'.join(lines)}`?" if lines else ""
    return Problem(f"there is no module {module}", place, advice)


def modules_named(name: str) -> list[str]:
    """Returns the dotted paths of this package's modules whose last part is `name`."""
    root = Path(__file__).resolve().parents[1]
    found = [path.relative_to(root) for path in root.rglob(f"{name}.py")]
    return sorted(".".join((PACKAGE, *path.with_suffix("").parts)) for path in found)


def modules_of_selector(selector: str) -> list[tuple[str, str]]:
    """Returns the modules of this package that a selector may name, each with what follows.

    The selector begins with a module's last name (`config.TransformerConfig`) or its full one.
    """
    first, _, rest = selector.partition(".")
    if first != PACKAGE:
        return [(module, rest) for module in modules_named(first)] if rest else []
    parts = selector.split(".")
    for end in range(len(parts) - 1, 1, -1):
        module = ".".join(parts[:end])
        if _is_module(module):
            return [(module, ".".join(parts[end:]))]
    return []


def suggest_import(name: str, bound_names: Iterable[str]) -> str:
    """Returns advice for a selector whose first name no import statement provides."""
    lines = ["from {} import {}".format(*path.rsplit(".", 1)) for path in modules_named(name)]
    if lines:
        return f"add the line `{'` or `'.join(lines)}`"
    return did_you_mean(name, bound_names)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ModuleNotFoundError, ValueError):
        return False


def _children(package: str) -> list[str]:
    search = getattr(importlib.import_module(package), "__path__", None)
    return [module.name for module in pkgutil.iter_modules(search)] if search else []


def _install_advice(module: str) -> str:
    """Returns the pip command that brings a module, by the extras of this package."""
    wanted = re.sub(r"[-_.]+", "-", module.split(".")[0]).lower()
    try:
        requirements = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    for requirement in requirements:
        found = re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", requirement)
        if found and re.sub(r"[-_.]+", "-", found[1]).lower() == wanted and found[2] != "all":
            return f"pip install '{PACKAGE}[{found[2]}]'"
    return ""
