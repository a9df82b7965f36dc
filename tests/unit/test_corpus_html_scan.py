"""The pass over HTML source: links and title read, hostile tags cut, never more than linear."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_style.corpus.html_scan import RefusedPage, ScanLimits, scan_html, take_marks

URL = "http://example.org/folder/page.html"
LIMITS = ScanLimits()


def scan(source, limits=LIMITS):
    return scan_html(source, URL, limits)


@pytest.mark.parametrize(
    ("href", "address"),
    [
        ("other.html", "http://example.org/folder/other.html"),
        ("../up.html#part", "http://example.org/up.html"),
        ("/top/a.html?b=1&amp;c=2", "http://example.org/top/a.html?b=1&c=2"),
        ("/a/../b", "http://example.org/b"),
        ("//cdn.example.com/x", "http://cdn.example.com/x"),
        ("HTTPS://Example.com/Y#z", "HTTPS://Example.com/Y"),
        (" spaced.html ", "http://example.org/folder/spaced.html"),
    ],
)
def test_links_are_resolved_against_the_page(href, address):
    assert scan(f"<a class=x href='{href}' id=y>text</a>").links == [(address, "text")]


@pytest.mark.parametrize(
    "tag",
    [
        '<a href="#part">',
        '<a href="mailto:a@example.org">',
        '<a href="javascript:go()">',
        '<a href="http://[broken/">',
        '<a name="here">',
        "<a>",
        '<a href="' + "x" * 3000 + '">',
        '<a title="x href=trap.html">',
        '<!-- <a href="x.html"> -->',
        '<script>"<a href=x.html>"</script>',
        "<b title='<a href=x.html>'>",
    ],
)
def test_what_is_no_web_link_is_left_alone(tag):
    assert scan(f"{tag}text</a>").links == []


@pytest.mark.parametrize(
    "comment", ["<!---->", "<!-->", "<!--->", "<!-- > --!>", "<!doctype>", "</>"]
)
def test_links_behind_a_comment_are_seen(comment):
    assert len(scan(f"{comment}<a href=x>text</a>").links) == 1


def test_the_base_element_moves_the_links():
    page = '<base href="http://other.org/x/"><a href="y">1</a><base href="/z/"><a href="y">2</a>'
    assert [url for url, _ in scan(page).links] == ["http://other.org/x/y", "http://other.org/z/y"]


def test_title_and_anchors_are_plain_text():
    page = scan(
        "<title>A &amp;\n <b> B</title><title>no</title><a href=x> to <b>the&nbsp;end</b>\n</a>"
    )
    assert page.title == "A & B"
    assert page.links[0][1] == "to the end"


def test_marks_give_the_place_of_each_anchor():
    page = scan(
        "a <a href=1>one</a> b <a href=2>two <a href=3>three</a> <a href=4></a> <a href=5>x"
    )
    text, spans = take_marks(page.source)
    assert [text[start:end] for start, end in spans.values()] == ["one", "two ", "three", "x"]
    assert list(spans) == [0, 1, 2, 4]
    assert len(page.links) == 5


def test_links_beyond_the_cap_are_not_recorded():
    page = scan("<a href=x>y</a>" * 50, ScanLimits(links=20))
    assert len(page.links) == 20
    text, spans = take_marks(page.source)
    assert text == "<a href=x>y</a>" * 50
    assert len(spans) == 20


def test_signs_used_as_marks_are_taken_out_of_the_page():
    page = scan("a\U00010600b\U00010641c <a href=x>d\U00010640</a>")
    text, spans = take_marks(page.source)
    assert text == "abc <a href=x>d</a>"
    assert text[slice(*spans[0])] == "d"


@given(st.text(alphabet=st.sampled_from("<>/!-=\"' \nab&;a")) | st.text())
def test_apart_from_marks_and_what_is_cut_off_the_source_stays_as_it_is(source):
    text, _ = take_marks(scan(source).source)
    assert source.replace("\r", "\r").startswith(text)


def test_oversized_tags_keep_their_name_and_href_alone():
    many = " ".join(f"a{i}=1" for i in range(500))
    page = scan(f"<p {many}>one</p><a {many} href=x.html>two</a><img src='{'y' * 50_000}'>")
    text, _ = take_marks(page.source)
    assert text == '<p>one</p><a href="x.html">two</a><img>'
    assert page.links == [("http://example.org/folder/x.html", "two")]
    # Many classes or a long value are no attributes.
    kept = f"<p class='{'word ' * 500}' style=\"{'x: y; ' * 300}\">"
    assert scan(kept).source == kept


def test_deep_nesting_and_too_many_tags_are_refused():
    deep = ScanLimits(depth=100)
    assert scan("<div>" * 100, deep).source
    assert scan("<div></div>" * 1000, deep).source
    assert scan("<p>" * 1000 + "<br>" * 1000 + "<li>" * 1000, deep).source
    with pytest.raises(RefusedPage, match="too_deep"):
        scan("<div>" * 101, deep)
    with pytest.raises(RefusedPage, match="too_many_tags"):
        scan("<br>" * 101, ScanLimits(tags=100))


HOSTILE = {
    "attributes": "<p " + "a=1 " * 400_000 + ">x",
    "quoted attributes": "<p " + 'a="1" ' * 300_000 + ">x",
    "tags that never end": "<a " * 500_000,
    "quotes that never end": '<a href="' * 200_000,
    "both quotes": "<a href='" + '<a href="' * 200_000,
    "comments that never end": "<!-- --" * 200_000,
    "short comments": "<!-->" * 100_000,
    "scripts that never end": "<script>" * 200_000,
    "angle brackets": "<" * 2_000_000,
    "equals signs": "<p " + "=" * 2_000_000,
    "spaces": "<p x=" + " " * 2_000_000,
    "slashes": "<p " + "/ " * 1_000_000 + ">",
    "a long name": "<" + "a" * 2_000_000 + ">",
    "a long line": "x" * 20_000_000,
    "entities": "<a href=x>" + "&amp;" * 500_000 + "</a>",
    "attribute names": "<a " + "href " * 500_000 + ">",
    "bogus comments": "</ x" * 500_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_source_takes_linear_time(name):
    """All take well under a second; the suite's limit of processor time would fail a square."""
    assert isinstance(scan(HOSTILE[name]).source, str)
