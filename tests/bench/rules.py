"""The rules on text against datatrove's filters: decisions and speed.

    python -m tests.bench.rules FOLDER ... --datatrove_python=PYTHON [--num_texts=2000] [--rounds=3]

FOLDERS hold real documents of any kind (`real_texts`). datatrove's GopherRepetition, GopherQuality,
C4 (without its rule on terminal punctuation) and FineWeb filters, all at their defaults, against
the Clean stage with the settings of `gin/data/rules_datatrove.gin`. Three comparisons:

- each rule alone on the texts as they are, FineWeb's on what C4's edits leave of them;
- "all": the filters one after the other, as FineWeb's pipeline has them;
- "all, our own definitions": what the Clean stage decides with its default definitions of words,
  lines and repeats and the same thresholds, so that one sees what they make of it.

Printed are the share of texts that either drops, of equal decisions, and how many only one of them
drops; then texts in a second of one core by processor time for "all", in rounds that alternate.
Ours are timed as the stage itself, with edits and tables; theirs as calls of `filter`.
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from unittest import mock

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.alternating import Worker, alternate, serve, summary

_GOPHER, _C4_FINEWEB = 0, 1
# Rule to the pass it is of, and our fields for it; datatrove's come from `_filters`.
RULES = {
    "duplicate paragraphs": (_GOPHER, ("max_duplicate_paragraphs",)),
    "duplicate paragraphs, characters": (_GOPHER, ("max_duplicate_paragraph_chars",)),
    "duplicate lines": (_GOPHER, ("max_duplicate_lines",)),
    "duplicate lines, characters": (_GOPHER, ("max_duplicate_line_chars",)),
    "top n-grams": (_GOPHER, ("max_top_ngram_chars",)),
    "duplicate n-grams": (_GOPHER, ("max_duplicate_ngram_chars",)),
    "number of words": (_GOPHER, ("min_words", "max_words")),
    "length of words": (_GOPHER, ("min_mean_word_chars", "max_mean_word_chars")),
    "hash signs, ellipses": (_GOPHER, ("max_hash_signs_per_word", "max_ellipses_per_word")),
    "bullet lines": (_GOPHER, ("max_bullet_lines",)),
    "ellipsis lines": (_GOPHER, ("max_ellipsis_lines",)),
    "words with a letter": (_GOPHER, ("min_alphabetic_words",)),
    "stop words": (_GOPHER, ("min_stop_words",)),
    "C4": (_C4_FINEWEB, ("min_sentences", "keep_curly_brackets", "keep_lorem_ipsum")),
    "terminal lines": (_C4_FINEWEB, ("min_terminal_lines",)),
    "short lines": (_C4_FINEWEB, ("max_short_lines",)),
    "duplicate lines, FineWeb": (_C4_FINEWEB, ("max_duplicate_line_chars",)),
    "newlines": (_C4_FINEWEB, ("max_newlines_per_word",)),
}
ALL, OWN = "all", "all, our own definitions"


def _filters() -> dict[str, list]:
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    no_repetition = {
        "dup_line_frac": None,
        "dup_para_frac": None,
        "dup_line_char_frac": None,
        "dup_para_char_frac": None,
        "top_n_grams": (),
        "dup_n_grams": (),
    }
    no_quality = {
        "min_doc_words": None,
        "max_doc_words": None,
        "min_avg_word_length": None,
        "max_avg_word_length": None,
        "max_symbol_word_ratio": None,
        "max_bullet_lines_ratio": None,
        "max_ellipsis_lines_ratio": None,
        "max_non_alpha_words_ratio": None,
        "min_stop_words": None,
    }
    no_fineweb = {
        "line_punct_thr": 0.0,
        "short_line_thr": 1.0,
        "char_duplicates_ratio": 1.0,
        "new_line_ratio": 1e9,
    }

    def only(kind, nothing: dict, *names: str):
        return kind(**{name: value for name, value in nothing.items() if name not in names})

    repetition, quality, fineweb = GopherRepetitionFilter, GopherQualityFilter, FineWebQualityFilter
    c4 = C4QualityFilter(filter_no_terminal_punct=False)
    edits = C4QualityFilter(
        filter_no_terminal_punct=False,
        min_num_sentences=-1,
        filter_lorem_ipsum=False,
        filter_curly_bracket=False,
    )
    return {
        "duplicate paragraphs": [only(repetition, no_repetition, "dup_para_frac")],
        "duplicate paragraphs, characters": [only(repetition, no_repetition, "dup_para_char_frac")],
        "duplicate lines": [only(repetition, no_repetition, "dup_line_frac")],
        "duplicate lines, characters": [only(repetition, no_repetition, "dup_line_char_frac")],
        "top n-grams": [only(repetition, no_repetition, "top_n_grams")],
        "duplicate n-grams": [only(repetition, no_repetition, "dup_n_grams")],
        "number of words": [only(quality, no_quality, "min_doc_words", "max_doc_words")],
        "length of words": [
            only(quality, no_quality, "min_avg_word_length", "max_avg_word_length")
        ],
        "hash signs, ellipses": [only(quality, no_quality, "max_symbol_word_ratio")],
        "bullet lines": [only(quality, no_quality, "max_bullet_lines_ratio")],
        "ellipsis lines": [only(quality, no_quality, "max_ellipsis_lines_ratio")],
        "words with a letter": [only(quality, no_quality, "max_non_alpha_words_ratio")],
        "stop words": [only(quality, no_quality, "min_stop_words")],
        "C4": [c4],
        "terminal lines": [edits, only(fineweb, no_fineweb, "line_punct_thr")],
        "short lines": [edits, only(fineweb, no_fineweb, "short_line_thr")],
        "duplicate lines, FineWeb": [edits, only(fineweb, no_fineweb, "char_duplicates_ratio")],
        "newlines": [edits, only(fineweb, no_fineweb, "new_line_ratio")],
        ALL: [repetition(), quality(), c4, fineweb()],
    }


def _datatrove(texts: list[str]):
    from datatrove.data import Document
    from datatrove.utils import text as text_module
    from datatrove.utils.logging import logger

    logger.remove()
    filters = _filters()

    def is_kept(text: str, name: str) -> bool:
        document = Document(text=text, id="")
        for one in filters[name]:
            # Where the edits leave nothing, FineWeb's filter has nothing to divide by; no rule of
            # the ones compared alone speaks of empty texts.
            if not document.text:
                return name != ALL
            if one.filter(document) is not True:
                return False
        return True

    def run(name: str) -> list[bool]:
        text_module.split_into_parts.cache_clear()
        return [is_kept(text, name) for text in texts]

    return run


def _ours(texts: list[str]):
    import pyarrow as pa

    from t5x_style.corpus.documents import TEXT_SCHEMA
    from t5x_style.corpus.wanjuan_cc import clean
    from t5x_style.corpus.wanjuan_cc.statistics import TextDefinitions

    passes = _passes_of_gin()
    # What neither of the passes limits is off in the other.
    off = {**_limits(passes[_C4_FINEWEB]), **_limits(passes[_GOPHER], _C4_FINEWEB)}
    off["max_duplicate_line_chars"] = 1.0
    chosen = {ALL: passes}
    chosen[OWN] = [dataclasses.replace(one, definitions=TextDefinitions()) for one in passes]
    for rule, (number, names) in RULES.items():
        own = {name: getattr(passes[number], name) for name in names}
        chosen[rule] = [dataclasses.replace(passes[number], **{**off, **own})]
    rows = [
        {"id": str(number), "url": str(number), "title": "", "text": text, "language": "en"}
        | {"language_score": 1.0, "date": "", "dump": "", "num_bytes": len(text), "links": []}
        for number, text in enumerate(texts)
    ]
    table = pa.Table.from_pylist(rows, TEXT_SCHEMA)

    def run(name: str) -> list[bool]:
        kept, _ = clean.clean(table, chosen[name])
        numbers = set(map(int, kept["url"].to_pylist()))
        return [number in numbers for number in range(len(texts))]

    return run


def _limits(settings, of_pass: int = _GOPHER) -> dict[str, object]:
    """Returns the values of the fields that limit something in the rules of a pass."""
    names = [name for number, of_rule in RULES.values() if number == of_pass for name in of_rule]
    return {name: getattr(settings, name) for name in names}


def _passes_of_gin():
    from t5x_style.config import gin_files
    from t5x_style.config.symbols import Target
    from t5x_style.run import clean as verb

    root = Target(verb.clean, "t5x_style.run.clean", "clean")
    gin_dir = Path(__file__).resolve().parents[2] / "gin" / "data"
    files = [gin_dir / "wanjuan_cc.gin", gin_dir / "rules_datatrove.gin"]
    gin_files.apply(gin_files.load(files, root=root))
    with mock.patch.object(verb.pipeline, "clean_documents") as stage:
        gin_files.configured(root)()
    return stage.call_args.args[2]


def _serve(name: str, path: str) -> None:
    run = {"ours": _ours, "datatrove": _datatrove}[name](json.loads(Path(path).read_text()))
    serve(lambda request: {"kept": run(request["rules"])})


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
        print(f"{'':33} we drop  they drop  same decision  only we, only they drop")
        for name in [*RULES, ALL, OWN]:
            ours = workers["ours"].ask({"rules": name})["kept"]
            theirs = workers["datatrove"].ask({"rules": ALL if name == OWN else name})["kept"]
            only_we = sum(their and not our for our, their in zip(ours, theirs, strict=True))
            only_they = sum(our and not their for our, their in zip(ours, theirs, strict=True))
            print(
                f"{name:33} {1 - sum(ours) / len(texts):7.3f} {1 - sum(theirs) / len(texts):9.3f} "
                f"{1 - (only_we + only_they) / len(texts):12.4f}     {only_we}, {only_they}",
                flush=True,
            )
        answers = alternate(workers, {"rules": ALL}, rounds=flags.rounds, warmups=0)
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
