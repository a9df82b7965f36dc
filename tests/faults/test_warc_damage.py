"""Damaged and hostile web archives: each fault costs its own record, and is counted."""

import gzip
import tracemalloc
import zlib
from collections import Counter

import pytest

from t5x_style.corpus.warc import WarcLimits, read_warc
from t5x_style.corpus.warc_writer import response_record
from tests.unit.web_archives import DATE, prose_pages

PAGES = prose_pages(6)
URLS = [url for url, _ in PAGES]
MEMBERS = [response_record(url, DATE, body) for url, body in PAGES]
PLAIN = [gzip.decompress(member) for member in MEMBERS]
BAD = 2  # the record that is damaged


def member(record, level=6):
    deflater = zlib.compressobj(level=level, wbits=31)
    return deflater.compress(record) + deflater.flush()


def damaged_members(change):
    return b"".join(change(m) if i == BAD else m for i, m in enumerate(MEMBERS))


def flip(data, place):
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


def with_length(record, length):
    head, _, block = record.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
    return b"\r\n".join([*lines, b"Content-Length: %s" % length]) + b"\r\n\r\n" + block


MIDDLE = len(MEMBERS[BAD]) // 2
GZIP_CASES = {
    "bit flipped in the middle": (lambda m: flip(m, MIDDLE), "damaged_member"),
    "bit flipped near the end": (lambda m: flip(m, len(m) - 12), "damaged_member"),
    "CRC wrong": (lambda m: m[:-8] + b"\0\0\0\0" + m[-4:], "damaged_member"),
    "CRC wrong behind many blank lines": (
        lambda m: member(PLAIN[BAD] + b"\r\n" * 100_000)[:-8] + b"\0\0\0\0\0\0\0\0",
        "damaged_member",
    ),
    "length wrong": (lambda m: m[:-4] + b"\1\2\3\4", "damaged_member"),
    "magic destroyed": (lambda m: b"XX" + m[2:], "garbage"),
    "second half missing": (lambda m: m[:MIDDLE], "damaged_member"),
    "first half missing": (lambda m: m[MIDDLE:], "garbage"),
    "middle zeroed": (lambda m: m[:90] + bytes(len(m) - 180) + m[-90:], "damaged_member"),
    "garbage in front": (lambda m: b"\x1f\x8b\x08 garbage " * 50, "damaged_member"),
    "not a record": (lambda m: member(b"<html>" + bytes(1000)), "not_a_record"),
    "header without end": (lambda m: member(b"WARC/1.0\r\nX: y"), "bad_header"),
    "header bomb": (lambda m: member(b"WARC/1.0\r\n" + b"X: y\r\n" * 200_000), "header_too_large"),
    "no Content-Length": (
        lambda m: member(b"WARC/1.0\r\nWARC-Type: response\r\n\r\nxyz\r\n\r\n"),
        "bad_content_length",
    ),
    "negative Content-Length": (
        lambda m: member(with_length(PLAIN[BAD], b"-5")),
        "bad_content_length",
    ),
    "huge Content-Length": (
        lambda m: member(with_length(PLAIN[BAD], b"9" * 15)),
        "truncated_block",
    ),
    "Content-Length too long": (
        lambda m: member(with_length(PLAIN[BAD], b"999999")),
        "truncated_block",
    ),
    "Content-Length too short": (
        lambda m: member(with_length(PLAIN[BAD], b"50")),
        "bad_content_length",
    ),
    "digest wrong": (
        lambda m: member(PLAIN[BAD].replace(b"<article>", b"<articlE>")),
        "bad_digest",
    ),
    "gzip bomb": (lambda m: member(bytes(1 << 26), level=9), "gzip_bomb"),
}


@pytest.mark.parametrize("name", GZIP_CASES)
def test_a_damaged_member_costs_that_member_alone(tmp_path, name):
    change, reason = GZIP_CASES[name]
    path = tmp_path / "x.warc.gz"
    path.write_bytes(damaged_members(change))
    losses = Counter()
    records = list(read_warc(path, losses))
    assert [record.url for record in records] == [u for i, u in enumerate(URLS) if i != BAD]
    assert reason in losses
    for record, (url, body) in zip(
        records, (p for i, p in enumerate(PAGES) if i != BAD), strict=True
    ):
        assert record.url == url
        assert record.block.endswith(body)


def test_garbage_between_members_costs_nothing_but_is_counted(tmp_path):
    path = tmp_path / "x.warc.gz"
    path.write_bytes(b"".join(m + b"garbage \x1f\x8b\x08 more" * 9 for m in MEMBERS))
    losses = Counter()
    assert [record.url for record in read_warc(path, losses)] == URLS
    assert losses == {"garbage": 6}


