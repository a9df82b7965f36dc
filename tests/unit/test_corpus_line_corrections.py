"""RefinedWeb's corrections of lines: one that just passes and one that just fails for each."""

import pytest

from t5x_style.corpus.wanjuan_cc.clean import CleanSettings, clean
from t5x_style.corpus.wanjuan_cc.line_corrections import LineCorrections, is_flagged
from tests.unit.test_corpus_documents import table_of
from tests.unit.web_archives import prose


@pytest.mark.parametrize(
    ("passes", "fails"),
    [
        ("two words", "word"),
        ("w" * 21, "w" * 20),
        ("", "..."),
        ("AB cd", "ABC de"),
        ("Straße NRW", "STRASSE Nr"),
        ("12 3/4 a", "12 3/4 5"),
        ("- - -", "- 1 -"),
        ("3 likes so far", "3 likes"),
        ("a comment, 3 likes", "12 comments \u00b7 1.2k likes"),
        ("sign the inn papers", "Sign-in or be quiet"),
        ("please sign in", "Sign in please"),
        ("read more books here", "You may read more..."),
        ("there were items in carts", "there are 2 items in cart now"),
        ("sign in one two three four five six seven eight nine", "sign in one two three four"),
        ("\u4e24 \u4e2a \u8bcd", "\u8d2d\u7269\u8f66"),
    ],
)
def test_a_line_that_just_passes_and_one_that_just_fails(passes, fails):
    settings = LineCorrections()
    assert not is_flagged(passes, settings)
    assert is_flagged(fails, settings)


def test_phrases_are_settings():
    assert is_flagged("zum Warenkorb gehen", LineCorrections(anywhere=("warenkorb",)))
    assert not is_flagged("3 likes", LineCorrections(counted=()))


def test_flagged_lines_go_and_a_text_with_too_many_goes_with_them():
    # 38 words in sentences, and 2 of 40 are 5%.
    sentences = [" ".join(["word"] * 18) + " end.", " ".join(["other"] * 18) + " end."]
    assert sum(len(line.split()) for line in sentences) == 38
    kept = "\n".join([sentences[0], "Read more", sentences[1]])
    dropped = "\n".join([sentences[0], "Read more", "12", sentences[1]])
    table, reasons = clean(table_of([kept, dropped, ""]), LineCorrections())
    assert table["text"].to_pylist() == ["\n".join(sentences), ""]
    assert reasons == {"interface_lines": 1}


def test_links_keep_their_places_and_rules_may_follow_or_precede():
    text = "\n".join(["Read more", *prose(1), "3 likes"])
    anchor = prose(1)[0].split()[2]
    start = text.index(anchor)
    source = table_of([text, "too short"])
    rows = source.to_pylist()
    rows[0]["links"] = [{"url": "u", "anchor": anchor, "start": start, "end": start + len(anchor)}]
    source = type(source).from_pylist(rows, source.schema)
    for settings in (
        (LineCorrections(), CleanSettings()),
        (CleanSettings(), LineCorrections()),
    ):
        table, reasons = clean(source, settings)
        (row,) = table.to_pylist()
        assert row["text"] == "\n".join(prose(1))
        (link,) = row["links"]
        assert row["text"][link["start"] : link["end"]] == anchor
        assert row["id"] != rows[0]["id"]
        assert row["num_bytes"] == len(row["text"].encode())
        assert reasons == {"too_few_words": 1}
