"""The data study verb: the same small model trained on each of several texts, seed by seed.

Every arm gets as many tokens in as many steps; one with less text reads it more often. For a seed
all arms start from the same weights. Called again, the study goes on with the first run that is not
finished.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_style.artifacts import Artifact, input_digest, read_manifest
from t5x_style.config import cli
from t5x_style.corpus.scorer import Scorer
from t5x_style.data.batches import Component
from t5x_style.data.token_store import TokenStore
from t5x_style.data.vocabulary import Vocabulary
from t5x_style.evals.data_study import Arm, Result, as_text, summed_up, toxicity
from t5x_style.evals.studies import read_run
from t5x_style.infer.sampler import Sampler
from t5x_style.infer.sampling import Sampling
from t5x_style.run.generate import SAMPLES_NAME
from t5x_style.run.hold_out import HELD_OUT, OTHER_TEXTS
from t5x_style.run.scorers import load_scorer
from t5x_style.run.studies import Study
from t5x_style.train import run_folder
from t5x_style.train.job import Job
from t5x_style.train.trained_model import TrainedModel


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """Texts that each run writes, and what judges them.

    Attributes:
      scorer: folder of a scorer of toxicity (train_scorer, train_classifier); None: nothing judges.
      num_samples: texts of each run.
      max_new_tokens: of a text.
      sampling: how tokens are drawn.
    """

    scorer: str | None = None
    num_samples: int = 128
    max_new_tokens: int = 128
    sampling: Sampling = Sampling()  # noqa: RUF009 (frozen)


def data_study(
    output_dir: str,
    arms: Sequence[str],
    documents: str,
    tasks: str,
    vocabulary: str,
    job: Job,
    *,
    other_texts: str | Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    samples: SampleSettings = SampleSettings(),
    keep_checkpoints: bool = False,
) -> None:
    """Trains all arms and writes their table, study.json.

    Args:
      output_dir: folder of the study; the runs lie in it, by arm and seed, and their samples.
      arms: names of the texts, in the order of the pipeline.
      documents: `output_dir` of hold_out.
      tasks: `output_dir` of tasks, which were told `hold_out.arm_tasks`.
      vocabulary: folder of the vocabulary.
      job: how each arm is trained.
      other_texts: what hold_out was told; measured on besides the held-out documents.
      seeds: of the first weights, the order of the data, and samples.
      samples: texts to judge.
      keep_checkpoints: whether the runs' weights are kept.

    Raises:
      ValueError: a name stands twice or is not there, or a run does not fit.
    """
    if len(arms) < 2 or len(set(arms)) < len(arms):
        raise ValueError(f"data_study.data_study.arms = {list(arms)}: take two or more names")
    folder, stores = Path(output_dir), {name: f"{tasks}/{name}/train" for name in arms}
    validation = {HELD_OUT: f"{tasks}/{arms[0]}/validation"}
    if other_texts:
        validation[OTHER_TEXTS] = f"{tasks}/{OTHER_TEXTS}/train"
    texts = Vocabulary.load(vocabulary)
    settings = {
        "arms": {name: TokenStore.open(store).content for name, store in stores.items()},
        "validation": {name: TokenStore.open(store).content for name, store in validation.items()},
        "model": job.objective.model.to_dict(),  # type: ignore[reportAttributeAccessIssue]
        "job": {
            name: getattr(job, name)
            for name in ("total_steps", "batch_size", "length", "schedule", "optimizer")
        },
        "seeds": list(seeds),
        "samples": samples,
        "scorer": input_digest(samples.scorer) if samples.scorer else None,
    }
    study = Study("data study", folder, validation, _as_text, keep_checkpoints)
    table = study.table(settings)
    if table.is_current():
        return
    scorer = load_scorer(samples.scorer) if samples.scorer else None

    def run(name: str, seed: int) -> Result:
        run_dir = study.run_dir(name, str(seed))
        written = Artifact(
            folder / "samples" / name / str(seed),
            stage="samples",
            settings={
                **settings,
                "seeds": seed,
                "arms": settings["arms"][name],
                "samples": dataclasses.replace(samples, scorer=None),
                "scorer": None,
            },
        )
        is_to_write = not written.is_current()
        if is_to_write and not study.has_weights(run_dir):
            # Of another study, whose weights were not kept.
            shutil.rmtree(run_dir, ignore_errors=True)
        of_seed = dataclasses.replace(job, seed=seed)
        study.train(run_dir, of_seed, [Component(stores[name])])
        if is_to_write:
            _write_samples(written, str(run_dir), texts, samples, seed)
        study.drop_weights(run_dir)
        metrics = run_dir / run_folder.METRICS
        runs = {name: read_run(metrics, name, "data_study.other_texts") for name in validation}
        return Result(runs, toxicity(_scores(written, scorer)) if scorer else None)

    results: dict[str, list[Result]] = {name: [] for name in arms}
    # Seed by seed, so that a study that is broken off has whole rows of fewer seeds to look at.
    for seed in seeds:
        for name in arms:
            results[name].append(run(name, seed))
    budget = job.total_steps * job.batch_size * job.length
    rows = summed_up([_arm(name, documents, tasks, budget) for name in arms], results)
    study.write(table, {"tokens": budget, "arms": rows}, len(arms) * len(seeds))


def _arm(name: str, documents: str, tasks: str, budget: int) -> Arm:
    counts = read_manifest(f"{tasks}/{name}")["counts"]["train"]
    shared = read_manifest(f"{documents}/{name}")["counts"]
    return Arm(
        name,
        counts["examples"],
        counts["tokens"],
        counts["bytes"],
        budget / counts["tokens"],
        shared["held_out_ngrams_left"] / max(1, shared["held_out_ngrams"]),
    )


def _write_samples(
    written: Artifact, run_dir: str, texts: Vocabulary, settings: SampleSettings, seed: int
) -> None:
    """Writes texts from their beginning as samples.json."""
    model = TrainedModel(run_dir, run_dir, "data_study.data_study.output_dir")
    model.check_vocabulary(texts.vocab_size, "the vocabulary", "data_study.data_study.vocabulary")
    found = Sampler(model.config, model.load()).generate(
        [[texts.bos_id]] * settings.num_samples,
        settings.max_new_tokens,
        sampling=settings.sampling,
        stop_ids=[texts.eos_id],
        seed=seed,
    )
    with written.write() as writer:
        rows = [{"text": texts.decode(sample.tokens)} for sample in found]
        contents = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        (writer.folder / SAMPLES_NAME).write_text(contents, encoding="utf-8")
        writer.counts.update(samples=len(rows))


def _scores(written: Artifact, scorer: Scorer) -> np.ndarray:
    rows = json.loads((written.folder / SAMPLES_NAME).read_text(encoding="utf-8"))
    return scorer.scores([row["text"] for row in rows])


def _as_text(contents: Mapping[str, Any]) -> str:
    return as_text(contents["arms"])


if __name__ == "__main__":
    cli.main("t5x_style.run.data_study.data_study")
