"""Parts of web archives: whatever the cuts and the damage, together they give the whole."""

import gzip
import zlib
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5x_style.corpus.documents import Funnel
from t5x_style.corpus.pages import PageSettings, read_pages
from t5x_style.corpus.warc import WarcLimits, read_warc, splits
from t5x_style.corpus.warc_writer import response_record, warcinfo_record
from tests.unit.web_archives import DATE, prose_pages, skippable_frame, zstd_archive

PAGES = prose_pages(8)
INFO = warcinfo_record("x", DATE, {"isPartOf": "DUMP-1"})
MEMBERS = [INFO, *(response_record(url, DATE, body) for url, body in PAGES)]
LATER_INFO = warcinfo_record("y", DATE, {"isPartOf": "DUMP-2"})


def gzip_archive(records):
    return b"".join(map(gzip.compress, records))


FORMS = {
    "x.warc": b"".join,
    "x.warc.gz": gzip_archive,
    "x.warc.zst": zstd_archive,
    "y.warc.zst": lambda records: b"".join(
        skippable_frame(b"extension", 3) + zstd_archive([record]) for record in records
    ),
}


def stored(content):
    deflater = zlib.compressobj(level=0, wbits=31)
    return deflater.compress(content) + deflater.flush()


# A web archive as the content of a page: stored as it is, its members look like those of the file.
NESTED = response_record("http://a/archive", DATE, b"".join(MEMBERS[2:6]))
RECORDS = [gzip.decompress(member) for member in [*MEMBERS[:5], NESTED, LATER_INFO, *MEMBERS[5:]]]


def read(path, start=0, stop=None, is_aligned=False, limits=None):
    losses = Counter()
    found = list(read_warc(path, losses, limits, start, stop, is_aligned))
    return [(record.offset, record.url, record.block) for record in found], losses


def assert_parts_give_the_whole(path, cuts, is_aligned=False, limits=None):
    records, losses = read(path, limits=limits)
    parts = [
        read(path, start, stop, is_aligned, limits)
        for start, stop in zip([0, *cuts], [*cuts, None], strict=True)
    ]
    assert [record for found, _ in parts for record in found] == records
    assert sum((lost for _, lost in parts), Counter()) == losses
    for (found, _), start, stop in zip(parts, [0, *cuts], [*cuts, 1 << 60], strict=True):
        assert all(start <= offset < stop for offset, _, _ in found)


@st.composite
def damage(draw):
    """Edits of a file's bytes: (place as a share of the file, kind, bytes)."""
    kinds = st.sampled_from(["flip", "zero", "cut", "insert", "magic"])
    return [
        (draw(st.floats(0, 1)), draw(kinds), draw(st.binary(min_size=1, max_size=40)))
        for _ in range(draw(st.integers(0, 4)))
    ]


def damaged(content, edits):
    for share, kind, data in edits:
        place = int(share * len(content))
        head, tail = content[:place], content[place:]
        if kind == "flip":
            content = head + bytes([tail[0] ^ (data[0] or 1)]) + tail[1:] if tail else content
        elif kind == "zero":
            content = head + bytes(len(tail[: 9 * len(data)])) + tail[9 * len(data) :]
        elif kind == "cut":
            content = head + tail[20 * len(data) :]
        elif kind == "insert":
            content = head + data + tail
        else:
            content = head + MEMBERS[2][: len(data)] + b"WARC/1.0\r\n" + tail
    return content


@pytest.mark.parametrize("name", FORMS)
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    order=st.lists(st.integers(0, len(RECORDS) - 1), min_size=1, max_size=8),
    edits=damage(),
    shares=st.lists(st.floats(0, 1), max_size=5),
    split_bytes=st.integers(1, 20_000),
)
def test_parts_give_the_whole(tmp_path, name, order, edits, shares, split_bytes):
    path = tmp_path / name
    content = damaged(FORMS[name]([RECORDS[i] for i in order]), edits)
    path.write_bytes(content)
    cuts = sorted({place for share in shares if (place := int(share * len(content)))})
    assert_parts_give_the_whole(path, cuts)
    parts = splits(path, split_bytes)
    assert parts[0][0] == 0
    assert parts[-1][1] == len(content)
    assert [stop for _, stop in parts[:-1]] == [start for start, _ in parts[1:]]
    assert all(stop - start >= split_bytes for start, stop in parts[:-1])
    assert_parts_give_the_whole(path, [start for start, _ in parts[1:]], is_aligned=True)


