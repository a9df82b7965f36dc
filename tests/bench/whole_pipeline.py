"""Web archives to documents, all stages in one process, against the same of datatrove.

    python -m tests.bench.whole_pipeline ARCHIVE ... --datatrove=PYTHON [--copies 3] [--runs 3]

Both read the archives given, some times over under other names, so that near-duplicates are not
few. Ours: Raw (as by default), Clean with the published thresholds, Dedup, Safe, High-Quality
without models. datatrove: URL filter, trafilatura as in its own recipe of FineWeb, the rules of
Gopher, C4 and FineWeb, MinHash in four steps with 16 bands of 8 rows, masking of personal data,
JSON Lines; its language filter is left out, as it downloads its model. Seconds are of processor
time, of the process and its children, without imports. Runs alternate. Asserts nothing.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archives", nargs="+")
    parser.add_argument("--datatrove", help="a Python with datatrove and what its blocks want")
    parser.add_argument("--copies", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--do", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.do:
        (archives,) = arguments.archives
        print(json.dumps({"ours": ours, "datatrove": datatrove}[arguments.do](archives)))
        return
    with tempfile.TemporaryDirectory() as name:
        for path in map(Path, arguments.archives):
            for copy in range(arguments.copies):
                shutil.copyfile(path, Path(name) / f"{copy}-{path.name}")
        pythons = {"ours": sys.executable} | (
            {"datatrove": arguments.datatrove} if arguments.datatrove else {}
        )
        secs: dict[str, list[float]] = {label: [] for label in pythons}
        found = {}
        for number in range(arguments.runs):
            for label in list(pythons)[:: 1 if number % 2 == 0 else -1]:
                command = [pythons[label], __file__, name, "--do", label]
                answer = subprocess.run(command, capture_output=True, text=True)
                if answer.returncode:
                    raise SystemExit(answer.stderr)
                found[label] = json.loads(answer.stdout.splitlines()[-1])
                secs[label].append(found[label]["secs"])
    pages = found["ours"]["pages"]
    print(f"{pages:,} pages in {arguments.copies} copies, medians of {arguments.runs}")
    base = statistics.median(secs["ours"])
    for label, all_secs in secs.items():
        median = statistics.median(all_secs)
        print(
            f"{label:10} {median:8.2f} s  {pages / median:8.1f} pages/s/core  "
            f"{median / base:6.2f}x the time of ours  {found[label]['documents']:,} documents left"
        )


def ours(archives: str) -> dict[str, float]:
    """Runs the stages; returns pages, documents and seconds."""
    from t5x_style.corpus.documents import Funnel
    from tests.unit.curation import curate

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        start = _processor_secs()
        out = curate(folder, archives)
        secs = _processor_secs() - start
        steps = Funnel.read(out).steps
    return {
        "secs": secs,
        "pages": steps["pages"].num_out,
        "documents": steps["high_quality"].num_out,
    }


def datatrove(archives: str) -> dict[str, float]:
    """Runs datatrove's blocks; returns documents and seconds."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
        URLFilter,
    )
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import JsonlReader, WarcReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.logging import logger

    logger.remove()
    config = MinhashConfig(n_grams=5, num_buckets=16, hashes_per_bucket=8)
    with tempfile.TemporaryDirectory() as folder:
        place = {
            name: os.path.join(folder, name) for name in ("clean", "sig", "dup", "gone", "out")
        }
        extract = [
            WarcReader(archives, glob_pattern="*.warc.gz"),
            URLFilter(),
            Trafilatura(favour_precision=True),
            GopherRepetitionFilter(),
            GopherQualityFilter(),
            C4QualityFilter(filter_no_terminal_punct=False),
            FineWebQualityFilter(),
            JsonlWriter(place["clean"]),
        ]
        read = JsonlReader(place["clean"])
        steps = [
            (extract, 1),
            ([read, MinhashDedupSignature(place["sig"], config)], 1),
            ([MinhashDedupBuckets(place["sig"], place["dup"], config=config)], 16),
            ([MinhashDedupCluster(place["dup"], place["gone"], config=config)], 1),
            (
                [
                    read,
                    MinhashDedupFilter(place["gone"]),
                    PIIFormatter(),
                    JsonlWriter(place["out"]),
                ],
                1,
            ),
        ]
        start = _processor_secs()
        for number, (pipeline, tasks) in enumerate(steps):
            LocalPipelineExecutor(
                pipeline, tasks=tasks, workers=1, logging_dir=os.path.join(folder, f"log{number}")
            ).run()
        secs = _processor_secs() - start
        documents = sum(1 for _ in JsonlReader(place["out"])())
    return {"secs": secs, "documents": documents}


def _processor_secs() -> float:
    """Of this process and of its children that have ended."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
