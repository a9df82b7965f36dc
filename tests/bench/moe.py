"""A layer of experts by router, tokens and experts, and dispatch by one-hot products beside it.

    python -m tests.bench.moe [--tokens=1024,4096] [--experts=8,32] [--rounds=5]

One device that plays as many ranks as there are experts, fp32, model width 256, experts of 512,
forward and backward. `one-hot` sends the same top-1 routes by products with a [tokens, experts,
capacity] tensor. `ratio` is top-1's median time over that of the row; beside it the share of tokens
that no expert took, and that the token's own rank rescued. Calls of all rows alternate.
"""

import argparse
import functools
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from t5x_style.models.config import MoEConfig, TransformerConfig
from t5x_style.models.moe import COLLECTION, MoE, collected
from t5x_style.ops.experts import Experts, buffered_experts
from t5x_style.ops.routers import Dropless, ExpertChoice, Rectify, Sam, TopK

DIM, INNER = 256, 512
ROUTERS = {
    "top-1": TopK(),
    "top-1 + IR": Rectify(fill_in=False),
    "top-1 + FR": Rectify(intra_rank=False),
    "top-1 + IR + FR": Rectify(),
    "top-2": TopK(k=2),
    "top-2 + IR + FR": Rectify(k=2),
    "SAM, 2 experts": Sam(k=2),
    "dropless top-1": Dropless(),
    "expert choice": ExpertChoice(),
}


def _config(router, num_experts: int) -> TransformerConfig:
    # SAM's groups hold four experts each.
    num_ranks = num_experts // 4 if isinstance(router, Sam) else num_experts
    return TransformerConfig(
        embed_dim=DIM, mlp_dim=INNER, moe=MoEConfig(num_experts, router, num_ranks=num_ranks)
    )


def _gradient(layer, params, x, d_y):
    def loss(params, x):
        y, left = layer(params, x)
        return jnp.sum(y * d_y), left

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)


def _layer(config, params, x):
    y, left = MoE(config).apply({"params": params}, x, None, 1, mutable=[COLLECTION])
    return y, collected({COLLECTION: {"layer": left[COLLECTION]}})[1]


def _one_hot(router, num_experts, params, x):
    """The same routes and experts; buffers by products with masks of every place."""
    tokens_PSD = x.reshape(num_experts, -1, DIM)
    logits_PSE = tokens_PSD @ params["router"]
    num_tokens = tokens_PSD.shape[1]
    capacity = router.capacity(num_tokens, num_experts, num_ranks=num_experts)
    is_real_S = jnp.ones(num_tokens, bool)
    routes = jax.vmap(
        lambda logits_SE, rank: router(logits_SE, is_real_S, rank=rank, num_ranks=num_experts)
    )(logits_PSE, jnp.arange(num_experts))
    mask_PSREC = (
        jax.nn.one_hot(routes.bin_SR, num_experts)[..., None]
        * jax.nn.one_hot(routes.slot_SR, capacity)[..., None, :]
    )
    sent_EPCD = jnp.einsum("psrec,psd->epcd", mask_PSREC, tokens_PSD)
    experts = Experts(params["w1"], params["w3"], params["w2"])
    made = buffered_experts(sent_EPCD.reshape(num_experts, -1, DIM), experts)
    weighted_PSREC = mask_PSREC * routes.weight_SR[..., None, None]
    y = jnp.einsum("psrec,epcd->psd", weighted_PSREC, made.reshape(sent_EPCD.shape))
    return y.reshape(x.shape), {}


def main() -> None:
    """Prints one row for each router and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", default="1024,4096")
    parser.add_argument("--experts", default="8,32")
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    for num_experts in map(int, flags.experts.split(",")):
        for num_tokens in map(int, flags.tokens.split(",")):
            _compare(num_experts, num_tokens, flags.rounds)


def _compare(num_experts: int, num_tokens: int, rounds: int) -> None:
    rng = np.random.default_rng(0)
    # One row for each rank of the largest number of them.
    x, d_y = (
        jnp.asarray(rng.normal(size=(num_experts, num_tokens // num_experts, DIM)), jnp.float32)
        for _ in range(2)
    )
    layers, served, times = {}, {}, {}
    for name, router in ROUTERS.items():
        config = _config(router, num_experts)
        params = nn.unbox(MoE(config).init(jax.random.key(0), x, None, 1)["params"])
        layers[name] = functools.partial(_layer, config), params
    layers["one-hot top-1"] = functools.partial(_one_hot, TopK(), num_experts), layers["top-1"][1]
    for name, (layer, params) in layers.items():
        run = jax.jit(functools.partial(_gradient, layer))
        _, metrics = jax.block_until_ready(run(params, x, d_y))
        served[name] = {key: float(n / d) for key, (n, d) in metrics.items()}
        layers[name], times[name] = (run, params), []
    for number in range(rounds):
        for name, (run, params) in sorted(layers.items(), reverse=bool(number % 2)):
            start_secs = time.perf_counter()
            jax.block_until_ready(run(params, x, d_y))
            times[name].append(time.perf_counter() - start_secs)
    medians = {name: statistics.median(secs) for name, secs in times.items()}
    print(
        f"{num_tokens} tokens, {num_experts} experts: {'ms':>9} {'ratio':>6} {'none':>6} {'IR':>6}"
    )
    for name, secs in medians.items():
        shares = served[name]
        none = 1 - shares.get("moe/served", float("nan"))
        rescued = shares.get("moe/intra_rank_served", 0.0)
        ratio = medians["top-1"] / secs
        print(f"  {name:24} {1e3 * secs:9.1f} {ratio:6.2f} {none:6.1%} {rescued:6.1%}", flush=True)


if __name__ == "__main__":
    main()
