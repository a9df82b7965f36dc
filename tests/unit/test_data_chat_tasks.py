"""Conversations as training data: the mask, what is cut and left out, the batches they become."""

import json

import numpy as np
import pytest

from t5x_style.artifacts import read_manifest
from t5x_style.data.batches import Batches, Component, epoch_steps, validation_batches
from t5x_style.data.chat import ChatFormat, Turn
from t5x_style.data.chat_readers import Dropped, conversation_of
from t5x_style.data.chat_tasks import ChatTask, chat_examples, chat_files
from t5x_style.data.token_store import TokenStore, TokenStoreWriter
from t5x_style.data.vocabulary import MODEL_NAME, train_vocabulary
from t5x_style.run.chat_tasks import chat_tasks

TEXTS = ["the quick brown fox jumps over the lazy dog and 12345 others\nsaid no one\n" * 8]


@pytest.fixture(scope="module")
def vocabulary():
    return train_vocabulary(TEXTS, 450)


@pytest.fixture(scope="module")
def chat(vocabulary):
    return ChatFormat(vocabulary)


def record(num_turns, number=0, **more):
    messages = []
    for turn in range(num_turns):
        messages.append({"role": "user", "content": f"fox {number} {turn}"})
        messages.append({"role": "assistant", "content": f"dog {number} {turn}"})
    return {"messages": messages, **more}


def write(path, records):
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return str(path)


def examples(chat, path, split="train", **settings):
    task = ChatTask("talk", path, **({"validation_share": 0.0} | settings))
    dropped = Dropped()
    return list(chat_examples(task, split, chat_files(task)[split], chat, dropped)), dropped


def test_an_example_ends_with_the_last_answer(chat, tmp_path):
    whole = record(2)
    asking = {"messages": [*whole["messages"], {"role": "user", "content": "more"}]}
    (example, other), dropped = examples(chat, write(tmp_path / "a.jsonl", [whole, asking]))
    rendered = chat.render(conversation_of(whole))
    for one in (example, other):
        np.testing.assert_array_equal(one.ids, rendered.ids)
        np.testing.assert_array_equal(one.is_target, rendered.is_target)
        assert not one.is_cut
    assert not dropped.counts


def test_a_long_conversation_is_cut_after_an_answer_or_dropped(chat, tmp_path):
    path = write(tmp_path / "a.jsonl", [record(3)])
    ends = chat.render(conversation_of(record(3))).turn_ends
    for max_tokens, num_turns in (
        (ends[5] - 1, 6),
        (ends[5] - 2, 4),
        (ends[3] - 1, 4),
        (ends[1] - 1, 2),
    ):
        (example,), _ = examples(chat, path, max_tokens=int(max_tokens))
        assert len(example.ids) == ends[num_turns - 1] <= max_tokens + 1
        assert example.is_cut == (num_turns < 6)
    for settings in ({"max_tokens": int(ends[1] - 2)}, {"max_tokens": 60, "too_long": "drop"}):
        found, dropped = examples(chat, path, **settings)
        assert not found
        assert dropped.lines() == [
            f"longer than {settings['max_tokens']} tokens: 1 (first: {path}, line 1)"
        ]


