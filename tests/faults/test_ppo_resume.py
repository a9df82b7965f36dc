"""PPO that is stopped anywhere ends the same, with no answer drawn twice; guards do as they say."""

import json
import shutil
import signal

import numpy as np
import pytest

from t5x_style.align import rollouts
from t5x_style.align.loop import ACTOR, CRITIC, GUARD_LOG, SAMPLES
from t5x_style.train import checkpoint, faults, run_folder
from tests.faults import ppo_run

pytestmark = [pytest.mark.slow, pytest.mark.exact]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return ppo_run.make(tmp_path_factory.mktemp("ppo"))


@pytest.fixture(scope="module")
def straight(folder):
    ppo_run.run(folder, "straight")
    return ppo_run.end(folder / "straight")


@pytest.fixture
def drawn(monkeypatch):
    """Seeds of the draws that were made."""
    whole, seeds = rollouts.sample, []

    def sample(*args, **kwargs):
        found = whole(*args, **kwargs)
        seeds.append(kwargs["seed"])
        return found

    monkeypatch.setattr(rollouts, "sample", sample)
    return seeds


def broken_off(folder, name, fault, monkeypatch, **arguments):
    with monkeypatch.context() as patch:
        patch.setenv(faults.FAULT_VARIABLE, fault)
        with pytest.raises((RuntimeError, faults.Stopped)):
            ppo_run.run(folder, name, **arguments)
    assert not (folder / name / run_folder.DONE).exists()


def test_a_run_learns_something_and_its_answers_are_of_several_lengths(straight):
    assert [line["step"] for line in straight["metrics"]] == [1, 2, 3, 4, 5, 6]
    assert "actor/loss" not in straight["metrics"][1]
    assert straight["metrics"][-1]["ppo/kl"] > 0
    answers = [
        json.loads(line)
        for text in straight["samples"].values()
        for line in text.split("\n")
        if line
    ]
    assert len(answers) == 6 * ppo_run.ROWS
    assert len({len(answer["tokens"]) for answer in answers}) > 2


def test_stopped_again_and_again_it_goes_on_bit_for_bit(folder, straight, drawn, monkeypatch):
    for fault in (
        "raise@iteration:2",  # in the critic's warm-up, before any answer
        "raise@sampled:2",  # in the warm-up, answers kept
        "raise@save:2",  # between the save and the next iteration
        "term@sampled:4",
        "raise@sampled:5",
        "raise@iteration:6",
    ):
        broken_off(folder, "stopped", fault, monkeypatch)
    ppo_run.run(folder, "stopped")
    assert len(drawn) == len(set(drawn)) == 6
    ppo_run.assert_same(ppo_run.end(folder / "stopped"), straight)


@pytest.mark.campaign
def test_killed_by_the_system_it_goes_on_bit_for_bit(folder, straight):
    for fault in ("kill@sampled:3", "kill@save:4"):
        process = ppo_run.start(folder, fault, name="killed")
        text, _ = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL, text
    ppo_run.run(folder, "killed")
    ppo_run.assert_same(ppo_run.end(folder / "killed"), straight)


@pytest.fixture(scope="module")
def broken_at_five(folder):
    with pytest.MonkeyPatch.context() as patch:
        broken_off(folder, "five", "raise@iteration:5", patch)
    return folder / "five"


def test_a_save_of_the_critic_without_the_actor_s_is_not_used(folder, straight, broken_at_five):
    """As a kill between the two leaves it."""
    shutil.copytree(broken_at_five, folder / "half")
    shutil.rmtree(folder / "half" / ACTOR / run_folder.CHECKPOINTS / "4")
    ppo_run.run(folder, "half")
    ppo_run.assert_same(ppo_run.end(folder / "half"), straight)


def test_a_damaged_checkpoint_is_made_again_and_nothing_is_begun_anew_without_a_word(
    folder, straight, broken_at_five, capsys
):
    shutil.copytree(broken_at_five, folder / "damaged")
    folders = [folder / "damaged" / name / run_folder.CHECKPOINTS for name in (ACTOR, CRITIC)]

    def damage(step):
        record = folders[1] / str(step) / "record" / "metadata"
        record.write_text(record.read_text().replace("1", "2"))

    damage(4)
    ppo_run.run(folder, "damaged")
    assert "iteration 4 is made again" in capsys.readouterr().out
    ppo_run.assert_same(ppo_run.end(folder / "damaged"), straight)
    (folder / "damaged" / run_folder.DONE).unlink()
    for step in (0, 2, 4, 6):
        damage(step)
    with pytest.raises(ValueError, match=r"every checkpoint of .* is damaged"):
        ppo_run.run(folder, "damaged")


def test_a_finished_run_rests_goes_further_if_asked_and_is_not_another_one(
    folder, straight, drawn, capsys
):
    ppo_run.run(folder, "straight")
    assert "finished at iteration 6" in capsys.readouterr().out
    assert not drawn
    with pytest.raises(ValueError, match=r"training\.actor\.schedule\.peak"):
        ppo_run.run(folder, "straight", learning_rate=2e-2)
    ppo_run.run(folder, "short", iterations=4)
    ppo_run.run(folder, "short", iterations=6)
    found, wanted = ppo_run.end(folder / "short"), dict(straight)
    found["done"] = wanted["done"]
    ppo_run.assert_same(found, wanted)


# The mean KL is above it from the first iteration on in which the actor learns, the third.
BROKEN = {"kl_ceiling": -1.0, "patience": 2}


