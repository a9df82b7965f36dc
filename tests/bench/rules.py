"""The rules on text against datatrove's filters: decisions and speed.

    python -m tests.bench.rules FOLDER ... --datatrove_python=PYTHON [--num_texts=2000] [--rounds=3]

FOLDERS hold real documents of any kind (`real_texts`). datatrove's GopherRepetition, GopherQuality,
C4 (without its rule on terminal punctuation) and FineWeb filters run each on the texts as they are
("all": one after the other, as FineWeb's pipeline has them, C4's edited text going to the last).
Ours run with the same thresholds. Printed is, for each filter, the share of texts that either
drops, the share of equal decisions, and which rules and reasons differ most; "no alpha" leaves out
the one rule, on words with a letter, where datatrove counts punctuation marks as words. Then texts
in a second of one core by processor time; rounds alternate.
"""

import argparse
import collections
import json
import os
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.alternating import Worker, alternate, serve, summary

RULES_OF = {
    "repetition": ("duplicate_lines", "duplicate_paragraphs", "top_ngrams", "duplicate_ngrams"),
    "quality": (
        "too_few_words",
        "too_many_words",
        "word_length",
        "hash_signs",
        "ellipses",
        "bullet_lines",
        "ellipsis_lines",
        "alphabetic_words",
        "stop_words",
    ),
    "c4": ("lorem_ipsum", "curly_brackets", "sentences"),
    "fineweb": ("terminal_lines", "short_lines", "duplicate_lines", "newlines"),
}
RULES_OF["no alpha"] = tuple(rule for rule in RULES_OF["quality"] if rule != "alphabetic_words")
RULES_OF["all"] = tuple({rule: None for rules in RULES_OF.values() for rule in rules})
RULES_OF["all, no alpha"] = tuple(rule for rule in RULES_OF["all"] if rule != "alphabetic_words")


def _datatrove(texts: list[str]):
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.utils import text as text_module
    from datatrove.utils.logging import logger

    logger.remove()
    filters = {
        "repetition": GopherRepetitionFilter(),
        "quality": GopherQualityFilter(),
        "c4": C4QualityFilter(filter_no_terminal_punct=False),
        "fineweb": FineWebQualityFilter(),
        "no alpha": GopherQualityFilter(max_non_alpha_words_ratio=0.0),
    }

    def reason(names: list[str], text: str) -> str | None:
        document = Document(text=text, id="")
        for name in names:
            result = filters[name].filter(document)
            if isinstance(result, tuple):
                return result[1]
            if not result:
                return name
        return None

    def run(name: str) -> list[str | None]:
        text_module.split_into_parts.cache_clear()
        names = {
            "all": ["repetition", "quality", "c4", "fineweb"],
            "all, no alpha": ["repetition", "no alpha", "c4", "fineweb"],
        }.get(name, [name])
        return [reason(names, text) for text in texts]

    return run


def _ours(texts: list[str]):
    import dataclasses

    from t5x_style.corpus.wanjuan_cc import clean
    from t5x_style.corpus.wanjuan_cc.statistics import text_statistics

    settings = clean.CleanSettings(min_sentences=5)
    of_fineweb = dataclasses.replace(
        settings, max_duplicate_line_chars=0.01, max_duplicate_lines=1.0
    )

    def run(name: str) -> list[str | None]:
        stats = text_statistics(texts)
        reasons: list[str | None] = [None] * len(texts)
        for rule in RULES_OF[name]:
            is_strict = name == "fineweb" or (name.startswith("all") and rule == "duplicate_lines")
            drops = clean.RULES[rule](stats, of_fineweb if is_strict else settings)
            for number in drops.nonzero()[0]:
                reasons[number] = reasons[number] or rule
        return reasons

    return run


def _serve(name: str, path: str) -> None:
    run = {"ours": _ours, "datatrove": _datatrove}[name](json.loads(Path(path).read_text()))
    serve(lambda request: {"reasons": run(request["filter"])})


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*")
    parser.add_argument("--datatrove_python")
    parser.add_argument("--num_texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        _serve(*flags.serve)
        return
    from t5x_style.corpus.wanjuan_cc.raw import tidy
    from tests.bench.real_texts import read_documents

    documents = read_documents(flags.folders, flags.num_texts, flags.seed, (30, 900))
    texts = [text for text in map(tidy, documents) if text.strip()]
    print(f"{len(texts)} texts, {sum(map(len, texts)) / 1e6:.1f} million characters")
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "texts.json")
        Path(path).write_text(json.dumps(texts))
        pythons = {"ours": sys.executable, "datatrove": flags.datatrove_python}
        workers = {
            name: Worker([python, __file__, "--serve", name, path], 1)
            for name, python in pythons.items()
        }
        print("               we drop  they drop  same decision   only we drop; only they drop")
        for name in RULES_OF:
            ours, theirs = (workers[who].ask({"filter": name})["reasons"] for who in pythons)
            pairs = list(zip(ours, theirs, strict=True))
            ours_only = collections.Counter(our for our, their in pairs if our and not their)
            theirs_only = collections.Counter(their for our, their in pairs if their and not our)
            same = sum((our is None) == (their is None) for our, their in pairs) / len(pairs)
            print(
                f"{name:14} {1 - ours.count(None) / len(texts):7.3f} "
                f"{1 - theirs.count(None) / len(texts):9.3f} {same:12.4f}     "
                f"{dict(ours_only.most_common(4))}; {dict(theirs_only.most_common(4))}",
                flush=True,
            )
        answers = alternate(workers, {"filter": "all"}, rounds=flags.rounds, warmups=0)
    secs = {name: summary(found)["cpu"] for name, found in answers.items()}
    for name, value in secs.items():
        print(
            f"{name:10} {len(texts) / value:8.0f} texts/s/core  ours is {value / secs['ours']:.1f}x"
        )
    for worker in workers.values():
        worker.close()
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
