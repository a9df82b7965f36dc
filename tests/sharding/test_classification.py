"""One device and eight: the same loss and gradients of a classifier, and the same scores."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn

from t5x_style.infer.classify import ReadingSettings, TextClassifier
from t5x_style.models.config import TransformerConfig
from t5x_style.objectives.classification import Classification
from t5x_style.parallel import rules
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.text_windows import WindowSettings

CONFIG = TransformerConfig(
    vocab_size=64,
    num_layers=2,
    embed_dim=32,
    num_query_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=64,
    rope_base=500.0,
    causal=False,
    init_std=0.2,
)
OBJECTIVE = Classification(CONFIG)
READING = ReadingSettings(WindowSettings(24, 3), aggregate="max", batch_tokens=64)


@functools.cache
def boxed_params():
    return jax.device_get(jax.jit(OBJECTIVE.init)(jax.random.key(0)))


@functools.cache
def batch(rows=8, length=16):
    rng = np.random.default_rng(0)
    positions = np.r_[0:6, 0:7, 0:3][None].repeat(rows, 0).astype(np.int32)
    segments = np.repeat([1, 2, 0], [6, 7, 3])[None].repeat(rows, 0).astype(np.int32)
    is_first = (positions == 0) & (segments > 0)
    return {
        "inputs": rng.integers(64, size=(rows, length)).astype(np.int32),
        "positions": positions,
        "segment_ids": segments,
        "labels": (rng.integers(2, size=(rows, length)) * is_first).astype(np.int32),
        "loss_weights": (rng.uniform(0.5, 2, (rows, length)) * is_first).astype(np.float32),
    }


def loss_of(params, batch):
    return OBJECTIVE.loss(params, batch, jax.random.key(0))[0]


@functools.cache
def on_one_device():
    return jax.device_get(jax.jit(jax.value_and_grad(loss_of))(nn.unbox(boxed_params()), batch()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [{"data": 8}, {"data": 1, "fsdp": 8}, {"data": 2, "seq": 2, "tensor": 2}], ids=str
)
def test_eight_devices_give_what_one_gives(sizes):
    mesh = MeshConfig(**sizes).build()
    of_rows = rules.sharding_of(("act_batch", "act_length"), (8, 16), mesh)
    placed = (rules.param_shardings(boxed_params(), mesh), dict.fromkeys(batch(), of_rows))
    with jax.set_mesh(mesh):
        args = jax.device_put((nn.unbox(boxed_params()), batch()), placed)
        step = jax.jit(jax.value_and_grad(loss_of), out_shardings=(None, placed[0]))
        loss, gradient = step(*args)
    wanted_loss, wanted = on_one_device()
    assert float(loss) == pytest.approx(float(wanted_loss), rel=1e-6)
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def encode(text):
    return [3 + ord(letter) % 61 for letter in text]


def made_texts(num):
    rng = np.random.default_rng(1)
    return ["".join(map(chr, rng.integers(97, 122, rng.integers(0, 90)))) for _ in range(num)]


def test_scores_are_the_same_on_eight_devices():
    texts = ["", *made_texts(60)]
    params = nn.unbox(boxed_params())
    one, eight = (
        TextClassifier(CONFIG, "mean", params, encode, 1, READING, mesh=mesh).scores(texts)
        for mesh in (MeshConfig().build(jax.devices()[:1]), None)
    )
    np.testing.assert_allclose(one, eight, atol=1.01e-4)
    assert np.mean(one == eight) > 0.9
    assert one.std() > 0.01, "texts that all score alike would show nothing"
