"""A run leaves as a published folder, comes back as a run, and both write the same text."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest

from t5x_style.data.vocabulary import Vocabulary, train_vocabulary
from t5x_style.infer.sampling import Sampling
from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.run.generate import generate
from t5x_style.run.hf_export import hf_export
from t5x_style.run.hf_import import hf_import
from t5x_style.train import checkpoint, state
from t5x_style.train.job import InitialRun
from tests.golden import hf_models

_CONFIG = dataclasses.replace(hf_models.MODELS["plain"], vocab_size=450, vocab_multiple=128)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds `vocabulary/tokenizer.model` and the run `run`."""
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "vocabulary").mkdir()
    words = ["a small house", "the large house", "houses and mice", "a mouse in the house"] * 20
    train_vocabulary(words, 450).save(folder / "vocabulary" / "tokenizer.model")
    params = jax.tree.map(jax.numpy.asarray, hf_models.seeded_params(_CONFIG))
    checkpoint.save_model(folder / "run", _CONFIG, params)
    return folder


def _export(folder, name: str, **options):
    hf_export(str(folder / "run"), str(folder / name), str(folder / "vocabulary"), **options)
    return folder / name


def _samples(folder, output: str, **checkpoints):
    generate(
        {name: str(folder / run) for name, run in checkpoints.items()},
        str(folder / "vocabulary"),
        ["a house", "", "the mouse"],
        str(folder / output),
        8,
        sampling=Sampling(temperature=0.7, top_p=0.9),
        seed=3,
    )
    return json.loads((folder / output / "samples.json").read_text())


