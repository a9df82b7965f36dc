"""The reward model's loss on several devices: as on one, however rows and weights are cut."""

import functools

import jax
import numpy as np
import pytest

from t5x_style.models.config import TransformerConfig
from t5x_style.objectives.reward import Reward
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.train.batch import place_batch
from t5x_style.train.job import Job
from tests.fresh import fresh_params

CONFIG = TransformerConfig(
    vocab_size=64,
    num_layers=2,
    embed_dim=16,
    num_query_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=32,
    rope_base=500.0,
    vocab_multiple=4,
    init_std=0.3,
)
ROWS, LENGTH, PAIRS_PER_ROW = 8, 16, 4
OBJECTIVE = Reward(CONFIG, pairs_per_row=PAIRS_PER_ROW, head_init_std=0.3)
MESHES = {
    "data": MeshConfig(data=8),
    "fsdp_tensor": MeshConfig(data=2, fsdp=2, tensor=2),
    # Rows are cut and a ring moves positions: the scores must be read where they were.
    "seq_ring": MeshConfig(data=2, seq=4),
}


@functools.cache
def batch():
    """Two responses in each row, every pair across rows."""
    rng = np.random.default_rng(0)
    cuts = rng.integers(3, 10, ROWS)
    inputs = rng.integers(64, size=(ROWS, LENGTH)).astype(np.int32)
    places = np.arange(LENGTH)
    is_second = places >= cuts[:, None]
    last = 14
    segment_ids = np.where(places > last, 0, 1 + is_second)
    positions = np.where(is_second, places - cuts[:, None], places)
    ends = [(row, end) for row in range(ROWS) for end in (int(cuts[row]) - 1, last)]
    order = rng.permutation(len(ends))
    sides = [[ends[i] for i in np.roll(order, by)] * 2 for by in (0, 1)]
    compared = np.array(sides, np.int32).reshape(2, ROWS, PAIRS_PER_ROW, 2)
    weights = rng.uniform(0.5, 1.5, (ROWS, PAIRS_PER_ROW)).astype(np.float32)
    weights[3, 1] = 0
    return {
        "inputs": inputs,
        "positions": (positions * (segment_ids > 0)).astype(np.int32),
        "segment_ids": segment_ids.astype(np.int32),
        "chosen": compared[0],
        "rejected": compared[1],
        "pair_weights": weights,
    }


@functools.cache
def results(mesh):
    """Loss, gradient and metrics, computed on a mesh."""
    devices = None if mesh in MESHES.values() else jax.devices()[:1]
    job = Job(
        OBJECTIVE,
        schedule=lambda step: step,
        total_steps=1,
        batch_size=ROWS,
        length=LENGTH,
        mesh=mesh,
        devices=devices,
    )

    def loss(params, b):
        loss_sum, weight_sum, metrics = OBJECTIVE.loss(params, b, jax.random.key(0))
        return loss_sum / weight_sum, metrics

    with job.in_place():
        params = fresh_params(OBJECTIVE, 1)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, job.abstract_state.params)
        placed = place_batch(batch(), job.train_batch)
        return jax.device_get(
            jax.jit(jax.value_and_grad(loss, has_aux=True))(
                jax.device_put(params, shardings), placed
            )
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_loss_gradient_and_metrics_are_those_of_one_device(name):
    found, wanted = results(MESHES[name]), results(MeshConfig())
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        scale = max(float(np.abs(b).max()), 1e-6)
        np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, atol=1e-4)
