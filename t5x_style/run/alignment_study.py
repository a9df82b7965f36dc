"""The alignment study verb: rounds of RLHF seed by seed, beside what each part of it is worth.

For a seed: the rounds; an unconditional reward model of the same preferences; and PPO against the
second round's reward model again, once with the critic begun as the SFT model, once without the
loss on pre-training text. One table over all seeds.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.evals.alignment_study import as_text, curves_of, summary
from t5x_style.evals.preferences import MEASURES
from t5x_style.evals.studies import STUDY
from t5x_style.run.cool_rlhf import SUMMARY
from t5x_style.train import compile_cache, run_folder

PATCHED = 2  # the first round whose reward model has been patched


def alignment_study(
    output_dir: str,
    sft_run: str,
    preferences: str,
    rounds: Callable[..., None],
    train_reward: Callable[..., None],
    train_policy: Callable[..., None],
    train_policy_without_text: Callable[..., None],
    *,
    seeds: Sequence[int] = (0, 1, 2),
) -> None:
    """Runs the study and writes `table/study.json`.

    Args:
      output_dir: folder of the study; each seed has one in it.
      sft_run: run folder of the SFT model.
      preferences: what the reward models learn from, JSON lines.
      rounds: the cool_rlhf verb with its settings; at least two rounds.
      train_reward: the train_reward verb with the settings of the first round.
      train_policy: the ppo verb as the rounds have it.
      train_policy_without_text: the same with a pre-training coefficient of 0.
      seeds: of everything but the SFT model.

    Raises:
      ValueError: a setting or a file is not as it should be.
    """
    compile_cache.enable()
    root = Path(output_dir)
    results = []
    for seed in seeds:
        folder = root / f"seed-{seed}"
        print(f"alignment study: seed {seed}", flush=True)
        rounds(output_dir=f"{folder}/rounds", sft_run=sft_run, preferences=preferences, seed=seed)
        train_reward(
            preferences=preferences,
            run_dir=f"{folder}/unconditional",
            output_dir=f"{folder}/unconditional_measures",
            initial_run_dir=sft_run,
            prompts=None,
            seed=100 * seed,
        )
        patched = f"{folder}/rounds/round-{PATCHED}"
        again: Mapping[str, Any] = {
            "sft_run": sft_run,
            "reward_run": f"{patched}/reward",
            "seed": 100 * seed + PATCHED,
        }
        train_policy(run_dir=f"{folder}/critic_from_sft", critic_from_reward=False, **again)
        train_policy_without_text(run_dir=f"{folder}/without_text", pretrain=(), **again)
        results.append(_result(folder))
    artifact = Artifact(
        root / "table",
        stage="alignment_study",
        settings={"seeds": list(seeds), "results": results},
        inputs={},
    )
    if not artifact.is_current():
        with artifact.write() as writer:
            contents = summary(results)
            run_folder.write_json(writer.folder / STUDY, contents)
            writer.counts["seeds"] = len(seeds)
    print(as_text(json.loads((artifact.folder / STUDY).read_text())))


def _result(folder: Path) -> dict[str, Any]:
    """Returns what a seed came to, as JSON values."""
    read = run_folder.read_json
    rounds = read(f"{folder}/rounds/{SUMMARY}")["rounds"]
    policies = {
        f"round-{n}": f"{folder}/rounds/round-{n}/policy" for n in range(1, len(rounds) + 1)
    }
    return {
        "conditional": read(f"{folder}/rounds/round-1/reward_measures/{MEASURES}"),
        "unconditional": read(f"{folder}/unconditional_measures/{MEASURES}"),
        "rounds": rounds,
        "curves": {
            name: curves_of(_lines(Path(run_dir) / run_folder.METRICS))
            for name, run_dir in {
                **policies,
                "critic_from_sft": f"{folder}/critic_from_sft",
                "without_text": f"{folder}/without_text",
            }.items()
        },
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    cli.main("t5x_style.run.alignment_study.alignment_study")
