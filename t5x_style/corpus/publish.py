"""The quickstart's crawl: the documentation of this machine, published and stored as WARC.

Real input that needs no network. Lists what is installed without importing any of it, has it
rendered in guarded children (`pydoc_pages`), one fresh process for each batch, and writes their
records into WARC files. Knows nothing of what is done with them.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pkgutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from t5x_style import __version__
from t5x_style.corpus.guard import GuardedPool, GuardLimits
from t5x_style.corpus.warc_writer import warcinfo_record
from t5x_style.progress import progress

# Left out: what opens windows or browsers, talks when imported, or holds no documentation.
_UNWANTED = {"antigravity", "this", "idlelib", "turtledemo", "turtle", "lib2to3", "pydoc_data"}
_UNWANTED_PARTS = ("test", "conftest", "_", "vendor")


@dataclasses.dataclass(frozen=True)
class PublishSettings:
    """What is published.

    Attributes:
      packages: importable names; "stdlib" stands for the standard library. Those not installed
        are counted and left out.
      topics: whether pydoc's help topics are published.
      distributions: whether descriptions and licences of all installed distributions are.
      host: made-up host of the pages; `.localhost` leads nowhere else.
      date: WARC-Date of all records.
      dump: name of the crawl, `isPartOf` of its files.
      absent: packages that count as not installed while others are imported: they would take more
        time than all pages together. Modules that cannot do without them are left out.
      modules_per_process: modules that are rendered in one process.
      bytes_per_file: size after which a new WARC file is begun.
    """

    packages: tuple[str, ...] = (
        "stdlib",
        "scipy",
        "jax",
        "numpy",
        "flax",
        "optax",
        "orbax",
        "pyarrow",
        "rich",
        "absl",
        "etils",
        "lxml",
        "trafilatura",
        "sentencepiece",
        "tensorstore",
        "gin",
    )
    topics: bool = True
    distributions: bool = True
    host: str = "http://docs.localhost"
    date: str = "2024-01-01T00:00:00Z"
    dump: str = "DOCS-2024-01"
    absent: tuple[str, ...] = ("tensorflow", "torch")
    modules_per_process: int = 64
    bytes_per_file: int = 1 << 22


def module_names(package: str) -> list[str]:
    """Returns the names of a package's modules, found without importing any.

    Raises:
      ValueError: there is no such package.
    """
    if package == "stdlib":
        tops = [name for name in sorted(sys.stdlib_module_names) if _is_wanted(name)]
        return [name for top in tops for name in _walk(top)]
    names = list(_walk(package))
    if not names:
        raise ValueError(f"no package {package!r} is installed")
    return names


def _walk(top: str) -> Iterator[str]:
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return
    yield top
    yield from _walk_folders(top, list(spec.submodule_search_locations or ()))


def _walk_folders(prefix: str, folders: Sequence[str]) -> Iterator[str]:
    for module in sorted(pkgutil.iter_modules(folders), key=lambda module: module.name):
        if not _is_wanted(module.name):
            continue
        name = f"{prefix}.{module.name}"
        yield name
        if module.ispkg:
            yield from _walk_folders(name, [os.path.join(path, module.name) for path in folders])


def _is_wanted(name: str) -> bool:
    return name not in _UNWANTED and not name.startswith(_UNWANTED_PARTS)


def installed_versions() -> dict[str, str]:
    """Returns name and version of Python and of every installed distribution."""
    versions = {"python": sys.version.split()[0]}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            versions[name] = distribution.version
    return dict(sorted(versions.items()))


def plan(settings: PublishSettings) -> tuple[list[list[tuple[str, str]]], Counter[str]]:
    """Lists the pages to publish.

    Returns:
      Batches of (kind, name), each for one process; and the count of packages not found.
    """
    missing: Counter[str] = Counter()
    batches: list[list[tuple[str, str]]] = []
    all_modules: list[str] = []
    for package in settings.packages:
        try:
            names = module_names(package)
        except ValueError:
            missing["package_not_installed"] += 1
            continue
        all_modules += names
        size = settings.modules_per_process
        batches += [
            [("module", name) for name in names[start : start + size]]
            for start in range(0, len(names), size)
        ]
    if settings.topics:
        from pydoc_data.topics import topics

        batches.append([("topic", name) for name in sorted(topics)])
    if settings.distributions:
        names = [name for name in installed_versions() if name not in ("python", "t5x_style")]
        batches.append([("readme", name) for name in names])
        batches.append([("license", name) for name in names])
    batches.append([("index", " ".join(all_modules))])
    return batches, missing


def publish(
    folder: str | os.PathLike[str],
    settings: PublishSettings,
    limits: GuardLimits,
    num_workers: int | None = None,
) -> dict[str, Any]:
    """Renders all pages and writes them as `crawl-00000.warc.gz`, ... into the folder.

    Args:
      folder: existing folder.
      settings: what to publish.
      limits: what one page may cost.
      num_workers: processes; one for each available core by default.

    Returns:
      Counts: pages, html_bytes, warc_bytes, files, failed (by reason).
    """
    batches, failed = plan(settings)
    files = _WarcFiles(Path(folder), settings)
    html_bytes = 0
    order = {"host": settings.host, "date": settings.date, "absent": settings.absent}
    payloads = [json.dumps(batch).encode() for batch in batches]
    with GuardedPool(
        "t5x_style.corpus.pydoc_pages:make_renderer",
        order,
        limits,
        num_workers=num_workers,
        fresh_process=True,
    ) as pool:
        for result in progress(pool.map(payloads), len(payloads), "crawl", "batches"):
            head_line, _, records = result.partition(b"\n")
            head = json.loads(head_line)
            html_bytes += head["html_bytes"]
            failed.update(head["failed"])
            start = 0
            for length in head["lengths"]:
                files.add(records[start : start + length])
                start += length
    files.close()
    return {
        "pages": files.num_records,
        "html_bytes": html_bytes,
        "warc_bytes": files.num_bytes,
        "files": files.num_files,
        "failed": dict(sorted(failed.items())),
    }


class _WarcFiles:
    """WARC files of about equal size, each opened by a warcinfo record."""

    def __init__(self, folder: Path, settings: PublishSettings):
        self._folder = folder
        self._settings = settings
        self._records: list[bytes] = []
        self._held_bytes = 0
        self.num_files = self.num_records = self.num_bytes = 0

    def add(self, record: bytes) -> None:
        self._records.append(record)
        self._held_bytes += len(record)
        self.num_records += 1
        if self._held_bytes >= self._settings.bytes_per_file:
            self.close()

    def close(self) -> None:
        """Writes the records that are held as a file."""
        if not self._records:
            return
        name = f"crawl-{self.num_files:05d}.warc.gz"
        fields = {
            "software": f"t5x_style/{__version__}",
            "format": "WARC File Format 1.0",
            "isPartOf": self._settings.dump,
            "description": "documentation installed with Python, rendered by pydoc",
        }
        content = warcinfo_record(name, self._settings.date, fields) + b"".join(self._records)
        (self._folder / name).write_bytes(content)
        self.num_files += 1
        self.num_bytes += len(content)
        self._records, self._held_bytes = [], 0