@pytest.mark.parametrize("name", FORMS)
def test_every_cut_of_a_sound_file_gives_the_whole(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FORMS[name](RECORDS[:3]))
    for cut in range(1, path.stat().st_size + 2, 97):
        assert_parts_give_the_whole(path, [cut])


def test_members_within_a_member_are_never_taken_for_the_files_own(tmp_path):
    path = tmp_path / "x.warc.gz"
    member = stored(gzip.decompress(NESTED))
    path.write_bytes(MEMBERS[0] + member + MEMBERS[1])
    assert path.read_bytes().count(b"\x1f\x8b\x08") == 7
    cuts = list(range(len(MEMBERS[0]) + 1, len(MEMBERS[0] + member), 2000))
    assert_parts_give_the_whole(path, cuts)
    assert [url for _, url, _ in read(path)[0]] == ["", "http://a/archive", PAGES[0][0]]
    path = tmp_path / "x.warc"
    path.write_bytes(b"".join([RECORDS[0], *RECORDS[5:]]))
    nested = response_record("http://a/plain", DATE, b"".join(RECORDS[1:4]))
    path.write_bytes(RECORDS[0] + gzip.decompress(nested) + RECORDS[4])
    assert_parts_give_the_whole(path, list(range(100, path.stat().st_size, 1500)))


def test_a_part_counts_the_damage_that_begins_in_it(tmp_path):
    path = tmp_path / "x.warc.gz"
    path.write_bytes(MEMBERS[1] + bytes(1000) + MEMBERS[2])
    begin = len(MEMBERS[1])
    assert read(path, 0, begin + 1)[1] == {"garbage": 1}
    assert read(path, begin)[1] == {"garbage": 1}
    assert read(path, begin + 1)[1] == {}
    assert [url for _, url, _ in read(path, begin + 1)[0]] == [PAGES[1][0]]


def test_limits_are_those_of_the_parts_too(tmp_path):
    limits = WarcLimits(block_bytes=3000, header_bytes=300)
    for name, form in FORMS.items():
        path = tmp_path / name
        path.write_bytes(form(RECORDS))
        cuts = [start for start, _ in splits(path, 4000, limits)[1:]]
        assert len(cuts) > 2 or name != "x.warc"
        assert_parts_give_the_whole(path, cuts, is_aligned=True, limits=limits)


def test_files_smaller_than_a_part_and_empty_ones_are_one_part(tmp_path):
    path = tmp_path / "x.warc.gz"
    path.write_bytes(b"")
    assert splits(path, 10) == [(0, 0)]
    assert read(path, 0, 0) == ([], {"empty_file": 1})
    path.write_bytes(MEMBERS[0])
    assert splits(path, 1 << 20) == [(0, len(MEMBERS[0]))]
    with pytest.raises(ValueError, match="split_bytes = 0"):
        splits(path, 0)


@pytest.mark.parametrize("name", FORMS)
def test_the_funnel_and_the_dump_are_those_of_the_whole(tmp_path, name):
    path = tmp_path / name
    content = FORMS[name](RECORDS)
    path.write_bytes(content[:-300])

    def pages(parts, **kwargs):
        funnel = Funnel()
        rows = []
        for start, stop in parts:
            piece = Funnel()
            for table in read_pages(path, PageSettings(), piece, start, stop, **kwargs):
                rows += table.to_pylist()
            funnel.merge(piece)
        return rows, funnel.to_json()

    whole = pages([(0, None)])
    assert {row["dump"] for row in whole[0]} == {"DUMP-1"}
    assert pages(splits(path, 3000), is_aligned=True) == whole
    assert pages([(0, 1000), (1000, 9000), (9000, None)]) == whole