def test_a_truncated_last_member_is_noticed_at_every_length(tmp_path):
    path = tmp_path / "x.warc.gz"
    whole = b"".join(MEMBERS)
    for cut in (1, 4, 8, 9, 50, len(MEMBERS[-1]) - 20):
        path.write_bytes(whole[:-cut])
        losses = Counter()
        assert [record.url for record in read_warc(path, losses)] == URLS[:-1]
        assert losses == {"truncated_member": 1}, cut


def test_a_first_member_destroyed_does_not_hide_what_the_file_is(tmp_path):
    path = tmp_path / "x.warc.gz"
    path.write_bytes(bytes(100) + b"".join(MEMBERS)[100:])
    losses = Counter()
    assert [record.url for record in read_warc(path, losses)] == URLS[1:]
    assert losses == {"garbage": 1}


PLAIN_CASES = {
    "too long": (lambda r: with_length(r, b"%d" % (len(r) + 3000)), "bad_content_length"),
    "beyond the file": (lambda r: with_length(r, b"99999999"), "truncated_block"),
    "too short": (lambda r: with_length(r, b"50"), "bad_content_length"),
    "not a number": (lambda r: with_length(r, b"0x10"), "bad_content_length"),
    "version line gone": (lambda r: r.replace(b"WARC/1.0", b"CRAW/1.0"), "not_a_record"),
    "header broken": (
        lambda r: r.replace(b"WARC-Date: " + DATE.encode(), b"WARC-Date"),
        "bad_header",
    ),
    "second half missing": (lambda r: r[: len(r) // 2], "bad_content_length"),
    "bit flipped": (lambda r: flip(r, len(r) - 100), "bad_digest"),
}


@pytest.mark.parametrize("name", PLAIN_CASES)
def test_a_damaged_record_of_a_plain_file_costs_that_record_alone(tmp_path, name):
    change, reason = PLAIN_CASES[name]
    path = tmp_path / "x.warc"
    path.write_bytes(b"".join(change(r) if i == BAD else r for i, r in enumerate(PLAIN)))
    losses = Counter()
    records = list(read_warc(path, losses))
    assert [record.url for record in records] == [u for i, u in enumerate(URLS) if i != BAD]
    assert losses == {reason: 1}


def test_a_block_over_the_cap_is_passed_over(tmp_path):
    limits = WarcLimits(block_bytes=10_000)
    large = response_record("http://large/", DATE, b"".join(b"%d " % i for i in range(20_000)))
    for name, parts in (("x.warc.gz", [*MEMBERS[:2], large, MEMBERS[2]]), ("x.warc", None)):
        path = tmp_path / name
        parts = parts or [*PLAIN[:2], gzip.decompress(large), PLAIN[2]]
        path.write_bytes(b"".join(parts))
        losses = Counter()
        assert [record.url for record in read_warc(path, losses, limits)] == URLS[:3]
        assert losses == {"block_too_large": 1}


def test_files_that_hold_nothing_are_counted(tmp_path):
    for name, content, reason in (
        ("a.warc.gz", b"", "empty_file"),
        ("b.warc.gz", bytes(100_000), "garbage"),
        ("c.warc", b"\n".join([b"nothing here"] * 1000), "not_a_record"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        losses = Counter()
        assert list(read_warc(path, losses)) == []
        assert losses == {reason: 1}


def test_every_flipped_byte_costs_at_most_its_own_record(tmp_path):
    whole = b"".join(MEMBERS[:3])
    bounds = [0, *(len(b"".join(MEMBERS[: i + 1])) for i in range(3))]
    path = tmp_path / "x.warc.gz"
    for place in range(0, len(whole), 41):
        path.write_bytes(flip(whole, place))
        hit = next(i for i in range(3) if place < bounds[i + 1])
        losses = Counter()
        urls = [record.url for record in read_warc(path, losses)]
        # A flip in a gzip header's time or system byte changes nothing that matters.
        assert urls in (URLS[:3], [u for i, u in enumerate(URLS[:3]) if i != hit]), place
        assert bool(losses) == (len(urls) == 2)


def test_records_that_claim_long_blocks_do_not_cost_the_square_of_the_file(tmp_path):
    """The suite's limit of processor time holds it: 0.5 s, where a square takes minutes."""
    claims = b"WARC/1.0\r\nContent-Length: 1048583\r\n\r\n" * 30_000
    for name, content in {"claims.warc": claims, "claims.warc.gz": member(claims)}.items():
        path = tmp_path / name
        path.write_bytes(content)
        losses = Counter()
        assert list(read_warc(path, losses)) == []
        assert losses


def test_a_gzip_bomb_is_not_held_in_memory(tmp_path):
    path = tmp_path / "bomb.warc.gz"
    bomb = b"WARC/1.0\r\nContent-Length: 100000000\r\n\r\n" + bytes(100_000_000)
    path.write_bytes(member(bomb, level=9) * 5)
    tracemalloc.start()
    losses = Counter()
    assert list(read_warc(path, losses)) == []
    assert tracemalloc.get_traced_memory()[1] < 40_000_000
    tracemalloc.stop()
    assert losses == {"gzip_bomb": 5}
