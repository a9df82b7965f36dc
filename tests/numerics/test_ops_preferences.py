"""The losses of a reward model against exact values, and the variants against what they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.ops.preferences import PreferenceLoss, focal_ranking_loss, log_barrier

# difference: (loss, slope), computed with 45 digits from the formulas; P is below one half, above
# it, and nearly 1.
FOCAL = {
    -8.0: (8.000335406372896, -0.9996646498695335),
    -2.0: (2.1269280110429725, -0.8807970779778824),
    -1.0: (1.3132616875182228, -0.7310585786300049),
    0.5: (0.27029396207001454, -0.5517479894036577),
    1.0: (0.09063223003386933, -0.21032451991024248),
    2.0: (0.007214251340961502, -0.019483760781571066),
    3.0: (0.0004371332979879901, -0.0012594873859531252),
    5.0: (1.203236090107239e-06, -3.589571064277493e-06),
}
# score: (barrier, slope), up to near the bounds.
BARRIER = {
    0.0: (-3.2188758248682007, 0.0),
    1.0: (-3.1780538303479456, 0.08333333333333333),
    -3.0: (-2.772588722239781, -0.375),
    4.0: (-2.1972245773362194, 0.8888888888888888),
    4.9: (0.01005033585350144, 9.898989898989899),
    -4.998: (3.912223025430813, -499.8999799959992),
}


def exact_focal(difference, gamma=2.0):
    p = 1 / (1 + np.exp(-difference))
    return -((1 - 2 * np.maximum(0, p - 0.5)) ** gamma) * np.log(p)


def slope_of(function, at, width=1e-6):
    return (function(at + width) - function(at - width)) / (2 * width)


@pytest.mark.parametrize("difference", FOCAL)
def test_the_ranking_loss_and_its_slope_by_golden_values(difference):
    wanted = FOCAL[difference]
    with jax.enable_x64(True):
        found = jax.value_and_grad(focal_ranking_loss)(jnp.float64(difference))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    narrow = jax.value_and_grad(focal_ranking_loss)(jnp.float32(difference))
    np.testing.assert_allclose(narrow, wanted, rtol=1e-5)
    assert exact_focal(difference) == pytest.approx(wanted[0], rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
def test_any_gamma_has_the_loss_of_the_formula_and_a_finite_slope(gamma):
    differences = np.array([-3.0, -0.3, 0.4, 1.7, 6.0])
    with jax.enable_x64(True):

        def loss(x):
            return focal_ranking_loss(x, gamma=gamma)

        np.testing.assert_allclose(loss(differences), exact_focal(differences, gamma), rtol=1e-9)
        slopes = jax.vmap(jax.grad(loss))(jnp.asarray(differences))
    wanted = slope_of(lambda x: exact_focal(x, gamma), differences)
    np.testing.assert_allclose(slopes, wanted, rtol=1e-6, atol=1e-10)
    far = jnp.array([-500.0, -90.0, 90.0, 500.0], jnp.float32)
    values, slopes = jax.vmap(jax.value_and_grad(loss))(far)
    np.testing.assert_allclose(values, [500, 90, 0, 0], atol=1e-6)
    np.testing.assert_allclose(slopes, [-1, -1, 0, 0], atol=1e-6)


def test_a_detached_weight_leaves_the_slope_of_the_plain_loss_times_the_weight():
    for difference in (-1.3, 0.7, 2.5):
        p = 1 / (1 + np.exp(-difference))
        weight = min(1.0, 2 * (1 - p)) ** 2
        slope = jax.grad(lambda x: focal_ranking_loss(x, detached_weight=True))(difference)
        assert slope == pytest.approx(-weight * (1 - p), rel=1e-5)
        value = focal_ranking_loss(jnp.float32(difference), detached_weight=True)
        assert value == pytest.approx(exact_focal(difference), rel=1e-5)


@pytest.mark.parametrize("outside", ["tangent", "clamp", "undefined"])
@pytest.mark.parametrize("score", BARRIER)
def test_inside_the_bounds_every_barrier_is_the_papers(score, outside):
    with jax.enable_x64(True):
        found = jax.value_and_grad(lambda x: log_barrier(x, outside=outside))(jnp.float64(score))
    np.testing.assert_allclose(found, BARRIER[score], rtol=1e-9, atol=1e-12)
    narrow = jax.value_and_grad(lambda x: log_barrier(x, outside=outside))(jnp.float32(score))
    np.testing.assert_allclose(narrow, BARRIER[score], rtol=2e-3 if abs(score) > 4.95 else 1e-4)


def test_outside_the_bounds_only_the_tangent_pulls_back():
    edge = 4.999
    value = -(np.log(5 + edge) + np.log(5 - edge))
    slope = 1 / (5 - edge) - 1 / (5 + edge)
    assert (value, slope) == pytest.approx((4.605270190988425, 999.8999899989999), rel=1e-11)
    for score in (4.9995, 5.0, 5.5, 40.0):
        for sign in (1, -1):
            with jax.enable_x64(True):
                x = jnp.float64(sign * score)
                tangent = jax.value_and_grad(log_barrier)(x)
                clamp = jax.value_and_grad(lambda x: log_barrier(x, outside="clamp"))(x)
                formula = jax.grad(lambda x: log_barrier(x, outside="undefined"))(x)
            wanted = value + slope * (score - edge), sign * slope
            np.testing.assert_allclose(tangent, wanted, rtol=1e-9)
            np.testing.assert_allclose(clamp, (value, 0.0), rtol=1e-9)
            if score > 5:
                # Beyond the bound the formula alone would push scores further away.
                assert sign * float(formula) < 0


def test_a_pair_is_ranking_loss_and_weighed_barrier():
    chosen, rejected = np.array([1.5, -4.0]), np.array([0.25, 4.9])
    barriers = np.array([[-np.log(25 - x * x) for x in of] for of in (chosen, rejected)])
    ranking = exact_focal(chosen - rejected)
    as_written = PreferenceLoss()
    as_released = PreferenceLoss(penalty_weight=0.01, penalty_of="sum", outside="clamp")
    with jax.enable_x64(True):
        for settings, barrier in ((as_written, barriers.mean(0)), (as_released, barriers.sum(0))):
            loss, first, second = settings.of_pairs(jnp.asarray(chosen), jnp.asarray(rejected))
            np.testing.assert_allclose(first, ranking, rtol=1e-9)
            np.testing.assert_allclose(second, barrier, rtol=1e-9)
            np.testing.assert_allclose(loss, ranking + 0.02 * barriers.mean(0), rtol=1e-9)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"outside": "bounce"}, "outside = 'bounce'"),
        ({"penalty_of": "max"}, "penalty_of = 'max'"),
        ({"gamma": -1.0}, "gamma = -1.0"),
        ({"margin": 6.0}, "margin = 6.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        PreferenceLoss(**settings)
