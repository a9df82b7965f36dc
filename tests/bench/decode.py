"""Greedy KV-cache decoding against `transformers.generate` on torch, same weights, same prompts.

    python -m tests.bench.decode --torch_python=PYTHON [--batches=1,16,32] [--rounds=9]

PYTHON is the interpreter of an environment with torch and transformers. The model has 19.3M
parameters in fp32; prompts are 128 tokens, 64 are generated, and the time includes reading the
prompt. Targets on two quiet processors: 1.6 times the peer's tokens a second at batch 1, 1.3
times at batch 16. Read the processor seconds where other work shares the machine.
"""

import argparse
import os
import sys
import tempfile

import numpy as np

from tests.bench.alternating import Worker, alternate, serve, summary

SETTINGS = {
    "vocab_size": 8192,
    "num_layers": 6,
    "embed_dim": 384,
    "num_query_heads": 6,
    "num_kv_heads": 2,
    "head_dim": 64,
    "mlp_dim": 1536,
    "rope_base": 50_000.0,
}


def _serve(folder: str) -> None:
    from t5x_style.infer.sampler import Sampler
    from t5x_style.infer.sampling import Sampling
    from t5x_style.models.hf.checkpoint import PublishedCheckpoint

    published = PublishedCheckpoint(folder)
    sampler = Sampler(published.config, published.params())
    greedy = Sampling(temperature=0.0)

    def answer(request: dict) -> dict:
        samples = sampler.generate(request["prompts"], request["num_new"], sampling=greedy)
        return {"tokens": [sample.tokens for sample in samples]}

    serve(answer)


def export(folder: str) -> None:
    """Writes the model in Hugging Face's format."""
    import jax
    from flax import linen as nn

    from t5x_style.models import transformer
    from t5x_style.models.config import TransformerConfig
    from t5x_style.models.hf.checkpoint import export_params

    config = TransformerConfig(**SETTINGS)
    params = nn.unbox(transformer.init_params(config, jax.random.key(0)))
    export_params(config, params, folder, layout="llama")


def main() -> None:
    """Prints one row for each batch size and worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch_python")
    parser.add_argument("--batches", default="1,16,32")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--num_prompt", type=int, default=128)
    parser.add_argument("--num_new", type=int, default=64)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        _serve(flags.serve)
        return
    if not flags.torch_python:
        parser.error("--torch_python is needed")
    with tempfile.TemporaryDirectory() as folder:
        export(folder)
        ours = [sys.executable, "-m", "tests.bench.decode", "--serve", folder]
        peer = [flags.torch_python, "tests/bench/decode_torch.py", folder, str(flags.num_threads)]
        workers = {
            "ours": Worker(ours, flags.num_threads, {"JAX_PLATFORMS": "cpu"}),
            "transformers": Worker(peer, flags.num_threads, {"HF_HUB_OFFLINE": "1"}),
        }
        columns = ("median ms", "least ms", "cpu ms", "tokens/s")
        heads = " ".join(f"{column:>9}" for column in columns)
        print(
            f"{'batch':>5} {'worker':14} {heads}   ratio by median, least, cpu; load; same tokens"
        )
        for batch in map(int, flags.batches.split(",")):
            random = np.random.default_rng(batch)
            prompts = random.integers(3, SETTINGS["vocab_size"], (batch, flags.num_prompt))
            request = {"prompts": prompts.tolist(), "num_new": flags.num_new}
            answers = alternate(workers, request, rounds=flags.rounds)
            sums = {name: summary(found) for name, found in answers.items()}
            for name, found in sums.items():
                speed = batch * flags.num_new / found["median"]
                ratios = " ".join(f"{sums['transformers'][key] / found[key]:5.2f}" for key in found)
                same = np.mean(
                    np.array(answers[name][0]["tokens"])
                    == np.array(answers["transformers"][0]["tokens"])
                )
                times = " ".join(f"{1e3 * value:9.1f}" for value in found.values())
                print(
                    f"{batch:5} {name:14} {times} {speed:9.0f}   {ratios}   "
                    f"{os.getloadavg()[0]:.1f}   {same:.1%}",
                    flush=True,
                )
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
