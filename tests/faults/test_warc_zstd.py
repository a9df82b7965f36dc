"""Web archives in Zstandard, sound, damaged and hostile: what holds for gzip members holds here."""

import gzip
import struct
import tracemalloc
from collections import Counter

import pytest
import zstandard

from t5x_style.corpus.http_response import RefusedResponse, parse_response
from t5x_style.corpus.warc import WarcLimits, read_warc
from t5x_style.corpus.warc_writer import response_record
from tests.unit.web_archives import DATE, html_page, prose_pages, skippable_frame, zstd_archive

PAGES = prose_pages(30)
URLS = [url for url, _ in PAGES]
RECORDS = [gzip.decompress(response_record(url, DATE, body)) for url, body in PAGES]
FRAMES = [zstd_archive([record]) for record in RECORDS]
DICTIONARY = zstandard.train_dictionary(4096, RECORDS * 4).as_bytes()
BAD = 2  # the frame that is damaged


def read(path, content, limits=None):
    path.write_bytes(content)
    losses = Counter()
    return [record.url for record in read_warc(path, losses, limits)], losses


def test_frames_are_read_with_and_without_a_dictionary(tmp_path):
    packed = skippable_frame(zstandard.compress(DICTIONARY), 0xD)
    with_dictionary = zstd_archive(RECORDS, DICTIONARY)
    frames = with_dictionary[len(DICTIONARY) + 8 :]
    assert len(frames) < len(zstd_archive(RECORDS))
    for content in (zstd_archive(RECORDS), with_dictionary, packed + frames):
        assert read(tmp_path / "x.warc.zst", content) == (URLS, {})
        assert read(tmp_path / "x", content) == (URLS, {})  # the name does not matter


def test_the_blocks_come_out_as_they_went_in(tmp_path):
    path = tmp_path / "x.warc.zst"
    path.write_bytes(zstd_archive(RECORDS, DICTIONARY))
    for record, (_, body) in zip(read_warc(path, Counter()), PAGES, strict=True):
        assert record.block.endswith(b"\r\n\r\n" + body)


def test_all_records_of_a_single_frame_are_found_and_extension_frames_passed_over(tmp_path):
    whole = zstd_archive([b"".join(RECORDS)])
    assert read(tmp_path / "x.warc.zst", whole) == (URLS, {})
    extended = b"".join(
        skippable_frame(b"index" * 9, kind % 16) + FRAMES[kind] for kind in range(20)
    )
    assert read(tmp_path / "x.warc.zst", extended) == (URLS[:20], {})


def test_without_its_dictionary_a_file_is_counted_and_what_can_be_read_is(tmp_path):
    frames = zstd_archive(RECORDS[:3], DICTIONARY)[len(DICTIONARY) + 8 :]
    bad = [
        skippable_frame(b"\x37\xa4\x30\xec" + bytes(100), 0xD),
        skippable_frame(zstandard.compress(DICTIONARY)[:-20], 0xD),
        skippable_frame(zstandard.compress(bytes(1 << 25)), 0xD),  # a bomb
        skippable_frame(b"", 0xD),
    ]
    for head in bad:
        urls, losses = read(tmp_path / "x.warc.zst", head + frames + FRAMES[3])
        assert urls == URLS[3:4]
        assert losses["bad_dictionary"] == 1
        assert losses["damaged_member"] >= 1


def flip(data, place):
    return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]


def frame(content, level=3):
    return zstandard.ZstdCompressor(level, write_checksum=True).compress(content)


