"""Where the `gin/` and `data/` folders lie: working folder, checkout, installed copy.

This file answers with paths and imports nothing of the package, so every room may use it. What is
inside the files is the affair of those who read them.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
# setup.py copies gin/ and data/ here when it builds a wheel.
_INSTALLED = _PACKAGE / "_shipped"


def search_roots(extra: Sequence[str | Path] = ()) -> list[Path]:
    """Returns the folders in which `gin/` and `data/` are looked for, best first.

    Args:
      extra: folders to search before all others (`--gin_search_paths`).
    """
    roots = [*map(Path, extra), Path.cwd()]
    checkout = _PACKAGE.parent
    if (checkout / "setup.py").is_file():
        roots.append(checkout)
    if _INSTALLED.is_dir():
        roots.append(_INSTALLED)
    return list(dict.fromkeys(root.resolve() for root in roots))


def shown(path: Path) -> str:
    """Returns a path as a person would type it: relative to the working folder or the checkout."""
    for root in search_roots():
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return str(path)


def find_gin(name: str | Path, extra: Sequence[str | Path] = ()) -> Path:
    """Returns the gin file of that name; `recipes/x.gin` and `gin/recipes/x.gin` are the same.

    Raises:
      ValueError: there is none; the message lists the places searched and close matches.
    """
    return _find("gin", name, extra, "--gin_file", "*.gin")


def find_data(name: str | Path) -> Path:
    """Returns the file or folder of that name under `data/`.

    Raises:
      ValueError: there is none; the message lists the places searched and close matches.
    """
    return _find("data", name, (), "the name", "*")


def _find(kind: str, name: str | Path, extra: Sequence[str | Path], flag: str, pattern: str):
    path = Path(name).expanduser()
    if path.is_absolute():
        candidates, roots = [path], [path.parent]
    else:
        roots = search_roots(extra)
        candidates = [place / path for root in roots for place in (root, root / kind)]
    for candidate in candidates:
        if candidate.is_file() or (kind == "data" and candidate.is_dir()):
            return candidate.resolve()
    for candidate in candidates:
        if candidate.is_dir():
            inside = sorted(shown(p.resolve()) for p in candidate.glob(pattern))
            listing = "\n".join(f"    {entry}" for entry in inside) or "    (none)"
            raise ValueError(
                f"{name} is a folder; {flag} takes a file. {pattern} files in it:\n{listing}"
            )
    known = sorted({shown(p) for root in roots for p in _files_below(root, kind, pattern)})
    message = [f"{flag} {name}: no such file. Searched:", *(f"    {c}" for c in candidates)]
    if matches := _close(str(name), known):
        message += ["  close matches:", *(f"    {match}" for match in matches)]
    return _fail("\n".join(message))


def _fail(message: str) -> Path:
    raise ValueError(message)


def _files_below(root: Path, kind: str, pattern: str) -> list[Path]:
    """Files of a kind under a root: its `gin/` or `data/` folder and the root itself, not deeper.

    The root may be somebody's home folder, so it is not walked.
    """
    inside = [p for p in (root / kind).rglob(pattern) if p.is_file()]
    if kind == "gin":
        inside += [p for p in root.glob(pattern) if p.is_file()]
    return inside


def _close(name: str, known: Sequence[str]) -> list[str]:
    """Returns up to five known paths whose path or file name resembles the one asked for."""
    stem = Path(name).stem.lower()
    stems = {path: Path(path).stem.lower() for path in known}
    scored = sorted(
        known,
        key=lambda path: (
            -max(
                difflib.SequenceMatcher(None, stem, stems[path]).ratio(),
                difflib.SequenceMatcher(None, name, path).ratio(),
            ),
            path,
        ),
    )
    return [
        path
        for path in scored[:5]
        if difflib.SequenceMatcher(None, stem, stems[path]).ratio() > 0.5 or stem in stems[path]
    ]
