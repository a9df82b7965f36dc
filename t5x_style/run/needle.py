"""The needle verb: what checkpoints find in long texts, by length and depth.

Answers are written as they come, so that a run that is broken off goes on where it was. Weights in
Hugging Face's format are brought in by `run.hf_import` first.
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.data.text_tasks import TextTask, read_texts, task_files
from t5x_style.data.vocabulary import Vocabulary
from t5x_style.evals import needle as needles
from t5x_style.evals.needle import Case, Needle, Question
from t5x_style.infer.sampler import Sampler
from t5x_style.infer.sampling import Sampling
from t5x_style.progress import progress
from t5x_style.train.trained_model import Named, TrainedModel, trained_models

NEEDLE_NAME = "needle.jsonl"
SUMMARY_NAME = "needle.json"


def needle(
    checkpoints: Mapping[str, Named],
    vocabulary: str,
    haystack: TextTask,
    hidden: Needle,
    output_dir: str,
    lengths: Sequence[int],
    *,
    documents: str | None = None,
    split: str = "validation",
    depths: Sequence[float] = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100),
    num_repeats: int = 10,
    answer_tokens: int = 50,
    batch_tokens: int = 16384,
    seed: int = 0,
) -> None:
    """Writes needle.jsonl, each checkpoint's answer to each case with its scores, and needle.json.

    The latter has the means of each checkpoint by length and depth.

    Args:
      checkpoints: name to run folder (its newest step), or to (run folder, step).
      vocabulary: the vocabulary's folder, or a `tokenizer.model`.
      haystack: the texts to hide the needle in.
      hidden: the needle.
      output_dir: folder to write.
      lengths: of prompt and answer, in tokens.
      documents: folder of curated documents, for a haystack without files of its own.
      split: which of the haystack's texts, "train" or "validation".
      depths: places of the needle, in per cent of the text.
      num_repeats: cases of each length and depth, each with texts in another order.
      answer_tokens: longest answer.
      batch_tokens: prompts are read together up to about so many tokens.
      seed: of keys, values and the order of texts.

    Raises:
      ValueError: there is no such checkpoint, vocabulary or text, or they do not fit each other.
    """
    models = trained_models(checkpoints, "needle.needle.checkpoints")
    words = Vocabulary.load(vocabulary)
    for model in models:
        model.check_vocabulary(words.vocab_size, vocabulary, "needle.needle.vocabulary")
    files = task_files(haystack, documents)[split]
    settings = {
        "checkpoints": {model.name: model.identity() for model in models},
        "vocabulary": words.fingerprint,
        "haystack": haystack,
        "split": split,
        "hidden": hidden,
        "lengths": list(lengths),
        "depths": list(depths),
        "num_repeats": num_repeats,
        "answer_tokens": answer_tokens,
        "seed": seed,
    }
    artifact = Artifact(output_dir, stage="needle", settings=settings, inputs={"files": files})
    if artifact.is_current():
        print(f"needle: {output_dir} is there already")
        return
    texts = words.encode_batch(read_texts(haystack, split, files, Counter()))
    # Beside the output, named by what was asked: of another question nothing is taken over.
    kept = Path(f"{output_dir}.{artifact.key}.partial.jsonl")
    kept.parent.mkdir(parents=True, exist_ok=True)
    answers = _answered(kept)
    for model in models:
        name = model.name
        waiting = [
            case
            for case in needles.cases(lengths, depths, num_repeats)
            if (name, case) not in answers
        ]
        if not waiting:
            continue
        sampler = Sampler(model.config, model.load())
        batches = list(_batches(waiting, batch_tokens))
        for batch in progress(batches, description=f"needle {name}", unit="batches"):
            built = [
                needles.build(
                    case, hidden, texts, words.encode, answer_tokens=answer_tokens + 1, seed=seed
                )
                for case in batch
            ]
            samples = sampler.generate(
                [[words.bos_id, *question.prompt] for question in built],
                answer_tokens,
                sampling=Sampling(temperature=0.0),
                stop_ids=[words.eos_id],
            )
            for case, question, sample in zip(batch, built, samples, strict=True):
                ids = [token for token in sample.tokens if token != words.eos_id]
                answers[name, case] = _row(name, case, question, words.decode(ids))
            _append(kept, [answers[name, case] for case in batch])
        rows = [row for (other, _), row in answers.items() if other == name]
        mean = sum(row["keyword"] for row in rows) / len(rows)
        print(f"needle: {name} answers {mean:.1f}% of {len(rows)} questions", flush=True)
    with artifact.write() as writer:
        _append(writer.folder / NEEDLE_NAME, [answers[key] for key in sorted(answers, key=str)])
        about = {"checkpoints": [_about(model, list(answers.values())) for model in models]}
        (writer.folder / SUMMARY_NAME).write_text(json.dumps(about, indent=1) + "\n")
        writer.counts.update(answers=len(answers))
    kept.unlink(missing_ok=True)


def _batches(waiting: Sequence[Case], batch_tokens: int) -> Iterator[list[Case]]:
    """Yields cases of one length, as many as fit the tokens of a batch."""
    batch: list[Case] = []
    for case in waiting:
        if batch and (
            case.length != batch[0].length or (len(batch) + 1) * case.length > batch_tokens
        ):
            yield batch
            batch = []
        batch.append(case)
    if batch:
        yield batch


def _row(name: str, case: Case, question: Question, answer: str) -> dict[str, Any]:
    return {
        "name": name,
        "length": case.length,
        "depth": case.depth,
        "repeat": case.repeat,
        "distance": question.distance,
        "wanted": question.needle.keyword,
        "answer": answer,
        **needles.scores(answer, question.needle),
    }


def _about(model: TrainedModel, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what needle.json says of a checkpoint."""
    cells = defaultdict(list)
    for row in rows:
        if row["name"] == model.name:
            cells[row["length"], row["depth"]].append(row)
    averaged = ("distance", *needles.SCORES)
    means = [
        {
            "length": length,
            "depth": depth,
            "num": len(found),
            **{name: sum(row[name] for row in found) / len(found) for name in averaged},
        }
        for (length, depth), found in sorted(cells.items())
    ]
    return {**model.about(), "cells": means}


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def _answered(path: Path) -> dict[tuple[str, Case], dict[str, Any]]:
    """Returns the answers kept from an earlier start; a line that was cut off is left out."""
    if not path.is_file():
        return {}
    answers = {}
    whole, newline, _ = path.read_bytes().rpartition(b"\n")
    for line in filter(None, whole.split(b"\n")):
        row = json.loads(line)
        answers[row["name"], Case(row["length"], row["depth"], row["repeat"])] = row
    path.write_bytes(whole + newline)
    return answers


if __name__ == "__main__":
    cli.main("t5x_style.run.needle.needle")
