"""Made labels: what passages are, how they are broken, what advertisements say, and the files."""

import json
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from t5x_style.artifacts import Artifact
from t5x_style.corpus.documents import DOCUMENT_SCHEMA, write_shards
from t5x_style.corpus.made_labels import (
    KINDS,
    Advertiser,
    Breaker,
    MadeLabelsSettings,
    Passages,
    fluency_examples,
    not_ad_examples,
    porn_examples,
    read_words,
    text_of,
)
from t5x_style.run.make_labels import make_labels

SETTINGS = MadeLabelsSettings(min_words=8, max_words=40)
FUNCTION_WORDS = read_words(SETTINGS.function_words)
NOUNS = ("river", "teacher", "window", "garden", "letter", "engine", "winter", "market", "story")
VERBS = ("crossed", "opened", "followed", "repaired", "described", "watched", "painted")


def document(seed, num_paragraphs=8):
    """Prose by a pattern, of a few sentences a paragraph, and between them what is no prose."""
    rng = np.random.default_rng(seed)

    def sentence():
        a, b, c = rng.choice(NOUNS, 3)
        return f"The {a} {rng.choice(VERBS)} the {b} that was in the {c} for {rng.choice(NOUNS)}s."

    parts = []
    for _ in range(num_paragraphs):
        parts.append(" ".join(sentence() for _ in range(rng.integers(1, 5))))
        parts.append("x = {1: [2, 3]} + f(4) # 5\n| a | b |")
    return "\n\n".join(parts)


def passages(num=40):
    cutter = Passages(SETTINGS)
    return [
        passage
        for seed in range(num)
        for passage in cutter.of(document(seed), np.random.default_rng(seed))
    ]


def test_passages_are_prose_of_the_wanted_lengths():
    found = passages()
    sizes = [len(text_of(passage).split()) for passage in found]
    assert min(sizes) >= 8
    assert max(sizes) <= 80
    assert len(set(sizes)) >= 4
    for passage in found:
        text = text_of(passage)
        assert "{" not in text
        assert "|" not in text
        assert text.endswith(".")
        # Each sentence is one, as it stands in a document.
        assert all(s.startswith("The ") and s.count(".") == 1 for part in passage for s in part)


def test_passages_of_a_document_do_not_overlap():
    text = document(1, num_paragraphs=30)
    found = Passages(SETTINGS).of(text, np.random.default_rng(0))
    assert 3 < len(found) <= SETTINGS.passages_per_document
    sentences = Counter(s for passage in found for part in passage for s in part)
    assert all(text.count(sentence) >= count for sentence, count in sentences.items())


def breaker():
    return Breaker(passages(), FUNCTION_WORDS)


@pytest.mark.parametrize("way", list(breaker().ways))
def test_every_way_breaks_every_passage(way):
    made = breaker()
    for number, passage in enumerate(passages(6)):
        rng = np.random.default_rng((7, number))
        text = made.ways[way](passage, rng)
        assert text.strip()
        assert text != text_of(passage)
        assert text == made.ways[way](passage, np.random.default_rng((7, number)))


def test_what_each_way_does():
    made, passage = breaker(), passages(1)[0]
    words = Counter(text_of(passage).lower().replace(".", "").split())

    def after(way):
        text = made.ways[way](passage, np.random.default_rng(3))
        return Counter(text.lower().replace(".", "").split())

    assert after("shuffled") == words
    dropped = words - after("dropped")
    assert dropped
    assert set(dropped) <= set(FUNCTION_WORDS)
    assert not after("dropped") - words
    assert not words - after("repeated")
    assert after("repeated") - words
    known = Counter(word.lower().rstrip(".") for word in made._words)
    assert set(after("babble")) <= set(known)


def test_an_inserted_advertisement_leaves_the_passage_whole():
    advertiser = Advertiser(SETTINGS.advertisements)
    for number, passage in enumerate(passages(6)):
        rng = np.random.default_rng(number)
        text = advertiser.within(passage, rng)
        assert len(text) > len(text_of(passage)) + 10
        for part in passage:
            assert all(sentence in text for sentence in part)


def test_advertisements_are_filled_in_and_many():
    advertiser = Advertiser(SETTINGS.advertisements)
    rng = np.random.default_rng(0)
    pages = [advertiser.page(rng) for _ in range(400)]
    assert not [page for page in pages if "{" in page or "}" in page or "\\n" in page]
    assert len(set(pages)) > 390
    assert sum("\n" in page for page in pages) > 100


