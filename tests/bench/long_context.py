"""200,000 tokens in one row on eight fake CPU devices: forward, and one training step.

    python -m tests.bench.long_context [--length=204800] [--layers=2] [--head_exchange=1]

A small model whose rows are cut over a ring of eight. Printed for each: what the compiled program
holds on one device at its peak, the wall time, the loss, and the largest resident memory of the
whole process, in which all eight devices live. A score matrix of that length would be 168 GB.
"""

import argparse
import resource
import time

import jax
import numpy as np

from t5x_style.models.config import TransformerConfig
from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.parallel import hlo
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.train import state as states
from t5x_style.train.batch import place_batch
from t5x_style.train.job import Job
from t5x_style.train.schedules import WarmupCosine

RANKS, VOCAB_SIZE = 8, 512


def _job(length: int, num_layers: int, head_exchange: int) -> Job:
    model = TransformerConfig(
        vocab_size=VOCAB_SIZE,
        num_layers=num_layers,
        embed_dim=64,
        num_query_heads=2,
        num_kv_heads=1,
        head_dim=16,
        mlp_dim=128,
        rope_base=1e6,
        trained_length=length,
        head_exchange=head_exchange,
        remat="attention",
    )
    return Job(
        objective=CausalLM(model),
        schedule=WarmupCosine(peak=1e-3, total_steps=10, warmup_steps=1),
        total_steps=10,
        batch_size=1,
        length=length,
        mesh=MeshConfig(data=1, seq=RANKS),
    )


def _batch(length: int) -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(3, VOCAB_SIZE, (1, length + 1), np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.arange(length, dtype=np.int32)[None],
        "segment_ids": np.ones((1, length), np.int32),
        "loss_weights": np.ones((1, length), np.float32),
        "target_bytes": np.ones((1, length), np.int32),
    }


def main() -> None:
    """Prints one line for the forward pass and one for the training step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=204_800)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--head_exchange", type=int, default=1)
    flags = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", RANKS)
    job = _job(flags.length, flags.layers, flags.head_exchange)
    transformation = job.optimizer.transformation()
    state = states.initialise(job.objective, transformation, job.abstract_state, job.seed)
    forward, step = job.compile_eval_step(), job.compile_train_step()
    batch = place_batch(_batch(flags.length), job.train_batch)
    runs = {
        "forward": (forward, lambda: forward(state.params, batch)),
        "train step": (step, lambda: step(state, batch)[1]),
    }
    print(f"{flags.length:,} tokens, {flags.layers} layers, seq {RANKS}")
    for name, (compiled, run) in runs.items():
        start_secs = time.perf_counter()
        numerator, denominator = jax.device_get(run()["loss"])
        secs = time.perf_counter() - start_secs
        found = hlo.Program(compiled.as_text(), job.device_mesh).attention()
        memory = compiled.memory_analysis()
        print(
            f"{name:10}: {secs:6.0f} s, loss {numerator / denominator:.3f}, attention "
            f"{', '.join(found)}; on each device {memory.argument_size_in_bytes / 1e6:.0f} MB of "
            f"arguments and {memory.temp_size_in_bytes / 1e6:.0f} MB of temporaries; process "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB",
            flush=True,
        )


if __name__ == "__main__":
    main()
