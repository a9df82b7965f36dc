"""The cool_rlhf verb: online RLHF in rounds, with a fast and a slow path (arXiv 2403.17297, 4.2.2).

A round trains or patches the reward model, runs PPO against it, samples answers of the SFT model,
of an early and of the late policy to the same prompts, and compares them: flaws that the late
policy found are turned into pairs against them (fast path), and judges say which of two answers is
better (slow path). Both go into the next rounds' reward models. Every part commits a folder of its
own, so a run that was stopped anywhere goes on there, and all that a round was made from can be
read.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_style.align import fast_path, judges, rollouts
from t5x_style.align.fast_path import FastPathSettings
from t5x_style.align.judges import Judge
from t5x_style.align.loop import ACTOR, Quality
from t5x_style.align.prompts import read_prompts
from t5x_style.align.rollouts import RewardJudge, Rollout
from t5x_style.align.signs import answer_signs
from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.data.chat import ChatFormat
from t5x_style.data.domain_prompts import DomainPrompts
from t5x_style.data.vocabulary import Vocabulary
from t5x_style.infer.reward import RewardScorer
from t5x_style.infer.sampler import Sampler
from t5x_style.infer.sampling import Sampling
from t5x_style.train import checkpoint, compile_cache, run_folder

SFT, EARLY, LATE = "sft", "early", "late"
SUMMARY = "summary.json"


@dataclasses.dataclass(frozen=True)
class RoundSettings:
    """How rounds are run.

    Attributes:
      rounds: how many; three in the paper.
      early_iteration: the checkpoint of PPO that is compared with the last one.
      num_prompts: prompts that the policies are compared on.
      max_new_tokens: room for an answer.
      sampling: how the answers are drawn.
      fast_path: what counts as a flaw.
      num_comparisons: pairs that a judge is shown after a round.
      labels_late_by: rounds that a judge's labels come late by; people are slow, and a round takes
        what is there when it begins.
      patch_repeats: times that a pair against a flaw stands in the next reward model's data.
      num_replayed: preferences of the first pool that stand beside them, so that it is not
        forgotten.
      continue_policy: whether PPO goes on from the last round's actor; else it begins anew with the
        SFT model. The paper does not say.
    """

    rounds: int = 3
    early_iteration: int = 50
    num_prompts: int = 256
    max_new_tokens: int = 512
    sampling: Sampling = Sampling(top_p=0.9)  # noqa: RUF009 (frozen)
    fast_path: FastPathSettings = FastPathSettings()  # noqa: RUF009 (frozen)
    num_comparisons: int = 300
    labels_late_by: int = 1
    patch_repeats: int = 4
    num_replayed: int = 1000
    continue_policy: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.labels_late_by < 0 or self.patch_repeats < 1:
            raise ValueError(
                f"cool_rlhf.RoundSettings.rounds = {self.rounds}, labels_late_by = "
                f"{self.labels_late_by}, patch_repeats = {self.patch_repeats}: must be at least "
                "1, 0 and 1"
            )


@dataclasses.dataclass(frozen=True)
class Context:
    """What every part of a round reads.

    Attributes:
      folder: of all rounds.
      settings: see there.
      sft_run, preferences, prompts, vocabulary, domain_prompts: as `cool_rlhf` is given them.
      chat: how conversations become ids.
      seed: of every run and draw.
    """

    folder: Path
    settings: RoundSettings
    sft_run: str
    preferences: str
    prompts: str
    vocabulary: str
    domain_prompts: str | None
    chat: ChatFormat
    seed: int

    def path(self, number: int, name: str) -> str:
        """Returns the folder of a part of a round."""
        return str(self.folder / f"round-{number}" / name)


def cool_rlhf(
    output_dir: str,
    sft_run: str,
    preferences: str,
    prompts: str,
    vocabulary: str,
    train_reward: Callable[..., None],
    train_policy: Callable[..., None],
    *,
    patch_reward: Callable[..., None] | None = None,
    settings: RoundSettings = RoundSettings(),
    domain_prompts: str | None = "prompts/reward",
    judge: Judge | None = None,
    quality: Quality | None = None,
    seed: int = 0,
) -> None:
    """Runs rounds of RLHF.

    Args:
      output_dir: where each round has its folder.
      sft_run: run folder of the SFT model.
      preferences: the first pool, JSON lines as `data.preferences` reads them.
      prompts: what the policies are compared on, JSON lines as `align.prompts` reads them.
      vocabulary: folder of the vocabulary stage, or a `tokenizer.model`.
      train_reward: the train_reward verb with the settings of the first round.
      train_policy: the ppo verb with its settings.
      patch_reward: the train_reward verb with the settings of later rounds, which start from the
        round before; None for `train_reward`.
      settings: see there.
      domain_prompts: folder with the reward model's system prompt for each domain, or None.
      judge: decides comparisons; None: people do, in `to_label.jsonl` of each round's slow path,
        whose lines they put with a verdict into `labelled.jsonl` of the round's folder. What a
        later round takes of them lies in its folder `labels`; remove that to have it read again.
      quality: what an answer is truly worth, where a program can say; for the summary alone.
      seed: of every run and draw.

    Raises:
      ValueError: a setting or a file is not as it should be.
    """
    compile_cache.enable()
    context = Context(
        Path(output_dir),
        settings,
        sft_run,
        preferences,
        prompts,
        vocabulary,
        domain_prompts,
        ChatFormat(Vocabulary.load(vocabulary)),
        seed,
    )
    rounds = []
    for number in range(1, settings.rounds + 1):
        print(f"round {number} of {settings.rounds}", flush=True)
        reward_run = context.path(number, "reward")
        if number == 1:
            train_reward(
                preferences=preferences,
                run_dir=reward_run,
                output_dir=context.path(number, "reward_measures"),
                initial_run_dir=sft_run,
                seed=100 * seed,
            )
        else:
            (patch_reward or train_reward)(
                preferences=_pool(context, number),
                run_dir=reward_run,
                output_dir=context.path(number, "reward_measures"),
                initial_run_dir=context.path(number - 1, "reward"),
                keep_head=True,
                seed=100 * seed + number,
            )
        policy_run = context.path(number, "policy")
        start = sft_run
        if settings.continue_policy and number > 1:
            start = f"{context.path(number - 1, 'policy')}/{ACTOR}"
        train_policy(
            run_dir=policy_run, sft_run=start, reward_run=reward_run, seed=100 * seed + number
        )
        answers = _answers(context, number)
        _take_fast_path(context, number, answers)
        _take_slow_path(context, number, answers, judge)
        rounds.append(_about(context, number, answers, quality))
        run_folder.write_json(context.folder / SUMMARY, {"rounds": rounds})
        shown = {k: v for k, v in rounds[-1].items() if not isinstance(v, list | dict)}
        print(f"round {number}: {json.dumps(shown)}", flush=True)


def _reward_judge(context: Context, number: int) -> RewardJudge:
    config, params = checkpoint.load_model(context.path(number, "reward"))
    scorer = RewardScorer(config, params, context.chat.reward_id)
    folder = context.domain_prompts
    return RewardJudge(scorer, context.chat, None if folder is None else DomainPrompts.load(folder))


def _policies(context: Context, number: int) -> dict[str, tuple[str, int]]:
    """Returns the run folder and the step of each policy that is compared."""
    actor = f"{context.path(number, 'policy')}/{ACTOR}"
    steps = checkpoint.committed_steps(f"{actor}/{run_folder.CHECKPOINTS}")
    wanted = context.settings.early_iteration
    early = min(steps, key=lambda step: abs(step - wanted))
    sft_steps = checkpoint.committed_steps(f"{context.sft_run}/{run_folder.CHECKPOINTS}")
    return {SFT: (context.sft_run, sft_steps[-1]), EARLY: (actor, early), LATE: (actor, steps[-1])}


def _answers(context: Context, number: int) -> dict[str, list[Rollout]]:
    """Returns what each policy answers to the same prompts, scored by the round's reward model."""
    settings = context.settings
    policies = _policies(context, number)
    artifact = Artifact(
        context.path(number, "answers"),
        stage="cool_rlhf_answers",
        settings={
            "policies": {name: step for name, (_, step) in policies.items()},
            "num_prompts": settings.num_prompts,
            "max_new_tokens": settings.max_new_tokens,
            "sampling": settings.sampling,
            "seed": context.seed,
        },
        inputs={
            "prompts": context.prompts,
            "reward": f"{context.path(number, 'reward')}/{run_folder.DONE}",
            "policy": f"{context.path(number, 'policy')}/{run_folder.DONE}",
        },
    )
    if not artifact.is_current():
        judge = _reward_judge(context, number)
        asked = read_prompts(context.prompts)[: settings.num_prompts]
        with artifact.write() as writer:
            for name, (run_dir, step) in policies.items():
                config, params = checkpoint.load_model(run_dir, step)
                found = rollouts.sample(
                    Sampler(config, params),
                    context.chat,
                    asked,
                    max_new_tokens=settings.max_new_tokens,
                    sampling=settings.sampling,
                    seed=100 * context.seed + number,
                )
                scores = judge.scores((rollout.prompt, rollout.answer) for rollout in found)
                scored = (
                    dataclasses.replace(rollout, score=float(score))
                    for rollout, score in zip(found, scores, strict=True)
                )
                rollouts.save(writer.folder / f"{name}.jsonl", scored)
                writer.counts[name] = len(found)
    folder = Path(context.path(number, "answers"))
    return {name: rollouts.load(folder / f"{name}.jsonl", context.chat) for name in policies}


