"""Learning rates at their corners, and phases that divide a plan without gap or overlap."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_style.train.schedules import WarmupCosine, phase_end_step


def test_warmup_rises_linearly_from_the_first_step_to_the_peak():
    schedule = WarmupCosine(peak=1e-3, total_steps=100, warmup_steps=10)
    for step in range(10):
        assert float(schedule(step)) == pytest.approx(1e-3 * (step + 1) / 10, rel=1e-6)


def test_cosine_passes_its_middle_and_ends_at_a_tenth_and_stays_there():
    schedule = WarmupCosine(peak=3e-4, total_steps=110, warmup_steps=10)
    assert float(schedule(10)) == pytest.approx(3e-4, rel=1e-6)
    assert float(schedule(60)) == pytest.approx(3e-4 * 0.55, rel=1e-6)
    assert float(schedule(35)) == pytest.approx(
        3e-4 * (0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2), rel=1e-6
    )
    assert float(schedule(110)) == pytest.approx(3e-5, rel=1e-6)
    assert float(schedule(10_000)) == pytest.approx(3e-5, rel=1e-6)


def test_a_later_phase_can_have_a_schedule_that_begins_at_its_first_step():
    whole_plan = WarmupCosine(peak=3e-4, total_steps=100)
    last_phase = WarmupCosine(peak=3e-5, start_step=99, total_steps=199)
    assert float(last_phase(99)) == pytest.approx(3e-5, rel=1e-6)
    assert float(last_phase(99)) <= float(whole_plan(98))
    assert float(last_phase(199)) == pytest.approx(3e-6, rel=1e-6)


def test_phases_of_the_paper():
    ends = [phase_end_step(580_000, (90, 9, 1), index) for index in range(-1, 3)]
    assert ends == [0, 522_000, 574_200, 580_000]


@given(
    shares=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), spare_steps=st.integers(0, 500)
)
def test_phases_cover_every_step_once_and_none_is_empty(shares, spare_steps):
    total_steps = len(shares) + spare_steps
    ends = [phase_end_step(total_steps, shares, index) for index in range(-1, len(shares))]
    assert ends[0] == 0
    assert ends[-1] == total_steps
    assert all(before < after for before, after in itertools.pairwise(ends))


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        ({"total_steps": 10, "warmup_steps": 10}, "total_steps"),
        ({"total_steps": 10, "start_step": -1}, "start_step"),
        ({"total_steps": 10, "final_fraction": 2.0}, "final_fraction"),
    ],
)
def test_a_schedule_that_makes_no_sense_names_its_setting(arguments, setting):
    with pytest.raises(ValueError, match=setting):
        WarmupCosine(**arguments)


@pytest.mark.parametrize(
    ("arguments", "setting"),
    [
        ((100, (90, 0), 0), "shares"),
        ((100, (90, 10), 2), "index"),
        ((1, (90, 10), 0), "total_steps"),
    ],
)
def test_phases_that_make_no_sense_name_their_setting(arguments, setting):
    with pytest.raises(ValueError, match=setting):
        phase_end_step(*arguments)
