"""Rounds of RLHF as a state machine: stopped in any part they end in the same bytes.

The verbs that train are stood in for by ones that draw weights, whose own stops are tested apart;
answers, flaws, labels and pools are the real ones.
"""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from t5x_style.align import fast_path, judges, rollouts
from t5x_style.align.fast_path import FastPathSettings, Findings, Flaw
from t5x_style.align.loop import ACTOR
from t5x_style.infer.sampling import Sampling
from t5x_style.models import reward
from t5x_style.run import cool_rlhf as verb
from t5x_style.run.cool_rlhf import RoundSettings, cool_rlhf
from t5x_style.train import checkpoint, run_folder
from tests.faults import ppo_run
from tests.fresh import fresh_params

pytestmark = [pytest.mark.slow, pytest.mark.exact]

ROUNDS = 3
PREFERENCES = [
    {
        "id": f"first-{number}",
        "domain": "any",
        "messages": [{"role": "user", "content": f"say {number}"}],
        "responses": [{"content": "red", "rank": 0}, {"content": f"blue {number}", "rank": 1}],
    }
    for number in range(12)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = ppo_run.make(tmp_path_factory.mktemp("rounds"))
    text = "".join(json.dumps(record) + "\n" for record in PREFERENCES)
    (folder / "preferences.jsonl").write_text(text)
    return folder


def model_at(run_dir, params, step):
    run_folder.write_model(run_dir, ppo_run.MODEL)
    saver = checkpoint.Checkpointer(Path(run_dir) / run_folder.CHECKPOINTS, keep=9)
    saver.save(step, {"params": params}, {})
    saver.close()


def train_reward(preferences, run_dir, output_dir, initial_run_dir, seed, keep_head=False):
    """Weights that follow from the seed and the data; done once."""
    if (Path(run_dir) / run_folder.DONE).is_file():
        return
    text = Path(preferences).read_text()
    key = jax.random.fold_in(jax.random.key(seed), len(text))
    model_at(run_dir, nn.unbox(reward.init_params(ppo_run.MODEL, key, head_init_std=1.0)), 1)
    about = {"initial": Path(initial_run_dir).name, "keep_head": keep_head, "text": text}
    run_folder.write_json(Path(run_dir) / run_folder.DONE, about)


def train_policy(run_dir, sft_run, reward_run, seed):
    """An early and a late policy."""
    actor = Path(run_dir) / ACTOR
    if (Path(run_dir) / run_folder.DONE).is_file():
        return
    for step in (0, 2, 4):
        params = fresh_params(ppo_run.MODEL, seed + step)
        model_at(actor, params, step)
    run_folder.write_json(Path(run_dir) / run_folder.DONE, {"seed": seed})


class LongerIsBetter:
    """A judge."""

    def __repr__(self):
        return "LongerIsBetter"

    def __call__(self, prompt, first, second):
        return (len(first) > len(second)) - (len(first) < len(second))


def run(folder, name, **changed):
    settings = {
        "rounds": ROUNDS,
        "early_iteration": 2,
        "num_prompts": 10,
        "max_new_tokens": 5,
        "sampling": Sampling(top_p=0.9),
        "fast_path": FastPathSettings(min_pairs=2, max_pairs=3),
        "num_comparisons": 7,
        "patch_repeats": 2,
        "num_replayed": 4,
    }
    given = {"judge": LongerIsBetter()} | changed
    cool_rlhf(
        str(folder / name),
        str(folder / "sft"),
        str(folder / "preferences.jsonl"),
        str(folder / "prompts.jsonl"),
        str(folder / "tokenizer.model"),
        train_reward,
        train_policy,
        settings=RoundSettings(**(settings | given.pop("settings", {}))),
        domain_prompts=None,
        **given,
    )
    return folder / name


def artefacts(root):
    """The bytes of every file but weights, without what depends on the clock."""
    found = {}
    for path in sorted(root.rglob("*")):
        if not path.is_file() or run_folder.CHECKPOINTS in path.parts:
            continue
        if path.name == "manifest.json":
            manifest = json.loads(path.read_text())
            del manifest["wall_secs"]
            found[str(path.relative_to(root))] = json.dumps(manifest, sort_keys=True)
        else:
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(autouse=True)
def one_flaw(monkeypatch):
    """Every round has a flaw: answers that are longer than 0 times the early ones."""

    def find_flaws(early, late, judge, settings):
        return Findings((Flaw("malformed", evidence={"rise": 1.0}),), {"score_early": 0.0})

    monkeypatch.setattr(fast_path, "find_flaws", find_flaws)
    monkeypatch.setattr(Flaw, "shows", lambda self, after, before, factor: True)
    monkeypatch.setattr(
        fast_path,
        "contrasting_pairs",
        lambda flaws, early, late, settings: [
            [
                fast_path.preference(after, (before.text + " a", after.text + " b"))
                for before, after in zip(early, late, strict=True)
            ][: settings.max_pairs]
            for _ in flaws
        ],
    )


@pytest.fixture
def drawn(monkeypatch):
    whole, seeds = rollouts.sample, []

    def sample(*args, **kwargs):
        seeds.append(kwargs["seed"])
        return whole(*args, **kwargs)

    monkeypatch.setattr(rollouts, "sample", sample)
    return seeds


@pytest.fixture(scope="module")
def straight(folder, request):
    patch = pytest.MonkeyPatch()
    one_flaw.__wrapped__(patch)  # the fixture of each test, for the run that all share
    yield run(folder, "straight")
    patch.undo()


# Where a run is stopped, one after the other: before the nth call of a function of the module.
STOPS = [
    ("_take_fast_path", 1),
    ("_pool", 1),
    ("_answers", 2),  # PPO of the second round is done
    ("_take_slow_path", 2),
    ("_about", 2),
    ("_pool", 2),
]


def test_stopped_between_parts_it_ends_in_the_same_bytes(folder, straight, drawn, monkeypatch):
    for name, time in STOPS:
        whole, calls = getattr(verb, name), []

        def stopped(*args, whole=whole, calls=calls, time=time, **kwargs):
            calls.append(args)
            if len(calls) == time:
                raise KeyboardInterrupt
            return whole(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(verb, name, stopped)
            with pytest.raises(KeyboardInterrupt):
                run(folder, "stopped")
    found = run(folder, "stopped")
    assert len(drawn) == 3 * ROUNDS
    assert artefacts(found) == artefacts(straight)


def test_stopped_within_a_part_that_part_is_made_again_whole(folder, straight, drawn, monkeypatch):
    """In the second round, after two of three policies were sampled, and while labels are made."""
    saves, whole = [], rollouts.save

    def save(path, found):
        saves.append(path)
        if len(saves) == 5:
            raise KeyboardInterrupt
        whole(path, found)

    def judge(self, prompt, first, second):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rollouts, "save", save)
        with pytest.raises(KeyboardInterrupt):
            run(folder, "within")
    assert not (folder / "within/round-2/answers").exists()
    with monkeypatch.context() as patch:
        patch.setattr(LongerIsBetter, "__call__", judge)
        with pytest.raises(KeyboardInterrupt):
            run(folder, "within")
    assert (folder / "within/round-2/fast_path").exists()
    assert not (folder / "within/round-2/slow_path").exists()
    found = run(folder, "within")
    assert artefacts(found) == artefacts(straight)
    before = len(drawn)
    run(folder, "within")
    assert len(drawn) == before


def test_pools_have_replayed_labels_and_pairs_against_flaws(straight):
    first = {record["id"] for record in PREFERENCES}
    for number in (2, 3):
        pool = read(straight / f"round-{number}/pool/preferences.jsonl")
        against = [
            pair
            for earlier in range(1, number)
            for pair in read(straight / f"round-{earlier}/fast_path/pairs.jsonl")
        ]
        assert len(against) == 3 * (number - 1)  # max_pairs
        labels = read(straight / "round-1/slow_path/pairs.jsonl") if number == 3 else []
        replayed = [record for record in pool if record["id"] in first]
        assert len(replayed) == 4
        assert pool == replayed + labels + against * 2
        done = json.loads((straight / f"round-{number}/reward/done.json").read_text())
        assert done["keep_head"] and done["text"].count("\n") == len(pool)
    assert json.loads((straight / "round-1/reward/done.json").read_text())["initial"] == "sft"
    summary = json.loads((straight / "summary.json").read_text())["rounds"]
    assert [of_round["round"] for of_round in summary] == [1, 2, 3]
    assert summary[0]["flaws"] == [
        {"evidence": {"rise": 1.0}, "kind": "malformed", "pairs": 3, "phrase": ""}
    ]


def test_policies_answer_the_same_prompts_and_can_be_compared(straight):
    answers = {
        name: read(straight / f"round-1/answers/{name}.jsonl") for name in ("sft", "early", "late")
    }
    ids = [[record["id"] for record in of_policy] for of_policy in answers.values()]
    assert ids[0] == ids[1] == ids[2] and len(ids[0]) == 10
    assert answers["early"] != answers["late"]
    settings = json.loads((straight / "round-1/answers/manifest.json").read_text())["settings"]
    assert settings["policies"] == {"sft": 0, "early": 2, "late": 4}


def test_people_s_labels_go_out_and_come_in_when_they_are_there(folder, drawn):
    root = run(folder, "people", judge=None, settings={"rounds": 2})
    asked = read(root / "round-1/slow_path/to_label.jsonl")
    assert 0 < len(asked) <= 7
    assert not (root / "round-1/slow_path/pairs.jsonl").exists()
    verdicts = [record | {"better": number % 3} for number, record in enumerate(asked)]
    text = "".join(json.dumps(record) + "\n" for record in verdicts)
    (root / "round-1" / judges.LABELLED).write_text(text + "\n")  # an editor's last empty line
    before = len(drawn)
    run(folder, "people", judge=None)
    assert len(drawn) == before + 3
    pool = read(root / "round-3/pool/preferences.jsonl")
    decided = [record for record in verdicts if record["better"]]
    labelled = pool[4 : 4 + len(decided)]
    for verdict, record in zip(decided, labelled, strict=True):
        best = min(record["responses"], key=lambda response: response["rank"])
        assert best["content"] == verdict[str(verdict["better"])]
        assert record["messages"] == verdict["messages"]
    # Later labels are for later rounds: the third has begun.
    before = artefacts(root)
    with open(root / "round-1" / judges.LABELLED, "a") as file:
        file.write(json.dumps(asked[0] | {"better": 2}) + "\n")
    run(folder, "people", judge=None)
    assert artefacts(root).keys() == before.keys()
    assert [n for n, x in artefacts(root).items() if x != before[n]] == ["round-1/labelled.jsonl"]


def test_people_are_not_told_whose_answer_is_which(straight):
    asked = read(straight / "round-1/slow_path/to_label.jsonl")
    of_sft = {r["id"]: r["response"] for r in read(straight / "round-1/answers/sft.jsonl")}
    assert not any(policy in record["name"] for record in asked for policy in ("sft", "late"))
    prompts = [record["name"].rpartition("-")[0] for record in asked]
    firsts, seconds = (
        sum(record[side] == of_sft[name] for record, name in zip(asked, prompts, strict=True))
        for side in ("1", "2")
    )
    assert firsts and seconds


GOOD = {
    "domain": "any",
    "messages": [{"role": "user", "content": "say"}],
    "1": "a",
    "2": "b",
    "better": 1,
}


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        json.dumps(GOOD | {"better": 3}),
        *(json.dumps({k: v for k, v in GOOD.items() if k != missing}) for missing in GOOD),
    ],
)
def test_a_wrong_line_of_labels_is_named(tmp_path, line):
    path = tmp_path / judges.LABELLED
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    with pytest.raises(ValueError, match=r"labelled\.jsonl, line 2.*0, 1 or 2"):
        judges.FileJudge(path)


def test_the_same_two_answers_to_two_prompts_can_be_judged_differently(tmp_path, folder):
    path = tmp_path / judges.LABELLED
    prompts = verb.read_prompts(str(folder / "prompts.jsonl"))[:2]
    records = [
        {
            "domain": prompt.domain,
            "messages": verb.judges.preference(
                rollouts.Rollout(prompt, (1,), verb.rollouts.Turn("assistant", ""), True, True), ()
            )["messages"],
            "1": "red",
            "2": "blue",
            "better": better,
        }
        for prompt, better in zip(prompts, (1, 2), strict=True)
    ]
    path.write_text("".join(json.dumps(record) + os.linesep for record in records))
    judge = judges.FileJudge(path)
    assert [judge(prompt, "red", "blue") for prompt in prompts] == [1, -1]
    assert judge(prompts[0], "red", "green") is None
    assert np.isscalar(judge(prompts[0], "red", "blue"))
