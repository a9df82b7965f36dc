"""Language identification against py3langid: accuracy on 26 languages and speed.

    python -m tests.bench.language UDHR_ZIP --peers_python=PYTHON [--chars=100]
      [--rounds=5]

UDHR_ZIP is NLTK's udhr2.zip, the Universal Declaration of Human Rights in one file a language; it
is cut into passages of --chars characters, 40 a language at most. The text is formal and may be
among what either was trained on, so accuracy is an upper bound. Ours is `raw.identify_language`.
Rates are by processor time, rounds alternate.
"""

import argparse
import collections
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.alternating import Worker, alternate, serve, summary

# ISO 639-3 of the file to ISO 639-1.
LANGUAGES = {
    "eng": "en", "deu": "de", "fra": "fr", "spa": "es", "ita": "it", "por_PT": "pt",
    "nld": "nl", "swe": "sv", "dan": "da", "fin": "fi", "hun": "hu", "pol": "pl", "ces": "cs",
    "ron": "ro", "tur": "tr", "rus": "ru", "ukr": "uk", "bul": "bg", "ell_monotonic": "el",
    "heb": "he", "arb": "ar", "hin": "hi", "vie": "vi", "jpn": "ja", "kor": "ko", "cmn_hans": "zh",
}  # fmt: skip
_MOST_PASSAGES = 40


def passages(path: str, num_chars: int) -> list[tuple[str, str]]:
    """Returns (text, language) of passages.

    Raises:
      ValueError: a language is not in the archive.
    """
    found: list[tuple[str, str]] = []
    with zipfile.ZipFile(path) as archive:
        names = {Path(name).stem: name for name in archive.namelist() if name.endswith(".txt")}
        for stem, language in LANGUAGES.items():
            if stem not in names:
                raise ValueError(f"{path} has no {stem}.txt: it is not NLTK's udhr2.zip")
            lines = archive.read(names[stem]).decode("utf-8", "replace").split("\n")
            text = " ".join(line.strip() for line in lines[1:])
            starts = range(0, len(text) - num_chars + 1, num_chars)
            of_language = [(text[start : start + num_chars], language) for start in starts]
            found += of_language[:_MOST_PASSAGES]
    return found


def _serve(name: str, path: str) -> None:
    texts = json.loads(Path(path).read_text())
    if name == "ours":
        from t5x_style.corpus.wanjuan_cc.raw import identify_language as identify
    else:
        from py3langid import classify as identify

    def answer(request: dict) -> dict:
        return {"languages": [identify(text)[0] for text in texts]}

    serve(answer)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", nargs="?")
    parser.add_argument("--peers_python")
    parser.add_argument("--chars", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        _serve(*flags.serve)
        return
    cases = passages(flags.archive, flags.chars)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "texts.json")
        Path(path).write_text(json.dumps([text for text, _ in cases]))
        workers = {"ours": Worker([sys.executable, __file__, "--serve", "ours", path], 1)}
        if flags.peers_python:
            peer = [flags.peers_python, __file__, "--serve", "py3langid", path]
            workers["py3langid"] = Worker(peer, 1)
        answers = alternate(workers, {}, rounds=flags.rounds, warmups=1)
    ours = summary(answers["ours"])["cpu"]
    print(f"{len(cases)} passages in {len(LANGUAGES)} languages")
    print("            accuracy   texts/s/core   ours is   taken for another")
    for name, worker in workers.items():
        wrong = collections.Counter(
            f"{language}-{said}"
            for (_, language), said in zip(cases, answers[name][0]["languages"], strict=True)
            if said != language
        )
        secs = summary(answers[name])["cpu"]
        print(
            f"{name:10} {1 - wrong.total() / len(cases):9.4f} {len(cases) / secs:14.0f} "
            f"{secs / ours:8.2f}x   {dict(wrong.most_common(5))}"
        )
        worker.close()
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
