"""Parameters, gradients and moments placed independently: the same numbers, lying elsewhere."""

import jax
import numpy as np
import pytest

from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.train import state as states
from t5x_style.train.batch import place_batch
from t5x_style.train.job import Job
from t5x_style.train.schedules import WarmupCosine
from tests.sharding.test_transformer_sharding import CONFIG
from tests.unit.test_train_causal_lm import packed_batch

WHOLE = {"embed": ()}
CUT = {"embed": ("fsdp", "seq")}
PLACEMENTS = {
    "all_cut": {},
    "moments_cut": {"axis_rules": WHOLE, "gradient_rules": WHOLE, "optimizer_rules": CUT},
    "gradients_and_moments_cut": {
        "axis_rules": WHOLE,
        "gradient_rules": CUT,
        "optimizer_rules": CUT,
    },
    "parameters_cut_by_less": {
        "axis_rules": {"embed": ("seq",)},
        "gradient_rules": CUT,
        "optimizer_rules": CUT,
    },
}


def job(mesh, **rules):
    return Job(
        objective=CausalLM(CONFIG),
        schedule=WarmupCosine(peak=1e-3, total_steps=10, warmup_steps=1),
        total_steps=10,
        batch_size=4,
        length=16,
        mesh=MeshConfig(**mesh),
        **rules,
    )


def after_a_step(one):
    held = states.initialise(
        one.objective, one.optimizer.transformation(), one.abstract_state, one.seed
    )
    batch = place_batch(packed_batch(), one.train_batch)
    step = one.compile_train_step()
    return step(held, batch)


@pytest.fixture(scope="module")
def expected():
    state, metrics = after_a_step(job({"data": 1}, devices=jax.devices()[:1]))
    return jax.device_get((state, metrics))


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACEMENTS)
def test_any_placement_gives_what_one_device_gives(name, expected):
    one = job({"data": 1, "fsdp": 2, "seq": 4}, **PLACEMENTS[name])
    state, metrics = after_a_step(one)
    wanted, wanted_metrics = expected
    for key, (numerator, _) in metrics.items():
        np.testing.assert_allclose(numerator, wanted_metrics[key][0], rtol=2e-5, err_msg=key)
    for found, x in zip(jax.tree.leaves(state.params), jax.tree.leaves(wanted.params), strict=True):
        np.testing.assert_allclose(found, x, atol=2e-5)
    kernel, moment = state.params["output"]["kernel"], state.opt_state[0].mu["output"]["kernel"]
    of_params, of_moments = (x.addressable_shards[0].data.shape[0] for x in (kernel, moment))
    parts = {"all_cut": (8, 8), "parameters_cut_by_less": (4, 8)}.get(name, (1, 8))
    assert (32 // of_params, 32 // of_moments) == parts


def test_a_rule_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"optimizer_rules.*: \['embd'\] are no logical axes"):
        _ = job({"data": 8}, optimizer_rules={"embd": ()}).abstract_state
