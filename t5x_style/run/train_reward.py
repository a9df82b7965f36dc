"""The train reward verb: preferences and a trained model to a reward model, and how good it is.

Training is that of any other model, in a run folder that it resumes in; beside it a folder of
measures on prompts that were not trained on, with and without the prompts of the domains, which are
kept there too. The run folder is what PPO and `hf_export` read. One process, with all its devices.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.corpus.labelled_texts import listed
from t5x_style.data.chat import ChatFormat
from t5x_style.data.domain_prompts import DEFAULT, DomainPrompts
from t5x_style.data.preference_batches import BatchShape, PreferenceBatches
from t5x_style.data.preferences import (
    EncodedPreferences,
    Preference,
    divided,
    encoded,
    read_preferences,
)
from t5x_style.data.vocabulary import Vocabulary
from t5x_style.evals.preferences import MEASURES, as_lines, preference_measures
from t5x_style.infer.reward import RewardScorer
from t5x_style.objectives.reward import Reward
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.run.train import fit_in_folder
from t5x_style.train import checkpoint, compile_cache, faults, run_folder
from t5x_style.train.initial_part import InitialPart
from t5x_style.train.job import Job, LoopSettings
from t5x_style.train.optimizers import AdamW
from t5x_style.train.schedules import WarmupCosine

PROMPTS = "prompts"


@dataclasses.dataclass(frozen=True)
class RewardSettings:
    """How a reward model is learnt; by default as in arXiv 2403.17297, section 4.2.1.

    Attributes:
      epochs: times that every prompt is seen.
      length_tokens: tokens in a row, which no response with its prompt may exceed; nor may it
        exceed config.TransformerConfig.trained_length.
      batch_tokens: tokens of a batch, see `data.preference_batches.BatchShape`.
      peak_learning_rate: where the cosine begins, after the warm-up.
      final_fraction: where it ends, as a fraction of that.
      warmup_share: of the steps; the paper names none.
      prompts_alike: whether each prompt weighs the same, however many responses it has; else each
        comparison does.
      optimizer: which direction a gradient means.
      seed: of the head's first values and of the order of the prompts.
    """

    epochs: int = 1
    length_tokens: int = 8192
    batch_tokens: int = 16384
    peak_learning_rate: float = 1e-5
    final_fraction: float = 0.5
    warmup_share: float = 0.0
    prompts_alike: bool = False
    optimizer: AdamW = AdamW(weight_decay=0.01)  # noqa: RUF009 (frozen)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or not 0 <= self.warmup_share < 1:
            raise ValueError(
                f"train_reward.RewardSettings.epochs = {self.epochs}, warmup_share = "
                f"{self.warmup_share}: take at least 1 epoch, and a share from 0 to below 1"
            )


def train_reward(
    preferences: str | Sequence[str],
    run_dir: str,
    output_dir: str,
    objective: Reward,
    vocabulary: str,
    settings: RewardSettings | None = None,
    *,
    initial_run_dir: str | None = None,
    initial_step: int | None = None,
    keep_head: bool = False,
    prompts: str | None = DEFAULT,
    test_preferences: str | Sequence[str] = (),
    held_out_share: float = 0.05,
    scoring_batch_tokens: int = 16384,
    seed: int | None = None,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008 (frozen)
    loop_settings: LoopSettings = LoopSettings(),  # noqa: B008 (frozen)
) -> None:
    """Trains a reward model and writes its measures on prompts that it has not seen.

    Args:
      preferences: files of JSON lines, see `data.preferences`.
      run_dir: folder of the training run: checkpoints and metrics.
      output_dir: where the measures and the prompts go.
      objective: the loss and its model.
      vocabulary: a `tokenizer.model`, or the folder of one.
      settings: how it is learnt.
      initial_run_dir: the run to start from, of the SFT model; None for fresh weights.
      initial_step: which of its checkpoints; None for the newest.
      keep_head: whether the initial run is a reward model that goes on learning, head and all.
      prompts: folder with DOMAIN.txt for each domain; None for a model that sees none.
      test_preferences: files to measure on; none: a share of the preferences, by hash of the
        prompt.
      held_out_share: that share.
      scoring_batch_tokens: tokens of a batch on each device in measuring.
      seed: in place of that of the settings.
      mesh: how the devices are laid out.
      loop_settings: how the training is carried out.

    Raises:
      ValueError: a file is not there or not as it should be, a domain has no prompt, or the model
        is none for the vocabulary or for the initial run.
    """
    settings = settings or RewardSettings()
    if seed is not None:
        settings = dataclasses.replace(settings, seed=seed)
    initial_run = None
    if initial_run_dir is not None:
        run_folder.check_same_model(initial_run_dir, objective.model)
        initial_run = InitialPart(
            initial_run_dir,
            step=initial_step,
            objective=objective,
            seed=settings.seed,
            keep_head=keep_head,
        )
    texts = None if prompts is None else DomainPrompts.load(prompts)
    paths, test_paths = listed(preferences), listed(test_preferences)
    artifact = Artifact(
        output_dir,
        stage="train_reward",
        settings={
            "objective": objective,
            "reward": settings,
            "prompts": texts and dict(texts),
            "held_out_share": None if test_paths else held_out_share,
            "initial_run": initial_run and initial_run.identity() | {"keep_head": keep_head},
        },
        inputs={"preferences": paths, "test_preferences": test_paths, "vocabulary": [vocabulary]},
    )
    if artifact.is_current():
        print(f"train_reward: {output_dir} is there already")
        return
    compile_cache.enable()
    chat_format = _chat_format(vocabulary, objective)
    known, test = _known_and_test(paths, test_paths, held_out_share, texts)
    # Rows may be longer than what the model was trained for; a response may not, as none that is
    # could be scored afterwards.
    limit = min(settings.length_tokens, objective.model.trained_length)
    learnt, held_out = (
        encoded(part, chat_format, prompts=texts, max_tokens=limit) for part in (known, test)
    )
    batches, held_out_batches = _batches(learnt, held_out, objective, settings)
    job = _job(objective, settings, batches, mesh, loop_settings)
    with faults.ending_the_job_on_error():
        evaluations = {"held_out": held_out_batches.one_pass}
        fit_in_folder(run_dir, job, batches, evaluations, initial_run=initial_run)

    whole = NamedSharding(job.device_mesh, PartitionSpec())
    _, params = checkpoint.load_model(run_dir, job.total_steps, sharding=whole)
    scorer = RewardScorer(
        objective.model,
        params,
        chat_format.reward_id,
        batch_tokens=scoring_batch_tokens,
        mesh=job.device_mesh,
    )
    # The same prompts as with them, so that the two can be compared.
    plain = encoded(test, chat_format, max_tokens=None if texts is None else limit)
    by_name = {"without_prompts": plain if texts is not None else held_out}
    if texts is not None:
        by_name = {"with_prompts": held_out, **by_name}
    measures = {
        "num_prompts": len(held_out),
        "num_responses": len(held_out.ranks),
        "steps": job.total_steps,
        "dropped": {"in_training": batches.dropped, "held_out": held_out.dropped},
        "scored": {name: _measured(scorer, part, objective) for name, part in by_name.items()},
    }
    with artifact.write() as writer:
        (writer.folder / MEASURES).write_text(json.dumps(measures, indent=1) + "\n")
        for domain, text in (texts or {}).items():
            folder = writer.folder / PROMPTS
            folder.mkdir(exist_ok=True)
            (folder / f"{domain}.txt").write_text(text + "\n", encoding="utf-8")
        writer.counts.update(prompts=len(learnt), held_out=len(held_out), steps=job.total_steps)
    print(f"train_reward: {len(learnt):,} prompts, measured on {len(held_out):,} others")
    print("\n".join(as_lines(measures)))


def _measured(
    scorer: RewardScorer, preferences: EncodedPreferences, objective: Reward
) -> dict[str, Any]:
    rows = [preferences.ids(response).tolist() for response in range(len(preferences.ranks))]
    bound = objective.preference_loss.bound
    return preference_measures(scorer.scores(rows), preferences, bound=bound)


def _chat_format(vocabulary: str, objective: Reward) -> ChatFormat:
    words = Vocabulary.load(vocabulary)
    if words.vocab_size != objective.model.vocab_size:
        raise ValueError(
            f"{vocabulary} has {words.vocab_size} ids and the model {objective.model.vocab_size}: "
            "set train_reward.train_reward.vocabulary to that of the model"
        )
    return ChatFormat(words)


def _known_and_test(
    paths: Sequence[str], test_paths: Sequence[str], share: float, prompts: DomainPrompts | None
) -> tuple[list[Preference], list[Preference]]:
    verb = "train_reward.train_reward"
    known = read_preferences(paths, setting=f"{verb}.preferences", prompts=prompts)
    if test_paths:
        setting = f"{verb}.test_preferences"
        return known, read_preferences(test_paths, setting=setting, prompts=prompts)
    return divided(known, share)


def _batches(
    learnt: EncodedPreferences,
    held_out: EncodedPreferences,
    objective: Reward,
    settings: RewardSettings,
) -> tuple[PreferenceBatches, PreferenceBatches]:
    if not len(learnt) or not len(held_out):
        raise ValueError(
            f"{len(learnt)} prompts to train on and {len(held_out)} to measure on whose responses "
            "can be compared: give more in train_reward.train_reward.preferences, others in "
            "train_reward.train_reward.test_preferences, or set train_reward.RewardSettings."
            "length_tokens and config.TransformerConfig.trained_length to more (left out: "
            f"{learnt.dropped} and {held_out.dropped})"
        )
    shape = BatchShape(settings.length_tokens, settings.batch_tokens, objective.pairs_per_row)
    alike = settings.prompts_alike
    return (
        PreferenceBatches(learnt, shape, settings.seed, prompts_alike=alike),
        PreferenceBatches(held_out, shape, settings.seed, prompts_alike=alike),
    )


def _job(
    objective: Reward,
    settings: RewardSettings,
    batches: PreferenceBatches,
    mesh: MeshConfig,
    loop_settings: LoopSettings,
) -> Job:
    if loop_settings.num_microbatches != 1:
        raise ValueError(
            f"job.LoopSettings.num_microbatches = {loop_settings.num_microbatches}: the responses "
            "of a prompt are compared across the rows of a batch, so it is taken in one part; set "
            "it to 1, and train_reward.RewardSettings.batch_tokens to less if memory lacks"
        )
    model = objective.model
    if model.dynamic_ntk_factor is not None and settings.length_tokens > model.trained_length:
        raise ValueError(
            f"train_reward.RewardSettings.length_tokens = {settings.length_tokens} is more than "
            f"config.TransformerConfig.trained_length = {model.trained_length}, and packed rows of "
            "that length would stretch the rotary base, which responses alone do not: set it to "
            "that, or config.TransformerConfig.dynamic_ntk_factor to None"
        )
    num_steps = batches.num_batches(settings.epochs)
    warmup_steps = min(round(settings.warmup_share * num_steps), num_steps - 1)
    return Job(
        objective=objective,
        schedule=WarmupCosine(
            peak=settings.peak_learning_rate,
            total_steps=num_steps,
            warmup_steps=warmup_steps,
            final_fraction=settings.final_fraction,
        ),
        total_steps=num_steps,
        batch_size=settings.batch_tokens // settings.length_tokens,
        length=settings.length_tokens,
        optimizer=settings.optimizer,
        mesh=mesh,
        settings=loop_settings,
        seed=settings.seed,
    )


if __name__ == "__main__":
    cli.main("t5x_style.run.train_reward.train_reward")
