"""What routers count, and slots, by hand."""

import jax.numpy as jnp
import numpy as np

from t5x_style.ops import routers, routing
from tests.numerics.test_ops_routing import NUM_EXPERTS, NUM_TOKENS, padded, run


def test_metrics_by_hand():
    first = [0, 0, 0, 0, 1]
    logits, is_real = padded(np.eye(NUM_EXPERTS)[first] * [[6], [5], [4], [3], [3]])
    router = routers.Rectify(k=1, capacity_factor=0.4, fill_in=False)
    assert router.capacity(NUM_TOKENS, NUM_EXPERTS) == 2
    routes = run(router, logits, is_real)
    expected = {
        "overflow_choice_1": (2, 5),
        "unrouted": (2, 5),
        "served": (5, 5),
        "intra_rank_served": (2, 5),
        "fill_in_served": (0, 5),
        "slots_filled": (3, 16),
    }
    assert {name: tuple(map(float, pair)) for name, pair in routes.metrics.items()} == expected
    np.testing.assert_array_equal(routes.chosen_E, [4, 1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(routes.load_E, [2, 1, 0, 0, 0, 0, 0, 0])


def test_spread_is_of_first_choices_by_hand():
    chosen = jnp.array([7.0, 0, 0, 9, 1, 1, 1, 1, 0, 0])
    expected = {"dead_experts": (4, 10), "busiest_share": (16, 20), "idlest_share": (0, 20)}
    spread = routing.spread(chosen)
    assert {name: tuple(map(float, pair)) for name, pair in spread.items()} == expected
    assert float(routing.spread(jnp.zeros(10))["dead_experts"][0]) == 0


def test_take_slots_by_hand():
    bins = jnp.array([[0, 1], [0, 1], [1, 0], [0, 1]])
    priority = jnp.array([[1.0, 9.0], [2.0, 1.0], [0.0, 0.0], [9.0, 9.0]])
    is_real = jnp.array([True, True, True, False])
    slot = routing.take_slots(bins, priority, is_real, num_bins=2, capacity=2)
    # Bin 0: token 1, token 0, then no room for the second choice of 2. Bin 1: token 2 chose it
    # first, of the second choices token 0 is ahead.
    np.testing.assert_array_equal(slot, [[1, 1], [0, 2], [0, 2], [2, 2]])
