"""Each rule keeps a text that just passes and drops one that just fails."""

import dataclasses

import pytest

from t5x_style.corpus.wanjuan_cc.clean import (
    RULES,
    CleanSettings,
    clean,
    reasons_to_drop,
)
from t5x_style.corpus.wanjuan_cc.edits import cut_spans
from t5x_style.corpus.wanjuan_cc.statistics import text_statistics
from tests.unit.test_corpus_documents import table_of
from tests.unit.web_archives import prose

# Every rule switched off; a case sets the thresholds of its own rule to the defaults.
OFF = CleanSettings(
    drop_policy_lines=False,
    min_words=0,
    max_words=10**9,
    min_mean_word_chars=0,
    max_mean_word_chars=1e9,
    max_hash_signs_per_word=1e9,
    max_ellipses_per_word=1e9,
    max_bullet_lines=1,
    max_ellipsis_lines=1,
    min_alphabetic_words=0,
    min_stop_words=0,
    min_sentences=0,
    keep_curly_brackets=True,
    max_duplicate_lines=1,
    max_duplicate_paragraphs=1,
    max_duplicate_line_chars=1,
    max_duplicate_paragraph_chars=1,
    max_top_ngram_chars=(1, 1, 1),
    max_duplicate_ngram_chars=(1, 1, 1, 1, 1, 1),
    min_terminal_lines=0,
    max_short_lines=1,
    max_newlines_per_word=1e9,
    max_digit_chars=1,
    max_space_chars=1,
    max_symbol_chars=1,
    max_damaged_chars=1,
)


