"""Ten steps of a tiny model, fp32, on the CPU: the losses are those of the committed text.

A change that should not alter the arithmetic must leave them alone. After one that should:
`pytest tests/golden/losses --update-golden`, and say why in the commit.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from t5x_style.models.config import TransformerConfig
from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.objectives.classification import Classification
from t5x_style.objectives.ppo import Policy, Value, pretrain_part
from t5x_style.objectives.reward import Reward
from t5x_style.train.optimizers import AdamW
from t5x_style.train.schedules import WarmupCosine
from t5x_style.train.state import TrainState
from t5x_style.train.step import make_train_step

pytestmark = pytest.mark.exact

FOLDER = Path(__file__).parent
# That of whole models. Other processors add in another order, which ten steps make 5e-5 of (seen
# between two x86 processors); what a change of the arithmetic does is far larger.
TOLERANCE = 1e-4


def batch_at(step, rows=8, length=32, vocab_size=64):
    """Rows of two packed documents whose ids count up, some padding, and a masked stretch."""
    rng = np.random.default_rng(step)
    place = np.broadcast_to(np.arange(length + 1), (rows, length + 1))
    tokens = ((rng.integers(3, vocab_size, (rows, 1)) + place) % vocab_size).astype(np.int32)
    cut = rng.integers(8, length - 8, (rows, 1))
    place = place[:, :-1]
    segments = np.where(place < cut, 1, np.where(place < length - 3, 2, 0)).astype(np.int32)
    weights = (segments > 0) & (place != 5)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.where(place < cut, place, place - cut).astype(np.int32),
        "segment_ids": segments,
        "loss_weights": weights.astype(np.float32),
        "target_bytes": np.full((rows, length), 2, np.int32),
    }


CONFIG = TransformerConfig(
    vocab_size=64,
    num_layers=2,
    embed_dim=32,
    num_query_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=64,
    rope_base=10_000.0,
)


def labelled_batch_at(step, rows=8, length=32):
    """Rows of two texts and padding; a text is true where its ids count up, false where down."""
    rng = np.random.default_rng(step)
    place = np.broadcast_to(np.arange(length), (rows, length))
    cut = rng.integers(8, length - 8, (rows, 1))
    segments = np.where(place < cut, 1, np.where(place < length - 3, 2, 0)).astype(np.int32)
    positions = np.where(place < cut, place, place - cut).astype(np.int32)
    is_up = np.where(segments == 1, *rng.integers(0, 2, (2, rows, 1)))
    ids = rng.integers(0, 64, (rows, 1)) + np.where(is_up, positions, -positions)
    return {
        "inputs": (ids % 64).astype(np.int32),
        "positions": positions,
        "segment_ids": segments,
        "labels": is_up.astype(np.int32),
        "loss_weights": np.where(is_up, 1.5, 0.5).astype(np.float32),
    }


def compared_batch_at(step, rows=8, length=32):
    """Rows of two texts and padding; the better one has ids below 52, the other from 12 on."""
    batch = labelled_batch_at(step, rows, length)
    segments = batch["segment_ids"]
    rng = np.random.default_rng(step)
    better = rng.integers(1, 3, (rows, 1))
    ids = rng.integers(0, 52, (rows, length)) + np.where(segments == better, 0, 12)
    places = [
        np.argmax((segments == segment) * np.arange(length), axis=1)
        for segment in (better, 3 - better)
    ]
    chosen, rejected = (
        np.stack([np.arange(rows), place], axis=-1)[:, None].astype(np.int32) for place in places
    )
    return {
        "inputs": ids.astype(np.int32),
        "positions": batch["positions"],
        "segment_ids": segments,
        "chosen": chosen,
        "rejected": rejected,
        "pair_weights": np.ones((rows, 1), np.float32),
    }


def test_causal_lm(request):
    objective = CausalLM(CONFIG, z_loss=1e-4, loss_chunk_tokens=64)
    found = ten_steps(objective, batch_at)
    np.testing.assert_allclose(found, committed(request, "causal_lm", found), rtol=TOLERANCE)


def test_classification(request):
    objective = Classification(dataclasses.replace(CONFIG, causal=False))
    found = ten_steps(objective, labelled_batch_at)
    np.testing.assert_allclose(found, committed(request, "classification", found), rtol=TOLERANCE)


def test_reward(request):
    objective = Reward(CONFIG, pairs_per_row=1, head_init_std=0.02)
    found = ten_steps(objective, compared_batch_at, num_microbatches=1)
    np.testing.assert_allclose(found, committed(request, "reward", found), rtol=TOLERANCE)


def sampled_batch_at(step, rows=8, length=32):
    """Rows of a prompt, an answer and padding; emitting ids below 32 was better than expected."""
    rng = np.random.default_rng(step)
    place = np.broadcast_to(np.arange(length), (rows, length))
    is_real = place < rng.integers(length // 2, length, (rows, 1))
    is_answer = is_real & (place >= rng.integers(4, 12, (rows, 1)))
    ids = rng.integers(0, 64, (rows, length + 1))
    worth, read = (np.where(x < 32, 1.0, -1.0) for x in (ids[:, 1:], ids[:, :-1]))
    return {
        "inputs": (ids[:, :-1] * is_real).astype(np.int32),
        "targets": (ids[:, 1:] * is_real).astype(np.int32),
        "positions": (place * is_real).astype(np.int32),
        "segment_ids": is_real.astype(np.int32),
        "mask": is_answer.astype(np.float32),
        # Close to what a fresh model says, so that some ratios are clipped and some are not.
        "log_probs": (-np.log(64) + rng.uniform(-0.3, 0.3, (rows, length))).astype(np.float32),
        "advantages": worth.astype(np.float32),
        "values": np.zeros((rows, length), np.float32),
        "returns": (read * place / length).astype(np.float32),
    }


def test_policy(request):
    objective = Policy(CONFIG, pretrain_rows=8, pretrain_length=32, loss_chunk_tokens=64)

    def batch_of(step):
        # Two iterations' answers, five epochs each: ratios leave the clip range.
        batch = sampled_batch_at(step // 5)
        del batch["values"], batch["returns"]
        return batch | pretrain_part(batch_at(step), batch["mask"].sum())

    found = ten_steps(objective, batch_of)
    np.testing.assert_allclose(found, committed(request, "policy", found), rtol=TOLERANCE)


def test_value(request):
    def batch_of(step):
        batch = sampled_batch_at(step)
        del batch["log_probs"], batch["advantages"], batch["targets"]
        return batch

    found = ten_steps(Value(CONFIG), batch_of)
    np.testing.assert_allclose(found, committed(request, "value", found), rtol=TOLERANCE)


def seeded_params(objective):
    """Returns params drawn by NumPy: the same bits on every processor, and nothing to compile."""
    rng = np.random.default_rng(0)

    def drawn(path, leaf):
        is_scale = jax.tree_util.keystr(path).endswith("['scale']")
        return jnp.asarray(rng.normal(is_scale, 0.1, leaf.shape), leaf.dtype)

    shapes = nn.unbox(jax.eval_shape(objective.init, jax.random.key(0)))
    return jax.tree_util.tree_map_with_path(drawn, shapes)


def ten_steps(objective, batches, num_microbatches=2):
    """Trains a fresh model; returns loss and gradient norm of each step, [10, 2]."""
    optimizer = AdamW()
    transformation = optimizer.transformation()
    params = seeded_params(objective)
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, params, transformation.init(params), zero)
    schedule = WarmupCosine(peak=1e-2, total_steps=10, warmup_steps=3)
    step = jax.jit(
        make_train_step(
            objective,
            transformation,
            schedule,
            clip_norm=1.0,
            num_microbatches=num_microbatches,
            seed=0,
        )
    )
    found = []
    for number in range(10):
        state, metrics = step(state, batches(number))
        found.append([float(metrics[k][0] / metrics[k][1]) for k in ("loss", "grad_norm")])
    return np.array(found)


def committed(request, name, found):
    """Returns loss and gradient norm of each step as committed, written anew if asked to."""
    golden = FOLDER / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        lines = (f"{i} {loss:.8f} {norm:.8f}" for i, (loss, norm) in enumerate(found, start=1))
        golden.write_text("\n".join(["step loss grad_norm", *lines]) + "\n")
    expected = np.loadtxt(golden, skiprows=1)[:, 1:]
    assert expected[-1, 0] < 0.8 * expected[0, 0], "ten steps learn something"
    return expected
