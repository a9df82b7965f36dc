"""Main content by blocks: what is the article's stays, what stands around it goes."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_style.corpus.html_content import main_content
from tests.unit.web_archives import prose

ARTICLE = prose(1, num_paragraphs=6)
OTHER = prose(2, num_paragraphs=3)


def paragraphs(texts):
    return "".join(f"<p>{text}</p>" for text in texts)


def page(*parts):
    return f"<html><head><title>T</title></head><body>{''.join(parts)}</body></html>"


TEXT = "\n\n".join(ARTICLE)
BODY = f"<article><h1>Headline</h1>{paragraphs(ARTICLE)}</article>"
LINKS = "".join(f"<li><a href='/{i}'>Another story of ours, number {i}</a></li>" for i in range(20))


@pytest.mark.parametrize(
    "around",
    [
        f"<nav><ul>{LINKS}</ul></nav>",
        f"<footer>{paragraphs(OTHER)}</footer>",
        f"<div class='sidebar right'>{paragraphs(OTHER)}</div>",
        f"<div id='relatedContent'>{paragraphs(OTHER)}</div>",
        f"<section class='post-comments'>{paragraphs(prose(3, num_paragraphs=40))}</section>",
        f"<div style='display: none'>{paragraphs(OTHER)}</div>",
        f"<div hidden>{paragraphs(OTHER)}</div>",
        f"<div><h3>Most read</h3><ul>{LINKS}</ul></div>",
        "<div>Share this</div><div>Tweet</div><div>12 comments</div>",
        "<script>var a = 'A sentence that is long enough to be taken for prose, really.';</script>",
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_what_stands_around_the_content_is_left_out(around, order):
    assert main_content(page(*[BODY, around][::order])) == TEXT


@pytest.mark.parametrize(
    "among",
    [
        "<div class='ad-slot'>Advertisement</div>",
        "<p>Advertisement</p>",
        "<figure><img src=x><figcaption>The harbour in the morning.</figcaption></figure>",
        "<p>The harbour in the morning (Image: A. Painter)</p>",
        "<div><a href='/x'>A story about something quite different from this one</a></div>",
        f"<h3>More from us</h3><ul>{LINKS}</ul>",
    ],
)
def test_what_interrupts_the_content_is_left_out(among):
    body = f"<article>{paragraphs(ARTICLE[:3])}{among}{paragraphs(ARTICLE[3:])}</article>"
    assert main_content(page(body)) == TEXT


@pytest.mark.parametrize(
    "wrapper",
    [
        "<div class='content with-sidebar'>{}</div>",
        "<div class='sidebar'>{}</div>",  # it holds most of the page, whatever it is called
        "<article class='post comments-open'>{}</article>",
        "<form action=/>{}</form>",
        "<button>{}</button>",  # never closed, in pages as they are
        "<div style='visibility:hidden'>{}</div>",  # until a script shows it
        "<table><tr><td>{}</td></tr></table>",
    ],
)
def test_the_content_stays_whatever_it_lies_in(wrapper):
    footer = f"<footer>{paragraphs(OTHER[:1])}</footer>"
    assert main_content(page(wrapper.format(paragraphs(ARTICLE)), footer)) == TEXT


def test_content_in_several_parts_is_kept_whole():
    parts = "".join(f"<div class='block'><p>{text}</p></div>" for text in ARTICLE)
    assert main_content(page(f"<div id=a>{parts}</div>", f"<nav>{LINKS}</nav>")) == TEXT
    widgets = parts.replace("block", "widget")
    assert main_content(page(f"<div id=a>{widgets}</div>", f"<nav>{LINKS}</nav>")) == TEXT


def test_teasers_are_not_taken_for_the_article():
    teasers = "".join(
        f"<article class=teaser><a href=/{i}>x</a><p>{text}</p></article>"
        for i, text in enumerate(prose(5, num_paragraphs=4))
    )
    article = f"<article class=full>{paragraphs(ARTICLE)}</article>"
    assert main_content(page(article, f"<div>{teasers}</div>")) == TEXT


def test_headings_lists_code_and_line_breaks_keep_their_form():
    body = (
        f"<h1>Headline</h1><p>{ARTICLE[0]}</p><h2>A heading</h2><p>First line of it,<br>second line"
        f" of the same paragraph.<br><br>{ARTICLE[1]}</p><ul><li>The first thing on the list.</li>"
        f"<li>The second thing on the list.</li></ul><pre>def f():\n    return 1</pre>"
        f"<p>{ARTICLE[2]}</p><h2>A heading with nothing below</h2>"
    )
    assert main_content(page(f"<main>{body}</main>")).split("\n\n") == [
        ARTICLE[0],
        "A heading",
        "First line of it, second line of the same paragraph.",
        ARTICLE[1],
        "\u2022 The first thing on the list.\n\u2022 The second thing on the list.",
        "def f():\n    return 1",
        ARTICLE[2],
    ]


def test_a_page_without_prose_has_no_content():
    assert main_content("") == ""
    assert main_content("   ") == ""
    assert main_content("<!-- nothing -->") == ""
    assert main_content(page(f"<ul>{LINKS}</ul>")) == ""


@given(st.text(alphabet=st.sampled_from("<>/!-=\"' \npdivabrh1&;")) | st.text())
def test_any_source_gives_some_text(source):
    assert isinstance(main_content(source), str)


HOSTILE = {
    "articles in articles": "<article class=a>" * 900
    + "A sentence. " * 20
    + "<div>x</div>" * 50_000,
    "buttons in buttons": "<button>" * 900 + "<b>x</b>" * 50_000 + "<p>x</p>",
    "long names": f"<div class='{'article_' * 4000}'>x</div>" * 30,
    "many names": "".join(f"<div class='content-{i} body'>x</div>" for i in range(50_000)),
    "many breaks": "<p>" + "x<br><br> " * 100_000,
    "a long line": "<p>" + "word. " * 1_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pages_take_bounded_time(name):
    """Most take under a second; the suite's limit of processor time holds it."""
    assert isinstance(main_content(HOSTILE[name]), str)


def test_nesting_and_order_of_blocks_do_not_break_the_walk():
    rng = random.Random(4)
    tags = ["div", "p", "b", "a", "ul", "li", "td", "pre", "h2", "article", "aside"]
    for _ in range(100):
        source = "".join(
            rng.choice(["<", "</"]) + rng.choice(tags) + ">" + rng.choice(["", "Some words. " * 9])
            for _ in range(60)
        )
        text = main_content(page(source))
        assert set(text.split()) <= {"Some", "words.", "\u2022"}
