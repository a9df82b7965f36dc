"""Words cut at marks, and the rules as datatrove's filters have them."""

import dataclasses

import numpy as np
import pytest

from t5x_style.corpus.text_hashes import TextBuffer
from t5x_style.corpus.wanjuan_cc.clean import CleanSettings, clean, reasons_to_drop
from t5x_style.corpus.wanjuan_cc.statistics import TextDefinitions, text_statistics
from t5x_style.corpus.wanjuan_cc.words import cut_at_marks, fold_keeping_case
from tests.unit.test_corpus_clean import OFF, TEN, WORDS, lines
from tests.unit.test_corpus_documents import table_of

MARKS = TextDefinitions(words="spaces_and_marks")
WHOLE = TextDefinitions(lines="whole")
OF_TEXT = TextDefinitions(repeats="of_text")
THREES = TextDefinitions(ellipses="threes")


def words_of(text):
    folded = fold_keeping_case(text).encode()
    starts, ends = cut_at_marks(TextBuffer.of([folded]))
    return [folded[start:end].decode() for start, end in zip(starts, ends, strict=True)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("He said (twice): no!", "He said ( twice ): no !"),
        ("well-known 1990s, x-2-y b-1", "well - known 1990s , x-2 - y b-1"),
        ("wait... so...then", "wait ... so ... then"),
        ("key=value a:b n/a 1:2 1/2", "key = value a : b n / a 1:2 1/2"),
        ("one,two 1,000 3+4 3.14.", "one , two 1,000 3 + 4 3.14 ."),
        ("End.Start Foo.Bar A.b", "End . Start Foo . Bar A.b"),
        ("don't it's we'll I'm dogs'", "do n't it 's we 'll I 'm dogs '"),
        ("cannot id Cannot cannots", "can not i d Can not cannots"),
        ("Mr. Smith, e.g. here. U.S. J. No.", "Mr. Smith , e.g. here . U.S. J. No ."),
        ("RFC. (etc.) foo-e.g.", "RFC . ( etc . ) foo - e.g ."),
        ("http://a.org/b-c d@e-f.com re-do.", "http://a.org/b-c d@e-f.com re - do ."),
        ("--flag -x -- --- a--b", "--flag -x -- --- a -- b"),
        ("#tag *bold* _it_ `code`", "# tag * bold * _ it _ ` code `"),
        ("@foo ~x ^y \\n |", "@foo ~x ^y \\n |"),
        ("$5 5% 10mm 64K 5am x10m", "$ 5 5 % 10 mm 64 K 5 am x10 m"),
        ("f(): and/or '' 'tis 's", "f ( ): and/or '' ' tis 's"),
        ("naïve–élan “quoted”", 'naïve \x02 élan " quoted "'),
        ("日本語。 ok", "日本語 ! ok"),
        ("", ""),
        ("...", "..."),
        ("+ +1 C++", "+ +1 C++"),
    ],
)
def test_words_and_marks_come_apart(text, words):
    assert words_of(text) == words.split()


def test_words_of_a_text_do_not_depend_on_its_neighbours():
    texts = ["can't (stop).", "e.g.", "...", "it's", "a-b"]
    folded = [fold_keeping_case(text).encode() for text in texts]
    buffer = TextBuffer.of(folded)
    starts, ends = cut_at_marks(buffer)
    data = buffer.bytes_B.tobytes()
    together = [data[start:end].decode() for start, end in zip(starts, ends, strict=True)]
    assert together == [word for text in texts for word in words_of(text)]


def test_signs_above_ascii_are_one_character_each():
    text = "a\u2014b \u2026 \u00a3 \u00a9 \u2022 \u2018 \u2192"
    assert len(fold_keeping_case(text)) == len(text)
    # What is no punctuation counts as a word: three letters' words, then £, ©, •, ‘, →.
    assert text_statistics([text], MARKS).num_words[0] == 2 + 5


