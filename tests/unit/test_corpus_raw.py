"""Pages to text: charset, main content, title, links in place, language."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_style.corpus.documents import TEXT_SCHEMA, document_id
from t5x_style.corpus.pages import PAGE_SCHEMA
from t5x_style.corpus.wanjuan_cc.raw import (
    EXTRACTORS,
    RawSettings,
    decode_page,
    extract,
    identify_language,
    language_of,
    prose_of,
    tidy,
)
from tests.unit.web_archives import DATE, html_page, prose

GERMAN = (
    "Der alte Mann ging langsam durch den Wald und dachte an die Zeit, als seine Kinder noch klein "
    "waren. Am Abend kehrte er nach Hause zurück und erzählte seiner Frau, was er gesehen hatte. "
) * 5


def pages(*bodies, charset="utf-8"):
    rows = [
        {"url": f"http://a.org/{i}", "date": DATE, "dump": "D", "charset": charset, "body": body}
        for i, body in enumerate(bodies)
    ]
    return pa.Table.from_pylist(rows, PAGE_SCHEMA)


def test_a_page_becomes_a_document():
    paragraphs = prose(1)
    kept, dropped = extract(pages(html_page(paragraphs, "The &lt;title&gt;")), RawSettings())
    assert dropped == {}
    assert kept.schema == TEXT_SCHEMA
    (row,) = kept.to_pylist()
    assert row["text"] == "\n\n".join(paragraphs)
    assert row["title"] == "The <title>"
    assert row["language"] == "en"
    assert row["language_score"] > 0.65
    assert (row["date"], row["dump"], row["url"]) == (DATE, "D", "http://a.org/0")
    assert row["num_bytes"] == len(row["text"].encode())
    assert row["id"] == document_id(row["url"], row["text"])


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_links_in_the_text_have_their_place_and_those_in_menus_none(extractor):
    paragraphs = prose(2, num_paragraphs=8)
    words = paragraphs[3].split()
    paragraphs[3] = " ".join(
        [*words[:9], '<a href="/in.html#x">an <b>inner</b> link</a>', *words[9:]]
    )
    body = html_page(paragraphs).replace(
        b"<body>", b'<body><nav><ul><li><a href="/menu.html">Our menu</a></li></ul></nav>'
    )
    kept, _ = extract(pages(body), RawSettings(extractor=extractor))
    (row,) = kept.to_pylist()
    menu, inner = row["links"]
    assert (menu["url"], menu["anchor"]) == ("http://a.org/menu.html", "Our menu")
    assert (menu["start"], menu["end"]) == (-1, -1)
    assert (inner["url"], inner["anchor"]) == ("http://a.org/in.html", "an inner link")
    assert row["text"][inner["start"] : inner["end"]].strip() == "an inner link"
    assert "Our menu" not in row["text"]


def test_what_is_dropped_is_counted_and_the_others_keep_their_order():
    good = [html_page(prose(seed)) for seed in (1, 2)]
    table = pages(
        good[0],
        html_page([GERMAN]),
        b"<html><body></body></html>",
        b"<div>" * 5000,
        html_page(prose(3, 2000)),
        good[1],
        html_page(prose(4)),
    )
    begun = []
    kept, dropped = extract(
        table, RawSettings(max_text_bytes=100_000), begun.append, {6: "timeout"}
    )
    assert kept["url"].to_pylist() == ["http://a.org/0", "http://a.org/5"]
    assert dropped == {"language": 1, "empty": 1, "too_deep": 1, "text_too_long": 1, "timeout": 1}
    assert begun == [0, 1, 2, 3, 4, 5, -1]


def test_an_unknown_extractor_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"raw\.RawSettings\.extractor.*resiliparse.*trafilatura"):
        extract(pages(b"x"), RawSettings(extractor="lynx"))


TEXT = "Größe, naïve façade – “quoted” Привет"


@pytest.mark.parametrize(
    ("body", "http_charset"),
    [
        (TEXT.encode(), "utf-8"),
        (b"\xef\xbb\xbf" + TEXT.encode(), "latin-1"),  # the byte order mark goes first
        (b"\xff\xfe" + TEXT.encode("utf-16-le"), ""),
        (b'<meta charset="utf-8">' + TEXT.encode(), ""),
        (b'<meta http-equiv=x content="text/html; charset=utf-8">' + TEXT.encode(), ""),
        (TEXT.encode() * 20, "nonsense"),
    ],
)
def test_the_charset_is_found(body, http_charset):
    assert TEXT in decode_page(body, http_charset)


def test_old_charsets_and_wrong_labels():
    german = "Schöne Grüße aus München, über Straßen und Plätze. " * 20
    assert german in decode_page(german.encode("cp1252"), "iso-8859-1")
    russian = "Привет, мир. Это обычный текст на русском языке. " * 20
    assert russian in decode_page(b"<meta charset=windows-1251>" + russian.encode("cp1251"), "")
    # Declared as UTF-8, but hardly any of it decodes.
    assert russian in decode_page(russian.encode("koi8-r"), "utf-8")
    # A few broken bytes do not overrule what is declared.
    assert decode_page(b"caf\xc3\xa9 \xff " + b"x" * 300, "utf-8").startswith("café \ufffd")


@given(
    st.binary(max_size=300), st.sampled_from(["", "utf-8", "utf-16", "utf-7", "shift_jis", "\x00"])
)
def test_any_bytes_decode_to_text_that_utf8_can_hold(body, charset):
    text = decode_page(body, charset)
    assert text.encode("utf-8").decode("utf-8") == text


def test_tidy_puts_characters_in_order():
    untidy = (
        "a\u00a0b\u200bc \t d\r\ne\u2028f  \n\n\n\n   indented\u00ad code\x00\ncafe\u0301\ufeff\n"
    )
    assert tidy(untidy) == "a bc d\ne\nf\n\n   indented code\ncafé"


@given(st.text())
def test_tidy_twice_is_tidy_once(text):
    once = tidy(text)
    assert tidy(once) == once


@pytest.mark.parametrize("run", [" ", "\n", " \n", "\t", "\u00a0", "\U00010640 ", "\r"])
def test_tidy_takes_linear_time(run):
    """About 0.1 s; the suite's limit of processor time would fail a square."""
    tidied = tidy("a" + run * 300_000 + "b")
    assert (tidied[0], tidied[-1]) == ("a", "b")


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_the_text_of_a_page_does_not_depend_on_the_pages_before(extractor):
    body = html_page(prose(7))
    settings = RawSettings(extractor=extractor)
    kept, _ = extract(pages(body, *[body] * 5), settings)
    assert len(set(kept["text"].to_pylist())) == 1
    assert kept.num_rows == 6


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (" ".join(prose(1)), "en"),
        (GERMAN, "de"),
        ("彼は昨日の夜、友達と一緒に映画を見に行きました。とても面白かったです。", "ja"),
        ("Вчера вечером мы гуляли по городу и разговаривали о будущем.", "ru"),
    ],
)
def test_languages_are_told_apart(text, language):
    found, score = identify_language(prose_of(text, 2000))
    assert found == language
    assert score > 0.65


