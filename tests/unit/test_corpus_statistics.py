"""Statistics of texts against the same definitions written out in plain Python."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from t5x_style.corpus.wanjuan_cc.statistics import (
    DUPLICATE_NGRAMS,
    STOP_WORDS,
    TOP_NGRAMS,
    text_statistics,
)


def share(part, whole):
    return part / max(whole, 1)


def plain_statistics(text):
    text = text.lower()
    words = [word for word in text.split() if any(c.isalnum() for c in word)]
    chars = [len(word) for word in words]
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    paragraphs = [part for part in re.split(r"\n[ \n]*\n", text) if part.strip()]
    paragraphs = ["\n".join(p.split("\n")).strip() for p in paragraphs]
    result = {
        "num_words": len(words),
        "mean_word_chars": share(sum(chars), len(words)),
        "hash_signs_per_word": share(text.count("#"), len(words)),
        "ellipses_per_word": share(len(re.findall(r"\.{3,}", text)), len(words)),
        "newlines_per_word": share(text.count("\n"), len(words)),
        "alphabetic_words": share(sum(any(c.isalpha() for c in w) for w in words), len(words)),
        "num_stop_words": sum(stop in words for stop in STOP_WORDS),
        "num_sentences": len(re.findall(r"[.!?](?=[\"')\]]?(?:\s|$))", text))
        + sum(len(line.split()) >= 3 and not re.search(r"[.!?][\"')\]]?$", line) for line in lines),
        "bullet_lines": share(sum(line[0] in "-*" for line in lines), len(lines)),
        "ellipsis_lines": share(sum(line.endswith("...") for line in lines), len(lines)),
        "terminal_lines": share(sum(line[-1] in ".!?" for line in lines), len(lines)),
        "short_lines": share(sum(len(line) <= 30 for line in lines), len(lines)),
        "digit_chars": share(sum(c in "0123456789" for c in text), len(text)),
        "space_chars": share(sum(c in " \n" for c in text), len(text)),
        "symbol_chars": share(sum(not c.isalnum() and c not in " \n" for c in text), len(text)),
        "has_curly_bracket": int("{" in text),
        "has_lorem_ipsum": int("lorem ipsum" in text),
    }
    for name, parts in (("line", lines), ("paragraph", paragraphs)):
        seen, repeats = set(), []
        for part in parts:
            if part in seen:
                repeats.append(part)
            seen.add(part)
        result[f"duplicate_{name}s"] = share(len(repeats), len(parts))
        result[f"duplicate_{name}_chars"] = share(sum(map(len, repeats)), sum(map(len, parts)))
    top, duplicate = [], []
    for n in TOP_NGRAMS:
        grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        most = max(grams.values(), default=0)
        longest = max((sum(map(len, g)) for g, c in grams.items() if c == most), default=0)
        top.append(min(1.0, share(most * longest if most > 1 else 0, sum(chars))))
    for n in DUPLICATE_NGRAMS:
        seen, covered = set(), set()
        for i in range(len(words) - n + 1):
            gram = tuple(words[i : i + n])
            if gram in seen:
                covered |= set(range(i, i + n))
            seen.add(gram)
        duplicate.append(share(sum(chars[i] for i in covered), sum(chars)))
    return {**result, "top_ngram_chars": top, "duplicate_ngram_chars": duplicate}


def random_text(rng, num_lines):
    words = ["the", "and", "Of", "x1", "42", "...", "#", "naïve", "co-op", "end.", '"so"', "ok?"]
    words += [f"w{i}" for i in range(rng.choice([3, 40]))]
    lines = []
    for _ in range(num_lines):
        line = " ".join(rng.choice(words) for _ in range(rng.randint(0, 12)))
        lines.append(rng.choice(["", "- ", "* ", "  "]) + line + rng.choice(["", ".", "...", " "]))
        if rng.random() < 0.3:
            lines.append(rng.choice([*lines, "", ""]))
    return "\n".join(lines)


RNG = random.Random(3)
TEXTS = [random_text(RNG, RNG.randint(1, 60)) for _ in range(60)]
TEXTS += [
    "",
    " \n \n",
    "one",
    "lorem ipsum {",
    "a\n\na\n\na",
    "日本語 日本語",
    "é" * 40 + " the ...",
]


@pytest.fixture(scope="module")
def statistics():
    return text_statistics(TEXTS)


@pytest.mark.parametrize("name", [*plain_statistics("")])
def test_a_statistic_equals_its_definition_in_plain_python(statistics, name):
    expected = np.array([plain_statistics(text)[name] for text in TEXTS])
    np.testing.assert_allclose(getattr(statistics, name), expected, rtol=1e-12, atol=1e-12)


def test_statistics_of_a_text_do_not_depend_on_the_others():
    together = text_statistics(TEXTS)
    for number in (0, 7, 33, len(TEXTS) - 1):
        alone = text_statistics([TEXTS[number]])
        for name, values in vars(alone).items():
            np.testing.assert_array_equal(values[0], getattr(together, name)[number], name)


def test_typographic_signs_count_as_their_ascii_forms():
    stats = text_statistics(
        ["\u201cWell\u2026\u201d he said \u2022 naïve", "\u2022 one\n\u2022 two"]
    )
    assert stats.ellipses_per_word[0] == 1 / 4
    assert stats.bullet_lines[1] == 1.0


def test_damaged_characters_are_counted():
    stats = text_statistics(["abc\ufffddef\ue000", "日本語", "plain"])
    np.testing.assert_allclose(stats.damaged_chars, [2 / 8, 0, 0])


def test_no_texts_give_no_statistics():
    assert len(text_statistics([]).num_words) == 0
    assert text_statistics([]).top_ngram_chars.shape == (0, 3)
