"""A made-up pipeline's output folders, in the formats of the stages, for the tests of the report.

`python -m tests.unit.report_files FOLDER` writes them and the page, to be looked at.
"""

import contextlib
import hashlib
import io
import itertools
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from t5x_style.artifacts import Artifact
from t5x_style.corpus.documents import (
    DOCUMENT_SCHEMA,
    SAFE_SCHEMA,
    TEXT_SCHEMA,
    Funnel,
    document_id,
    write_shards,
)
from t5x_style.corpus.engine.executors import LocalExecutor
from t5x_style.data.preferences import EncodedPreferences
from t5x_style.data.token_store import TokenStore, TokenStoreWriter
from t5x_style.evals.alignment_study import summary
from t5x_style.evals.preferences import preference_measures
from t5x_style.run.statistics import statistics

HOSTILE = '<script>alert("x")</script> & <b onmouseover=alert(1)>'
_HOSTS = ("docs.python.org", "numpy.org", "flax.readthedocs.io", "jax.dev", "例え.テスト")
_PHASES = (
    ("short", 0, 270, 256, 5e4),
    ("long", 270, 330, 1024, 1e6),
    ("enhance", 330, 345, 1024, 1e6),
)


def _corpus(folder: Path, num_documents: int, rng: np.random.Generator) -> np.ndarray:
    sizes = np.exp(rng.normal(8.0, 1.3, num_documents)).astype(int) + 40
    steps = [
        ("records", num_documents * 2, num_documents * 2 - 5, {"damaged member": 3, "too long": 2}),
        ("extract", num_documents * 2 - 5, num_documents * 2 - 60, {"no text": 41, "timeout": 14}),
        (
            "rules",
            num_documents * 2 - 60,
            num_documents + 200,
            {"fewer than 50 words": num_documents - 300, HOSTILE: 40},
        ),
        ("dedup", num_documents + 200, num_documents, {"exact": 120, "near duplicate": 80}),
    ]
    funnel = [
        {
            "name": name,
            "in": num_in,
            "out": num_out,
            "bytes_out": int(sizes.sum() * num_out / num_documents),
            "dropped": dropped,
        }
        for name, num_in, num_out, dropped in steps
    ]
    languages = rng.choice(["en", "en", "en", "en", "de", "zh", ""], num_documents)
    splits = np.where(rng.random(num_documents) < 0.1, "validation", "train")
    rows = {
        "id": [f"{i:032x}" for i in range(num_documents)],
        "url": [f"https://{_HOSTS[i * i % len(_HOSTS)]}/{i}" for i in range(num_documents)],
        "title": [""] * num_documents,
        "text": ["x"] * num_documents,
        "language": languages.tolist(),
        "language_score": [0.99] * num_documents,
        "date": ["2024-03-26"] * num_documents,
        "dump": ["here"] * num_documents,
        "num_bytes": sizes.tolist(),
        "links": [[]] * num_documents,
        "toxic_score": [None] * num_documents,
        "porn_score": [None] * num_documents,
        "fluency_score": [None] * num_documents,
        "not_ad_score": [None] * num_documents,
        "split": splits.tolist(),
    }
    rows["url"][0] = f"https://{HOSTILE}/"
    artifact = Artifact(folder, stage="curate", settings={"languages": ["en"], "note": HOSTILE})
    with artifact.write() as writer:
        write_shards(writer.folder, [pa.table(rows, schema=DOCUMENT_SCHEMA)])
        (writer.folder / "funnel.json").write_text(json.dumps({"steps": funnel}))
    return sizes


