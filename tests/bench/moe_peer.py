"""A layer of experts, forward and backward, against Hugging Face's Mixtral block on torch.

    python -m tests.bench.moe_peer --torch_python=PYTHON [--experts=8,32] [--rounds=7]

PYTHON is the interpreter of an environment with torch and transformers. fp32, two experts of each
token, one device. Theirs leaves no token out; ours does so too as `dropless`, and by capacity gives
each expert as many places as perfect balance at --capacity_factor needs: the share of choices that
found none stands beside it. Rows with `huge pages` run with `alternating.HUGE_PAGES`. Targets on
two quiet processors: 1.6 times the peer's `grouped_mm` at 8 experts, 2.2 times at 32. Read the
processor seconds where other work shares the machine.
"""

import argparse
import json
import os
import sys

from tests.bench.alternating import HUGE_PAGES, Worker, alternate, serve, summary


def _serve(settings: dict, name: str) -> None:
    import functools

    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    from t5x_style.models.config import MoEConfig, TransformerConfig
    from t5x_style.models.moe import COLLECTION, MoE, collected
    from t5x_style.ops.routers import Dropless, TopK

    router = Dropless(k=settings["k"])
    if name == "capacity":
        router = TopK(k=settings["k"], capacity_factor=settings["capacity_factor"])
    config = TransformerConfig(
        embed_dim=settings["dim"],
        mlp_dim=settings["inner"],
        moe=MoEConfig(settings["num_experts"], router, num_ranks=1),
    )
    shape = (1, settings["tokens"], settings["dim"])
    x, d_y = (jax.random.normal(jax.random.key(i), shape) for i in range(2))
    params = nn.unbox(MoE(config).init(jax.random.key(2), x, None, 1)["params"])

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def gradient(params, x):
        y, left = MoE(config).apply({"params": params}, x, None, 1, mutable=[COLLECTION])
        metrics = collected({COLLECTION: {"layer": left[COLLECTION]}})[1]
        return jnp.sum(y * d_y), metrics

    def answer(request: dict) -> dict:
        dropped = 0.0
        for _ in range(request["steps"]):
            _, metrics = jax.block_until_ready(gradient(params, x))
        for choice in range(settings["k"]):
            numerator, denominator = metrics[f"moe/overflow_choice_{choice + 1}"]
            dropped += float(numerator / denominator) / settings["k"]
        return {"dropped": dropped}

    serve(answer)


def main() -> None:
    """Prints one row for each number of experts and worker."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch_python")
    parser.add_argument("--experts", default="8,32")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--inner", type=int, default=1024)
    parser.add_argument("--capacity_factor", type=float, default=1.25)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.serve:
        _serve(json.loads(flags.serve[0]), flags.serve[1])
        return
    if not flags.torch_python:
        parser.error("--torch_python is needed")
    names = ("tokens", "dim", "inner", "capacity_factor", "num_threads")
    settings = {"k": 2} | {name: getattr(flags, name) for name in names}
    columns = ("median ms", "least ms", "cpu ms")
    heads = " ".join(f"{column:>9}" for column in columns)
    print(f"{'experts':>7} {'worker':22} {heads}   ratio by median, least, cpu; load; dropped")
    for num_experts in map(int, flags.experts.split(",")):
        of_size = json.dumps(settings | {"num_experts": num_experts})
        workers = {}
        for name in ("capacity", "dropless", "grouped_mm", "eager"):
            command = [flags.torch_python, "tests/bench/moe_torch.py", of_size, name]
            environment = {"HF_HUB_OFFLINE": "1"}
            if name in ("capacity", "dropless"):
                command = [sys.executable, "-m", "tests.bench.moe_peer", "--serve", of_size, name]
                environment = {"JAX_PLATFORMS": "cpu"}
            for suffix, pages in (("", {}), (", huge pages", HUGE_PAGES)):
                environment = {**environment, **pages}
                workers[name + suffix] = Worker(command, flags.num_threads, environment)
        answers = alternate(workers, {"steps": 2}, rounds=flags.rounds)
        sums = {name: summary(found) for name, found in answers.items()}
        for name, found in sums.items():
            ratios = " ".join(f"{sums['grouped_mm'][key] / found[key]:5.2f}" for key in found)
            times = " ".join(f"{1e3 * value / 2:9.1f}" for value in found.values())
            dropped = answers[name][0].get("dropped", 0.0)
            print(
                f"{num_experts:7} {name:22} {times}   {ratios}   "
                f"{os.getloadavg()[0]:.1f}   {dropped:.1%}",
                flush=True,
            )
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