CASES = {
    "bit flipped in the middle": (lambda f: flip(f, len(f) // 2), "damaged_member"),
    "checksum wrong": (lambda f: f[:-4] + b"\0\0\0\0", "damaged_member"),
    "magic destroyed": (lambda f: b"XX" + f[2:], "garbage"),
    "second half missing": (lambda f: f[: len(f) // 2], "damaged_member"),
    "first half missing": (lambda f: f[len(f) // 2 :], "garbage"),
    "middle zeroed": (lambda f: f[:90] + bytes(len(f) - 180) + f[-90:], "damaged_member"),
    "window too large": (lambda f: f[:4] + b"\x00\xff" + f[6:], "damaged_member"),
    "not a record": (lambda f: frame(b"<html>" + bytes(1000)), "not_a_record"),
    "extension beyond the file": (
        lambda f: struct.pack("<II", 0x184D2A53, 1 << 30),
        "truncated_member",
    ),
    "header bomb": (lambda f: frame(b"WARC/1.0\r\n" + b"X: y\r\n" * 200_000), "header_too_large"),
    "zstd bomb": (lambda f: frame(bytes(1 << 28), level=9), "zstd_bomb"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_damaged_frame_costs_that_frame_alone(tmp_path, name):
    change, reason = CASES[name]
    content = b"".join(change(f) if i == BAD else f for i, f in enumerate(FRAMES[:6]))
    urls, losses = read(tmp_path / "x.warc.zst", content)
    assert urls == [url for i, url in enumerate(URLS[:6]) if i != BAD]
    assert losses == {reason: 1}


def test_every_flipped_byte_costs_at_most_its_own_frame(tmp_path):
    whole = b"".join(FRAMES[:3])
    bounds = [0, *(len(b"".join(FRAMES[: i + 1])) for i in range(3))]
    for place in [*range(0, len(whole), 29), *(b + d for b in bounds[:3] for d in range(12))]:
        hit = next(i for i in range(3) if place < bounds[i + 1])
        urls, losses = read(tmp_path / "x.warc.zst", flip(whole, place))
        assert urls in (URLS[:3], [u for i, u in enumerate(URLS[:3]) if i != hit]), place
        assert bool(losses) == (len(urls) == 2), place


def test_a_truncated_last_frame_is_noticed_at_every_length(tmp_path):
    whole = b"".join(FRAMES[:3])
    for cut in (1, 4, 50, len(FRAMES[2]) - 20, len(FRAMES[2]) - 5):
        urls, losses = read(tmp_path / "x.warc.zst", whole[:-cut])
        assert (urls, losses) == (URLS[:2], {"truncated_member": 1}), cut


def test_a_zstd_bomb_is_not_held_in_memory(tmp_path):
    block = struct.pack("<I", (1 << 17) << 3 | 1 << 1)[:3] + b"\0"  # 128 KiB of zeros
    bomb = b"\x28\xb5\x2f\xfd\x00\x58" + block * 100_000  # 12 GB
    tracemalloc.start()
    urls, losses = read(tmp_path / "x.warc.zst", FRAMES[0] + bomb + FRAMES[1])
    assert tracemalloc.get_traced_memory()[1] < 80_000_000
    tracemalloc.stop()
    assert urls == URLS[:2]
    assert losses == {"zstd_bomb": 1}


def test_a_block_over_the_cap_is_passed_over(tmp_path):
    large = zstd_archive([gzip.decompress(response_record("http://a/", DATE, bytes(50_000)))])
    content = FRAMES[0] + large + FRAMES[1]
    limits = WarcLimits(block_bytes=20_000)
    assert read(tmp_path / "x.warc.zst", content, limits) == (URLS[:2], {"block_too_large": 1})


HTML = html_page(["hello world"] * 99)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Encoding: zstd\r\n\r\n"


def test_bodies_in_zstd_are_undone_within_bounds():
    packed = zstandard.compress(HTML)
    for body in (packed, HTML):  # decoded by the crawler already
        assert parse_response(HEAD + body, 1 << 20).body == HTML
    # A body that the crawler has cut off keeps its whole blocks; of this size there are two.
    text = b"".join(b"%d " % (number * 7919) for number in range(30_000))
    cut = parse_response(HEAD + zstandard.compress(text)[:-100], 1 << 20).body
    assert len(cut) >= 1 << 17
    assert text.startswith(cut)
    for body, reason in (
        (zstandard.compress(bytes(1 << 28)), "body_too_large"),
        (packed[:20] + bytes(50), "content_encoding"),
        (packed[:10], "content_encoding"),
    ):
        with pytest.raises(RefusedResponse, match=reason):
            parse_response(HEAD + body, 1 << 20)
