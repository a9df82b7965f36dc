"""Lists of what is not wanted: domains, and words and phrases.

A list is text, one entry a line; what follows a `#` is a comment. Public lists hold millions of
domains, so these are kept as sorted 64-bit hashes: 13 million take 104 MB, and one in 10^12 lookups
is wrong.
"""

import contextlib
import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from t5x_style.config.paths import find_data

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
# No host can have a longer name, and all that it lies under are looked up.
_HOST_CHARS = 254


class Domains:
    """A set of domains; a host is in it if it, or a domain that it lies under, is."""

    def __init__(self, names: Iterable[str]):
        hashes = np.fromiter((_hash(name) for name in names), np.uint64)
        self._hashes = np.unique(hashes)

    def __len__(self) -> int:
        return len(self._hashes)

    def has_host_of(self, url: str) -> bool:
        """Whether the host of an address is in the set; False for what is no address."""
        try:
            host = urlsplit(url).hostname or ""
        except ValueError:
            return False
        if len(host) > _HOST_CHARS:
            return False
        labels = host.rstrip(".").split(".")
        parents = [".".join(labels[start:]) for start in range(len(labels))]
        hashes = np.array([_hash(name) for name in parents], np.uint64)
        places = np.searchsorted(self._hashes, hashes)
        is_within = places < len(self._hashes)
        return bool(np.any(self._hashes[places[is_within]] == hashes[is_within]))


class Words:
    """A set of words and of phrases of several words, compared without case."""

    def __init__(self, phrases: Iterable[str]):
        self._by_first: dict[str, set[tuple[str, ...]]] = {}
        for phrase in phrases:
            if words := tuple(words_of(phrase)):
                self._by_first.setdefault(words[0], set()).add(words)

    def __len__(self) -> int:
        return sum(map(len, self._by_first.values()))

    def count(self, words: Sequence[str]) -> int:
        """Returns how often phrases of the set stand in a text, given by its `words_of`."""
        return sum(
            tuple(words[start : start + len(phrase)]) == phrase
            for start, word in enumerate(words)
            for phrase in self._by_first.get(word, ())
        )


def words_of(text: str) -> list[str]:
    """Returns the words of a text, case folded: runs of letters and digits, apostrophes within."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def list_path(name: str | os.PathLike[str]) -> Path:
    """Returns where a list lies, given as a path or as a name under `data/`.

    Raises:
      ValueError: there is no such file.
    """
    path = Path(name)
    return path if path.is_file() else find_data(path)


def read_list(name: str | os.PathLike[str]) -> Iterator[str]:
    """Yields the entries of a list (`list_path`).

    Raises:
      ValueError: there is no such file, or it holds no text.
    """
    path = list_path(name)
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if entry := line.partition("#")[0].strip():
                    yield entry
    except UnicodeDecodeError as error:
        raise ValueError(f"the list {path} is no UTF-8 text: {error}") from error


def _hash(domain: str) -> int:
    name = domain.casefold().removeprefix("www.")
    with contextlib.suppress(UnicodeError):
        name = name.encode("idna").decode("ascii")
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