def _tasks(folder: Path, sizes: np.ndarray, rng: np.random.Generator) -> str:
    vocabulary: Any = types.SimpleNamespace(
        vocab_size=4096,
        token_bytes=np.where(np.arange(4096) < 3, 0, 1 + np.arange(4096) % 5).astype(np.int32),
        fingerprint="9c2f7be1",
    )
    artifact = Artifact(folder / "docs", stage="tasks", settings={"task": "docs"})
    with artifact.write() as writer:
        for split, chosen in (("train", sizes[::2]), ("validation", sizes[1::10])):
            num_bytes = 0
            with TokenStoreWriter(
                writer.folder / split, vocabulary, task="docs", split=split
            ) as store:
                for size in chosen:
                    ids = rng.integers(3, 4096, max(1, size // 4))
                    store.add(np.concatenate([[1], ids, [2]]))
                    num_bytes += int(vocabulary.token_bytes[ids].sum())
            writer.counts[split] = {
                "examples": store.num_examples,
                "tokens": store.num_tokens,
                "bytes": num_bytes,
                "dropped": {"empty": 2},
            }
    return TokenStore.open(folder / "docs" / "train").content


def _run(folder: Path, number: int, content: str, rng: np.random.Generator) -> None:
    _, start, stop, length, base = _PHASES[number]
    folder.mkdir(parents=True)
    lines = [{"step": start, "time_secs": 4.2, "timing/compile_secs": 4.2}]
    for step in range(start + 1, stop + 1):
        loss = 3.1 + 5.0 * math.exp(-step / 60) + 0.08 * rng.normal() - 0.25 * number
        secs = 4.2 + (step - start) * 0.31
        lines.append(
            {
                "step": step,
                "time_secs": secs,
                "train/loss": loss,
                "train/bits_per_byte": loss / math.log(2) / 3.4,
                "train/grad_norm": math.exp(-step / 150 + 0.3 * rng.normal()),
                "train/learning_rate": 1e-3 * min(step / 10, 0.55 + 0.45 * math.cos(step / 110)),
                "train/tokens": 8192.0 * (step - start),
                "timing/tokens_per_sec": 26000 * (1 + 0.06 * rng.normal()) / (1 + 0.2 * number),
                "timing/data_wait_fraction": 0.004,
            }
        )
        if step % 60 == 0 or step == stop:
            lines.append({"step": step, "time_secs": secs, "eval/docs/loss": loss + 0.2})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"step": 99, "train/lo')
    components = [
        {
            "content": content,
            "rate": 1.0,
            "order": "ShuffledOrder",
            "min_tokens": low,
            "max_tokens": high,
        }
        for low, high in ([(None, None)] if number != 1 else [(None, 256), (256, None)])
    ]
    stream = {"components": components, "length": length, "batch_size": 32, "seed": 0}
    (folder / "run.json").write_text(json.dumps({"identity": {"data": stream}, "settings": {}}))
    (folder / "model.json").write_text(json.dumps({"trained_length": length, "rope_base": base}))
    gin = f"# {HOSTILE}\nconfig.TransformerConfig.rope_base = {base}\n" + "".join(
        f"train.setting_{i} = {i}\n" for i in range(60)
    )
    (folder / "config.gin").write_text(gin)
    environment = {
        "python": "3.11.2",
        "packages": {"jax": "0.10.2", "flax": "0.12.8"},
        "device_kind": "cpu",
        "num_devices": 1,
        "command": ["train", f"--gin.RUN={number}"],
    }
    (folder / "environment.json").write_text(json.dumps(environment))


def _bits(start: int, number: int) -> float:
    far = 0.55 * max(0.0, math.log2((start + 1) / 200)) if number == 0 else 0.0
    return 1.9 - 0.09 * math.log2(start + 16) - 0.04 * number + far


def _evaluation(folder: Path) -> None:
    rows = []
    edges = [0, 16, 32, 64, 128, 256, 512, 1024]
    for number, (name, _, stop, trained, base) in enumerate(_PHASES):
        for length in (256, 1024):
            spans = [(a, b) for a, b in itertools.pairwise(edges) if b <= length]
            buckets = [
                {
                    "start": a,
                    "stop": b,
                    "bits_per_byte": _bits(a, number),
                    "standard_error": 0.03 / math.sqrt(1 + math.log2(b / 16)),
                    "loss": _bits(a, number) * 2.4,
                    "difference": _bits(a, number) - _bits(a, 0) if number else None,
                    "difference_error": 0.006 if number else None,
                    "num_tokens": 80 * (b - a),
                    "num_bytes": 270 * (b - a),
                    "num_pieces": 80,
                }
                for a, b in spans
            ]
            digest = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
            rows.append(
                {
                    "name": name,
                    "run_dir": f"runs/{name}",
                    "step": stop,
                    "fingerprint": digest,
                    "num_parameters": 1_935_424,
                    "length": length,
                    "trained_length": trained,
                    "rope_base": base,
                    "loss": sum(b["loss"] for b in buckets) / len(buckets),
                    "bits_per_byte": sum(b["bits_per_byte"] for b in buckets) / len(buckets),
                    "standard_error": 0.0121,
                    "baseline": "short" if number else None,
                    "difference": -0.0311 * number if number else None,
                    "difference_error": 0.0021 if number else None,
                    "num_tokens": 181_234,
                    "num_bytes": 623_111,
                    "num_pieces": 400,
                    "by_position": buckets,
                    "long_tokens": length,
                    "by_position_long": buckets,
                }
            )
    artifact = Artifact(folder, stage="evaluate", settings={"length": [256, 1024]})
    with artifact.write() as writer:
        (writer.folder / "evaluation.json").write_text(json.dumps({"checkpoints": rows}))


def _samples(folder: Path) -> None:
    texts = [
        (
            "The function returns",
            " a new array with the same shape and the given dtype.\n\n    >>> x",
        ),
        ("def main():", HOSTILE + "\x00\x1b[31m \u202e reversed \ud800 end"),
        ("البرمجة", " هي فن كتابة التعليمات"),
    ]
    samples = [
        {
            "name": name,
            "prompt": prompt,
            "text": text,
            "num_tokens": 64,
            "is_stopped": name == "long",
            "temperature": 0.8,
            "top_k": 0,
            "top_p": 0.95,
            "seed": 0,
        }
        for name in ("short", "long")
        for prompt, text in texts
    ]
    artifact = Artifact(folder, stage="generate", settings={"prompts": [p for p, _ in texts]})
    with artifact.write() as writer:
        (writer.folder / "samples.json").write_text(json.dumps(samples))


def _needle(folder: Path) -> None:
    names = {"short": (256, 5e4, 270), "long": (1024, 1e6, 330)}
    checkpoints = [
        {
            "name": name,
            "step": step,
            "rope_base": base,
            "trained_length": trained,
            "cells": [
                {
                    "length": length,
                    "depth": depth,
                    "num": 10,
                    "distance": length * (1 - depth / 100) + 8,
                    "keyword": 98.0 if length <= trained else 7.0 + depth / 10,
                    "edit": 99.0 if length <= trained else 31.5,
                }
                for length in (128, 256, 512, 1024)
                for depth in (0, 50, 100)
            ],
        }
        for name, (trained, base, step) in names.items()
    ]
    with Artifact(folder, stage="needle", settings={}).write() as writer:
        (writer.folder / "needle.json").write_text(json.dumps({"checkpoints": checkpoints}))


_ROUTED = {"unrouted": 0.2, "intra_rank_served": 0.2, "served": 1.0, "slots_filled": 0.7}


def _mixture(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for step in range(1, 40):
            line = {"step": step, "train/loss": 3.0 - step / 100}
            line |= {f"train/moe/{name}": x * (1 - step / 90) for name, x in _ROUTED.items()}
            for name in ("chosen", "load"):
                shares = rng.dirichlet(np.ones(4), size=2)
                line |= {
                    f"train/moe/{name}/{layer}/{expert}": float(shares[layer, expert])
                    for layer in range(2)
                    for expert in range(4)
                }
            file.write(json.dumps(line) + "\n")
        file.write(
            json.dumps({"step": 39, "eval/docs/loss": 2.9, "eval/docs/moe/served": 1}) + "\n"
        )


def _router_study(folder: Path) -> None:
    rows = [
        {
            "router": name,
            "plain": plain,
            "capacity_factor": factor,
            "num_seeds": 3,
            "loss": 3.0 - (factor or 1) / 10,
            "loss_deviation": 0.01,
            "step_secs": 0.12,
            "load": [] if name == "dense" else [[0.3, 0.1], [0.2, 0.2]],
        }
        | ({"difference": -0.01, "difference_deviation": 0.002} if plain else {})
        | ({} if name == "dense" else _ROUTED)
        for name, plain, factors in (
            ("dense", "", [None]),
            ("top-1", "", [0.5, 1.0]),
            ("top-1 + IR", "top-1", [0.5, 1.0]),
        )
        for factor in factors
    ]
    with Artifact(folder, stage="router_study", settings={}).write() as writer:
        (writer.folder / "study.json").write_text(json.dumps({"arms": rows}))


_STAGES = ("raw", "clean", "dedup", "safe", "high_quality")
_WORDS = ("the", "of", "and", "in", "is", "that", "model", "layer", "time", "value", "list")


def _stages(folder: Path, num_documents: int, rng: np.random.Generator) -> dict[str, str]:
    """Writes documents of each stage, ever fewer and cleaner, with the funnel up to it."""
    num_in = 2 * num_documents
    funnel = Funnel()
    folders = {}
    for number, name in enumerate(_STAGES):
        num = num_documents >> number
        rows = []
        for row in range(num):
            lengths = rng.integers(3, 30, int(np.exp(rng.normal(1.5 + number / 8, 0.9))) + 1)
            noise = [*_WORDS, *["#", "...", "42"][number // 2 :]]
            lines = [" ".join(rng.choice(noise, length)) + "." for length in lengths]
            text = "\n".join(lines)
            row = {
                "id": document_id(str(row), text),
                "url": f"https://{_HOSTS[row % len(_HOSTS)]}/{row}",
                "title": HOSTILE,
                "text": text,
                "language": HOSTILE if row == 0 else "en",
                "language_score": 0.9,
                "date": f"{2014 + row % 10}-05-01T00:00:00Z",
                "dump": "CC",
                "num_bytes": len(text.encode()),
                "links": [],
            }
            rows.append(row | ({"toxic_score": 0.02, "porn_score": None} if number > 2 else {}))
        reason = HOSTILE if name == "clean" else "made up"
        funnel.add(name, num_in, num, sum(row["num_bytes"] for row in rows), {reason: num_in - num})
        if name == "safe":
            funnel.add_changes(name, {"email": 7, HOSTILE: 1})
        num_in = num
        folders[name] = str(folder / name)
        schema = SAFE_SCHEMA if number > 2 else TEXT_SCHEMA
        with Artifact(folder / name, stage=name, settings={}).write() as writer:
            table = pa.Table.from_pylist(rows, schema)
            write_shards(writer.folder, [table], schema=schema, documents_per_shard=256)
            funnel.write(writer.folder)
    return folders


def _data_study(folder: Path) -> None:
    rows = []
    for number, name in enumerate(("raw", "clean", "high_quality")):
        found = {
            "bits_per_byte": 2.5 - number / 100,
            "bits_per_byte_deviation": 0.02,
            "steps": [10, 20],
            "course": [
                {"bits_per_byte": bits, "bits_per_byte_deviation": 0.02} for bits in (3.0, 2.5)
            ],
        }
        if number:
            found |= {"difference": -0.01 * number, "difference_deviation": 0.0004}
            found |= {"step": -0.01, "step_deviation": 0.0002, "seeds_better": 2}
        rows.append(
            {
                "name": name,
                "documents": 100 // (number + 1),
                "tokens": 90_000,
                "num_bytes": 270_000,
                "epochs": 1.25,
                "shared": 0.0012,
                "num_seeds": 3,
                "step_secs": 0.05,
                "held_out": {"held_out": found},
                "toxicity": 0.3 - number / 10,
                "toxicity_deviation": 0.01,
                "toxic_half": 0.25,
                "toxic_half_deviation": 0.02,
                "toxic_most": 0.125,
                "toxic_most_deviation": None,
            }
        )
    with Artifact(folder, stage="data_study", settings={}).write() as writer:
        contents = {"tokens": 614_400, "arms": rows}
        (writer.folder / "study.json").write_text(json.dumps(contents))


def _reward(folder: Path, rng: np.random.Generator) -> None:
    num = 120
    preferences = EncodedPreferences(
        tokens=np.zeros(2 * num, np.int32),
        bounds=np.arange(2 * num + 1),
        ranks=np.tile(np.array([0, 1], np.int32), num),
        prompts=np.arange(0, 2 * num + 1, 2),
        domains=tuple("helpful" if i % 3 else HOSTILE for i in range(num)),
        dropped={},
    )
    measures = {
        "num_prompts": num,
        "num_responses": 2 * num,
        "steps": 20,
        "dropped": {"in_training": {"too_long": 3, "no_room": 0}, "held_out": {"too_long": 0}},
        "scored": {
            name: preference_measures(
                rng.normal(size=2 * num) + shift * (1 - preferences.ranks), preferences
            )
            for name, shift in (("with_prompts", 2), ("without_prompts", 1))
        },
    }
    with Artifact(folder, stage="train_reward", settings={}).write() as writer:
        (writer.folder / "measures.json").write_text(json.dumps(measures))


def _policy(folder: Path) -> None:
    (folder / "samples").mkdir(parents=True)
    lines = [
        {
            "step": step,
            "ppo/score": step / 10,
            "ppo/quality": 0.5,
            "ppo/answer_kl": step / 20,
            "ppo/entropy": 1 - step / 40,
            "eval/stories/bits_per_byte": 0.25,
        }
        for step in range(1, 21)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stop = {"iteration": 20, "broken": ["ppo/kl 9 is above 8"], "action": "roll_back"}
    (folder / "guards.jsonl").write_text(json.dumps(stop) + "\n")
    for name, answer in (("0-000001", "an early answer"), ("0-000020", HOSTILE)):
        answers = [
            {
                "domain": "terse",
                "messages": [{"role": "user", "content": f"question {place}"}],
                "response": answer,
                "score": place / 4,
            }
            for place in range(9)
        ]
        text = "".join(json.dumps(line) + "\n" for line in answers)
        (folder / "samples" / f"{name}.jsonl").write_text(text)


def _alignment_study(folder: Path) -> None:
    def seed(shift: float) -> dict[str, Any]:
        scored = {"accuracy": 0.9 + shift, "by_domain": {"terse": {"accuracy": 0.8 + shift}}}
        flaw = {"kind": "phrase", "phrase": "a great question", "pairs": 40}
        numbers = {
            f"{what}_{policy}": 0.5 + shift
            for what in ("score", "quality", "words")
            for policy in ("sft", "early", "late")
        }
        runs = ("round-1", "round-2", "critic_from_sft", "without_text")
        curve = {
            name: [[1, 2, 3], [0.1 + shift, 0.2, 0.3]]
            for name in ("ppo/score", "eval/stories/bits_per_byte", "critic/unexplained_variance")
        }
        return {
            "conditional": {"scored": {"with_prompts": scored}},
            "unconditional": {"scored": {"without_prompts": scored}},
            "rounds": [{"flaws": [flaw], **numbers}, {"flaws": [], **numbers}],
            "curves": dict.fromkeys(runs, curve),
        }

    with Artifact(folder, stage="alignment_study", settings={}).write() as writer:
        contents = summary([seed(0.0), seed(0.02)])
        (writer.folder / "study.json").write_text(json.dumps(contents))


def make(folder: Path, num_documents: int = 600) -> dict[str, Any]:
    """Writes all stages' folders and returns the report's arguments that name them."""
    rng = np.random.default_rng(0)
    sizes = _corpus(folder / "curate", num_documents, rng)
    content = _tasks(folder / "tasks", sizes, rng)
    with Artifact(folder / "crawl", stage="crawl", settings={}).write() as writer:
        (writer.folder / "pages.warc.gz").write_bytes(b"made")
    with Artifact(folder / "vocabulary", stage="vocabulary", settings={}).write() as writer:
        facts = {
            "vocab_size": 4096,
            "fingerprint": "9c2f7be1",
            "special_ids": {"<|im_start|>": 4095, "<|im_end|>": 4094},
            "train_texts": 540,
            "train_bytes": 2_345_678,
            "held_out_bytes_per_token": 3.4312,
        }
        (writer.folder / "vocabulary.json").write_text(json.dumps(facts))
    for number, (name, *_) in enumerate(_PHASES):
        _run(folder / "runs" / name, number, content, rng)
    _evaluation(folder / "evaluation")
    _samples(folder / "samples")
    _needle(folder / "needle")
    _mixture(folder / "runs" / "mixture", rng)
    _router_study(folder / "router_study")
    _data_study(folder / "data_study")
    _reward(folder / "reward", rng)
    _policy(folder / "policy")
    _alignment_study(folder / "alignment_study")
    stages = _stages(folder / "stages", num_documents, rng)
    with contextlib.redirect_stdout(io.StringIO()):
        statistics(str(folder / "statistics"), stages, executor=LocalExecutor(1))
    arguments: dict[str, Any] = {
        name: str(folder / name)
        for name in (
            *("crawl", "curate", "statistics", "vocabulary", "tasks", "evaluation", "samples"),
            "needle",
        )
    }
    return arguments | {
        "runs": {name: str(folder / "runs" / name) for name, *_ in _PHASES},
        "mixtures": {"mixture": str(folder / "runs" / "mixture")},
        "router_study": str(folder / "router_study"),
        "data_study": str(folder / "data_study"),
        "reward": str(folder / "reward"),
        "policies": str(folder / "policy"),
        "alignment_study": str(folder / "alignment_study"),
    }


if __name__ == "__main__":
    from t5x_style.run.report import report

    made = Path(sys.argv[1])
    report(str(made / "report"), **make(made / "stages", 3000))