def _take_fast_path(
    context: Context, number: int, answers: Mapping[str, Sequence[Rollout]]
) -> None:
    """Writes findings.json, and against each flaw pairs into pairs.jsonl."""
    settings = context.settings.fast_path
    artifact = Artifact(
        context.path(number, "fast_path"),
        stage="cool_rlhf_fast_path",
        settings={"fast_path": settings},
        inputs={"answers": context.path(number, "answers")},
    )
    if artifact.is_current():
        return
    before, late = answers[SFT], answers[LATE]  # an early policy may have found the flaw already
    found = fast_path.find_flaws(before, late, _reward_judge(context, number), settings)
    pairs = fast_path.contrasting_pairs(found.flaws, before, late, settings)
    with artifact.write() as writer:
        flaws = [
            {
                "kind": flaw.kind,
                "phrase": " ".join(flaw.phrase),
                "evidence": flaw.evidence,
                "pairs": len(of_flaw),
            }
            for flaw, of_flaw in zip(found.flaws, pairs, strict=True)
        ]
        run_folder.write_json(
            writer.folder / "findings.json", {"flaws": flaws, "notes": found.notes}
        )
        _write_lines(writer.folder / "pairs.jsonl", [pair for some in pairs for pair in some])
        writer.counts.update(flaws=len(flaws), pairs=sum(map(len, pairs)))
    print(f"fast path: {json.dumps(flaws)}", flush=True)


