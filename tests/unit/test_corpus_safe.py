"""The Safe stage: what is masked and what is not, which pages go, how long any text may take."""

import hypothesis
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from t5x_style.corpus.documents import SAFE_SCHEMA, TEXT_SCHEMA, document_id
from t5x_style.corpus.linear_scorer import LinearScorer, LinearSettings, train_linear
from t5x_style.corpus.wanjuan_cc.blocklists import Domains, Words, read_list, words_of
from t5x_style.corpus.wanjuan_cc.pii import KINDS, MaskSettings, mask
from t5x_style.corpus.wanjuan_cc.safe import Cut, Safe, SafeSettings

ALL = MaskSettings()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Write to a.b+c@mail.example.co.uk.", "Write to [EMAIL]."),
        ("<jane_doe@example.org>, Jane", "<[EMAIL]>, Jane"),
        ("call +44 20 7946 0958 today", "call [PHONE] today"),
        ("(212) 555-0123 or 212.555.0123 or 1-212-555-0123", "[PHONE] or [PHONE] or [PHONE]"),
        ("from 8.8.8.8, port 53", "from [IP], port 53"),
        ("dns 2001:4860:4860::8888 is slow", "dns [IP] is slow"),
        ("card 4111 1111 1111 1111, or 5500-0055-5555-5559", "card [CARD], or [CARD]"),
        ("SSN 219-09-9999", "SSN [SSN]"),
        ("DE89 3704 0044 0532 0130 00 and GB82WEST12345698765432", "[IBAN] and [IBAN]"),
        ("é@example.org", "é@example.org"),
        ("4111111111111111 8.8.8.8", "[CARD] [IP]"),
        ("GB82 WEST 1234 5698 7654 32 4111 1111 1111 1111", "[IBAN] [CARD]"),
        ("GB82WEST12345698765432 THIS IS IT", "[IBAN] THIS IS IT"),
        ("AB12 CD34 GB82 WEST 1234 5698 7654 32", "AB12 CD34 [IBAN]"),
    ],
)
def test_personal_data_is_masked(text, wanted):
    assert mask(text, ALL).text == wanted


