"""Measures of texts against the same definitions written out in plain Python."""

import math
import random
import re
import unicodedata
from collections import Counter

import numpy as np
import pytest

from t5x_style.corpus.wanjuan_cc.blocklists import Domains, Words
from t5x_style.corpus.wanjuan_cc.measures import MEASURES, SCORES, Measures
from t5x_style.corpus.wanjuan_cc.statistics import text_statistics
from tests.unit.test_corpus_statistics import TEXTS, plain_statistics, share

STOPS = ("the", "and", "of", "don't")
BAD = ("w1", "x1 42")
TEXTS = [
    *TEXTS,
    "Don't! DON'T do THAT, says the BBC. Really?",
    "JavaScript {a} needs javascript; Lorem ipsum dolor",
    "one\ntwo\n\nthree\nfour\n",
    "ÜBER Äpfel & Öl — 100% “gut”…",
]
URLS = [f"http://{'bad.example' if i % 5 == 0 else 'good.example'}/{i}" for i in range(len(TEXTS))]


def normalised_words(text):
    kept = (
        c for c in text.lower() if c.isalnum() or c.isspace() or unicodedata.category(c)[0] == "M"
    )
    return "".join(kept).split()


def plain_measures(text):
    chars = max(len(text), 1)
    words = [word for word in text.split() if any(c.isalnum() for c in word)]
    normal = normalised_words(text)
    shares = [n / len(normal) for n in Counter(normal).values()]
    rare = [
        c for c in text.lower() if not (c.isalnum() or c.isspace()) and c not in ".,;:!?'\"()-“”…—•"
    ]
    stats = plain_statistics(text)
    folded = len(text.lower().replace("…", "..."))
    letters = sum(c.isalpha() for c in text.lower())
    top, duplicate = stats["top_ngram_chars"], stats["duplicate_ngram_chars"]
    return {
        "content_length": len(text),
        "line_number": len(text.split("\n")),
        "non_alpha_fraction": share(folded - letters, folded),
        "unique_word_fraction": share(len(set(normal)), len(normal)),
        "mean_word_length": share(sum(map(len, normal)), len(normal)),
        "sentence_number": len(re.findall(r"\b[^.!?]+[.!?]*", text)),
        "stop_word_fraction": share(
            sum(w in ("the", "and", "of", "dont") for w in normal), len(normal)
        ),
        "symbol_to_word_ratio": share(
            text.count("#") + len(re.findall(r"\.{3,}|…", text)), len(words)
        ),
        "byte_count": len(text.encode()),
        "word_count": len(words),
        "unigram_entropy": -sum(p * math.log(p) for p in shares),
        "all_caps_words": share(sum(w.isupper() for w in words), len(words)),
        "no_alpha_words": share(sum(not any(c.isalpha() for c in w) for w in words), len(words)),
        "upper_case_chars": sum(c.isupper() for c in text) / chars,
        "rare_signs_per_word": share(len(rare), len(words)),
        "javascript_count": len(re.findall("javascript", text, re.IGNORECASE)),
        "curly_brackets": sum(c in "{}" for c in text) / chars,
        "lorem_ipsum": len(re.findall("lorem ipsum", text, re.IGNORECASE)) / chars,
        "bad_words": sum(w == "w1" for w in re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower()))
        + len(re.findall(r"\bx1[\W_]+42\b", text.lower())),
        **{f"top_{n}gram_chars": top[n - 2] for n in (2, 3, 4)},
        **{f"duplicate_{n}gram_chars": duplicate[n - 5] for n in range(5, 11)},
    }


@pytest.fixture(scope="module")
def measures():
    return Measures(
        STOPS,
        bad_words=Words(BAD),
        domains=Domains(["bad.example"]),
        encode_batch=lambda texts: [text.encode() for text in texts],
    )


@pytest.fixture(scope="module")
def values(measures):
    return measures(TEXTS, URLS)


@pytest.mark.parametrize("name", [*plain_measures("")])
def test_a_measure_equals_its_definition_in_plain_python(values, name):
    expected = [plain_measures(text)[name] for text in TEXTS]
    np.testing.assert_allclose(values[name], expected, rtol=1e-12, atol=1e-12)


def test_what_the_rules_judge_by_is_theirs(values):
    stats = text_statistics(TEXTS)
    for name, column in {
        "word_count": stats.num_words,
        "ellipsis_lines": stats.ellipsis_lines,
        "bullet_lines": stats.bullet_lines,
        "terminal_lines": stats.terminal_lines,
        "short_lines": stats.short_lines,
        "duplicate_line_chars": stats.duplicate_line_chars,
        "numeric_chars": stats.digit_chars,
        "symbol_chars": stats.symbol_chars,
        "damaged_chars": stats.damaged_chars,
    }.items():
        np.testing.assert_array_equal(values[name], column, name)


def test_what_is_given_is_measured_and_nothing_else(values):
    assert set(values) == set(MEASURES) - set(SCORES)
    np.testing.assert_array_equal(values["token_length"], values["byte_count"])
    assert values["listed_domain"].tolist() == [float(i % 5 == 0) for i in range(len(TEXTS))]
    without = Measures(STOPS)(TEXTS, URLS)
    assert set(values) - set(without) == {"token_length", "bad_words", "listed_domain"}


def test_the_nine_of_the_paper_come_first_under_its_names():
    assert [name for name, measure in MEASURES.items() if measure.is_published] == [
        "content_length", "line_number", "token_length", "non_alpha_fraction",
        "unique_word_fraction", "mean_word_length", "sentence_number", "stop_word_fraction",
        "symbol_to_word_ratio",
    ]  # fmt: skip


def test_five_newlines_make_six_lines(measures):
    found = measures(["a\nb\nc\n\n\nd"], [""])
    assert found["line_number"].tolist() == [6]


def test_measures_of_a_text_do_not_depend_on_the_others(measures, values):
    order = list(range(len(TEXTS)))
    random.Random(1).shuffle(order)
    for some in ([0], [7], [33, 2], order):
        alone = measures([TEXTS[i] for i in some], [URLS[i] for i in some])
        for name, column in alone.items():
            np.testing.assert_array_equal(column, values[name][some], name)


def test_no_texts_give_no_measures(measures):
    assert all(len(column) == 0 for column in measures([], []).values())