def _take_slow_path(
    context: Context,
    number: int,
    answers: Mapping[str, Sequence[Rollout]],
    judge: Judge | None,
) -> None:
    """Writes what a judge says of pairs of answers, or what people are to say it of."""
    artifact = Artifact(
        context.path(number, "slow_path"),
        stage="cool_rlhf_slow_path",
        settings={"num_comparisons": context.settings.num_comparisons, "judge": repr(judge)},
        inputs={"answers": context.path(number, "answers")},
    )
    if artifact.is_current():
        return
    found = judges.comparisons(answers, context.settings.num_comparisons)
    with artifact.write() as writer:
        judges.write_for_people(writer.folder / judges.TO_LABEL, found)
        if judge is not None:
            _write_lines(writer.folder / "pairs.jsonl", judges.judged(found, judge))
        writer.counts["comparisons"] = len(found)


def _labels(context: Context, number: int) -> str:
    """Returns the file of the labels that a round takes: those known when it first asks.

    People go on labelling. A round that is stopped and begun again must not see more than before.
    """
    late_by = context.settings.labels_late_by
    labelled = [n for n in range(1, number) if n + late_by < number]
    artifact = Artifact(
        context.path(number, "labels"),
        stage="cool_rlhf_labels",
        settings={"rounds": labelled},
        inputs={"slow_paths": [context.path(n, "slow_path") for n in labelled]},
    )
    if not artifact.is_current():
        known = [record for n in labelled for record in _known_labels(context, n)]
        with artifact.write() as writer:
            _write_lines(writer.folder / "pairs.jsonl", known)
            writer.counts["labels"] = len(known)
    return f"{context.path(number, 'labels')}/pairs.jsonl"


