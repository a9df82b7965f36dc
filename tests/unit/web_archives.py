"""Pages and web archives for the tests of the corpus room."""

import random
import struct
from collections.abc import Sequence
from pathlib import Path

import zstandard

from t5x_style.corpus.warc_writer import response_record, warcinfo_record

DATE = "2024-05-01T00:00:00Z"
_NOUNS = [
    "river",
    "traveller",
    "library",
    "neighbour",
    "engine",
    "committee",
    "village",
    "letter",
    "bridge",
    "garden",
    "road",
    "answer",
    "mountain",
    "plan",
    "winter",
    "book",
    "teacher",
    "harbour",
    "window",
    "machine",
    "forest",
    "captain",
    "question",
    "story",
    "painter",
    "kitchen",
    "valley",
    "doctor",
    "island",
    "market",
]
_VERBS = [
    "carries",
    "remembers",
    "repairs",
    "describes",
    "follows",
    "protects",
    "measures",
    "forgives",
    "builds",
    "explains",
    "crosses",
    "watches",
    "believes",
    "finds",
    "keeps",
    "leaves",
    "opens",
    "changes",
    "expects",
    "studies",
]
_ADJECTIVES = [
    "quiet",
    "honest",
    "broken",
    "careful",
    "distant",
    "borrowed",
    "patient",
    "narrow",
    "ancient",
    "bright",
    "hungry",
    "gentle",
    "famous",
    "wooden",
    "sudden",
    "useful",
    "foreign",
    "silent",
    "clever",
    "heavy",
]
_PREPOSITIONS = ["before", "behind", "without", "beyond", "beside", "during", "under", "against"]


def sentence(rng: random.Random) -> str:
    def thing() -> str:
        article = rng.choice(["the", "a", "every", "this"])
        return f"{article} {rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)}"

    text = (
        f"{thing()} {rng.choice(_VERBS)} {thing()} {rng.choice(_PREPOSITIONS)} {thing()}, "
        f"and {thing()} that {rng.choice(_VERBS)} {thing()} {rng.choice(_VERBS)} {thing()}."
    )
    return text[0].upper() + text[1:]


def prose(seed: int, num_paragraphs: int = 6, num_sentences: int = 5) -> list[str]:
    """Returns paragraphs of made-up English that pass the default rules, other for each seed."""
    rng = random.Random(seed)
    return [" ".join(sentence(rng) for _ in range(num_sentences)) for _ in range(num_paragraphs)]


def html_page(paragraphs: Sequence[str], title: str = "A page") -> bytes:
    body = "\n".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    return (
        f"<!DOCTYPE html><html><head><title>{title}</title></head>"
        f"<body><main><article>{body}</article></main></body></html>"
    ).encode()


def archive_bytes(
    pages: Sequence[tuple[str, bytes]], dump: str = "TEST-1", date: str = DATE
) -> bytes:
    """Returns a `.warc.gz` of a warcinfo record and a response for each (url, body)."""
    info = warcinfo_record("test.warc.gz", date, {"software": "tests", "isPartOf": dump})
    return info + b"".join(response_record(url, date, body) for url, body in pages)


def write_archive(
    path: Path, pages: Sequence[tuple[str, bytes]], dump: str = "TEST-1", date: str = DATE
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(archive_bytes(pages, dump, date))
    return path


def prose_pages(count: int, first_seed: int = 0) -> list[tuple[str, bytes]]:
    return [
        (f"http://example.org/{seed}", html_page(prose(seed), f"Page {seed}"))
        for seed in range(first_seed, first_seed + count)
    ]


def zstd_archive(records: Sequence[bytes], dictionary: bytes | None = None) -> bytes:
    """Returns a `.warc.zst` of records: a frame each, the dictionary, if any, in front.

    Args:
      records: uncompressed records.
      dictionary: in Zstandard's own format; put into a skippable frame as it is.
    """
    known = dictionary and zstandard.ZstdCompressionDict(dictionary)
    compressor = zstandard.ZstdCompressor(3, dict_data=known or None, write_checksum=True)
    head = skippable_frame(dictionary, 0xD) if dictionary else b""
    return head + b"".join(map(compressor.compress, records))


def skippable_frame(content: bytes, kind: int) -> bytes:
    return struct.pack("<II", 0x184D2A50 + kind, len(content)) + content
