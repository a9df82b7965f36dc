"""Preferences: what a line must be, how responses become ids, and what batches hold."""

import json

import numpy as np
import pytest

from t5x_style.data.chat import ChatFormat, Turn
from t5x_style.data.domain_prompts import DomainPrompts
from t5x_style.data.preference_batches import BatchShape, PreferenceBatches
from t5x_style.data.preferences import divided, encoded, read_preferences, scored_ids
from t5x_style.data.vocabulary import train_vocabulary

VOCABULARY = train_vocabulary(["answer to question xxxx, why? 0 1 2 3"] * 9, 430)
FORMAT = ChatFormat(VOCABULARY)


def record(domain="helpful", prompt="why?", ranks=(0, 1), **changed):
    responses = [{"content": f"answer {i} to {prompt}", "rank": r} for i, r in enumerate(ranks)]
    messages = [{"role": "user", "content": prompt}]
    return {"domain": domain, "messages": messages, "responses": responses} | changed


def written(path, records):
    path.write_text("\n".join(json.dumps(one) for one in records) + "\n\n")
    return path


def many(num=60, seed=0):
    rng = np.random.default_rng(seed)
    return [
        record(
            prompt=f"question {i} {'x' * int(rng.integers(12))}",
            ranks=[int(r) for r in rng.integers(0, 3, int(rng.integers(2, 5)))],
        )
        for i in range(num)
    ]


def encoded_of(tmp_path, records, **options):
    read = read_preferences([written(tmp_path / "p.jsonl", records)], setting="x")
    return encoded(read, FORMAT, **options)


def test_a_record_is_read_as_it_stands(tmp_path):
    turns = [{"role": "user", "content": "a", "name": "file"}, {"role": "user", "content": "b"}]
    path = written(tmp_path / "a.jsonl", [record(messages=turns, id="one"), record("code")])
    first, second = read_preferences([path], setting="x", prompts=DomainPrompts.load())
    assert (first.domain, first.id) == ("helpful", "one")
    assert first.turns == (Turn("user", "a", "file"), Turn("user", "b"))
    assert [(r.content, r.rank) for r in second.responses] == [
        ("answer 0 to why?", 0),
        ("answer 1 to why?", 1),
    ]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("[1]", "is no preference"),
        ("{", "is no preference"),
        (json.dumps({"domain": "helpful"}), "lacks 'messages'"),
        (json.dumps(record(messages=[])), "messages is no list"),
        (json.dumps(record(messages=[{"role": "assistant", "content": "x"}])), "must end with"),
        (json.dumps(record(messages=[{"role": "user", "content": 1}])), "content is no text"),
        (json.dumps(record(ranks=(0,))), "at least two responses"),
        (json.dumps(record(ranks=(0, -1))), "a rank of 0, 1, 2"),
        (json.dumps(record(ranks=(0, True))), "a rank of 0, 1, 2"),
        (json.dumps(record(ranks=(0, "1"))), "a rank of 0, 1, 2"),
        (json.dumps(record(domain=3)), "domain = 3"),
        (json.dumps(record(domain="cooking")), r"'cooking' has no prompt in .*prompts/reward"),
    ],
)
def test_a_line_that_is_no_preference_is_named_with_its_place(tmp_path, wrong, reason):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record()) + "\n" + wrong + "\n")
    with pytest.raises(ValueError, match=f"the.setting: .*a.jsonl, line 2.*{reason}"):
        read_preferences([path], setting="the.setting", prompts=DomainPrompts.load())
    with pytest.raises(ValueError, match="there is no file"):
        read_preferences([tmp_path / "b.jsonl"], setting="the.setting")