def test_a_guard_stops_a_run_which_stays_stopped(folder, drawn, capsys):
    ppo_run.run(folder, "stops", guards={**BROKEN, "action": "stop"})
    run_dir = folder / "stops"
    note = json.loads((run_dir / GUARD_LOG).read_text())
    assert note["action"] == "stop" and note["iteration"] == 4 and note["broken"]
    assert json.loads((run_dir / run_folder.DONE).read_text())["step"] == 4
    assert checkpoint.committed_steps(run_dir / ACTOR / run_folder.CHECKPOINTS)[-1] == 4
    # As if it had been killed before the mark was written.
    (run_dir / run_folder.DONE).unlink()
    before = len(drawn)
    ppo_run.run(folder, "stops", guards={**BROKEN, "action": "stop"})
    assert json.loads((run_dir / run_folder.DONE).read_text())["step"] == 4
    ppo_run.run(folder, "stops", guards={**BROKEN, "action": "stop"})
    assert "finished at iteration 4" in capsys.readouterr().out
    assert len(drawn) == before
    assert len((run_dir / GUARD_LOG).read_text().splitlines()) == 1


BACK = {**BROKEN, "action": "roll_back", "max_roll_backs": 1, "kl_factor": 3.0}


@pytest.fixture(scope="module")
def rolled_back(folder):
    ppo_run.run(folder, "back", guards=BACK, settings={"kl_target": None})
    return ppo_run.end(folder / "back")


def test_a_guard_takes_a_run_back_with_a_heavier_penalty(folder, rolled_back):
    notes = [json.loads(line) for line in rolled_back["guards"].splitlines()]
    assert [(n["action"], n["attempt"], n["iteration"]) for n in notes] == [
        ("roll_back", 0, 4),
        ("stop", 1, 4),
    ]
    assert notes[0]["to"] == 2
    # Iterations that were undone leave their answers and the log, not their metrics.
    coefficients = [line["ppo/kl_coefficient"] for line in rolled_back["metrics"]]
    assert [line["step"] for line in rolled_back["metrics"]] == [1, 2, 3, 4]
    np.testing.assert_allclose(coefficients, [0.01, 0.01, 0.03, 0.03])
    assert [line["ppo/attempt"] for line in rolled_back["metrics"]] == [0, 0, 1, 1]
    names = list(rolled_back["samples"])
    assert names == [f"0-{n:06d}.jsonl" for n in (1, 2, 3, 4)] + [
        f"1-{n:06d}.jsonl" for n in (3, 4)
    ]
    assert rolled_back["samples"][names[2]] != rolled_back["samples"][names[4]]


def test_after_a_roll_back_models_are_those_of_the_checkpoint(folder, rolled_back, monkeypatch):
    broken_off(
        folder, "at", "raise@iteration:3", monkeypatch, guards=BACK, settings={"kl_target": None}
    )
    saved = {n: ppo_run.job.leaves(folder / "at" / n, 2) for n in (ACTOR, CRITIC)}
    found = {n: ppo_run.job.leaves(folder / "back" / n, 2) for n in (ACTOR, CRITIC)}
    for name in saved:
        for leaf, x in saved[name].items():
            np.testing.assert_array_equal(x, found[name][leaf])


def test_a_run_that_was_taken_back_goes_on_bit_for_bit(folder, rolled_back, drawn, monkeypatch):
    """Stopped before it is taken back, and twice after."""
    whole = faults.FaultInjector.at
    log = folder / "taken" / GUARD_LOG
    # Point, iteration, how often this process comes there, whether it has been taken back by then.
    for *stop, time, is_back in (
        ("sampled", 4, 1, False),
        ("sampled", 3, 2, True),
        ("iteration", 4, 1, True),
    ):
        seen = []

        def at(self, point, iteration, stop=stop, time=time, seen=seen):
            whole(self, point, iteration)
            seen.append([point, iteration])
            if seen[-1] == stop and seen.count(stop) == time:
                raise RuntimeError("stopped here")

        with monkeypatch.context() as patch:
            patch.setattr(faults.FaultInjector, "at", at)
            with pytest.raises(RuntimeError, match="stopped here"):
                ppo_run.run(folder, "taken", guards=BACK, settings={"kl_target": None})
        assert log.exists() == is_back
    ppo_run.run(folder, "taken", guards=BACK, settings={"kl_target": None})
    assert len(drawn) == len(set(drawn)) == 6
    ppo_run.assert_same(ppo_run.end(folder / "taken"), rolled_back)


def test_with_nothing_to_go_back_to_a_run_stops(folder):
    ppo_run.run(
        folder, "nothing", guards=BACK, settings={"kl_target": None}, checkpoint_every=4, keep=1
    )
    notes = [json.loads(line) for line in (folder / "nothing" / GUARD_LOG).read_text().splitlines()]
    assert notes[0]["to"] == 0  # nothing was saved since, so the first is still there
    ppo_run.run(
        folder,
        "pruned",
        guards=BACK | {"patience": 3},
        settings={"kl_target": None},
        checkpoint_every=1,
        keep=1,
    )
    notes = [json.loads(line) for line in (folder / "pruned" / GUARD_LOG).read_text().splitlines()]
    assert [note["action"] for note in notes] == ["stop"]
    assert len(list((folder / "pruned" / SAMPLES).iterdir())) == notes[0]["iteration"] == 5
