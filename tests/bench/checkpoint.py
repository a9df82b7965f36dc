"""What a checkpoint costs: `python -m tests.bench.checkpoint [--rounds 5] [--embed_dim 384]`.

Trains a small language model on made-up tokens and saves in the middle, again and again. Prints
medians over the rounds: a step, what `save` holds the loop up for, by how much the steps during the
background write are slower, and all of that as a share of one step; then restore and verification.
"""

import argparse
import statistics
import tempfile
import time

import jax
import numpy as np

from t5x_style.models.config import TransformerConfig
from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.train import checkpoint, compile_cache
from t5x_style.train import state as states
from t5x_style.train.batch import place_batch
from t5x_style.train.fingerprint import fingerprint
from t5x_style.train.job import Job, LoopSettings
from t5x_style.train.optimizers import AdamW
from t5x_style.train.schedules import WarmupCosine

LENGTH, BATCH_SIZE = 512, 4


def make_job(embed_dim: int) -> Job:
    """Returns the job of the model of design setting (a): 19.3M parameters at width 384."""
    config = TransformerConfig(
        vocab_size=8192,
        num_layers=6,
        embed_dim=embed_dim,
        num_query_heads=6,
        num_kv_heads=2,
        head_dim=embed_dim // 6,
        mlp_dim=4 * embed_dim,
        remat="full",
    )
    return Job(
        objective=CausalLM(config),
        optimizer=AdamW(),
        schedule=WarmupCosine(total_steps=1000),
        mesh=MeshConfig().build(jax.devices()[:1]),
        total_steps=1000,
        batch_size=BATCH_SIZE,
        length=LENGTH,
        seed=0,
        settings=LoopSettings(),
    )


def make_batch() -> dict[str, np.ndarray]:
    """Returns unpacked rows of random tokens."""
    tokens = np.random.default_rng(0).integers(3, 8192, (BATCH_SIZE, LENGTH + 1)).astype(np.int32)
    ones = np.ones((BATCH_SIZE, LENGTH), np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": ones * np.arange(LENGTH, dtype=np.int32),
        "segment_ids": ones,
        "loss_weights": ones.astype(np.float32),
        "target_bytes": 3 * ones,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--embed_dim", type=int, default=384)
    arguments = parser.parse_args()
    compile_cache.enable()
    job = make_job(arguments.embed_dim)
    with job.in_place(), tempfile.TemporaryDirectory() as folder:
        step = job.compile_train_step()
        state = states.initialise(
            job.objective, job.optimizer.transformation(), job.abstract_state, seed=0
        )
        batch = place_batch(make_batch(), job.train_batch)
        num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        saver = checkpoint.Checkpointer(folder, keep=2)

        def timed_step() -> float:
            nonlocal state
            start_secs = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            return time.perf_counter() - start_secs

        for number in range(2):  # Compiles what saving compiles.
            timed_step()
            saver.save(number, state, {})
        saver.wait()
        plain, held, slower, background = [], [], [], []
        for number in range(2, 2 + arguments.rounds):
            calm = [timed_step() for _ in range(5)]
            step_secs = statistics.median(calm)
            start_secs = time.perf_counter()
            saver.save(number, state, {})
            held.append(time.perf_counter() - start_secs)
            extra_secs = 0.0
            while number not in checkpoint.committed_steps(folder):
                extra_secs += timed_step() - step_secs
            background.append(time.perf_counter() - start_secs)
            slower.append(extra_secs)
            plain.append(step_secs)
            saver.wait()
        sums_secs = []
        leaves = states.named_leaves(state)
        for _ in range(arguments.rounds):
            start_secs = time.perf_counter()
            jax.block_until_ready(fingerprint(leaves))
            sums_secs.append(time.perf_counter() - start_secs)
        restore_secs = []
        for _ in range(arguments.rounds):
            start_secs = time.perf_counter()
            restored = saver.restore_newest(job.abstract_state)
            assert restored is not None
            restore_secs.append(time.perf_counter() - start_secs)
        saver.close()
    step_secs = statistics.median(plain)
    rows = {
        "one step": step_secs,
        "save() holds the loop up": statistics.median(held),
        "steps during the write are slower by, in all": statistics.median(slower),
        "save in all, mostly in the background": statistics.median(background),
        "fingerprint": statistics.median(sums_secs),
        "restore and verify": statistics.median(restore_secs),
    }
    print(f"state of {num_bytes / 1e6:.0f} MB, {arguments.rounds} rounds, medians")
    for name, secs in rows.items():
        print(f"{name:<46} {secs * 1e3:9.1f} ms  {secs / step_secs:6.2f} of a step")


if __name__ == "__main__":
    main()
