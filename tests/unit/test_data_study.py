"""What a study of training data makes of its runs, and that it goes on where it was."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from t5x_style.artifacts import Artifact
from t5x_style.corpus.engine.executors import LocalExecutor
from t5x_style.corpus.linear_scorer import LinearSettings, train_linear
from t5x_style.evals.data_study import Arm, Result, as_text, summed_up, toxicity
from t5x_style.evals.studies import Run, read_run
from t5x_style.infer.sampling import Sampling
from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.run.data_study import SampleSettings, data_study
from t5x_style.run.hold_out import OTHER_TEXTS, arm_tasks, hold_out
from t5x_style.run.tasks import tasks
from t5x_style.run.vocabulary import vocabulary
from t5x_style.train.job import Job, LoopSettings
from t5x_style.train.schedules import WarmupCosine
from tests.faults.job import MODEL
from tests.unit.test_corpus_hold_out import SETTINGS, stage, text


def arm(name):
    return Arm(name, documents=10, tokens=1000, num_bytes=3000, epochs=2.5, shared=0.01)


def result(bits, toxic=None):
    course = ([10, 20], [bits + 1, bits])
    return Result(
        {"held_out": Run({"bits_per_byte": course, "loss": course}, 0.1)},
        None if toxic is None else {"toxicity": toxic, "toxic_half": 0.0, "toxic_most": 0.0},
    )


def test_toxicity_is_the_area_under_the_survival_curve():
    scores = np.random.default_rng(0).beta(0.5, 2.0, 500).astype(np.float32)
    scores[:3] = (0.5, 0.8, 1.0)
    found = toxicity(scores)
    thresholds = (np.arange(20_000) + 0.5) / 20_000
    survival = [(scores >= threshold).mean() for threshold in thresholds]
    assert found["toxicity"] == pytest.approx(np.mean(survival), abs=1e-4)
    assert found["toxic_half"] == sum(s >= np.float32(0.5) for s in scores) / 500
    assert found["toxic_most"] == sum(s >= np.float32(0.8) for s in scores) / 500
    assert found["toxic_half"] > found["toxic_most"] >= 2 / 500


def test_arms_are_compared_with_the_first_and_the_one_before_seed_by_seed():
    results = {
        "raw": [result(bits, 0.3) for bits in (3.0, 4.0, 5.0)],
        "clean": [result(bits, 0.2) for bits in (2.9, 3.9, 5.2)],
        "good": [result(bits, toxic) for bits, toxic in ((2.8, 0.1), (3.8, 0.3), (4.8, 0.2))],
    }
    raw, clean, good = summed_up([arm("raw"), arm("clean"), arm("good")], results)
    assert "difference" not in raw["held_out"]["held_out"]
    assert raw["held_out"]["held_out"]["bits_per_byte_deviation"] == pytest.approx(1.0)
    found = clean["held_out"]["held_out"]
    assert found["difference"] == pytest.approx(0.0)
    assert found["difference_deviation"] == pytest.approx(0.03**0.5)
    assert found["seeds_better"] == 2
    found = good["held_out"]["held_out"]
    assert (found["difference"], found["step"]) == pytest.approx((-0.2, -0.2))
    # All seeds differ by the same from the first; the losses alone lie far apart.
    assert found["difference_deviation"] == pytest.approx(0.0, abs=1e-12)
    assert found["step_deviation"] == pytest.approx(0.03**0.5)
    assert found["seeds_better"] == 3
    assert found["steps"] == [10, 20]
    assert [at["bits_per_byte"] for at in found["course"]] == pytest.approx([4.8, 3.8])
    assert (good["toxicity"], good["toxicity_deviation"]) == pytest.approx((0.2, 0.1))
    assert good["epochs"] == 2.5
    shown = as_text([raw, clean, good])
    assert "3.8000 ± 1.0000" in shown
    assert "−0.2000 ± 0.0000" in shown
    assert "0.2000 ± 0.1000" in shown


def test_without_a_scorer_or_a_second_seed_nothing_is_made_up():
    rows = summed_up([arm("a"), arm("b")], {"a": [result(3.0)], "b": [result(2.0)]})
    assert "toxicity" not in rows[0]
    assert rows[1]["held_out"]["held_out"]["difference_deviation"] is None
    assert as_text(rows).splitlines()[2].endswith("–")


def test_a_run_is_read_with_its_course(tmp_path):
    lines = [
        {"step": 5, "eval/a/loss": 2.0, "eval/a/bits_per_byte": 1.0, "eval/ab/loss": 9.0},
        {"step": 5, "timing/step_secs_p50": 0.3},
        # Logged twice, as a resumed run does.
        {"step": 5, "eval/a/loss": 2.5, "eval/a/bits_per_byte": 1.5},
        {"step": 9, "eval/a/loss": 1.0, "eval/a/bits_per_byte": 0.5},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = read_run(path, "a", "x.y")
    assert run.evaluations["bits_per_byte"] == ([5, 9], [1.5, 0.5])
    assert run.last() == {"loss": 1.0, "bits_per_byte": 0.5}
    assert run.step_secs == 0.3


def test_names_of_arms_must_differ(tmp_path):
    for arms in (["raw"], ["raw", "raw"]):
        with pytest.raises(ValueError, match=r"data_study\.arms"):
            data_study(str(tmp_path), arms, "", "", "", None)  # type: ignore[arg-type]


SAMPLES = SampleSettings(num_samples=4, max_new_tokens=8)


def small_job():
    return Job(
        objective=CausalLM(dataclasses.replace(MODEL, vocab_size=640)),
        schedule=WarmupCosine(peak=1e-2, total_steps=4, warmup_steps=1),
        total_steps=4,
        batch_size=8,
        length=32,
        settings=LoopSettings(log_every_steps=2, eval_every_steps=2),
        devices=jax.devices()[:1],
    )


@pytest.mark.slow
def test_a_study_from_documents_to_its_table_and_on(tmp_path, capsys):
    good = [(f"http://a.org/{'held' if n % 4 == 3 else 'x'}/{n}", text(n)) for n in range(8)]
    documents = {
        "raw": stage(
            tmp_path / "raw", [*good, *((f"http://b.org/{n}", text(n)) for n in (20, 21))]
        ),
        "good": stage(tmp_path / "good", good),
    }
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"text": text(70)}) + "\n")
    place = {name: str(tmp_path / name) for name in ("arms", "vocabulary", "tasks", "study")}
    hold_out(documents, "good", place["arms"], SETTINGS, str(own), LocalExecutor(1))
    vocabulary(place["vocabulary"], vocab_size=640, texts=arm_tasks(place["arms"], list(documents)))
    specs = arm_tasks(place["arms"], list(documents), str(own))
    tasks(specs, place["vocabulary"], place["tasks"])
    scorer = train_linear([text(1), "bad " * 9] * 4, [False, True] * 4, LinearSettings(bits=10))
    (tmp_path / "scorer").mkdir()
    with Artifact(tmp_path / "scorer", stage="train_scorer", settings={}).write() as writer:
        scorer.save(writer.folder)

    def study(**changes):
        samples = dataclasses.replace(SAMPLES, scorer=str(tmp_path / "scorer"))
        data_study(
            place["study"],
            list(documents),
            place["arms"],
            place["tasks"],
            place["vocabulary"],
            small_job(),
            other_texts=str(own),
            **{"seeds": (0,), "samples": samples, **changes},
        )
        return json.loads((tmp_path / "study" / "table" / "study.json").read_text())

    first = study()
    raw, best = first["arms"]
    assert (raw["name"], best["name"]) == ("raw", "good")
    assert (raw["documents"], best["documents"]) == (8, 6)
    assert raw["epochs"] == first["tokens"] / raw["tokens"] == 4 * 8 * 32 / raw["tokens"]
    assert set(raw["held_out"]) == {"held_out", OTHER_TEXTS}
    assert all(
        0 < row["held_out"][name]["bits_per_byte"] < 9
        for row in (raw, best)
        for name in row["held_out"]
    )
    assert best["held_out"]["held_out"]["difference"] != 0
    assert 0 < raw["toxicity"] < 1
    runs = tmp_path / "study" / "runs"
    assert not list(runs.rglob("checkpoints"))
    metrics = {path: path.stat().st_mtime_ns for path in runs.rglob("metrics.jsonl")}
    assert len(metrics) == 2

    # The same study again is there; one that lost its table trains nothing and comes to the same.
    assert study() == first
    (tmp_path / "study" / "table" / "manifest.json").unlink()
    assert study() == first
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("metrics.jsonl")} == metrics

    # Another scorer reads the same samples; without one nothing is said.
    assert "toxicity" not in study(samples=dataclasses.replace(SAMPLES, scorer=None))["arms"][0]
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("metrics.jsonl")} == metrics

    # Other samples need weights, which were not kept.
    other = SampleSettings(
        str(tmp_path / "scorer"), num_samples=3, max_new_tokens=8, sampling=Sampling(top_k=2)
    )
    assert study(samples=other) != first
    samples = tmp_path / "study" / "samples" / "raw" / "0" / "samples.json"
    assert len(json.loads(samples.read_text())) == 3
