"""A step: accumulated = one batch, padding inert, what is not finite skipped, dtypes kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.parallel.mesh import MeshConfig
from t5x_style.train import state as states
from t5x_style.train.batch import abstract_batch, place_batch
from t5x_style.train.optimizers import AdamW
from t5x_style.train.schedules import WarmupCosine
from t5x_style.train.step import make_train_step
from tests.fresh import fresh_params
from tests.unit.train_toy import Bigram, make_batch

OPTIMIZER = AdamW()
SCHEDULE = WarmupCosine(peak=1e-2, total_steps=10)


def first_state(objective):
    params = fresh_params(objective)
    zero = jnp.zeros((), jnp.int32)
    return states.TrainState(zero, params, OPTIMIZER.transformation().init(params), zero)


def compiled_step(objective, num_microbatches=1):
    return jax.jit(
        make_train_step(
            objective,
            OPTIMIZER.transformation(),
            SCHEDULE,
            clip_norm=OPTIMIZER.clip_norm,
            num_microbatches=num_microbatches,
        )
    )


def assert_close(found, expected, tolerance):
    found, expected = states.named_leaves(found), states.named_leaves(expected)
    assert found.keys() == expected.keys()
    for name, x in found.items():
        np.testing.assert_allclose(x, expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("num_microbatches", [2, 8])
def test_accumulated_microbatches_equal_one_batch(num_microbatches):
    objective = Bigram()
    state, batch = first_state(objective), make_batch()
    whole, whole_metrics = compiled_step(objective)(state, batch)
    parts, parts_metrics = compiled_step(objective, num_microbatches)(state, batch)
    assert_close(parts.opt_state, whole.opt_state, 1e-6)
    assert_close(parts.params, whole.params, 1e-5)
    assert_close(parts_metrics, whole_metrics, 1e-5)


def test_microbatches_over_eight_devices_equal_one_batch_on_one():
    objective, batch = Bigram(), make_batch(rows=16)
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    abstract = states.abstract_state(objective, OPTIMIZER.transformation(), mesh)
    state = first_state(objective)
    expected, expected_metrics = compiled_step(objective)(state, batch)
    with jax.set_mesh(mesh):
        placed = place_batch(batch, abstract_batch(objective.batch_shapes(16, 16), mesh, 4))
        cut = jax.device_put(state, jax.tree.map(lambda leaf: leaf.sharding, abstract))
        step = compiled_step(objective, 4)
        found, metrics = step(cut, placed)
    assert_close(found.opt_state, expected.opt_state, 1e-6)
    assert_close(metrics, expected_metrics, 1e-5)


def test_microbatches_are_made_of_the_rows_that_each_device_has():
    """With whole weights on every device, gradients are summed and nothing else travels."""
    objective, mesh = Bigram(), MeshConfig(data=8).build()
    abstract = states.abstract_state(objective, OPTIMIZER.transformation(), mesh)
    batch = abstract_batch(objective.batch_shapes(32, 16), mesh, 4)
    with jax.set_mesh(mesh):
        text = compiled_step(objective, 4).lower(abstract, batch).compile().as_text() or ""
    assert "all-reduce" in text
    assert not any(word in text for word in ("all-gather", "all-to-all", "collective-permute"))


def test_the_gradient_is_that_of_the_mean_over_weights():
    objective, batch = Bigram(), make_batch()
    state = first_state(objective)

    def mean_loss(params):
        loss_sum, weight_sum, _ = objective.loss(params, batch, None)
        return loss_sum / weight_sum

    expected = jax.grad(mean_loss)(state.params)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(expected)))
    after, metrics = compiled_step(objective, 2)(state, batch)
    assert float(metrics["grad_norm"][0]) == pytest.approx(norm, rel=1e-5)
    first_moment = jax.tree.map(lambda g: 0.1 * g * min(1.0, 1.0 / norm), expected)
    assert_close(after.opt_state[0].mu, first_moment, 1e-6)


def test_a_token_without_weight_changes_nothing():
    objective, batch = Bigram(), make_batch()
    is_padding = batch["loss_weights"] == 0
    assert is_padding.any()
    other = batch | {name: np.where(is_padding, 7, batch[name]) for name in ("inputs", "targets")}
    step = compiled_step(objective)
    found, metrics = step(first_state(objective), other)
    expected, expected_metrics = step(first_state(objective), batch)
    assert_close(found, expected, 0)
    assert_close(metrics, expected_metrics, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_a_gradient_that_is_not_finite_changes_nothing_but_the_counts(value, num_microbatches):
    objective = Bigram()
    step = compiled_step(objective, num_microbatches)
    state, _ = step(first_state(objective), make_batch())
    batch = make_batch(seed=1)
    batch["loss_weights"][3, 2] = value
    after, metrics = step(state, batch)
    assert_close(after.params, state.params, 0)
    assert_close(after.opt_state, state.opt_state, 0)
    assert (int(after.step), int(after.skipped_steps)) == (2, 1)
    assert float(metrics["skipped"][0]) == 1
    assert all(float(x) == 0 for x in metrics["loss"] + metrics["grad_norm"])
    healthy, _ = step(after, make_batch())
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(healthy.params))
    assert int(healthy.skipped_steps) == 1


def test_a_batch_without_weights_is_no_division_by_zero():
    objective = Bigram()
    batch = make_batch() | {"loss_weights": np.zeros((8, 16), np.float32)}
    after, metrics = compiled_step(objective)(first_state(objective), batch)
    assert int(after.skipped_steps) == 0
    assert float(metrics["grad_norm"][0]) == 0


def test_dtypes_of_the_state_survive_a_step():
    objective = Bigram("bfloat16")
    state = first_state(objective)
    after, _ = compiled_step(objective, 2)(state, make_batch())
    before = {name: x.dtype for name, x in states.named_leaves(state).items()}
    assert {name: x.dtype for name, x in states.named_leaves(after).items()} == before
    assert before["params/output/kernel"] == jnp.bfloat16


def test_the_learning_rate_is_that_of_the_states_step():
    objective = Bigram()
    state = dataclasses.replace(first_state(objective), step=jnp.int32(7))
    after, metrics = compiled_step(objective)(state, make_batch())
    assert float(metrics["learning_rate"][0]) == pytest.approx(float(SCHEDULE(7)), rel=1e-6)
    assert int(after.step) == 8


def test_microbatches_that_do_not_divide_the_batch_are_refused_by_name():
    shapes = Bigram().batch_shapes(6, 16)
    with pytest.raises(ValueError, match="num_microbatches"):
        abstract_batch(shapes, MeshConfig(data=1).build(jax.devices()[:1]), 4)
    with pytest.raises(ValueError, match=r"job\.Job\.batch_size"):
        abstract_batch(shapes, MeshConfig(data=8).build())


def test_a_batch_of_other_arrays_is_refused_by_name():
    mesh = MeshConfig(data=1).build(jax.devices()[:1])
    shapes = abstract_batch(Bigram().batch_shapes(8, 16), mesh)
    batch = make_batch()
    with pytest.raises(ValueError, match="loss_weights"):
        place_batch({k: v for k, v in batch.items() if k != "loss_weights"}, shapes)
    with pytest.raises(ValueError, match=r"int64.*int32"):
        place_batch(batch | {"inputs": batch["inputs"].astype(np.int64)}, shapes)