def test_prompts_are_there_for_the_domains_and_folders_are_checked(tmp_path):
    prompts = DomainPrompts.load()
    assert {"helpful", "harmless", "code", "maths"} <= set(prompts)
    assert len(set(prompts.values())) == len(prompts)
    (tmp_path / "own.txt").write_text("  Judge.\n")
    own = DomainPrompts.load(tmp_path)
    assert dict(own) == {"own": "Judge."}
    assert own.fingerprint != prompts.fingerprint
    (tmp_path / "other.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"nothing in \['other'\]"):
        DomainPrompts.load(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no such file"):
        DomainPrompts.load(tmp_path / "empty")


def test_the_reward_id_ends_a_text_once_and_the_prompt_begins_it():
    turns = (Turn("user", "why?"), Turn("assistant", "answer <|reward|>"))
    plain, judged = scored_ids(turns, FORMAT), scored_ids(turns, FORMAT, "question")
    assert plain == [*FORMAT.render(turns).ids, FORMAT.reward_id]
    assert judged == [*FORMAT.render((Turn("system", "question"), *turns)).ids, FORMAT.reward_id]
    for ids in (plain, judged):
        assert ids.count(FORMAT.reward_id) == 1


def test_all_pairs_of_different_rank_are_compared(tmp_path):
    records = [record(ranks=(1, 0, 2, 1)), record(ranks=(0, 0)), record(ranks=(5, 3))]
    found = encoded_of(tmp_path, records)
    assert len(found) == 2
    assert found.dropped == {"too_long": 0, "not_compared": 1}
    assert sorted(map(tuple, found.pairs(0))) == [(0, 2), (1, 0), (1, 2), (1, 3), (3, 2)]
    assert list(map(tuple, found.pairs(1))) == [(5, 4)]
    wanted = (Turn("user", "why?"), Turn("assistant", "answer 1 to why?"))
    assert list(found.ids(5)) == scored_ids(wanted, FORMAT)


def test_each_domain_has_its_own_prompt_in_front(tmp_path):
    prompts = {"helpful": "answer", "code": "question"}
    found = encoded_of(tmp_path, [record(), record("code")], prompts=prompts)
    turns = (Turn("user", "why?"), Turn("assistant", "answer 0 to why?"))
    for response, domain in ((0, "helpful"), (2, "code")):
        assert list(found.ids(response)) == scored_ids(turns, FORMAT, prompts[domain])
    assert found.domains == ("helpful", "code")


def test_long_responses_are_left_out_and_counted(tmp_path):
    long = [{"content": "x" * n, "rank": i} for i, n in enumerate((5, 90, 6))]
    found = encoded_of(
        tmp_path, [record(responses=long), record(responses=long[:2])], max_tokens=30
    )
    assert found.dropped == {"too_long": 2, "not_compared": 1}
    assert list(found.ranks) == [0, 2]


def test_prompts_are_divided_by_their_messages(tmp_path):
    path = written(tmp_path / "a.jsonl", [*many(200), *many(200)])
    read = read_preferences([path], setting="x")
    known, test = divided(read, 0.25)
    assert len(known) + len(test) == 400
    assert 60 <= len(test) <= 140
    assert not {p.turns[0].content for p in known} & {p.turns[0].content for p in test}
    assert divided(read, 0.0) == (read, [])


SHAPE = BatchShape(length_tokens=160, batch_tokens=480, pairs_per_row=5)


def responses_in(batch):
    """Yields, for each pair of a batch, the ids of both sides, cut out by their segments."""
    for place in zip(*np.nonzero(batch["pair_weights"]), strict=True):
        sides = []
        for name in ("chosen", "rejected"):
            row, at = batch[name][place]
            segment = batch["segment_ids"][row, at]
            here = batch["segment_ids"][row] == segment
            assert segment > 0
            assert np.flatnonzero(here)[-1] == at
            np.testing.assert_array_equal(batch["positions"][row][here], np.arange(here.sum()))
            sides.append(tuple(batch["inputs"][row][here].tolist()))
        yield tuple(sides)


def all_pairs(preferences):
    return sorted(
        tuple(tuple(preferences.ids(response).tolist()) for response in pair)
        for prompt in range(len(preferences))
        for pair in preferences.pairs(prompt)
    )


def test_an_epoch_makes_every_comparison_once(tmp_path):
    preferences = encoded_of(tmp_path, many(), max_tokens=160)
    batches = PreferenceBatches(preferences, SHAPE, seed=3)
    assert batches.dropped["no_room"] == 0
    num = batches.num_batches(1)
    epochs = [[next(batches) for _ in range(num)]]
    assert batches.num_batches(2) - num in range(num - 3, num + 4)
    epochs.append([next(batches) for _ in range(batches.num_batches(2) - num)])
    for epoch in (*epochs, list(batches.one_pass())):
        assert sorted(pair for batch in epoch for pair in responses_in(batch)) == all_pairs(
            preferences
        )
        for batch in epoch:
            assert {name: array.shape for name, array in batch.items()} == {
                **dict.fromkeys(("inputs", "positions", "segment_ids"), (3, 160)),
                **dict.fromkeys(("chosen", "rejected"), (3, 5, 2)),
                "pair_weights": (3, 5),
            }
    firsts = [epoch[0]["inputs"] for epoch in epochs]
    assert not np.array_equal(*firsts)
    filled = np.mean([(batch["segment_ids"] > 0).mean() for batch in epochs[0][:-1]])
    assert filled > 0.7


def test_pairs_of_a_prompt_may_weigh_one_together(tmp_path):
    preferences = encoded_of(tmp_path, many(), max_tokens=160)
    batches = PreferenceBatches(preferences, SHAPE, seed=3, prompts_alike=True)
    total = sum(batch["pair_weights"].sum() for batch in batches.one_pass())
    assert total == pytest.approx(len(preferences), rel=1e-5)


def test_a_stream_goes_on_where_it_stood_and_hosts_share_it(tmp_path):
    preferences = encoded_of(tmp_path, many(), max_tokens=160)

    def stream(seed=1, **options):
        return PreferenceBatches(preferences, SHAPE, seed, **options)

    whole = stream()
    num = whole.num_batches(1) + 3
    batches, states = [], [json.loads(json.dumps(whole.state()))]
    for _ in range(num):
        batches.append(next(whole))
        states.append(json.loads(json.dumps(whole.state())))
    for at in (0, 2, num - 3, num - 1):
        other = stream()
        other.restore(states[at])
        for name, array in next(other).items():
            np.testing.assert_array_equal(array, batches[at][name])
    parts = [stream(rows=rows) for rows in (range(2), range(2, 3))]
    for batch in batches:
        here = [next(part) for part in parts]
        for name, array in batch.items():
            np.testing.assert_array_equal(np.concatenate([h[name] for h in here]), array)
    assert any(
        not np.array_equal(next(a)["inputs"], next(b)["inputs"])
        for a, b in [(stream(), stream(seed=2))]
    )
    with pytest.raises(ValueError, match="of other preferences or batches"):
        stream(seed=2).restore(states[0])


def test_what_fits_into_no_batch_is_counted(tmp_path):
    many_ranks = record(ranks=tuple(range(7)))  # 21 pairs, and a batch has room for 15
    preferences = encoded_of(tmp_path, [record(), many_ranks], max_tokens=160)
    batches = PreferenceBatches(preferences, SHAPE, seed=0)
    assert batches.dropped == {"too_long": 0, "not_compared": 0, "no_room": 1}
    with pytest.raises(ValueError, match="'no_room': 1"):
        PreferenceBatches(encoded_of(tmp_path, [many_ranks]), SHAPE, seed=0)
    with pytest.raises(ValueError, match="a multiple of the second"):
        BatchShape(length_tokens=100, batch_tokens=250)