def test_code_does_not_hide_the_language_of_the_prose_around_it():
    code = "\n".join(f"def f{i}(x: int, *args) -> None: return g_{i}[x]" for i in range(200))
    mixed = code + "\n" + "\n".join(prose(5))
    assert "def" not in prose_of(mixed, 2000)
    assert identify_language(prose_of(mixed, 2000))[0] == "en"
    assert prose_of("短い文", 10) == "短い文"


def test_a_document_is_read_until_its_language_is_sure():
    german_page = "\n".join([GERMAN] * 40)
    assert language_of(german_page, RawSettings()) == identify_language(prose_of(german_page, 150))
    # A first line of names says little; more is looked at, up to the most.
    unsure = "Anna Paul Berlin Roma Tokio Osaka Lima Oslo Turin Paris\n" * 4 + "\n".join(prose(3))
    first = identify_language(prose_of(unsure, 150))
    assert first[1] < RawSettings().sure_language_score
    assert language_of(unsure, RawSettings())[0] == "en"
    assert language_of(unsure, RawSettings())[1] > first[1]
    capped = RawSettings(language_chars=100)
    assert language_of(unsure, capped) == identify_language(prose_of(unsure, 100))
    wants_more = RawSettings(min_language_score=1.0)
    assert language_of(german_page, wants_more) == identify_language(prose_of(german_page, 2000))


def test_capitals_are_no_language_of_their_own():
    text = " ".join(prose(1))[:300]
    assert identify_language(text.upper()) == identify_language(text.lower())
    mostly = text.upper()[:280] + text[280:]
    assert identify_language(mostly) == identify_language(mostly.lower())


def test_the_prose_of_a_long_line_is_that_of_its_start():
    line = "word " * 200_000
    assert prose_of(line, 150) == ("word " * 40)[:150]
