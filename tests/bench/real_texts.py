"""Real text from folders of whatever documents a machine has, for benchmarks of the corpus room.

Plain and marked-up text, HTML, and the archives of them (zip, tar.gz, gz) that data sets and
packages come in. Text is cut into documents of a few hundred words at ends of lines, in an order
that the seed alone decides; of documents with the same words one is left.
"""

import gzip
import os
import random
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

_TEXT = (".txt", ".rst", ".md", ".tokens", ".news", ".readme", "changelog", "copyright")
_HTML = (".html", ".htm")
_MOST_BYTES = 1 << 22
# Brown's words carry their parts of speech.
_TAGGED = re.compile(r"(\S+)/[a-z*$+'-]+(?=\s)")


def read_documents(
    folders: Sequence[str], num_documents: int, seed: int, words: tuple[int, int] = (60, 400)
) -> list[str]:
    """Returns documents of the texts below folders, at most `num_documents`."""
    rng = random.Random(seed)
    files = sorted(path for folder in folders for path in _files(folder))
    rng.shuffle(files)
    documents: dict[str, str] = {}
    for path in files:
        for text in _texts(path):
            for document in _cut(text, rng, words):
                documents.setdefault(" ".join(re.findall(r"\w+", document.lower())), document)
        if len(documents) >= num_documents:
            break
    found = list(documents.values())[:num_documents]
    rng.shuffle(found)
    return found


def _files(folder: str) -> Iterator[str]:
    if os.path.isfile(folder):
        yield folder
    for parent, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(parent, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield path


def _texts(path: str) -> Iterator[str]:
    name = path.lower()
    if os.path.getsize(path) > _MOST_BYTES and not name.endswith((".zip", ".gz")):
        return
    if name.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.file_size < _MOST_BYTES and not member.is_dir():
                    yield _plain(member.filename.lower() + ".txt", archive.read(member))
    elif name.endswith((".tar.gz", ".tgz")):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isfile() else None
                if file and member.size < _MOST_BYTES:
                    yield _plain(member.name.lower(), file.read())
    elif name.endswith(".gz"):
        with gzip.open(path) as file:
            yield _plain(name.removesuffix(".gz"), file.read(_MOST_BYTES))
    elif name.endswith((*_TEXT, *_HTML)):
        yield _plain(name, Path(path).read_bytes())


def _plain(name: str, content: bytes) -> str:
    if not name.endswith((*_TEXT, *_HTML)):
        return ""
    try:
        text = content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return ""
    if name.endswith(_HTML):
        from resiliparse.extract.html2text import extract_plain_text

        return extract_plain_text(text, main_content=True)
    return _TAGGED.sub(r"\1", text) if "brown/" in name else text


def _cut(text: str, rng: random.Random, words: tuple[int, int]) -> Iterator[str]:
    held: list[str] = []
    size, most = 0, rng.randint(*words)
    for line in text.split("\n"):
        held.append(line)
        size += len(line.split())
        if size >= most:
            yield "\n".join(held).strip("\n")
            held, size, most = [], 0, rng.randint(*words)
    if size >= words[0]:
        yield "\n".join(held).strip("\n")
