"""A small run of PPO that tests start, break and start again.

Also `python -m tests.faults.ppo_run FOLDER '{"name": "killed"}'`, to be killed from outside.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from t5x_style.align.guards import Guards
from t5x_style.align.loop import ACTOR, CRITIC, SAMPLES, LoopOptions
from t5x_style.align.ppo import PPOSettings
from t5x_style.data.chat import ChatFormat
from t5x_style.data.vocabulary import Vocabulary, train_vocabulary
from t5x_style.infer.sampling import Sampling
from t5x_style.models import reward
from t5x_style.models.config import TransformerConfig
from t5x_style.objectives.ppo import Policy, Value
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.run.ppo import ppo
from t5x_style.train import checkpoint, faults, run_folder
from t5x_style.train.job import Job, LoopSettings
from t5x_style.train.optimizers import AdamW
from t5x_style.train.schedules import WarmupCosine
from tests.faults import job
from tests.fresh import fresh_params
from tests.suite import forks

VOCAB_SIZE = 430
MODEL = TransformerConfig(
    vocab_size=VOCAB_SIZE,
    num_layers=1,
    embed_dim=16,
    num_query_heads=2,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=32,
    vocab_multiple=4,
    trained_length=64,
    init_std=0.1,
    dtype="float32",
    param_dtype="float32",
)
ROWS, LENGTH, ANSWER_TOKENS = 8, 40, 6
WORDS = ("red", "blue", "seven", "tree", "over")


def make(folder: Path) -> Path:
    """Writes vocabulary, prompts, and the runs that PPO begins with."""
    train_vocabulary([" ".join(["say", *WORDS])] * 9, VOCAB_SIZE).save(folder / "tokenizer.model")
    rng = np.random.default_rng(0)
    lines = [
        {"domain": "any", "messages": [{"role": "user", "content": f"say {word} {number}"}]}
        for number, word in enumerate(rng.choice(WORDS, 20))
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    params = fresh_params(MODEL)
    # A policy that ends its answers now and then, so that they are of several lengths.
    chat = ChatFormat(Vocabulary.load(str(folder / "tokenizer.model")))
    params["output"]["kernel"] = params["output"]["kernel"].at[:, chat.stop_ids[1]].mul(6.0)
    checkpoint.save_model(folder / "sft", MODEL, params)
    of_reward = nn.unbox(reward.init_params(MODEL, jax.random.key(1), head_init_std=1.0))
    checkpoint.save_model(folder / "reward", MODEL, of_reward)
    return folder


def run(
    folder: Path,
    name: str = "run",
    *,
    iterations: int = 6,
    warmup: int = 2,
    checkpoint_every: int = 2,
    keep: int = 100,
    learning_rate: float = 1e-2,
    mesh: dict[str, int] | None = None,
    num_devices: int | None = 1,
    guards: dict[str, Any] | None = None,
    quality: Any = None,
    settings: dict[str, Any] | None = None,
    num_microbatches: tuple[int, int] = (1, 1),
) -> None:
    """Runs PPO in `folder / name`."""

    def of(objective: Any, parts: int) -> Job:
        return Job(
            objective=objective,
            schedule=WarmupCosine(peak=learning_rate, total_steps=100, final_fraction=1.0),
            total_steps=100,
            batch_size=ROWS,
            length=LENGTH,
            optimizer=AdamW(weight_decay=0.0),
            mesh=MeshConfig(**(mesh or {})),
            settings=LoopSettings(num_microbatches=parts),
            devices=None if num_devices is None else jax.devices()[:num_devices],
        )

    policy = Policy(dataclasses.replace(MODEL), pretrain_coefficient=0.0, loss_chunk_tokens=64)
    ppo(
        str(folder / name),
        of(policy, num_microbatches[0]),
        of(Value(MODEL), num_microbatches[1]),
        str(folder / "sft"),
        str(folder / "reward"),
        str(folder / "prompts.jsonl"),
        str(folder / "tokenizer.model"),
        settings=PPOSettings(
            **{
                "iterations": iterations,
                "critic_warmup_iterations": warmup,
                "prompts_per_iteration": ROWS,
                "max_new_tokens": ANSWER_TOKENS,
                "sampling": Sampling(top_p=0.9),
                "kl_target": 0.1,
                "kl_horizon": 100,
            }
            | (settings or {})
        ),
        guards=Guards(**(guards or {})),
        options=LoopOptions(checkpoint_every=checkpoint_every, keep_checkpoints=keep),
        domain_prompts=None,
        quality=quality,
        writer_names=("json_lines",),
    )


def start(folder: Path, fault: str, **arguments: Any) -> forks.ForkedProcess:
    """Starts `run` in a process of its own."""
    environment = {faults.FAULT_VARIABLE: fault}
    return forks.start("tests.faults.ppo_run", [folder, json.dumps(arguments)], environment)


def lines(run_dir: Path) -> list[dict[str, float]]:
    """Returns the metrics but for what depends on the clock or on how often a run was begun."""
    found = []
    for text in (run_dir / run_folder.METRICS).read_text().splitlines():
        line = json.loads(text)
        dropped = ("time", "timing/", "ppo/compilations")
        found.append({k: v for k, v in line.items() if not k.startswith(dropped)})
    return found


def end(run_dir: Path) -> dict[str, Any]:
    """Returns what a run came to: all arrays, metrics, answers, and the log of its guards."""
    log = run_dir / "guards.jsonl"
    return {
        **{name: job.leaves(run_dir / name) for name in (ACTOR, CRITIC)},
        "metrics": lines(run_dir),
        "samples": {p.name: p.read_text() for p in sorted((run_dir / SAMPLES).iterdir())},
        "guards": log.read_text() if log.is_file() else "",
        "steps": checkpoint.committed_steps(run_dir / ACTOR / run_folder.CHECKPOINTS),
        "done": json.loads((run_dir / run_folder.DONE).read_text()),
    }


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Compares two ends bit for bit."""
    for name in (ACTOR, CRITIC):
        assert found[name].keys() == wanted[name].keys()
        for leaf, x in found[name].items():
            np.testing.assert_array_equal(x, wanted[name][leaf], err_msg=f"{name} {leaf}")
    for name in ("metrics", "samples", "guards", "steps", "done"):
        assert found[name] == wanted[name], name


def main(arguments: Sequence[str]) -> None:
    """Runs PPO in the folder that the first argument names, as the second one says."""
    run(Path(arguments[0]), **json.loads(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
