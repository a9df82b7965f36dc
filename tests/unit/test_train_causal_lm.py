"""The language model's metrics are sums over what counts; its operations are counted rightly."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn

from t5x_style.models.config import TransformerConfig
from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.train import flops
from t5x_style.train import state as states
from t5x_style.train.step import make_eval_step
from tests.fresh import fresh_params

CONFIG = TransformerConfig(
    vocab_size=48,
    num_layers=2,
    embed_dim=16,
    num_query_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_dim=32,
    vocab_multiple=16,
)


def packed_batch(rows=4, length=16):
    """Rows of two segments and padding, each row with a weight of its own."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, CONFIG.vocab_size, (rows, length + 1)).astype(np.int32)
    cut = rng.integers(4, length - 4, (rows, 1))
    place = np.broadcast_to(np.arange(length), (rows, length))
    segments = np.where(place < cut, 1, np.where(place < length - 2, 2, 0)).astype(np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.where(place < cut, place, place - cut).astype(np.int32),
        "segment_ids": segments,
        "loss_weights": ((segments > 0) * rng.uniform(0, 2, (rows, 1))).astype(np.float32),
        "target_bytes": rng.integers(1, 5, (rows, length)).astype(np.int32),
    }


def test_metrics_are_sums_over_the_tokens_that_count():
    objective, batch = CausalLM(CONFIG), packed_batch()
    shapes = objective.batch_shapes(4, 16)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in shapes.items()
    }
    params = fresh_params(objective)
    metrics = jax.jit(make_eval_step(objective))(params, batch)
    weights = batch["loss_weights"]
    nll, weight_sum = map(float, metrics["loss"])
    assert weight_sum == pytest.approx(weights.sum(), rel=1e-6)
    assert nll / weight_sum == pytest.approx(np.log(CONFIG.vocab_size), rel=0.05)
    bits, num_bytes = map(float, metrics["bits_per_byte"])
    assert bits == pytest.approx(nll / np.log(2), rel=1e-6)
    assert num_bytes == pytest.approx((batch["target_bytes"] * weights).sum(), rel=1e-6)
    is_real = batch["segment_ids"] > 0
    assert [float(x) for x in metrics["filled_slots"]] == [is_real.sum(), is_real.size]
    assert [float(x) for x in metrics["keys_per_token"]] == [
        (batch["positions"] + 1)[is_real].sum(),
        is_real.sum(),
    ]


def test_matrix_parameters_are_all_but_embedding_and_norms():
    leaves = states.named_leaves(nn.unbox(CausalLM(CONFIG).abstract_params()))
    multiplied = [x.size for name, x in leaves.items() if "embedding" not in name]
    multiplied = sum(multiplied) - sum(x.size for name, x in leaves.items() if "scale" in name)
    assert flops.matrix_parameters(CONFIG) == multiplied


def test_operations_of_the_published_7b_model():
    config = TransformerConfig(
        num_layers=32,
        embed_dim=4096,
        num_query_heads=32,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=14336,
    )
    weights = 7_737_708_544 - 92_544 * 4096 - 65 * 4096
    assert flops.matrix_parameters(config) == weights
    # QK^T and PV over half of a 4,096 square, in 32 layers of 32 heads of 128, forward and back.
    attention = 3 * 2 * 2 * 32 * 32 * 128 * (4097 / 2)
    assert CausalLM(config).flops_per_token(4096) == pytest.approx(6 * weights + attention)
    packed = CausalLM(config).flops_per_token(4096, keys_per_token=100.0)
    assert packed == pytest.approx(6 * weights + 3 * 4 * 32 * 32 * 128 * 100)
    encoder = dataclasses.replace(config, causal=False)
    assert flops.training_flops_per_token(encoder, 4096) == pytest.approx(
        6 * weights + attention * 2 * 4096 / 4097
    )
