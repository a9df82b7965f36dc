"""The corpus room: what each part of curation gets through in a second of one core.

    python -m tests.bench.corpus [--pages 400] [--runs 5]

Made-up pages of about 10 kB. Parts run in turns in one process; medians of processor time are
printed, which other work on the machine disturbs least. FastWARC is the peer for reading records;
it is faster, and gives up at the first damaged one. Asserts nothing.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from fastwarc.warc import ArchiveIterator

from t5x_style.corpus.documents import Funnel
from t5x_style.corpus.pages import PageSettings, read_pages
from t5x_style.corpus.wanjuan_cc.clean import CleanSettings, clean
from t5x_style.corpus.wanjuan_cc.dedup import DedupSettings, find_duplicates, minhash_signatures
from t5x_style.corpus.wanjuan_cc.raw import RawSettings, extract
from t5x_style.corpus.warc import read_warc
from tests.unit.web_archives import html_page, prose, write_archive


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=400)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pages = [
            (f"http://example.org/{seed}", html_page(prose(seed, 20, 5)))
            for seed in range(arguments.pages)
        ]
        archive = write_archive(Path(folder) / "x.warc.gz", pages)
        table = pa.concat_tables(read_pages(archive, PageSettings(), Funnel()))
        raw, _ = extract(table, RawSettings())
        texts = raw["text"].to_pylist()
        slow = dataclasses.replace(RawSettings(), extractor="trafilatura")

        def some(numbers):
            return texts if numbers is None else [texts[number] for number in numbers]

        def fastwarc():
            with archive.open("rb") as file:
                return sum(len(record.reader.read()) for record in ArchiveIterator(file))

        ids = raw["id"].to_pylist()
        parts: dict[str, Callable[[], object]] = {
            "read records": lambda: sum(1 for _ in read_warc(archive, Counter())),
            "read records, FastWARC": fastwarc,
            "raw, resiliparse": lambda: extract(table, RawSettings()),
            "raw, trafilatura": lambda: extract(table, slow),
            "clean": lambda: clean(raw, CleanSettings()),
            "dedup, signatures": lambda: minhash_signatures(texts, DedupSettings()),
            "dedup, all": lambda: find_duplicates(
                ids, [("", "")] * len(ids), some, DedupSettings()
            ),
        }
        secs: dict[str, list[float]] = {name: [] for name in parts}
        for run in range(arguments.runs + 1):
            for name, part in parts.items():
                start = time.process_time()
                part()
                if run:  # the first warms up
                    secs[name].append(time.process_time() - start)
    html_mb = sum(len(body) for _, body in pages) / 1e6
    text_mb = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(pages)} pages, {html_mb:.1f} MB of HTML, {text_mb:.1f} MB of text")
    print(f"{'part':<24} {'documents/s':>12} {'MB/s':>8}")
    for name, times in secs.items():
        median = statistics.median(times)
        size = html_mb if name.startswith(("read", "raw")) else text_mb
        print(f"{name:<24} {len(pages) / median:>12.0f} {size / median:>8.1f}")


if __name__ == "__main__":
    main()