def test_what_cannot_be_learnt_from_is_counted(chat, tmp_path):
    records = [
        {"messages": [{"role": "user", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": ""}]},
        {"instruction": "x", "output": ""},
        record(1),
    ]
    found, dropped = examples(chat, write(tmp_path / "a.jsonl", records))
    assert len(found) == 1
    assert dropped.counts == {"no turn of the assistant": 1, "an answer is empty": 2}


def test_splits_are_by_hash_of_the_turns_or_as_the_record_says(chat, tmp_path):
    records = [record(1, number) for number in range(200)]
    path = write(tmp_path / "a.jsonl", [*records, *records])
    by_split = [examples(chat, path, split, validation_share=0.2)[0] for split in SPLIT_NAMES]
    texts = [{tuple(one.ids.tolist()) for one in found} for found in by_split]
    assert sum(map(len, texts)) == 200 and not texts[0] & texts[1]
    assert 20 < len(texts[1]) < 60
    own = write(tmp_path / "b.jsonl", [record(1, n, split="validation") for n in range(3)])
    assert [len(examples(chat, own, split)[0]) for split in SPLIT_NAMES] == [0, 3]


SPLIT_NAMES = ("train", "validation")


@pytest.fixture(scope="module")
def stores(vocabulary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    vocabulary.save(folder / MODEL_NAME)
    records = [record(1 + number % 3, number) for number in range(60)]
    path = write(folder / "talk.jsonl", [*records, {"no": "conversation"}])
    task = ChatTask("talk", path, validation_share=0.2, max_tokens=64)
    chat_tasks([task], str(folder / MODEL_NAME), str(folder / "tasks"))
    return folder


def test_the_verb_writes_stores_with_masks_once(stores, vocabulary, chat, capsys):
    path, folder = str(stores / "talk.jsonl"), stores / "tasks" / "talk"
    counts = read_manifest(folder)["counts"]
    for split in SPLIT_NAMES:
        store = TokenStore.open(folder / split)
        found, _ = examples(chat, path, split, validation_share=0.2, max_tokens=64)
        assert store.loss_mask is not None
        assert store.tokens.tolist() == [i for one in found for i in one.ids]
        assert store.loss_mask.tolist() == [i for one in found for i in one.is_target]
        assert counts[split]["target_tokens"] == store.loss_mask.sum() > 0
        assert counts[split]["cut"] == sum(one.is_cut for one in found) > 0
        assert counts[split]["dropped"]["neither messages, nor conversations, nor instruction"] == 1
    task = ChatTask("talk", path, validation_share=0.2, max_tokens=64)
    chat_tasks([task], str(stores / MODEL_NAME), str(stores / "tasks"))
    assert "are in" in capsys.readouterr().out


def test_only_answers_weigh_in_packed_rows(stores, chat):
    store = TokenStore.open(stores / "tasks" / "talk" / "train")
    learnt = []
    for batch in validation_batches(str(store.folder), length=128, batch_size=2):
        assert ((batch["loss_weights"] > 0) <= (batch["segment_ids"] > 0)).all()
        assert batch["segment_ids"].max() > 1
        learnt += batch["targets"][batch["loss_weights"] > 0].tolist()
    mask = store.loss_mask.astype(bool)
    assert sorted(learnt) == sorted(store.tokens[mask].tolist())
    spelled = chat.spelled(learnt)
    assert "dog" in spelled and "fox" not in spelled and "<|im_end|>" in spelled
    assert "<|im_start|>" not in spelled and "assistant" not in spelled


def test_chat_mixes_with_plain_stores(stores, vocabulary, tmp_path):
    with TokenStoreWriter(tmp_path / "books", vocabulary, task="books", split="train") as writer:
        for _ in range(4):
            writer.add([1, *vocabulary.encode(TEXTS[0]), 2])
    talk = Component(str(stores / "tasks" / "talk" / "train"), rate=0.75)
    batches = Batches([talk, Component(str(tmp_path / "books"), 0.25)], 64, 4, seed=0)
    for _ in range(5):
        batch = next(batches)
        is_plain = (batch["loss_weights"] == (batch["segment_ids"] > 0)).all(axis=1)
        assert is_plain.sum() == 1 and (batch["loss_weights"][~is_plain].sum(axis=1) > 0).all()


@pytest.mark.parametrize("epochs", [1.0, 2.0])
@pytest.mark.parametrize("rate", [None, 1.0])
def test_an_epoch_has_every_conversation_once(stores, vocabulary, tmp_path, epochs, rate):
    talk = str(stores / "tasks" / "talk" / "train")
    components = [Component(talk)]
    if rate is not None:
        with TokenStoreWriter(tmp_path / "books", vocabulary, task="b", split="train") as writer:
            writer.add([1, *vocabulary.encode("said no one"), 2])
        components.append(Component(str(tmp_path / "books"), rate))
    settings = {"length": 64, "batch_size": 2, "seed": 3, "window_examples": 16}
    num_steps = epoch_steps(components, epochs=epochs, **settings)
    batches = Batches(components, **settings)
    wanted = TokenStore.open(talk).loss_mask.sum() * epochs

    def num_learnt(steps):
        # Of the plain store every token weighs, in rows of its own; of the other not the headers.
        learnt = 0
        for _ in range(steps):
            batch = next(batches)
            is_plain = (batch["loss_weights"] == (batch["segment_ids"] > 0)).all(axis=1)
            learnt += batch["loss_weights"][~is_plain].sum()
        return learnt

    before_last = num_learnt(num_steps - 1)
    assert before_last < wanted <= before_last + num_learnt(1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a b"}, "ChatTask.name"),
        ({"validation_share": 1.0}, "ChatTask.validation_share"),
        ({"max_tokens": 0}, "ChatTask.max_tokens"),
        ({"too_long": "keep"}, "ChatTask.too_long"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ChatTask(**({"name": "talk", "train_files": "x.jsonl"} | settings))


def test_errors_name_the_setting_and_the_place(stores, tmp_path):
    model, out = str(stores / MODEL_NAME), str(tmp_path / "out")
    with pytest.raises(ValueError, match=r"task talk: ChatTask.train_files = .* matches no file"):
        chat_tasks([ChatTask("talk", str(tmp_path / "*.jsonl"))], model, out)
    bad = write(tmp_path / "bad.jsonl", [3])
    with pytest.raises(ValueError, match=r"not a JSON object: 1 \(first: .*bad.jsonl, line 1\)"):
        chat_tasks([ChatTask("talk", bad)], model, out)
    task = ChatTask("talk", bad)
    with pytest.raises(ValueError, match="each its own name"):
        chat_tasks([task, task], model, out)
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match=r"a.csv is none of .jsonl"):
        chat_files(ChatTask("talk", str(tmp_path / "a.csv")))


def test_a_turn_is_what_the_reader_made_of_it():
    assert conversation_of(record(1)) == (Turn("user", "fox 0 0"), Turn("assistant", "dog 0 0"))
