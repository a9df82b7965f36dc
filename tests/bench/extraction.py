"""Main content of pages against trafilatura, resiliparse and readability: F1 and speed.

    python -m tests.bench.extraction FOLDER --peers_python=PYTHON [--rounds=3]

FOLDER is a checkout of scrapinghub's article-extraction-benchmark: html/*.html.gz and
ground-truth.json. Precision and recall are those of 4-grams of words with their counts, averaged
over pages, and F1 is made of the averages, as its own scorer does. All take a page as text and give
text; "with links" is what the Raw stage does around it besides: the pass that bounds the source and
marks the links, and their places in the text. Thirty pages, drawn by seed 0, were looked at one by
one while the weights of `html_content` were set; the others give the figures of "held out". Rates
are by processor time, rounds alternate.
"""

import argparse
import collections
import gzip
import json
import os
import random
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.alternating import Worker, alternate, serve, summary

PEERS = ("trafilatura", "trafilatura fast", "trafilatura precise", "resiliparse", "readability")
OURS = ("blocks", "blocks with links", "our resiliparse", "our trafilatura")
_NUM_LOOKED_AT = 30


def _peer(name: str) -> Callable[[str], str]:
    if name == "resiliparse":
        from resiliparse.extract.html2text import extract_plain_text

        return lambda source: extract_plain_text(
            source, main_content=True, alt_texts=False, comments=False
        )
    if name == "readability":
        import lxml.html
        from readability import Document

        def readable(source: str) -> str:
            summary_html = Document(source).summary(html_partial=True)
            return "\n".join(lxml.html.fromstring(summary_html).itertext())

        return readable
    import trafilatura

    options = {
        "trafilatura": {},
        "trafilatura fast": {"fast": True},
        "trafilatura precise": {"favor_precision": True},
    }[name]
    return lambda source: trafilatura.extract(source, include_comments=False, **options) or ""


def _our(name: str) -> Callable[[str], str]:
    from t5x_style.corpus.html_scan import ScanLimits, scan_html, take_marks
    from t5x_style.corpus.wanjuan_cc.raw import EXTRACTORS, tidy

    if name == "blocks with links":
        limits = ScanLimits()

        def with_links(source: str) -> str:
            scanned = scan_html(source, "http://example.org/", limits)
            return take_marks(tidy(EXTRACTORS["blocks"](scanned.source)))[0]

        return with_links
    return EXTRACTORS[name.removeprefix("our ")]


def _serve(name: str, path: str) -> None:
    pages = json.loads(Path(path).read_text())
    extract = _our(name) if name in OURS else _peer(name)

    def answer(request: dict) -> dict:
        texts = []
        for page in pages:
            try:
                texts.append(extract(page))
            except Exception as error:
                print(f"{name}: {error!r}", file=sys.stderr)
                texts.append("")
        return {"texts": texts} if request.get("texts") else {}

    serve(answer)


def _ngrams(text: str) -> collections.Counter:
    words = re.findall(r"\w+", text)
    return collections.Counter(
        tuple(words[place : place + 4]) for place in range(max(1, len(words) - 3) if words else 0)
    )


def precision_and_recall(text: str, gold: str) -> tuple[float, float]:
    """Returns what share of the text is gold, and of the gold is text, in 4-grams of words."""
    found, meant = _ngrams(text), _ngrams(gold)
    shared = sum((found & meant).values())
    if not found or not meant:
        return (1.0, 1.0) if not found and not meant else (0.0, 0.0)
    return shared / sum(found.values()), shared / sum(meant.values())


def f1(scores: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Returns F1, precision and recall of pages."""
    precision, recall = (sum(column) / len(scores) for column in zip(*scores, strict=True))
    return 2 * precision * recall / (precision + recall), precision, recall


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--peers_python")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        _serve(*flags.serve)
        return
    from t5x_style.corpus.wanjuan_cc.raw import decode_page

    gold = json.loads((Path(flags.folder) / "ground-truth.json").read_text())
    names = sorted(gold)
    looked_at = set(random.Random(0).sample(names, _NUM_LOOKED_AT))
    pages = [
        decode_page(gzip.decompress((Path(flags.folder) / f"html/{name}.html.gz").read_bytes()), "")
        for name in names
    ]
    print(f"{len(pages)} pages, {sum(map(len, pages)) / 1e6:.1f} million characters")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "pages.json")
        Path(path).write_text(json.dumps(pages))
        workers = {}
        for name in (*OURS, *PEERS):
            if name in OURS or flags.peers_python:
                python = sys.executable if name in OURS else flags.peers_python
                workers[name] = Worker([python, __file__, "--serve", name, path], 1)
        answers = alternate(workers, {}, rounds=flags.rounds, warmups=1)
        base = summary(answers.get("trafilatura", answers["our trafilatura"]))["cpu"]
        print(
            "                        F1 (precision, recall)   held out   pages/s/core   trafilatura"
        )
        for name, worker in workers.items():
            texts = worker.ask({"texts": True})["texts"]
            scores = [
                precision_and_recall(text, gold[page]["articleBody"])
                for page, text in zip(names, texts, strict=True)
            ]
            held = [
                score for score, page in zip(scores, names, strict=True) if page not in looked_at
            ]
            secs = summary(answers[name])["cpu"]
            print(
                f"{name:22} {'{:.4f} ({:.4f}, {:.4f})'.format(*f1(scores))}     {f1(held)[0]:.4f}"
                f"   {len(pages) / secs:12.0f}   {base / secs:6.2f}x",
                flush=True,
            )
            worker.close()
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
