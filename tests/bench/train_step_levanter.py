"""A peer of tests/bench/train_step.py: Levanter's Llama on JAX, in its own environment.

Run by path, as its environment need hold Levanter alone (1.2 or newer, for the JAX in use).
"""

import json
import resource
import sys
from pathlib import Path

import equinox
import haliax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from levanter.layers.attention import AttentionBackend
from levanter.layers.rotary import DefaultRotaryEmbeddingsConfig
from levanter.models.llama import LlamaConfig, LlamaLMHeadModel
from levanter.models.lm_model import LmExample, compute_next_token_loss

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.alternating import serve


def _mean(values, axis=None, where=None):
    # JAX wants a boolean mask where Levanter hands over numbers.
    return haliax.mean(values, axis, where=None if where is None else where != 0)


def main(settings: dict, batch_size: int, length: int) -> None:
    """Serves requests for train steps: blockwise attention, remat of each layer, optax's AdamW."""
    config = LlamaConfig(
        seq_len=length,
        hidden_dim=settings["embed_dim"],
        intermediate_dim=settings["mlp_dim"],
        num_layers=settings["num_layers"],
        num_heads=settings["num_query_heads"],
        num_kv_heads=settings["num_kv_heads"],
        head_dim=settings["head_dim"],
        rope=DefaultRotaryEmbeddingsConfig(theta=settings["rope_base"]),
        attn_backend=AttentionBackend.JAX_FLASH,
    )
    vocabulary = haliax.Axis("vocab", settings["vocab_size"])
    model = LlamaLMHeadModel.init(vocabulary, config, key=jax.random.key(0))
    optimizer = optax.adamw(3e-4, b1=0.9, b2=0.95, weight_decay=0.1)
    held = model, optimizer.init(equinox.filter(model, equinox.is_array))
    tokens = np.random.default_rng(0).integers(
        settings["vocab_size"], size=(batch_size, length + 1), dtype=np.int32
    )
    rows = haliax.Axis("batch", batch_size)
    tokens = haliax.named(jnp.asarray(tokens[:, :length]), (rows, config.Pos))
    example = haliax.vmap(LmExample.causal, rows)(tokens)

    @equinox.filter_jit(donate="all-except-first")
    def step(example, model, state):
        def loss_of(model):
            return compute_next_token_loss(model, example, reduction=_mean).scalar()

        loss, gradients = equinox.filter_value_and_grad(loss_of)(model)
        updates, state = optimizer.update(gradients, state, equinox.filter(model, equinox.is_array))
        return loss, (equinox.apply_updates(model, updates), state)

    def answer(request: dict) -> dict:
        nonlocal held
        for _ in range(request["steps"]):
            loss, held = step(example, *held)
        jax.block_until_ready(jax.tree.leaves(equinox.filter(held, equinox.is_array)))
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"loss": float(loss), "peak_bytes": peak}

    serve(answer)


if __name__ == "__main__":
    sizes = dict(argument.removeprefix("--").split("=") for argument in sys.argv[2:])
    main(json.loads(sys.argv[1]), int(sizes["batch"]), int(sizes["length"]))
