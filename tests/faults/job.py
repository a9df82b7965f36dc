"""A small training job that tests start, break and start again, in this process or another.

Run as `python -m tests.faults.job FOLDER '{"total_steps": 6, ...}'`.
"""

import dataclasses
import hashlib
import json
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t5x_style.data.batches import Component
from t5x_style.data.token_store import TokenStoreWriter
from t5x_style.models.config import TransformerConfig
from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.parallel.processes import Processes
from t5x_style.run.train import train
from t5x_style.train import checkpoint, faults, run_folder
from t5x_style.train.job import InitialRun, Job, LoopSettings
from t5x_style.train.schedules import WarmupCosine
from tests.suite import forks

VOCAB_SIZE = 64
MODEL = TransformerConfig(
    vocab_size=VOCAB_SIZE,
    num_layers=2,
    embed_dim=16,
    num_query_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=32,
    rope_base=10_000.0,
)


def make_store(folder: Path, *, seed: int = 0, num_examples: int = 64) -> Path:
    """Writes a token store of examples whose ids count up, so that there is much to learn."""
    vocabulary: Any = types.SimpleNamespace(
        vocab_size=VOCAB_SIZE,
        fingerprint="of the tests",
        token_bytes=np.full(VOCAB_SIZE, 2, np.int32),
    )
    rng = np.random.default_rng(seed)
    with TokenStoreWriter(folder, vocabulary, task="counting", split="train") as writer:
        for _ in range(num_examples):
            start, length = rng.integers(3, VOCAB_SIZE), rng.integers(4, 40)
            counted = 3 + (start + np.arange(length)) % (VOCAB_SIZE - 3)
            writer.add([1, *counted, 2])
    return folder


def run(
    folder: Path,
    *,
    name: str = "run",
    total_steps: int = 6,
    checkpoint_every_steps: int = 2,
    log_every_steps: int = 2,
    store: str = "store",
    initial: dict[str, Any] | None = None,
    mesh: dict[str, int] | None = None,
    model: dict[str, Any] | None = None,
    peak: float = 1e-2,
    schedule_steps: int = 100,
    seed: int = 0,
    validate: bool = False,
    processes: Sequence[Any] | None = None,
    **settings: Any,
) -> None:
    """Trains in `folder / name` on the store in `folder / store`."""
    train(
        run_dir=str(folder / name),
        job=Job(
            objective=CausalLM(dataclasses.replace(MODEL, **(model or {}))),
            total_steps=total_steps,
            batch_size=8,
            length=32,
            schedule=WarmupCosine(peak=peak, total_steps=schedule_steps, warmup_steps=2),
            mesh=MeshConfig(**(mesh or {})),
            settings=LoopSettings(
                checkpoint_every_steps=checkpoint_every_steps,
                log_every_steps=log_every_steps,
                **settings,
            ),
            seed=seed,
        ),
        components=[Component(str(folder / store))],
        validation={"held_out": str(folder / store)} if validate else None,
        initial_run=None if initial is None else InitialRun(**initial),
        processes=None if processes is None else Processes(*processes),
    )


def start(
    folder: Path, *, fault: str = "", devices: int = 1, **arguments: Any
) -> forks.ForkedProcess:
    """Starts `run` in a process of its own, which inherits the compile cache."""
    environment = {
        faults.FAULT_VARIABLE: fault,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    return forks.start("tests.faults.job", [folder, json.dumps(arguments)], environment)


def leaves(run_dir: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Returns the verified arrays of a checkpoint by name."""
    folder = run_dir / run_folder.CHECKPOINTS
    path = folder / str(checkpoint.chosen_step(folder, step))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = {
        name: jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=device)
        for name, (shape, dtype) in checkpoint.read_record(path)["leaves"].items()
    }
    return {name: np.asarray(x) for name, x in checkpoint.restore(path, abstract).tree.items()}


def digest(run_dir: Path) -> str:
    """Returns what identifies a run's end: its arrays, place in the data, and metrics but times."""
    folder = run_dir / run_folder.CHECKPOINTS
    newest = folder / str(checkpoint.chosen_step(folder, None))
    found = hashlib.blake2b(json.dumps(checkpoint.read_record(newest)["extra"]["data"]).encode())
    for name, array in sorted(leaves(run_dir).items()):
        found.update(name.encode() + array.tobytes())
    found.update(json.dumps(metrics(run_dir)).encode())
    return found.hexdigest()


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """Returns the lines of metrics without what depends on the clock."""
    lines = []
    for text in (run_dir / run_folder.METRICS).read_text().splitlines():
        line = {k: v for k, v in json.loads(text).items() if not k.startswith("ti")}
        if set(line) != {"step"}:
            lines.append(line)
    return lines


def main(arguments: Sequence[str]) -> None:
    """Runs the job in the folder that the first argument names, as the second one says."""
    run(Path(arguments[0]), **json.loads(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
