"""Sampled answers a second: against `transformers.generate`, and with rows that change hands.

    python -m tests.bench.rollout --torch_python=PYTHON [--batches=16,32,64] [--rounds=5]

PYTHON is the interpreter of an environment with torch and transformers. The model is that of
`tests.bench.decode`, and tokens are drawn with top-p 0.9, as PPO draws them. First one batch of
answers of one length; targets on two quiet processors: 1.3 times the peer's tokens a second at
batch 16, 1.6 times at 32 and above. Then `--waves` times as many prompts as rows, whose answers
have lengths from 8 tokens to `--num_new`, evenly on a log scale: "continuous" gives rows that have
ended to waiting prompts, "static" runs batch after batch, each until its longest answer ends;
target 1.5 times. Tokens are those of answers alone. Read the processor seconds where other work
shares the machine.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.bench.alternating import Worker, alternate, serve, summary
from tests.bench.decode import SETTINGS, export

_TOP_P = 0.9


def _serve(folder: str, is_static: bool) -> None:
    from t5x_style.infer.sampler import Sampler
    from t5x_style.infer.sampling import Sampling
    from t5x_style.models.hf.checkpoint import PublishedCheckpoint

    published = PublishedCheckpoint(folder)
    samplers: dict[int, Sampler] = {}

    def answer(request: dict) -> dict:
        rows = request["rows"]
        if rows not in samplers:
            samplers[rows] = Sampler(
                published.config,
                published.params(),
                max_batch_rows=rows,
                refill_rows=rows if is_static else None,
            )
        samples = samplers[rows].generate(
            request["prompts"], request["num_new"], sampling=Sampling(top_p=_TOP_P)
        )
        return {
            "num_tokens": sum(len(sample.tokens) for sample in samples),
            "num_compilations": samplers[rows].num_compilations,
        }

    serve(answer)


def _compare(
    title: str, workers: Mapping[str, Worker], request: Mapping[str, Any], rounds: int, base: str
) -> None:
    """Prints one row for each worker."""
    answers = alternate(workers, request, rounds=rounds)
    sums = {name: summary(found) for name, found in answers.items()}
    num_new = request["num_new"]
    num_prompts = len(request["prompts"])
    num_tokens = num_new * num_prompts if isinstance(num_new, int) else sum(num_new)
    for name, found in sums.items():
        ratios = " ".join(f"{sums[base][key] / found[key]:5.2f}" for key in found)
        times = " ".join(f"{1e3 * value:9.1f}" for value in found.values())
        programs = answers[name][-1].get("num_compilations", "")
        print(
            f"{title:>12} {name:14} {times} {num_tokens / found['median']:9.0f}   {ratios}   "
            f"{os.getloadavg()[0]:.1f} {programs:>4}",
            flush=True,
        )


def main() -> None:
    """Prints one row for each batch size and worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch_python")
    parser.add_argument("--batches", default="16,32,64")
    parser.add_argument("--mixed_batches", default="16,32,64")
    parser.add_argument("--waves", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--num_prompt", type=int, default=64)
    parser.add_argument("--num_new", type=int, default=128)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--static", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        _serve(flags.serve, flags.static)
        return
    if not flags.torch_python:
        parser.error("--torch_python is needed")
    with tempfile.TemporaryDirectory() as folder:
        export(folder)
        ours = [sys.executable, "-m", "tests.bench.rollout", "--serve", folder]
        peer = [flags.torch_python, "tests/bench/decode_torch.py", folder, str(flags.num_threads)]
        on_cpu = {"JAX_PLATFORMS": "cpu"}
        continuous = Worker(ours, flags.num_threads, on_cpu)
        static = Worker([*ours, "--static"], flags.num_threads, on_cpu)
        torch = Worker(peer, flags.num_threads, {"HF_HUB_OFFLINE": "1"})
        columns = ("median ms", "least ms", "cpu ms", "tokens/s")
        heads = " ".join(f"{column:>9}" for column in columns)
        print(f"{'rows':>12} {'':14} {heads}   ratio by median, least, cpu; load; programs")
        peer_sampling = {"do_sample": True, "top_p": _TOP_P, "top_k": 0}
        for rows in map(int, filter(None, flags.batches.split(","))):
            random = np.random.default_rng(rows)
            prompts = random.integers(3, SETTINGS["vocab_size"], (rows, flags.num_prompt)).tolist()
            request = {
                "rows": rows,
                "prompts": prompts,
                "num_new": flags.num_new,
                "sampling": peer_sampling,
            }
            workers = {"ours": continuous, "transformers": torch}
            _compare(str(rows), workers, request, flags.rounds, "transformers")
        for rows in map(int, filter(None, flags.mixed_batches.split(","))):
            random = np.random.default_rng(rows)
            lengths = random.integers(8, flags.num_prompt + 1, rows * flags.waves)
            prompts = [random.integers(3, SETTINGS["vocab_size"], n).tolist() for n in lengths]
            shares = random.permutation(np.linspace(0, 1, len(lengths)))
            limits = np.rint(8 * (flags.num_new / 8) ** shares).astype(int).tolist()
            request = {"rows": rows, "prompts": prompts, "num_new": limits}
            workers = {"continuous": continuous, "static": static}
            _compare(f"{rows} mixed", workers, request, flags.rounds, "static")
        for worker in (continuous, static, torch):
            worker.close()


if __name__ == "__main__":
    main()