@pytest.mark.parametrize(
    "text",
    [
        "pip install jade@0.10.4, or user@host",  # no domain
        "192.168.0.1, 10.0.0.1, 127.0.0.1, 300.1.1.1, 1.2.3",  # private, or no address
        "std::vector, 20:15:30, fe80::1",
        "4111 1111 1111 1112 and 0000 0000 0000 0000",  # wrong check digit; no card
        "000-12-3456, 666-12-3456, 219-00-1234",
        "GB82WEST12345698765431",  # wrong check digits
        "ISBN 978-3-16-148410-0, 2024-01-02 12:34:56, +3.140000, 252.227-7013",
        "1234567890 items, 3.14159265358979, $1,234,567.89",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text):
    assert mask(text, ALL).text == text


def test_kinds_and_patterns_of_ones_own():
    settings = MaskSettings(kinds=("email",), extra=(("ticket", r"\bT-\d{4}\b"),))
    assert (
        mask("T-1234 by a@b.org from 8.8.8.8", settings).text == "[TICKET] by [EMAIL] from 8.8.8.8"
    )
    # One that matches anything, what is masked already included, comes to an end.
    greedy = MaskSettings(kinds=("email",), extra=(("all", r"[^x]+"),))
    assert mask("a@b.org x yz", greedy).text == "[EMAIL] x[ALL]"
    with pytest.raises(ValueError, match=r"MaskSettings.kinds.*name"):
        MaskSettings(kinds=("names",))
    with pytest.raises(ValueError, match=r"MaskSettings.extra.*'bad'"):
        MaskSettings(extra=(("bad", "("),))


PIECES = [
    "GB82WEST12345698765432",
    "GB82 WEST 1234 5698 7654 32",
    "+44 20 7946 0958",
    "a@b.org",
    "8.8.8.8",
    "212-555-0123",
    "4111111111111111",
    "219-09-9999",
    "-",
    " ",
    "\n",
]


@hypothesis.given(st.lists(st.sampled_from(PIECES) | st.text(max_size=5)).map("".join))
def test_masking_twice_changes_nothing_and_lines_stay(text):
    once = mask(text, ALL)
    assert mask(once.text, ALL).text == once.text
    assert once.text.count("\n") == text.count("\n")
    for start, end, kind in once.spans:
        place = once.place(start)
        assert place is not None
        assert once.text[place:].startswith(f"[{kind.upper()}]")
        if start + 1 < end:
            assert once.place(start + 1) is None
    assert once.place(len(text)) == len(once.text)


@pytest.mark.parametrize(
    "unit",
    ["a", "a.", "1", "1 ", "1.", "+1", "(212) ", "A", "AB12", "-", "2001:", "@", "a@", "a@b."],
)
def test_no_text_takes_long(unit):
    """Linear patterns take tens of milliseconds, quadratic ones minutes, over the suite's limit."""
    text = unit * (200_000 // len(unit))
    assert mask(text, ALL).text.count("\n") == 0


def test_a_domain_takes_in_what_lies_under_it():
    domains = Domains(["Bad.example", "www.worse.example", "münchen.example"])
    assert len(domains) == 3
    for url in (
        "https://bad.example/x",
        "http://a.b.BAD.example:8080/",
        "https://worse.example",
        "https://xn--mnchen-3ya.example/",
    ):
        assert domains.has_host_of(url), url
    for url in ("https://notbad.example/", "https://example/", "bad.example", "", "http://[::1"):
        assert not domains.has_host_of(url), url


def test_words_and_phrases_are_counted_without_case():
    words = Words(["Bad", "very bad word", "don't"])
    assert words.count(words_of("BAD, bad; badly. Very  bad\nword! Don't don")) == 5
    assert words.count([]) == 0


def documents(*rows):
    given = [
        {"url": url, "text": text, "links": links, "num_bytes": len(text.encode()), "id": "x"}
        for url, text, links in rows
    ]
    empty = dict.fromkeys(TEXT_SCHEMA.names)
    return pa.Table.from_pylist([{**empty, **row} for row in given], TEXT_SCHEMA)


def test_the_stage_drops_masks_and_moves_links(tmp_path):
    (tmp_path / "domains").write_text("bad.example  # a comment\n\n")
    (tmp_path / "words").write_text("foul\nvery foul\n")
    settings = SafeSettings(
        domain_lists=(str(tmp_path / "domains"),),
        word_lists=(str(tmp_path / "words"),),
        min_word_hits=2,
        min_word_share=0.2,
    )
    text = "Ask a@b.org, or see the page of 8.8.8.8."
    links = [
        {"url": "https://p.example", "anchor": "page", "start": 24, "end": 28},
        {"url": "mailto:a@b.org", "anchor": "a@b.org", "start": 6, "end": 11},
        {"url": "https://q.example", "anchor": "none", "start": -1, "end": -1},
    ]
    assert text[24:28] == "page"
    safe = Safe(settings)
    kept, dropped = safe(
        documents(
            ("https://www.bad.example/1", "fine", []),
            ("https://good.example/1", text, links),
            ("https://good.example/2", "Very foul.", []),
            ("https://good.example/3", "One foul word, and others that are not at all.", []),
        )
    )
    assert dropped == {"unsafe_domain": 1, "unsafe_words": 1}
    assert safe.masked == {"email": 1, "ip": 1}
    masked, clean = kept.to_pylist()
    assert masked["text"] == "Ask [EMAIL], or see the page of [IP]."
    assert masked["num_bytes"] == len(masked["text"])
    assert masked["id"] == document_id(masked["url"], masked["text"])
    page, mail, none = masked["links"]
    assert masked["text"][page["start"] : page["end"]] == "page"
    assert (mail["start"], mail["end"], mail["anchor"]) == (-1, -1, "[EMAIL]")
    assert (none["start"], none["end"]) == (-1, -1)
    assert clean["id"] == "x"


def test_models_judge_what_the_lists_have_left(tmp_path):
    rude = ["you are a rude fool", "fool and rude", "rude rude"]
    kind = ["a kind word", "what a fine day", "you are kind"]
    labels = [True] * 3 + [False] * 3
    train_linear(rude + kind, labels, LinearSettings(bits=8, l2=1e-3)).save(tmp_path)
    texts = ["rude fool", "a fine kind day, a@b.org"]
    settings = SafeSettings(toxicity=Cut(str(tmp_path), limit=0.5))
    table = documents(*[("https://a.example/", text, []) for text in texts])
    kept, dropped = Safe(settings)(table)
    assert dropped == {"toxic": 1}
    assert kept.schema.names == SAFE_SCHEMA.names
    (row,) = kept.to_pylist()
    assert row["text"] == "a fine kind day, [EMAIL]"
    # Of the text as it was.
    assert row["toxic_score"] == LinearScorer.load(tmp_path).scores(texts)[1] < 0.5
    assert row["porn_score"] is None
    with pytest.raises(ValueError, match="train_scorer"):
        Safe(SafeSettings(pornography=Cut(str(tmp_path / "gone"))))


def test_lists_that_are_shipped_are_found_and_others_are_asked_for(tmp_path):
    settings = SafeSettings()
    assert Safe(settings)(documents(("https://a.example/", "Text.", [])))[0].num_rows == 1
    assert len(list(read_list("unsafe/domains.txt"))) > 10
    with pytest.raises(ValueError, match=r"domainz.txt.*\n(.*\n)*.*domains.txt"):
        list(read_list("unsafe/domainz.txt"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no UTF-8"):
        list(read_list(tmp_path / "binary"))
    assert set(KINDS) == set(MaskSettings().kinds)