# definitions, fields at a threshold, text that just passes, text that just fails.
CASES = {
    "marks are no words of their number": (
        MARKS,
        {"min_words": 4},
        "It (really) is so.",
        "It (really) is.",
    ),
    "marks are words among those with a letter": (
        MARKS,
        {"min_alphabetic_words": 0.8},
        "one two, three four",
        "one two, three",
    ),
    "stop words keep their case": (MARKS, {"min_stop_words": 2}, "the end of", "The end of"),
    "marks are no part of the length of words": (
        MARKS,
        {"min_mean_word_chars": 3.0},
        "abc, abc.",
        "abc, ab.",
    ),
    "a dot behind an abbreviation ends no sentence": (
        MARKS,
        {"min_sentences": 2},
        "So did No. Two go.",
        "So did Mr. Two go.",
    ),
    "a line is a sentence": (MARKS, {"min_sentences": 2}, "one\ntwo", "one two"),
    "newlines for each word and mark": (
        MARKS,
        {"max_newlines_per_word": 0.25},
        "a b, c d\ne f\ng",
        "a b c d\ne f\ng",
    ),
    "indentation counts in a line": (
        WHOLE,
        {"max_short_lines": 0.5},
        lines("    " + "a" * 27, "b"),
        lines("   " + "a" * 27, "b"),
    ),
    "empty lines are lines without a bullet": (
        WHOLE,
        {"max_bullet_lines": 0.5},
        "- a\n\n- b\n\nc",
        "- a\n- b\n\n- c",
    ),
    "an asterisk is no bullet": (WHOLE, {"max_bullet_lines": 0.5}, "* a\n* b", "- a\n* b\n- c"),
    "lines that differ in indentation differ": (
        WHOLE,
        {"max_duplicate_lines": 0.4},
        "a\n  a",
        " a\n a",
    ),
    "characters of lines are a share of all": (
        OF_TEXT,
        {"max_duplicate_line_chars": 0.2},
        lines("aaaaaa", "b", "b"),
        lines("aa", "b", "b", "b"),
    ),
    "top n-grams are counted with their spaces": (
        OF_TEXT,
        {"max_top_ngram_chars": (0.2, 1.0, 1.0)},
        " ".join([*WORDS[:2], *WORDS[10:26], *WORDS[:2]]),
        " ".join([*WORDS[:2], *WORDS[10:24], *WORDS[:2]]),
    ),
    "dots are counted by threes": (
        THREES,
        {"max_ellipses_per_word": 0.2},
        "a b c d e.....",
        "a b c d e......",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_definition_keeps_what_just_passes_and_drops_what_just_fails(case):
    definitions, thresholds, passing, failing = CASES[case]
    settings = dataclasses.replace(OFF, definitions=definitions, **thresholds)
    reasons = reasons_to_drop(text_statistics([passing, failing], definitions), settings)
    assert reasons[0] is None
    assert reasons[1] is not None


def plain_taken_in_turn(words, n):
    seen, chars, place = set(), 0, 0
    while place + n <= len(words):
        gram = tuple(words[place : place + n])
        if gram in seen:
            chars += sum(map(len, gram))
            place += n
        else:
            seen.add(gram)
            place += 1
    return chars


def test_repeated_ngrams_are_taken_in_turn():
    rng = np.random.default_rng(5)
    texts = []
    for _ in range(40):
        words = rng.choice(WORDS[: rng.integers(2, 40)], rng.integers(1, 300)).tolist()
        texts.append(" ".join([*words, *words[5:25]]))
    stats = text_statistics(texts, OF_TEXT)
    expected = [
        [plain_taken_in_turn(text.split(), n) / len(text) for n in range(5, 11)] for text in texts
    ]
    np.testing.assert_allclose(stats.duplicate_ngram_chars, expected, rtol=1e-12)


def test_ngrams_are_counted_where_they_are_wanted_and_alike():
    texts = [" ".join(WORDS[:30] * 2), " ".join(WORDS[:40]), " ".join([*WORDS[:9]] * 5)]
    every = text_statistics(texts)
    some = text_statistics(texts, needs_ngrams=lambda stats: stats.num_words != 40)
    np.testing.assert_array_equal(some.duplicate_ngram_chars, every.duplicate_ngram_chars)
    np.testing.assert_array_equal(some.top_ngram_chars[[0, 2]], every.top_ngram_chars[[0, 2]])
    none = text_statistics(texts, needs_ngrams=lambda stats: stats.num_words < 0)
    assert every.duplicate_ngram_chars.any()
    assert not none.duplicate_ngram_chars.any()


def test_the_stage_finds_repeated_ngrams_in_what_other_rules_keep():
    repeated = " ".join([*WORDS[:30], *WORDS[:30]])
    settings = dataclasses.replace(
        OFF, min_words=10, max_duplicate_ngram_chars=CleanSettings().max_duplicate_ngram_chars
    )
    kept, dropped = clean(table_of([repeated, "too few", TEN[0]]), settings)
    assert kept["text"].to_pylist() == [TEN[0]]
    assert dropped == {"too_few_words": 1, "duplicate_ngrams": 1}


C4 = dataclasses.replace(
    OFF, drop_citations=True, drop_policy_lines=True, min_line_words=3, max_line_word_chars=1000
)


def test_edits_of_lines_are_those_of_c4_and_links_keep_their_places():
    text = lines(
        "  Indented line here[1] with a citation [citation needed] inside.",
        "two words",
        "",
        "We use javascript for this.",
        "It was " + "x" * 1001 + " long.",
        "It was " + "x" * 1000 + " long.",
        "[edit] The last line kept.",
        "no",
        "",
    )
    last = text.index("kept")
    links = [
        {"url": "http://a/", "anchor": "here", "start": 16, "end": 20},
        {"url": "http://b/", "anchor": "words", "start": 70, "end": 75},
        {"url": "http://c/", "anchor": "kept", "start": last, "end": last + 4},
    ]
    assert text[16:20] == "here"
    rows = table_of([text]).to_pylist()
    rows[0]["links"] = links
    source = type(table_of([text])).from_pylist(rows, table_of([text]).schema)
    kept, dropped = clean(source, C4)
    (row,) = kept.to_pylist()
    assert row["text"] == lines(
        "Indented line here with a citation  inside.",
        "It was " + "x" * 1000 + " long.",
        " The last line kept.",
    )
    assert not dropped
    assert row["num_bytes"] == len(row["text"])
    places = [row["text"][link["start"] : link["end"]] for link in row["links"]]
    assert (places[0], places[2]) == ("here", "kept")
    assert row["links"][1]["start"] == -1


def test_a_line_of_three_words_stays_and_one_of_two_goes():
    kept, _ = clean(table_of(["one two three", "one two"]), C4)
    assert kept["text"].to_pylist() == ["one two three", ""]


def test_settings_work_on_what_those_before_have_left():
    few = dataclasses.replace(OFF, min_words=3)
    table = table_of([lines("one two three", "four"), "one two", lines("one two", "three")])
    kept, dropped = clean(table, (few, dataclasses.replace(C4, min_words=1)))
    assert kept["text"].to_pylist() == ["one two three"]
    assert dropped == {"too_few_words": 2}


def test_an_unknown_definition_is_refused():
    with pytest.raises(ValueError, match=r"TextDefinitions\.words .*spaces_and_marks"):
        TextDefinitions(words="punctuation")


@pytest.mark.parametrize(
    "unit", ["(", "a.", "a-b.c", "'s", "a@", ".", "'", "x://", "):", "-", "a'"]
)
def test_time_grows_with_the_length_of_a_hostile_text_alone(unit):
    """The suite's limit of processor time would fail a square."""
    definitions = dataclasses.replace(OF_TEXT, words="spaces_and_marks")
    text_statistics([unit * 320_000], definitions)
