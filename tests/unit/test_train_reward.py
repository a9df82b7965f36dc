"""The train reward verb: preferences that contradict each other, resume, start, what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from t5x_style.data.chat import ChatFormat, Turn
from t5x_style.data.domain_prompts import DomainPrompts
from t5x_style.data.preferences import scored_ids
from t5x_style.data.vocabulary import Vocabulary, train_vocabulary
from t5x_style.infer.reward import RewardScorer
from t5x_style.models import lora
from t5x_style.models.config import TransformerConfig
from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.objectives.lora import LoRA
from t5x_style.objectives.reward import Reward
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.run.report import report
from t5x_style.run.train_reward import PROMPTS, RewardSettings, train_reward
from t5x_style.train import checkpoint, run_folder
from t5x_style.train.initial_part import InitialPart
from t5x_style.train.job import Job, LoopSettings
from t5x_style.train.trained_model import TrainedModel
from tests.fresh import fresh_params

# Runs that all tests share are compared bit for bit.
pytestmark = pytest.mark.exact

MODEL = TransformerConfig(
    vocab_size=430,
    num_layers=1,
    embed_dim=32,
    num_query_heads=2,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=64,
    vocab_multiple=2,
)
OBJECTIVE = Reward(MODEL, pairs_per_row=16)
SETTINGS = RewardSettings(
    epochs=12, length_tokens=128, batch_tokens=1024, peak_learning_rate=4e-3, warmup_share=0.1
)
WORDS = ["red", "blue", "seven", "tree", "over"]


def write_preferences(path, num=160, seed=0):
    """In one domain the longer answer is better, in the other the shorter one."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(num):
        sizes = rng.permutation(4)[: 2 + number % 2]
        domain = ("short", "long")[number % 2]
        ranks = sizes if domain == "short" else 3 - sizes
        responses = [
            {"content": " ".join(rng.choice(WORDS, 1 + 2 * size)), "rank": int(rank)}
            for size, rank in zip(sizes, ranks, strict=True)
        ]
        messages = [{"role": "user", "content": f"say {rng.choice(WORDS)} {number}"}]
        lines.append(json.dumps({"domain": domain, "messages": messages, "responses": responses}))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def run(folder, preferences, **changed):
    arguments = {
        "run_dir": str(folder / "run"),
        "output_dir": str(folder / "measures"),
        "objective": OBJECTIVE,
        "settings": SETTINGS,
        "held_out_share": 0.25,
        "scoring_batch_tokens": 512,
        "mesh": MeshConfig(),
    }
    train_reward(preferences, **(arguments | changed))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Preferences, the vocabulary and a folder of prompts."""
    folder = tmp_path_factory.mktemp("reward")
    train_vocabulary([" ".join(["say", "short", "long", *WORDS])] * 9, 430).save(
        folder / "tokenizer.model"
    )
    (folder / "domains").mkdir()
    for domain in ("short", "long"):
        (folder / "domains" / f"{domain}.txt").write_text(domain)
    fixed = {"vocabulary": str(folder / "tokenizer.model"), "prompts": str(folder / "domains")}
    return write_preferences(folder / "preferences.jsonl"), fixed


@pytest.fixture(scope="module")
def trained(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    run(folder, given[0], **given[1])
    return folder


@pytest.mark.slow
def test_the_prompt_of_the_domain_says_what_is_better(trained):
    measures = json.loads((trained / "measures" / "measures.json").read_text())
    conditional, plain = (measures["scored"][f"{name}_prompts"] for name in ("with", "without"))
    assert conditional["accuracy"] > 0.9
    assert min(of["accuracy"] for of in conditional["by_domain"].values()) > 0.75
    # Without a prompt no model can be right in both.
    assert plain["accuracy"] < 0.75
    assert sum(of["num_pairs"] for of in plain["by_domain"].values()) == plain["num_pairs"] > 30
    assert measures["dropped"]["in_training"] == {"too_long": 0, "not_compared": 0, "no_room": 0}
    assert 20 < measures["num_prompts"] < 60
    metrics = (trained / "run" / run_folder.METRICS).read_text()
    for name in ("train/ranking_loss", "train/barrier", "eval/held_out/accuracy"):
        assert name in metrics


@pytest.mark.slow
def test_the_run_scores_by_itself_and_the_prompts_lie_beside_the_measures(trained, given):
    config, params = checkpoint.load_model(trained / "run", None)
    prompts = DomainPrompts.load(trained / "measures" / PROMPTS)
    chat_format = ChatFormat(Vocabulary.load(given[1]["vocabulary"]))
    scorer = RewardScorer(config, params, chat_format.reward_id, batch_tokens=512)
    question = Turn("user", "say red 7")
    terse, wordy = (
        Turn("assistant", text) for text in ("blue", "blue tree over red seven red blue")
    )
    found = {
        domain: scorer.scores(
            [scored_ids((question, turn), chat_format, prompts[domain]) for turn in (terse, wordy)]
        )
        for domain in prompts
    }
    assert found["short"][0] > found["short"][1]
    assert found["long"][0] < found["long"][1]


@pytest.mark.slow
def test_called_again_it_skips_and_measures_are_made_anew_from_the_run(trained, given, capsys):
    run(trained, given[0], **given[1])
    assert "there already" in capsys.readouterr().out
    again = trained / "again"
    run(trained, given[0], output_dir=str(again), **given[1])
    shown = capsys.readouterr().out
    assert "is finished at step" in shown
    assert "without_prompts" in shown
    assert (again / "measures.json").read_bytes() == (
        trained / "measures" / "measures.json"
    ).read_bytes()
    with pytest.raises(ValueError, match="holds a run of another model or other data"):
        run(trained, given[0], output_dir=str(trained / "x"), **(given[1] | {"prompts": None}))


@pytest.mark.slow
def test_the_report_shows_it(trained, tmp_path):
    report(str(tmp_path / "report"), reward=str(trained / "measures"))
    page = (tmp_path / "report" / "report.html").read_text()
    for text in ("The reward model", "Expected calibration error", "short", "Nothing was left out"):
        assert text in page


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_the_same_weights(trained, given, tmp_path, monkeypatch):
    whole = Job.__dict__["compile_train_step"]

    def stops(self):
        step = whole(self)

        def once(state, batch):
            if int(state.step) == 13:
                raise KeyboardInterrupt
            return step(state, batch)

        return once

    each = LoopSettings(checkpoint_every_steps=5)
    with monkeypatch.context() as patched:
        patched.setattr(Job, "compile_train_step", stops)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, given[0], loop_settings=each, **given[1])
    assert checkpoint.committed_steps(tmp_path / "run" / "checkpoints") == [5, 10]
    run(tmp_path, given[0], loop_settings=each, **given[1])
    one, other = (checkpoint.load_model(f / "run", None)[1] for f in (tmp_path, trained))
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
def test_a_language_model_and_a_reward_model_give_their_weights(tmp_path):
    params = fresh_params(MODEL, 7)
    checkpoint.save_model(tmp_path / "sft", MODEL, params)
    objective = dataclasses.replace(OBJECTIVE, head_init_std=0.1)
    job = Job(objective, schedule=lambda step: step, total_steps=1, batch_size=8, length=16)
    transformation = job.optimizer.transformation()
    with job.in_place():
        first = InitialPart(str(tmp_path / "sft"), objective=objective, seed=3)
        state = first.load(job.abstract_state, transformation)
        checkpoint.save_model(tmp_path / "reward", MODEL, state.params)
        critic = InitialPart(str(tmp_path / "reward"), objective=objective, seed=4)
        other = critic.load(job.abstract_state, transformation)
    del params["output"]
    for found in (state, other):
        jax.tree.map(np.testing.assert_array_equal, dict(found.params["backbone"]), dict(params))
    kernels = [np.asarray(s.params["head"]["kernel"]) for s in (state, other)]
    assert kernels[0].std() > 0
    assert not np.array_equal(*kernels)


@pytest.mark.slow
def test_a_run_with_adapters_gives_its_merged_weights(tmp_path):
    objective = LoRA(CausalLM(MODEL), rank=2, targets="(wqkv|w2)$")
    params = fresh_params(objective)
    params["lora"] = jax.tree.map(lambda leaf: leaf + 0.1, params["lora"])
    checkpoint.save_model(tmp_path / "sft", MODEL, params)
    job = Job(OBJECTIVE, schedule=lambda step: step, total_steps=1, batch_size=8, length=16)
    with job.in_place():
        start = InitialPart(str(tmp_path / "sft"), objective=OBJECTIVE)
        found = start.load(job.abstract_state, job.optimizer.transformation()).params["backbone"]
    wanted = {name: leaf for name, leaf in lora.merged(params).items() if name != "output"}
    jax.tree.map(np.testing.assert_array_equal, dict(found), wanted)
    base = params["base"]["layers"]["attention"]["wqkv"]
    assert np.abs(np.asarray(found["layers"]["attention"]["wqkv"] - base)).max() > 0.01


def test_verbs_for_language_models_refuse_a_reward_model(tmp_path):
    params = fresh_params(OBJECTIVE)
    checkpoint.save_model(tmp_path / "reward", MODEL, params)
    model = TrainedModel("mine", str(tmp_path / "reward"), "generate.generate.checkpoints")
    with pytest.raises(ValueError, match=r"generate\.checkpoints: .*reward is of .* no tokens"):
        model.identity()


def test_what_cannot_be_learnt_is_refused(tmp_path, given):
    preferences, fixed = given
    with pytest.raises(ValueError, match="0 to measure on"):
        run(tmp_path, preferences, held_out_share=0.0, **fixed)
    with pytest.raises(ValueError, match=r"train_reward\.train_reward\.vocabulary"):
        larger = Reward(dataclasses.replace(MODEL, vocab_size=500))
        run(tmp_path, preferences, objective=larger, **fixed)
    with pytest.raises(ValueError, match=r"trained_length = 64.*stretch the rotary base"):
        shorter = Reward(dataclasses.replace(MODEL, trained_length=64, dynamic_ntk_factor=2.0))
        run(tmp_path, preferences, objective=shorter, **fixed)
    with pytest.raises(ValueError, match="trained_length to more"):
        shortest = Reward(dataclasses.replace(MODEL, trained_length=8))
        run(tmp_path, preferences, objective=shortest, **fixed)
    with pytest.raises(ValueError, match=r"job\.LoopSettings\.num_microbatches = 2"):
        run(tmp_path, preferences, loop_settings=LoopSettings(num_microbatches=2), **fixed)
    with pytest.raises(ValueError, match=r"line 1: domain 'short' has no prompt in .*reward"):
        run(tmp_path, preferences, **(fixed | {"prompts": "prompts/reward"}))
    with pytest.raises(ValueError, match=r"'too_long': \d+"):
        short = dataclasses.replace(SETTINGS, length_tokens=8)
        run(tmp_path, preferences, settings=short, **fixed)
    with pytest.raises(ValueError, match="epochs = 0"):
        RewardSettings(epochs=0)