def different_words(count):
    """Words of five letters, no two alike."""
    letters = "abcdefghij"
    return [
        letters[i % 10] + letters[i // 10 % 10] + letters[i // 100 % 10] + letters[i // 1000] + "k"
        for i in range(count)
    ]


def lines(*texts):
    return "\n".join(texts)


WORDS = different_words(2000)
TEN = [" ".join(WORDS[10 * i : 10 * i + 10]) for i in range(100)]  # lines of ten words

# rule: (fields at their defaults, text that just passes, text that just fails)
CASES = {
    "too_few_words": (["min_words"], " ".join(WORDS[:50]), " ".join([*WORDS[:49], "..", "--"])),
    "too_many_words": (["max_words"], "a " * 100_000, "a " * 100_001),
    "damaged_characters": (["max_damaged_chars"], "\ufffd" + "a" * 999, "\ufffd" + "a" * 998),
    "digits": (["max_digit_chars"], "123" + "a" * 17, "123" + "a" * 16),
    "spaces": (["max_space_chars"], "abc " * 30, "abc " * 30 + " "),
    "symbols": (["max_symbol_chars"], "abc+" * 30, "abc+" * 30 + "+"),
    "word_length": (
        ["min_mean_word_chars", "max_mean_word_chars"],
        "abc " * 20,
        "abc " * 19 + "ab",
    ),
    "hash_signs": (["max_hash_signs_per_word"], "a# " + "b " * 9, "a# " + "b " * 8),
    "ellipses": (["max_ellipses_per_word"], "a... " + "b " * 9, "a... " + "b " * 8),
    "alphabetic_words": (["min_alphabetic_words"], "1 a b c d", "1 a b c"),
    "stop_words": (["min_stop_words"], "the cat of", "the cat, the"),
    "lorem_ipsum": ([], "lorem and ipsum", "Lorem ipsum dolor"),
    "curly_brackets": (["keep_curly_brackets"], "f(x) }", "f(x) {"),
    "sentences": (["min_sentences"], "One. Two! Three?", "One. Two!\n3.5 x"),
    "bullet_lines": (
        ["max_bullet_lines"],
        lines(*["- x"] * 9, "x"),
        lines(*["* x"] * 10, "x"),
    ),
    "ellipsis_lines": (
        ["max_ellipsis_lines"],
        lines(*["x..."] * 3, *["x"] * 7),
        lines(*["x..."] * 3, *["x"] * 6),
    ),
    "terminal_lines": (
        ["min_terminal_lines"],
        lines(*["x."] * 3, *["x"] * 22),
        lines(*["x."] * 3, *["x"] * 23),
    ),
    "short_lines": (
        ["max_short_lines"],
        lines(*["a" * 30] * 67, *["a" * 31] * 33),
        lines(*["a" * 30] * 68, *["a" * 31] * 32),
    ),
    "newlines": (
        ["max_newlines_per_word"],
        lines("a b c d e f g", "h", "i", "j"),
        lines("a b c d e f", "h", "i", "j"),
    ),
    "duplicate_lines": (
        ["max_duplicate_lines"],
        lines(*TEN[:7], *TEN[:3]),
        lines(*TEN[:7], *TEN[:4]),
    ),
    "duplicate_paragraphs": (
        ["max_duplicate_paragraphs"],
        "\n\n".join([*TEN[:7], *TEN[:3]]),
        "\n\n".join([*TEN[:7], *TEN[:4]]),
    ),
    "top_ngrams": (
        ["max_top_ngram_chars"],
        " ".join([*WORDS[:2], *WORDS[10:26], *WORDS[:2]]),
        " ".join([*WORDS[:2], *WORDS[10:25], *WORDS[:2]]),
    ),
    "duplicate_ngrams": (
        ["max_duplicate_ngram_chars"],
        " ".join([*WORDS[:10], *WORDS[20:100], *WORDS[:10]]),
        " ".join([*WORDS[:10], *WORDS[20:99], *WORDS[:10]]),
    ),
}


def test_there_is_a_case_for_every_rule():
    assert set(CASES) == set(RULES)


@pytest.mark.parametrize("rule", CASES)
def test_a_rule_keeps_what_just_passes_and_drops_what_just_fails(rule):
    fields, passing, failing = CASES[rule]
    default = CleanSettings()
    settings = dataclasses.replace(OFF, **{name: getattr(default, name) for name in fields})
    assert reasons_to_drop(text_statistics([passing, failing]), settings) == [None, rule]
    # Switched off, both stay.
    if fields:
        assert reasons_to_drop(text_statistics([passing, failing]), OFF) == [None, None]


@pytest.mark.parametrize(
    ("field", "passing", "failing"),
    [
        ("max_mean_word_chars", "a" * 10, "a" * 11),
        ("max_duplicate_line_chars", "aaaaaa\nbb\nbb", "aaaaa\nbb\nbb"),
        ("max_duplicate_paragraph_chars", "aaaaaa\n\nbb\n\nbb", "aaaaa\n\nbb\n\nbb"),
    ],
)
def test_the_second_threshold_of_a_rule_counts_too(field, passing, failing):
    settings = dataclasses.replace(OFF, **{field: getattr(CleanSettings(), field)})
    reasons = reasons_to_drop(text_statistics([passing, failing]), settings)
    assert reasons[0] is None
    assert reasons[1] is not None


def test_the_first_rule_that_fails_gives_the_reason():
    (reason,) = reasons_to_drop(text_statistics(["{ 1234567 lorem ipsum"]), CleanSettings())
    assert reason == "too_few_words"


def test_ordinary_prose_passes_all_rules():
    texts = ["\n\n".join(prose(seed, 6, 5)) for seed in range(20)]
    assert reasons_to_drop(text_statistics(texts), CleanSettings()) == [None] * 20


def test_the_stage_counts_what_it_drops_and_keeps_the_rest_in_order():
    texts = ["\n\n".join(prose(seed)) for seed in range(4)]
    table = table_of([texts[0], "short", texts[1], "", texts[2] + " {", texts[3]])
    kept, dropped = clean(table, CleanSettings())
    assert kept["text"].to_pylist() == [texts[0], texts[1], texts[3]]
    assert dropped == {"too_few_words": 2, "curly_brackets": 1}
    assert kept.schema == table.schema


def test_policy_lines_go_and_links_keep_their_places():
    text = "\n".join(["Read the guide first.", "This site uses cookies.", *prose(1)])
    start = text.index(" that ", 100) + 1
    anchor = text[start : start + 5]
    table = table_of([text]).to_pylist()
    table[0]["links"] = [
        {"url": "http://a/", "anchor": "guide", "start": 9, "end": 14},
        {"url": "http://b/", "anchor": "cookies", "start": 37, "end": 44},
        {"url": "http://c/", "anchor": anchor, "start": start, "end": start + 5},
        {"url": "http://d/", "anchor": "menu", "start": -1, "end": -1},
    ]
    assert text[37:44] == "cookies"
    source = type(table_of([text])).from_pylist(table, table_of([text]).schema)
    kept, _ = clean(source, CleanSettings())
    (row,) = kept.to_pylist()
    assert "cookies" not in row["text"]
    assert row["num_bytes"] == len(row["text"].encode())
    assert row["id"] != table[0]["id"]
    places = [(link["url"], row["text"][link["start"] : link["end"]]) for link in row["links"]]
    assert places[0] == ("http://a/", "guide")
    assert places[2] == ("http://c/", anchor)
    assert [row["links"][i]["start"] for i in (1, 3)] == [-1, -1]
    unedited, _ = clean(source, dataclasses.replace(CleanSettings(), drop_policy_lines=False))
    assert unedited.to_pylist() == table


def test_cut_nothing_and_everything():
    assert cut_spans("a\nb", [(0, 2), (2, 3)], []) == ("", [])
    link = {"url": "u", "anchor": "b", "start": 2, "end": 3}
    assert cut_spans("a\nb", [], [link]) == ("a\nb", [link])


def test_a_wrong_number_of_shares_is_refused():
    with pytest.raises(ValueError, match=r"clean\.CleanSettings\.max_top_ngram_chars"):
        CleanSettings(max_top_ngram_chars=(0.2,))
