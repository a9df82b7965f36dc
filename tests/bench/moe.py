"""A layer of experts by router, tokens and experts, and dispatch by one-hot products beside it.

    python -m tests.bench.moe [--tokens=1024,4096] [--experts=8,32] [--skews=0,0.1,0.2] [--rounds=5]

One device that plays as many ranks as there are experts, fp32, forward and backward, the model as
wide as --dim and the experts as --inner; with --inner=1 what is left is routing, dispatch and
combination alone. `one-hot` sends the same top-1 routes by products with a [tokens, experts,
capacity] tensor, `ragged_dot` sorts tokens and drops none. `ratio` is top-1's median time over that
of the row; beside it the share of tokens that no expert took, and that the token's own rank
rescued. Calls of all rows alternate.

Of the tokens, `skew` choose expert 0 and the others all experts equally: at 0 every rank's load is
balanced and nothing is dropped. "random" is what a router makes of random tokens.
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
from t5x_style.ops.experts import Experts
from t5x_style.ops.routers import Dropless, ExpertChoice, Rectify, Sam, TopK
from tests.numerics.one_hot_dispatch import one_hot_dispatch

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


def _config(router, num_experts: int, dim: int, inner: int) -> TransformerConfig:
    # SAM's groups hold four experts each.
    num_ranks = num_experts // 4 if isinstance(router, Sam) else num_experts
    return TransformerConfig(
        embed_dim=dim, mlp_dim=inner, moe=MoEConfig(num_experts, router, num_ranks=num_ranks)
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
    tokens_PSD = x.reshape(num_experts, -1, x.shape[-1])
    logits_PSE = tokens_PSD @ params["router"]
    num_tokens = tokens_PSD.shape[1]
    capacity = router.capacity(num_tokens, num_experts, num_ranks=num_experts)
    is_real_S = jnp.ones(num_tokens, bool)
    routes = jax.vmap(
        lambda logits_SE, rank: router(logits_SE, is_real_S, rank=rank, num_ranks=num_experts)
    )(logits_PSE, jnp.arange(num_experts))
    experts = Experts(params["w1"], params["w3"], params["w2"])
    y = one_hot_dispatch(tokens_PSD, routes, experts, capacity=capacity)
    return y.reshape(x.shape), {}


def _ragged(router, num_experts, params, x):
    """The best expert of each token, tokens sorted by expert."""
    del router
    tokens_ND = x.reshape(-1, x.shape[-1])
    log_gate_NE = jax.nn.log_softmax(tokens_ND @ params["router"])
    expert_N = jnp.argmax(log_gate_NE, axis=1)
    order_N = jnp.argsort(expert_N)
    sizes_E = jnp.bincount(expert_N, length=num_experts)
    rows_ND = tokens_ND[order_N]
    gate, up = (jax.lax.ragged_dot(rows_ND, params[name], sizes_E) for name in ("w1", "w3"))
    made_ND = jax.lax.ragged_dot(jax.nn.silu(gate) * up, params["w2"], sizes_E)
    log_weight_N = jnp.max(log_gate_NE, axis=1)
    weight_N = jnp.exp(log_weight_N - jax.lax.stop_gradient(log_weight_N))
    y_ND = jnp.zeros_like(tokens_ND).at[order_N].set(made_ND) * weight_N[:, None]
    return y_ND.reshape(x.shape), {}


PLAIN = {"one-hot top-1": _one_hot, "ragged_dot top-1": _ragged}


def main() -> None:
    """Prints one row for each router and size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", default="1024,4096")
    parser.add_argument("--experts", default="8,32")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--inner", type=int, default=1408)
    parser.add_argument("--skews", default="random,0,0.1,0.2")
    parser.add_argument("--routers", default=",".join([*ROUTERS, *PLAIN]))
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    for num_experts in map(int, flags.experts.split(",")):
        for num_tokens in map(int, flags.tokens.split(",")):
            for skew in flags.skews.split(","):
                _compare(num_experts, num_tokens, skew, flags)


def _tokens(num_experts: int, num_tokens: int, skew: str, router_DE) -> jax.Array:
    """Tokens, one row for each rank; each chooses its expert by a wide margin unless random."""
    rng = np.random.default_rng(0)
    length = num_tokens // num_experts
    x = rng.normal(size=(num_experts, length, router_DE.shape[0]))
    if skew != "random":
        chosen = np.arange(length) % num_experts
        chosen[: round(float(skew) * length)] = 0
        directions = np.linalg.pinv(np.float64(router_DE))  # each scores its own expert only
        x = 0.1 * x + 5 * directions[rng.permuted(np.tile(chosen, (num_experts, 1)), axis=1)]
    return jnp.asarray(x, jnp.float32)


def _compare(num_experts: int, num_tokens: int, skew: str, flags) -> None:
    rng = np.random.default_rng(1)
    shape = (num_experts, num_tokens // num_experts, flags.dim)
    d_y = jnp.asarray(rng.normal(size=shape), jnp.float32)
    layers, served, times = {}, {}, {}
    for name in flags.routers.split(","):
        router = ROUTERS.get(name, TopK())
        config = _config(router, num_experts, flags.dim, flags.inner)
        params = nn.unbox(MoE(config).init(jax.random.key(0), d_y, None, 1)["params"])
        layer = functools.partial(_layer, config)
        if name in PLAIN:
            layer = functools.partial(PLAIN[name], router, num_experts)
        layers[name] = layer, params
    x = _tokens(num_experts, num_tokens, skew, layers["top-1"][1]["router"])
    for name, (layer, params) in layers.items():
        run = jax.jit(functools.partial(_gradient, layer))
        _, metrics = jax.block_until_ready(run(params, x, d_y))
        served[name] = {key: float(n / d) for key, (n, d) in metrics.items() if not n.shape}
        layers[name], times[name] = (run, params), []
    for _ in range(flags.rounds):
        # In any order: what comes after a call that has filled all caches is slower for it.
        for name in rng.permutation(sorted(layers)):
            run, params = layers[name]
            start_secs = time.perf_counter()
            jax.block_until_ready(run(params, x, d_y))
            times[name].append(time.perf_counter() - start_secs)
    medians = {name: statistics.median(secs) for name, secs in times.items()}
    print(
        f"{num_tokens} tokens, {num_experts} experts, skew {skew}: "
        f"{'ms':>9} {'least':>9} {'ratio':>6} {'none':>6} {'IR':>6}"
    )
    for name, secs in medians.items():
        shares = served[name]
        none = 1 - shares.get("moe/served", float("nan"))
        rescued = shares.get("moe/intra_rank_served", 0.0)
        ratio = medians["top-1"] / secs
        least = 1e3 * min(times[name])
        print(
            f"  {name:24} {1e3 * secs:9.1f} {least:9.1f} {ratio:6.2f} {none:6.1%} {rescued:6.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
