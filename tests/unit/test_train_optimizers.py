"""AdamW, clipping, decay by kind and the learning rate, against NumPy written from the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.train.optimizers import AdamW, clip_scale, parameter_kind
from t5x_style.train.schedules import WarmupCosine
from t5x_style.train.state import TrainState
from t5x_style.train.step import make_train_step

SHAPES = {
    "tok_embeddings": {"embedding": (5, 3)},
    "layers": {"attention": {"wqkv": (2, 3, 4)}, "attention_norm": {"scale": (2, 3)}},
    "output": {"kernel": (3, 5)},
}
DECAYED = {"matrix": ["wqkv", "kernel"], "embedding": ["embedding"], "norm": ["scale"]}


def for_each_shape(make):
    return jax.tree.map(make, SHAPES, is_leaf=lambda x: isinstance(x, tuple))


class Pull:
    """The loss sum(target * param) + sum(param^2) / 2, whose gradient is target + param."""

    def init(self, rng):
        del rng
        return for_each_shape(jnp.zeros)

    def loss(self, params, batch, rng):
        del rng
        terms = jax.tree.map(lambda p, t: jnp.sum(p * t[0] + p * p / 2), params, dict(batch))
        return jnp.stack(jax.tree.leaves(terms)).sum(), jnp.float32(1), {}


def numpy_adamw(params, gradient_of, optimizer, schedule, num_steps):
    """AdamW as its docstring says it, in float64, over a flat dict."""
    m = {k: np.zeros_like(p) for k, p in params.items()}
    v = {k: np.zeros_like(p) for k, p in params.items()}
    decayed = {name for kind in optimizer.decayed_kinds for name in DECAYED[kind]}
    for t in range(1, num_steps + 1):
        grads = gradient_of(params, t)
        norm = np.sqrt(sum(np.sum(g * g) for g in grads.values()))
        scale = 1.0 if optimizer.clip_norm is None else min(1.0, optimizer.clip_norm / norm)
        rate = float(schedule(t - 1))
        for k in params:
            g = grads[k] * scale
            m[k] = optimizer.b1 * m[k] + (1 - optimizer.b1) * g
            v[k] = optimizer.b2 * v[k] + (1 - optimizer.b2) * g * g
            m_hat, v_hat = m[k] / (1 - optimizer.b1**t), v[k] / (1 - optimizer.b2**t)
            direction = m_hat / (np.sqrt(v_hat) + optimizer.eps)
            if k.rpartition("/")[2] in decayed:
                direction = direction + optimizer.weight_decay * params[k]
            params = params | {k: params[k] - rate * direction}
    return params


def flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): np.asarray(x) for p, x in leaves}


@pytest.mark.parametrize(
    "optimizer",
    [
        AdamW(),
        AdamW(decayed_kinds=("matrix", "embedding", "norm"), clip_norm=None),
        AdamW(b1=0.8, b2=0.99, eps=1e-3, weight_decay=0.5, clip_norm=0.1),
    ],
    ids=["paper", "all-decay-no-clip", "other-values"],
)
def test_steps_equal_numpy(optimizer):
    rng = np.random.default_rng(0)
    start, *targets = [
        for_each_shape(lambda shape: rng.normal(size=shape).astype("f4")) for _ in range(6)
    ]
    schedule = WarmupCosine(peak=0.1, total_steps=10, warmup_steps=2)
    transformation = optimizer.transformation()
    step = jax.jit(make_train_step(Pull(), transformation, schedule, clip_norm=optimizer.clip_norm))
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(zero, start, transformation.init(start), zero)
    norms = []
    for target in targets:
        state, metrics = step(state, jax.tree.map(lambda x: x[None], target))
        norms.append(float(metrics["grad_norm"][0]))

    wide = [{k: x.astype("f8") for k, x in flat(t).items()} for t in targets]
    expected = numpy_adamw(
        {k: x.astype("f8") for k, x in flat(start).items()},
        lambda params, t: {k: wide[t - 1][k] + p for k, p in params.items()},
        optimizer,
        schedule,
        len(targets),
    )
    for name, found in flat(state.params).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
    first_gradient = [wide[0][k] + x for k, x in flat(start).items()]
    assert norms[0] == pytest.approx(
        np.sqrt(sum(np.sum(g * g) for g in first_gradient)), rel=1e-5
    ), "the norm that is logged is the one before clipping"


def test_kinds_are_read_from_names_whatever_the_rank():
    paths = jax.tree_util.tree_leaves_with_path(
        {"a": {"scale": 1, "embedding": 2, "bias": 3, "wo": 4}}
    )
    kinds = {path[-1].key: parameter_kind(path) for path, _ in paths}
    assert kinds == {"scale": "norm", "embedding": "embedding", "bias": "bias", "wo": "matrix"}


def test_clipping_leaves_small_gradients_and_bounds_large_ones():
    assert float(clip_scale(jnp.float32(0.5), 1.0)) == 1.0
    assert float(clip_scale(jnp.float32(4.0), 1.0)) == 0.25
    assert float(clip_scale(jnp.float32(0.0), 1.0)) == 1.0
    assert float(clip_scale(jnp.float32(1e9), None)) == 1.0


def test_moments_take_the_dtype_that_is_asked_for():
    params = {"kernel": jnp.ones((2, 2))}
    state = AdamW(mu_dtype="bfloat16").transformation().init(params)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(state)} == {"bfloat16", "float32", "int32"}


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [({"decayed_kinds": ("matrices",)}, "decayed_kinds"), ({"clip_norm": 0.0}, "clip_norm")],
)
def test_a_wrong_setting_is_named(arguments, setting):
    with pytest.raises(ValueError, match=setting):
        AdamW(**arguments)
