"""The abstract state: shardings before arrays, moments beside their parameters, any mesh alike."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from t5x_style.parallel.mesh import MeshConfig
from t5x_style.train import state as states
from t5x_style.train.optimizers import AdamW
from tests.unit.train_toy import Bigram

TRANSFORMATION = AdamW().transformation()


def abstract_on(**axes):
    return states.abstract_state(Bigram(), TRANSFORMATION, MeshConfig(**axes).build())


def test_moments_lie_as_their_parameters_and_counts_everywhere():
    leaves = states.named_leaves(abstract_on(fsdp=4, tensor=2))
    params = [name for name in leaves if name.startswith("params/")]
    assert len(params) == 2
    for name in params:
        for moment in ("mu", "nu"):
            leaf = leaves[name.replace("params/", f"opt_state/0/{moment}/")]
            assert leaf.sharding == leaves[name].sharding
            assert leaf.shape == leaves[name].shape
    assert leaves["params/output/kernel"].sharding.spec == P("fsdp", "tensor")
    assert leaves["step"].sharding.is_fully_replicated


def test_fresh_values_are_the_same_on_any_mesh():
    found = {}
    for axes in ({"fsdp": 4, "tensor": 2}, {"data": 8}):
        abstract = abstract_on(**axes)
        state = states.initialise(Bigram(), TRANSFORMATION, abstract, seed=3)
        for name, leaf in states.named_leaves(state).items():
            assert leaf.sharding == states.named_leaves(abstract)[name].sharding
            # The same random bits; the normal distribution's last bit may follow the shapes.
            np.testing.assert_allclose(leaf, found.setdefault(name, np.asarray(leaf)), rtol=1e-6)
    assert np.std(found["params/output/kernel"]) > 0


def test_a_state_from_given_params_starts_at_step_zero_with_a_fresh_optimizer():
    abstract = abstract_on(data=8)
    first = states.initialise(Bigram(), TRANSFORMATION, abstract, seed=3)
    second = states.with_params(first.params, TRANSFORMATION, abstract)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_mesh_that_does_not_fit_is_refused_with_its_axis():
    five = MeshConfig(tensor=5).build(jax.devices()[:5])
    with pytest.raises(ValueError, match=r"vocab.*48.*tensor"):
        states.abstract_state(Bigram(), TRANSFORMATION, five)


def test_leaves_are_replaced_by_name():
    tree = {"a": {"b": 1}, "c": [2, 3]}
    assert states.named_leaves(tree) == {"a/b": 1, "c/0": 2, "c/1": 3}
    assert states.replace_leaves(tree, {"a/b": 4, "c/0": 5, "c/1": 6}) == {
        "a": {"b": 4},
        "c": [5, 6],
    }
