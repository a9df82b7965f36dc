"""Train step against other libraries: same sizes, same tokens, one worker each, in turns.

    python -m tests.bench.train_step --torch_python=PYTHON --levanter_python=PYTHON [--rounds=9]
        [--length=512] [--batch=4]

Each PYTHON is the interpreter of an environment with the peer: torch and transformers, for Hugging
Face's Llama with SDPA attention and fused AdamW, or Levanter, for its Llama with blockwise
attention. The model has 19.3M parameters in fp32; a step is loss, gradient and AdamW update. Ours
is the step that training runs, with its clipping, its metrics and its packed rows. The first column
of ratios is the first peer's median time over that of the row. Targets on two quiet processors: 0.9
of torch's speed and 1.7 times Levanter's, and at most 0.8 times torch's peak memory, which is what
a process ever held. Where other work shares the machine the rounds are flagged: read processor
seconds, and those with care.

Rows with `huge pages` run with `alternating.HUGE_PAGES`, for whoever is named.
"""

import argparse
import json
import os
import resource
import sys

from tests.bench.alternating import HUGE_PAGES, Worker, alternate, serve, summary

SETTINGS = {
    "vocab_size": 8192,
    "num_layers": 6,
    "embed_dim": 384,
    "num_query_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 64,
    "mlp_dim": 1536,
    "rope_base": 1e6,
}
# Name to what differs from the model's defaults, devices made of the processors, and environment.
VARIANTS = {
    "ours": ({}, 1, {}),
    "ours, huge pages": ({}, 1, HUGE_PAGES),
    "ours, remat attention": ({"remat": "attention"}, 1, {}),
    "ours, unrolled": ({"scan_layers": False}, 1, {}),
    "ours, 2 devices": ({}, 2, {}),
    "ours, 2 devices, huge pages": ({}, 2, HUGE_PAGES),
}
TORCH = {"torch": {}, "torch, huge pages": HUGE_PAGES}
QUIET_LOAD = 0.5


def _serve(changes: dict, batch_size: int, length: int) -> None:
    import jax
    import numpy as np

    from t5x_style.models.config import TransformerConfig
    from t5x_style.objectives.causal_lm import CausalLM
    from t5x_style.parallel.mesh import MeshConfig
    from t5x_style.train import state
    from t5x_style.train.batch import place_batch
    from t5x_style.train.job import Job, LoopSettings
    from t5x_style.train.optimizers import AdamW
    from t5x_style.train.schedules import WarmupCosine

    job = Job(
        objective=CausalLM(TransformerConfig(**{**SETTINGS, **changes})),
        optimizer=AdamW(),
        schedule=WarmupCosine(peak=3e-4, total_steps=1000, warmup_steps=10, final_fraction=0.1),
        mesh=MeshConfig(),
        total_steps=1000,
        batch_size=batch_size,
        length=length,
        seed=0,
        settings=LoopSettings(),
    )
    step = job.compile_train_step()
    transformation = job.optimizer.transformation()
    held = state.initialise(job.objective, transformation, job.abstract_state, job.seed)
    tokens = np.random.default_rng(0).integers(
        SETTINGS["vocab_size"], size=(batch_size, length + 1), dtype=np.int32
    )
    ones = np.ones((batch_size, length), np.int32)
    batch = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.cumsum(ones, axis=1, dtype=np.int32) - 1,
        "segment_ids": ones,
        "loss_weights": ones.astype(np.float32),
        "target_bytes": ones,
    }
    batch = place_batch(batch, job.train_batch)

    def answer(request: dict) -> dict:
        nonlocal held
        for _ in range(request["steps"]):
            held, metrics = step(held, batch)
        jax.block_until_ready(held)
        loss, weight = (float(x) for x in metrics["loss"])
        return {"loss": loss / weight, "peak_bytes": peak_bytes()}

    serve(answer)


def peak_bytes() -> int:
    """Returns the most memory that this process ever held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Prints one row for each worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch_python")
    parser.add_argument("--levanter_python")
    parser.add_argument("--variants", default=";".join(list(VARIANTS)[:3]), help="by semicolons")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--serve", type=json.loads, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve is not None:
        _serve(flags.serve, flags.batch, flags.length)
        return
    sizes = [f"--batch={flags.batch}", f"--length={flags.length}"]
    workers = {}
    settings = json.dumps({**SETTINGS, "num_threads": flags.num_threads})
    for name, environment in TORCH.items() if flags.torch_python else ():
        command = [flags.torch_python, "tests/bench/train_step_torch.py", settings, *sizes]
        workers[name] = Worker(command, flags.num_threads, {"HF_HUB_OFFLINE": "1", **environment})
    if flags.levanter_python:
        command = [flags.levanter_python, "tests/bench/train_step_levanter.py", settings, *sizes]
        workers["levanter"] = Worker(command, flags.num_threads, {"JAX_PLATFORMS": "cpu"})
    for name in flags.variants.split(";"):
        changes, num_devices, environment = VARIANTS[name]
        command = [sys.executable, "-m", "tests.bench.train_step", *sizes]
        devices = f"--xla_force_host_platform_device_count={num_devices}"
        environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices, **environment}
        command.append(f"--serve={json.dumps(changes)}")
        workers[name] = Worker(command, flags.num_threads, environment)
    load_before = os.getloadavg()[0]
    answers = alternate(workers, {"steps": flags.steps}, rounds=flags.rounds)
    sums = {name: summary(found) for name, found in answers.items()}
    first = next(iter(workers))
    if load_before > QUIET_LOAD:
        print(f"load was {load_before:.1f} at the start: not a quiet machine")
    print(
        f"{'':28} {'median ms':>9} {'least ms':>9} {'cpu ms':>9} {'peak MB':>8} {'loss':>7}   "
        f"ratio to {first} by median, least, cpu; memory"
    )
    peaks = {name: found[-1]["peak_bytes"] for name, found in answers.items()}
    for name, found in sums.items():
        times = " ".join(f"{1e3 * value / flags.steps:9.1f}" for value in found.values())
        ratios = " ".join(f"{sums[first][key] / found[key]:5.2f}" for key in found)
        loss = answers[name][-1]["loss"]
        print(
            f"{name:28} {times} {peaks[name] / 1e6:8.0f} {loss:7.4f}   {ratios}   "
            f"{peaks[name] / peaks[first]:.2f}",
            flush=True,
        )
    for worker in workers.values():
        worker.close()


if __name__ == "__main__":
    main()