def test_some_ways_are_kept_for_measuring():
    lists = [Advertiser(SETTINGS.advertisements, is_held_out=flag)._lists for flag in (False, True)]
    assert all(set(lists[0][name]) <= set(lists[1][name]) for name in lists[1])
    kept = [name for name in lists[1] if len(lists[0][name]) < len(lists[1][name])]
    assert {"pitch", "offer", "act", "product", "headline"} <= set(kept)


def test_a_list_that_is_missing_is_named(tmp_path):
    path = tmp_path / "lists.txt"
    path.write_text("[page]\nBuy {thing}.\n[paragraph]\nBuy.\n[headline]\nBuy.\n")
    with pytest.raises(ValueError, match=r"has no list \[thing\]"):
        Advertiser(str(path))
    path.write_text("[page]\nBuy.\n")
    with pytest.raises(ValueError, match="paragraph"):
        Advertiser(str(path))


def test_every_passage_is_there_as_it_is_and_half_of_the_examples_are_not():
    found = passages()
    rng = np.random.default_rng(0)
    originals = Counter(map(text_of, found))
    for examples in (
        fluency_examples(found, FUNCTION_WORDS, rng),
        not_ad_examples(found, Advertiser(SETTINGS.advertisements), 0.4, rng),
    ):
        assert Counter(label for _, label in examples) == {0: len(found), 1: len(found)}
        good = [text for text, label in examples if label]
        assert Counter(good) == originals
        assert not [text for text, label in examples if not label and text in originals]


def test_pornography_is_set_against_passages_and_advertisements():
    found = passages()
    rng = np.random.default_rng(0)
    adult, advertiser = Advertiser(SETTINGS.adult), Advertiser(SETTINGS.advertisements)
    examples = porn_examples(found, adult, advertiser, 0.4, rng)
    assert Counter(label for _, label in examples) == {0: len(found), 1: len(found)}
    bad = [text for text, label in examples if label]
    good = [text for text, label in examples if not label]
    assert not [text for text in bad + good if "{" in text or "\\n" in text]
    named = re.compile(r"(?i)porn|xxx|sex|adult|nud|erotic|explicit|naked|uncensored|milf|cams?\b")
    assert sum(named.search(text) is not None for text in bad) > 0.75 * len(bad)
    assert not [text for text in good if named.search(text)]
    originals = set(map(text_of, found))
    assert len(found) // 3 < sum(text in originals for text in good) <= len(found) // 2 + 1
    within = [text for text in bad if any(original[:30] in text for original in originals)]
    assert 0.25 * len(bad) < len(within) < 0.55 * len(bad)


def test_some_ways_of_adult_pages_are_kept_for_measuring():
    lists = [Advertiser(SETTINGS.adult, is_held_out=flag)._lists for flag in (False, True)]
    kept = [name for name in lists[1] if len(lists[0][name]) < len(lists[1][name])]
    assert {"headline", "pitch", "kind", "who", "tag"} <= set(kept)


def documents_folder(folder, num=60):
    rows = [
        dict.fromkeys(DOCUMENT_SCHEMA.names)
        | {"id": f"{i * 0x9E3779B97F4A7C15 % 2**128:032x}", "text": document(i), "links": []}
        for i in range(num)
    ]
    artifact = Artifact(folder, stage="documents", settings={})
    with artifact.write() as writer:
        write_shards(writer.folder, [pa.Table.from_pylist(rows, DOCUMENT_SCHEMA)])
    return str(folder)


def test_the_verb_writes_two_files_a_kind_and_skips(tmp_path, capsys):
    documents = documents_folder(tmp_path / "documents")
    settings = MadeLabelsSettings(num_texts=200, max_words=40, held_out_share=0.25, kinds=KINDS)
    names = [f"{kind}_{part}.jsonl" for kind in KINDS for part in ("train", "test")]
    for folder in ("one", "two"):
        make_labels(documents, str(tmp_path / folder), settings)
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        lines = (tmp_path / "one" / name).read_text().splitlines()
        examples = [json.loads(line) for line in lines]
        assert {example["label"] for example in examples} == {0, 1}
        assert sum(example["label"] for example in examples) == len(examples) // 2
        assert len(examples) == (150 if "train" in name else 50)
    capsys.readouterr()
    make_labels(documents, str(tmp_path / "one"), settings)
    assert "there already" in capsys.readouterr().out
    with pytest.raises(ValueError, match="min_prose_words"):
        make_labels(documents, str(tmp_path / "none"), MadeLabelsSettings(min_prose_words=2))
    with pytest.raises(ValueError, match="kinds"):
        MadeLabelsSettings(kinds=("toxic",))
