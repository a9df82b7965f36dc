"""The needle is where it should be, and answers are worth what the published scores say."""

import json
import random
from collections import Counter

import numpy as np
import pytest

from t5x_style.data.text_tasks import TextTask
from t5x_style.data.vocabulary import train_vocabulary
from t5x_style.evals import needle as needles
from t5x_style.evals.needle import (
    Case,
    Needle,
    answered,
    build,
    scores,
    similarity,
    stretches,
    trimmed,
)
from t5x_style.models.config import TransformerConfig
from t5x_style.run import needle as verb
from t5x_style.run.plant import TEXTS_NAME, plant
from t5x_style.train import checkpoint
from tests.fresh import fresh_params

NEEDLE = Needle(
    statement="\nThe code of {key} is {value}.\n",
    before="Read {this}:\n",
    after="\nThe code of {key} is",
    reference=" {value}.",
    keyword="{value}",
    keys=("amber", "birch", "cedar"),
    values=("7304", "1958", "2266"),
)
TEXTS = [list(b"abcdefgh" * 5), list(b"12345678" * 10), list(b"........" * 10)]


def encode(text):
    return list(text.encode())


@pytest.mark.parametrize("depth", [0, 30, 100])
def test_the_needle_lies_at_its_depth_in_a_prompt_of_its_length(depth):
    question = build(Case(160, depth, 0), NEEDLE, TEXTS, encode, answer_tokens=10)
    prompt, filled = question.prompt, question.needle
    assert len(prompt) == 150
    text = bytes(prompt).decode()
    assert text.startswith("Read {this}:\n")
    assert text.endswith(filled.after)
    hay = text[len(filled.before) : -len(filled.after)]
    place = hay.index(filled.statement)
    assert place == int((len(hay) - len(filled.statement)) * depth / 100)
    assert text[-question.distance - len(filled.statement) :].startswith(filled.statement)


def test_cases_differ_in_texts_and_keys_and_are_the_same_again():
    def prompts(seed):
        cases = needles.cases([200, 100], [0, 50], 3)
        return [build(c, NEEDLE, TEXTS, encode, answer_tokens=5, seed=seed).prompt for c in cases]

    assert prompts(0) == prompts(0) != prompts(1)
    assert len({tuple(prompt) for prompt in prompts(0)}) == 12
    assert [len(prompt) for prompt in prompts(0)] == [95] * 6 + [195] * 6


def test_lengths_without_room_and_texts_without_end_are_refused():
    with pytest.raises(ValueError, match=r"needle\.needle\.lengths: 40 tokens leave no room"):
        build(Case(40, 0, 0), NEEDLE, TEXTS, encode, answer_tokens=10)
    with pytest.raises(ValueError, match=r"haystack: the texts have 200 tokens together"):
        build(Case(1000, 0, 0), NEEDLE, TEXTS, encode, answer_tokens=10)


def test_scores_by_hand():
    assert similarity("kitten", "sitting") == pytest.approx(100 * (1 - 3 / 7))
    assert similarity(" a b\nc ", "abc") == 100
    assert similarity("", "abcd") == 0
    # Ten characters and a full stop: cut behind the stop between the 8th and the 13th.
    reference = "0123456789."
    assert trimmed("0123456x9. And so on", reference) == "0123456x9."
    assert trimmed("0123. And so on and on", reference) == "0123.Andsoonandon"
    filled = Needle(statement="", after="", reference=reference, keyword="345")
    found = scores("0123456x9. And", filled)
    assert found["keyword"] == found["needlebench"] == 100
    assert found["trimmed"] == pytest.approx(100 * (1 - 2 / 11))
    assert found["edit"] == pytest.approx(100 * (1 - 5 / 13))
    missed = scores("99", filled)
    assert missed["needlebench"] == pytest.approx(0.2 * missed["edit"])


def test_a_text_to_learn_from_is_what_is_asked_and_the_answer():
    filled = NEEDLE.filled(random.Random(0))
    text = answered("0123456789", filled, 30)
    hidden = f"Read {{this}}:\n012{filled.statement}3456789{filled.after}{filled.reference}"
    assert text == hidden
    assert filled.keyword in text


