"""The train classifier verb: it learns, goes on, starts from other models, skips what is done."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from t5x_style.evals.binary import binary_measures
from t5x_style.infer.classify import ReadingSettings
from t5x_style.models import transformer
from t5x_style.models.config import TransformerConfig
from t5x_style.objectives.classification import Classification
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.run.scorers import load_scorer
from t5x_style.run.train_classifier import ClassifierSettings, train_classifier
from t5x_style.text_windows import WindowSettings
from t5x_style.train import checkpoint, run_folder
from t5x_style.train.initial_part import InitialPart
from t5x_style.train.job import Job, LoopSettings
from tests.fresh import fresh_params
from tests.suite.costs import slow_fixture

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
    causal=False,
    vocab_multiple=2,
)
SETTINGS = ClassifierSettings(epochs=6, batch_size=8, peak_learning_rate=2e-2)
READING = ReadingSettings(WindowSettings(32, 2), batch_tokens=256)


def write_examples(path, num=200, seed=0):
    """Texts that are true where "before" is before "after": no bag of words tells."""
    rng = np.random.default_rng(seed)
    words = ["the", "house", "runs", "blue", "seven", "over", "tree", "and", "it"]
    lines = []
    for number in range(num):
        chosen = list(rng.choice(words, 2 + number % 5))
        pair = ["before", "after"] if number % 3 else ["after", "before"]
        for word in pair[::-1]:
            chosen.insert(int(rng.integers(1)), word)
        lines.append(json.dumps({"text": " ".join(chosen), "label": int(number % 3 > 0)}))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def run(folder, examples, **changed):
    arguments = {
        "run_dir": str(folder / "run"),
        "output_dir": str(folder / "scorer"),
        "objective": Classification(MODEL),
        "settings": SETTINGS,
        "reading": READING,
        "held_out_share": 0.2,
        "mesh": MeshConfig(),
    }
    train_classifier(examples, **(arguments | changed))


@slow_fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    examples = write_examples(folder / "examples.jsonl")
    run(folder, examples)
    return folder, examples


@pytest.mark.slow
def test_it_learns_order_and_measures_itself(trained):
    folder, _ = trained
    measures = json.loads((folder / "scorer" / "measures.json").read_text())
    assert measures["roc_area"] > 0.95
    assert 25 < measures["num_true"] + measures["num_false"] < 60
    others = write_examples(folder / "others.jsonl", 90, seed=1)
    texts = [json.loads(line) for line in Path(others).read_text().splitlines()]
    found = load_scorer(folder / "scorer").scores([x["text"] for x in texts])
    assert binary_measures(found, [bool(x["label"]) for x in texts])["roc_area"] > 0.95
    assert "eval/held_out/recall" in (folder / "run" / run_folder.METRICS).read_text()


def test_called_again_it_skips_and_an_export_is_made_anew_from_the_run(trained, capsys):
    folder, examples = trained
    run(folder, examples)
    assert "there already" in capsys.readouterr().out
    run(folder, examples, output_dir=str(folder / "again"))
    assert "is finished at step" in capsys.readouterr().out
    for name in ("weights.npz", "measures.json", "classifier.json"):
        assert (folder / "again" / name).read_bytes() == (folder / "scorer" / name).read_bytes()
    with pytest.raises(ValueError, match="holds a run of another model or other data"):
        run(folder, examples, output_dir=str(folder / "third"), held_out_share=0.3)


@pytest.mark.slow
def test_a_stopped_training_goes_on_to_the_same_weights(trained, tmp_path, monkeypatch):
    folder, examples = trained
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
            run(tmp_path, examples, loop_settings=each)
    assert checkpoint.committed_steps(tmp_path / "run" / "checkpoints") == [5, 10]
    run(tmp_path, examples, loop_settings=each)
    weights = [(f / "scorer" / "weights.npz").read_bytes() for f in (tmp_path, folder)]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_trained_decoder_gives_its_weights(tmp_path, scan_layers):
    decoder = dataclasses.replace(MODEL, causal=True, scan_layers=scan_layers, num_layers=2)
    params = fresh_params(decoder, 7)
    checkpoint.save_model(tmp_path, decoder, params)
    objective = Classification(dataclasses.replace(MODEL, num_layers=2))
    job = Job(objective, schedule=lambda step: step, total_steps=1, batch_size=8, length=8)
    initial = InitialPart(str(tmp_path), objective=objective, part="encoder", seed=3)
    with job.in_place():
        state = initial.load(job.abstract_state, job.optimizer.transformation())
    if not scan_layers:
        params = transformer.stack_layers(params, decoder)
    del params["output"]
    jax.tree.map(np.testing.assert_array_equal, dict(state.params["encoder"]), dict(params))
    assert int(state.step) == 0
    assert np.std(state.params["head"]["kernel"]) > 0
    other = Classification(dataclasses.replace(MODEL, num_layers=2, mlp_dim=32))
    other_job = dataclasses.replace(job, objective=other)
    with other_job.in_place(), pytest.raises(ValueError, match="its model is another one"):
        initial.load(other_job.abstract_state, job.optimizer.transformation())


def test_what_cannot_be_learnt_is_refused(tmp_path, trained):
    _, examples = trained
    one_kind = tmp_path / "one.jsonl"
    one_kind.write_text('{"text": "some of the text, by hand", "label": 1}\n' * 40)
    with pytest.raises(ValueError, match="one kind"):
        run(tmp_path, str(one_kind), test_examples=examples, vocabulary=vocabulary_of(trained))
    with pytest.raises(ValueError, match=r"config\.TransformerConfig\.vocab_size"):
        larger = Classification(dataclasses.replace(MODEL, vocab_size=500))
        run(tmp_path, examples, objective=larger, vocabulary=vocabulary_of(trained))
    with pytest.raises(ValueError, match="0 to measure on"):
        run(tmp_path, examples, held_out_share=0.0)
    with pytest.raises(ValueError, match="epochs = 0"):
        ClassifierSettings(epochs=0)


def vocabulary_of(trained):
    return str(trained[0] / "scorer" / "tokenizer.model")
