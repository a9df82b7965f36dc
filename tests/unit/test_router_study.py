"""What a study of routers reads of its runs, and what it makes of them."""

import json

import pytest

from t5x_style.evals import router_study
from t5x_style.evals.router_study import Result, as_text, read_result, summed_up
from t5x_style.ops.routers import Dropless, Rectify
from t5x_style.run.router_study import Arm


def write_run(folder, lines):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "metrics.jsonl"


def test_a_run_is_its_last_evaluation_and_its_median_step(tmp_path):
    lines = [
        {"step": 1, "timing/step_secs_p50": 0.5, "eval/docs/loss": 9.0},
        {"step": 2, "timing/step_secs_p50": 0.1},
        {"step": 3, "timing/step_secs_p50": 0.2},
        {"step": 3, "eval/docs/loss": 3.0, "eval/docs/moe/unrouted": 0.25, "eval/other/loss": 1.0},
    ]
    metrics = write_run(tmp_path / "run", lines)
    assert read_result(metrics, "docs") == Result(3.0, 0.2, {"unrouted": 0.25})
    with pytest.raises(ValueError, match=r"not evaluated on 'web'.*router_study.validation"):
        read_result(metrics, "web")


def test_arms_are_compared_seed_by_seed():
    plain = [Result(loss, 0.1, {}) for loss in (3.0, 4.0)]
    loads = [{"load/0/0": 0.5, "load/0/1": x, "load/1/0": x, "load/1/1": 0.0} for x in (0.1, 0.3)]
    better = [
        Result(a.loss - less, 0.2, {"unrouted": 0.5, **load})
        for a, less, load in zip(plain, (0.1, 0.3), loads, strict=True)
    ]
    row = summed_up(better, plain)
    assert row["difference"] == pytest.approx(-0.2)
    # Of the differences, not of losses that lie an order of magnitude further apart.
    assert row["difference_deviation"] == pytest.approx(0.1 * 2**0.5)
    assert row["loss_deviation"] == pytest.approx(0.8 / 2**0.5)
    assert (row["unrouted"], row["num_seeds"]) == (0.5, 2)
    assert row["load"] == [pytest.approx([0.5, 0.2]), pytest.approx([0.2, 0.0])]
    assert row["chosen"] == []
    assert "difference" not in summed_up(better[:1], None)
    text = as_text([{"router": "IR", "capacity_factor": 0.5, **row}])
    assert "−0.2000 ± 0.1414" in text
    assert "50.0%" in text


def test_a_router_without_capacity_is_one_arm():
    assert Arm("a", Dropless()).routers([0.5, 1.0]) == {None: Dropless()}
    found = Arm("b", Rectify(k=2)).routers([0.5, 1.0])
    assert {factor: router.capacity_factor for factor, router in found.items()} == {0.5: 0.5, 1: 1}
    assert all(router.k == 2 for router in found.values())


def test_every_rate_that_is_tabulated_is_a_metric_of_the_routers():
    from t5x_style.evals.report.sections.experts import _SHARES

    assert set(router_study.RATES) <= set(_SHARES)