def test_stretches_give_each_doubling_of_the_length_as_much_text():
    text = "".join(map(chr, range(256, 1256))) * 400
    cut = list(stretches(text, 16, 1024, random.Random(0)))
    assert "".join(cut) == text[: sum(map(len, cut))]
    assert len(text) - sum(map(len, cut)) < 16
    octaves = Counter(len(x).bit_length() for x in cut)
    shares = [
        sum(len(x) for x in cut if len(x).bit_length() == bits) / len(text) for bits in range(5, 11)
    ]
    assert octaves[5] > 8 * octaves[9]
    np.testing.assert_allclose(shares, 1 / 6, atol=0.03)


def test_planted_texts_are_the_same_again_and_keep_their_split(tmp_path):
    rows = [{"text": f"Document {i}. " * 40, "split": "train"} for i in range(5)]
    rows.append({"text": "Held out. " * 40, "split": "validation"})
    (tmp_path / "hay.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    hay = TextTask(name="hay", train_files=str(tmp_path / "hay.jsonl"))

    def planted(name, **settings):
        plant(hay, NEEDLE, str(tmp_path / name), lengths=(40, 200), **settings)
        return [json.loads(x) for x in (tmp_path / name / TEXTS_NAME).read_text().splitlines()]

    texts = planted("one")
    assert texts == planted("two") != planted("three", seed=1)
    for row in texts:
        assert ("Held out" in row["text"]) == (row["split"] == "validation")
        (value,) = {value for value in NEEDLE.values if value in row["text"]}
        assert row["text"].endswith(f" is {value}.")
    assert len(planted("few", max_chars=1)) < len(texts)
    with pytest.raises(ValueError, match=r"no text of 900 characters.*plant\.plant\.lengths"):
        plant(hay, NEEDLE, str(tmp_path / "none"), lengths=(900, 1000))
    with pytest.raises(ValueError, match="two rising numbers"):
        plant(hay, NEEDLE, str(tmp_path / "none"), lengths=(50, 50))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a vocabulary, a text and two checkpoints of a model that knows nothing."""
    folder = tmp_path_factory.mktemp("needle")
    text = "The quick brown fox jumps over the lazy dog. It was not amused.\n" * 40
    (folder / "hay.txt").write_text(text)
    words = train_vocabulary([text], 480)
    words.save(folder / "tokenizer.model")
    config = TransformerConfig(
        vocab_size=words.vocab_size,
        num_layers=1,
        embed_dim=16,
        num_query_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_dim=16,
    )
    for seed in (0, 1):
        params = fresh_params(config, seed)
        checkpoint.save_model(folder / f"run{seed}", config, params)
    return folder


def ask(made, output):
    hay = str(made / "hay.txt")
    verb.needle(
        {"one": str(made / "run0"), "two": str(made / "run1")},
        str(made / "tokenizer.model"),
        TextTask(name="hay", train_files=hay, validation_files=hay),
        NEEDLE,
        str(output),
        [128, 192],
        depths=[0, 100],
        num_repeats=2,
        answer_tokens=8,
    )
    return [json.loads(line) for line in (output / verb.NEEDLE_NAME).read_text().splitlines()]


@pytest.mark.slow
def test_the_verb_goes_on_where_it_was_broken_off(made, tmp_path, monkeypatch):
    whole = ask(made, tmp_path / "whole")
    summary = json.loads((tmp_path / "whole" / verb.SUMMARY_NAME).read_text())["checkpoints"]
    assert [(c["name"], len(c["cells"])) for c in summary] == [("one", 4), ("two", 4)]
    assert all(cell["num"] == 2 for c in summary for cell in c["cells"])
    assert len(whole) == 2 * 2 * 2 * 2
    assert {row["length"] for row in whole} == {128, 192}

    class BrokenOff(Exception):
        pass

    appended = verb._append
    calls = []

    def append_twice(path, rows):
        calls.append(len(rows))
        if len(calls) == 3:
            with open(path, "a") as file:
                file.write('{"name": "tw')
            raise BrokenOff
        appended(path, rows)

    monkeypatch.setattr(verb, "_append", append_twice)
    with pytest.raises(BrokenOff):
        ask(made, tmp_path / "again")
    monkeypatch.setattr(verb, "_append", appended)
    asked = []
    build = needles.build
    monkeypatch.setattr(
        needles, "build", lambda case, *args, **kw: asked.append(case) or build(case, *args, **kw)
    )
    assert ask(made, tmp_path / "again") == whole
    assert len(asked) == 16 - sum(calls[:2])
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".jsonl"] == []