@pytest.mark.parametrize("layout", ["internlm2", "llama"])
def test_a_run_survives_export_and_import(layout, folder, capsys):
    published = _export(folder, f"hf_{layout}", layout=layout, dtype="float32")
    names = {path.name for path in published.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json"} < names
    hf_import(str(published), str(folder / f"back_{layout}"))
    config, params = checkpoint.load_model(folder / f"back_{layout}")
    assert config == _CONFIG
    expected = hf_models.seeded_params(_CONFIG)
    for path in (("layers", "attention", "wqkv"), ("layers", "feed_forward", "w2")):
        found, wanted = params, expected
        for name in path:
            found, wanted = found[name], wanted[name]
        np.testing.assert_array_equal(found, wanted)
    assert (folder / f"back_{layout}" / "tokenizer.model").read_bytes() == (
        published / "tokenizer.model"
    ).read_bytes()
    capsys.readouterr()
    hf_import(str(published), str(folder / f"back_{layout}"))
    _export(folder, f"hf_{layout}", layout=layout, dtype="float32")
    assert capsys.readouterr().out.count("is there already") == 2


def test_a_reward_run_survives_export_and_import(folder):
    backbone = jax.tree.map(jax.numpy.asarray, hf_models.seeded_params(_CONFIG))
    del backbone["output"]
    params = {"backbone": backbone, "head": {"kernel": jax.numpy.arange(24.0)}}
    checkpoint.save_model(folder / "reward", _CONFIG, params)
    published = folder / "hf_reward"
    with pytest.raises(ValueError, match=r"is a reward model.*hf_export\.vocabulary"):
        hf_export(str(folder / "reward"), str(published))
    words = str(folder / "vocabulary")
    hf_export(str(folder / "reward"), str(published), words, dtype="float32")
    content = json.loads((published / "config.json").read_text())
    special = Vocabulary.load(words).special_ids
    assert content["reward_token_id"] == special["<|reward|>"]
    hf_import(str(published), str(folder / "reward_back"))
    config, found = checkpoint.load_model(folder / "reward_back")
    assert config == _CONFIG
    np.testing.assert_array_equal(found["head"]["kernel"], np.arange(24.0))
    for name in ("layers", "norm"):
        jax.tree.map(np.testing.assert_array_equal, found["backbone"][name], backbone[name])


def test_the_published_tokenizer_has_the_same_ids_and_names_the_chat_tokens(folder):
    published = _export(folder, "hf_tokenizer")
    own, theirs = (Vocabulary.load(path) for path in (folder / "vocabulary", published))
    text = "the mouse, naïve: <|im_start|> 12345"
    assert theirs.encode(text) == own.encode(text)
    assert theirs.special_ids == own.special_ids
    assert theirs.piece(449) == "<|im_start|>"
    content = json.loads((published / "tokenizer_config.json").read_text())
    assert content["added_tokens_decoder"]["449"]["content"] == "<|im_start|>"
    assert (content["add_bos_token"], content["add_eos_token"]) == (True, False)
    assert content["add_prefix_space"] is False


def test_training_starts_from_imported_weights(folder):
    published = _export(folder, "hf_start", dtype="float32")
    hf_import(str(published), str(folder / "start"))
    transformation = optax.adam(1e-3)
    abstract = state.abstract_state(
        CausalLM(_CONFIG), transformation, MeshConfig(data=1, fsdp=8).build()
    )
    first = InitialRun(str(folder / "start"), mode="params").load(abstract, transformation)
    assert int(first.step) == 0
    found = first.params["layers"]["feed_forward"]["w1"]
    assert len(found.sharding.device_set) == 8
    expected = hf_models.seeded_params(_CONFIG)["layers"]["feed_forward"]["w1"]
    np.testing.assert_array_equal(found, expected)


def test_import_never_replaces_a_training_run(folder):
    published = _export(folder, "hf_guard")
    params = jax.tree.map(jax.numpy.asarray, hf_models.seeded_params(_CONFIG))
    checkpointer = checkpoint.Checkpointer(folder / "trained" / "checkpoints")
    checkpointer.save(7, {"params": params}, {})
    checkpointer.close()
    with pytest.raises(ValueError, match=r"steps \[7\]; set hf_import.output_dir"):
        hf_import(str(published), str(folder / "trained"))


def test_samples_are_the_same_for_the_same_weights_and_are_made_once(folder, capsys):
    hf_import(str(_export(folder, "hf_twin", dtype="float32")), str(folder / "twin"))
    samples = _samples(folder, "samples", run="run", twin="twin")
    assert [(s["name"], s["prompt"]) for s in samples] == [
        (name, prompt) for name in ("run", "twin") for prompt in ("a house", "", "the mouse")
    ]
    assert [s["text"] for s in samples[:3]] == [s["text"] for s in samples[3:]]
    assert all(1 <= s["num_tokens"] <= 8 for s in samples)
    assert samples[0]["temperature"] == 0.7
    assert (samples[0]["top_p"], samples[0]["seed"]) == (0.9, 3)
    capsys.readouterr()
    assert _samples(folder, "samples", run="run", twin="twin") == samples
    assert "is there already" in capsys.readouterr().out


def test_verbs_say_what_does_not_belong_together(folder):
    other = folder / "other.model"
    train_vocabulary(["some house", "any mouse here"] * 20, 425).save(other)
    with pytest.raises(ValueError, match=r"vocabulary of 450.* one of 425: set hf_export"):
        hf_export(str(folder / "run"), str(folder / "bad"), str(other))
    with pytest.raises(ValueError, match=r"vocabulary of 450.* one of 425: set generate"):
        generate({"run": str(folder / "run")}, str(other), ["a"], str(folder / "bad"))
    with pytest.raises(ValueError, match=r"generate.checkpoints\['ghost'\]"):
        generate({"ghost": str(folder / "ghost")}, str(other), ["a"], str(folder / "bad"))
    with pytest.raises(ValueError, match="must list at least one"):
        generate({"run": str(folder / "run")}, str(other), "a prompt", str(folder / "bad"))
    with pytest.raises(ValueError, match="layout = 'gguf'"):
        _export(folder, "bad", layout="gguf")
    assert not (folder / "bad").exists()