def _known_labels(context: Context, number: int) -> list[dict[str, Any]]:
    """Returns the preferences of a round's slow path that are known by now."""
    folder = Path(context.path(number, "slow_path"))
    if (folder / "pairs.jsonl").is_file():
        return _read_lines(folder / "pairs.jsonl")
    verdicts = judges.FileJudge(context.folder / f"round-{number}" / judges.LABELLED)
    found = judges.comparisons(_answers(context, number), context.settings.num_comparisons)
    return judges.judged(found, verdicts)


def _pool(context: Context, number: int) -> str:
    """Writes the preferences that a later round's reward model learns from; returns the file."""
    settings = context.settings
    patches = [f"{context.path(n, 'fast_path')}/pairs.jsonl" for n in range(1, number)]
    labels = _labels(context, number)
    artifact = Artifact(
        context.path(number, "pool"),
        stage="cool_rlhf_pool",
        settings={
            "patch_repeats": settings.patch_repeats,
            "num_replayed": settings.num_replayed,
            "seed": context.seed,
        },
        inputs={"preferences": context.preferences, "labels": labels, "patches": patches},
    )
    if not artifact.is_current():
        base = _read_lines(Path(context.preferences))
        rng = np.random.default_rng((context.seed, number))
        chosen = rng.permutation(len(base))[: settings.num_replayed]
        records = [base[place] for place in sorted(chosen)]
        labelled = _read_lines(Path(labels))
        against = [record for path in patches for record in _read_lines(Path(path))]
        with artifact.write() as writer:
            _write_lines(
                writer.folder / "preferences.jsonl",
                [*records, *labelled, *(against * settings.patch_repeats)],
            )
            writer.counts.update(
                replayed=len(records), labelled=len(labelled), against_flaws=len(against)
            )
    return f"{context.path(number, 'pool')}/preferences.jsonl"


def _about(
    context: Context,
    number: int,
    answers: Mapping[str, Sequence[Rollout]],
    quality: Quality | None,
) -> dict[str, Any]:
    """Returns, as JSON values, what a round came to."""
    findings = run_folder.read_json(f"{context.path(number, 'fast_path')}/findings.json")
    about: dict[str, Any] = {"round": number, "flaws": findings["flaws"]}
    for name, found in answers.items():
        about[f"score_{name}"] = float(np.mean([rollout.score for rollout in found]))
        about |= {f"{sign}_{name}": value for sign, value in answer_signs(found).items()}
        if quality is not None:
            worth = [quality(r.prompt.domain, r.prompt.turns, r.text) for r in found]
            about[f"quality_{name}"] = float(np.mean(worth))
    return about


def _write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    run_folder.write_text(path, "".join(f"{line}\n" for line in lines))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


if __name__ == "__main__":
    cli.main("t5x_style.run.cool_rlhf.cool_rlhf")
