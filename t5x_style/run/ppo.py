"""The ppo verb: an SFT model and a reward model to an aligned actor (arXiv 2403.17297, 4.2).

The run folder holds actor and critic as run folders of their own, every answer that was sampled,
and the metrics. Called again, it goes on where its newest checkpoints stand.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from t5x_style.align import loop
from t5x_style.align.guards import Guards
from t5x_style.align.layouts import Layouts
from t5x_style.align.loop import ACTOR, CRITIC, LoopOptions, Quality
from t5x_style.align.ppo import PPO, Models, PPOSettings
from t5x_style.align.prompts import read_prompts
from t5x_style.align.rollouts import RewardJudge
from t5x_style.artifacts import file_digest
from t5x_style.config import cli, gin_files
from t5x_style.data.batches import Batches, Component, validation_batches
from t5x_style.data.chat import ChatFormat
from t5x_style.data.domain_prompts import DomainPrompts
from t5x_style.data.vocabulary import Vocabulary
from t5x_style.infer.reward import RewardScorer
from t5x_style.objectives.causal_lm import CausalLM
from t5x_style.objectives.ppo import Policy
from t5x_style.objectives.reward import Reward
from t5x_style.train import compile_cache, description, faults, run_folder, writers
from t5x_style.train import state as states
from t5x_style.train.batch import abstract_batch, own_rows, place_batch
from t5x_style.train.initial_part import InitialPart
from t5x_style.train.job import InitialRun, Job
from t5x_style.train.metrics import PairSums
from t5x_style.train.step import make_eval_step


def ppo(
    run_dir: str,
    actor: Job,
    critic: Job,
    sft_run: str,
    reward_run: str,
    prompts: str,
    vocabulary: str,
    *,
    settings: PPOSettings = PPOSettings(),  # noqa: B008 (frozen)
    guards: Guards = Guards(),  # noqa: B008 (frozen)
    options: LoopOptions = LoopOptions(),  # noqa: B008 (frozen)
    layouts: Layouts = Layouts(),  # noqa: B008 (frozen)
    domain_prompts: str | None = "prompts/reward",
    actor_step: int | None = None,
    critic_from_reward: bool = True,
    pretrain: Sequence[Component] = (),
    validation: Mapping[str, str] | None = None,
    quality: Quality | None = None,
    seed: int = 0,
    writer_names: Sequence[str] = writers.NAMES,
) -> None:
    """Trains an actor and its critic.

    Args:
      run_dir: folder of the run.
      actor: the actor's job; its objective is an `objectives.ppo.Policy`.
      critic: the critic's; its objective is an `objectives.ppo.Value`.
      sft_run: run folder that actor and reference begin with.
      reward_run: run folder of the reward model, whose transformer the critic begins with.
      prompts: JSON lines `{"domain": "...", "messages": [...]}`.
      vocabulary: folder of the vocabulary stage, or a `tokenizer.model`.
      settings: how the policy is sampled and what its answers are worth.
      guards: bounds on the metrics.
      options: how the loop is carried out.
      layouts: of the sampling copy, the reference and the reward model.
      domain_prompts: folder with the reward model's system prompt for each domain; None for a
        reward model that was trained without them.
      actor_step: checkpoint of `sft_run`; None for the newest.
      critic_from_reward: whether the critic begins as the reward model without its head; else it
        begins as the SFT model.
      pretrain: mixture of token stores for the pre-training loss of `Policy`.
      validation: name to token store, on which the actor is measured.
      quality: what an answer is truly worth, where a program can say; measured, never learnt from.
      seed: of the order of prompts and text, the draws, and the critic's first head.
      writer_names: where metrics go, of `train.writers.NAMES`.

    Raises:
      ValueError: the settings do not fit each other, or the folder holds another run.
    """
    compile_cache.enable()
    actor, critic = (dataclasses.replace(job, seed=seed) for job in (actor, critic))
    iteration = PPO(settings, actor, critic)
    policy: Any = actor.objective
    asked = read_prompts(prompts)
    chat = ChatFormat(Vocabulary.load(vocabulary))
    texts = None if domain_prompts is None else DomainPrompts.load(domain_prompts)
    value: Any = critic.objective
    critic_run = reward_run if critic_from_reward else sft_run
    for model, initial_run in ((policy.model, sft_run), (value.model, critic_run)):
        run_folder.check_same_model(initial_run, model)
    start = InitialRun(sft_run, mode="params", step=actor_step)
    critic_start = InitialPart(
        critic_run,
        objective=critic.objective,
        part="backbone",
        seed=seed,
    )
    text = _pretrain_rows(policy, actor, pretrain)
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_folder.locked(run_dir))
        about = {
            "identity": {
                "kind": "ppo",
                "policy": _plain(policy),
                "value": _plain(critic.objective),
                "sft_run": start.identity(),
                "critic_start": critic_start.identity(),
                "data": {"length": actor.length, "prompts": file_digest(prompts)},
                "domain_prompts": None if texts is None else texts.fingerprint,
                "text": None if text is None else text.state()["stream"],
                "seed": seed,
                # Answers are kept beside checkpoints, and a run that went on with another learning
                # rate would learn from some that its own policy did not give.
                "training": {"actor": _training(actor), "critic": _training(critic)},
                "settings": dataclasses.asdict(dataclasses.replace(settings, iterations=1)),
                "guards": dataclasses.asdict(guards),
            },
            "settings": {"total_steps": settings.iterations},
        }
        if run_folder.is_done(run_dir, **about):
            done = run_folder.read_json(f"{run_dir}/{run_folder.DONE}")
            print(f"{run_dir} is finished at iteration {done['step']}", flush=True)
            return
        config_text = gin_files.resolved_text()
        for folder, job in ((run_dir, actor), (f"{run_dir}/{ACTOR}", actor)):
            Path(folder).mkdir(exist_ok=True)
            run_folder.describe(
                folder,
                model=policy.model,
                model_info=description.parameter_table(job),
                config_text=config_text,
                **about,
            )
        run_folder.write_model(f"{run_dir}/{CRITIC}", value.model)
        judge = RewardJudge(_reward_scorer(reward_run, chat, critic, layouts), chat, texts)

        def models() -> Models:
            return loop.first_models(
                iteration,
                lambda: start.load(actor.abstract_state, actor.optimizer.transformation()),
                lambda: critic_start.load(critic.abstract_state, critic.optimizer.transformation()),
                layouts,
            )

        stack.enter_context(faults.ending_the_job_on_error())
        _, reached = loop.fit(
            iteration,
            models,
            asked,
            judge,
            chat,
            run_dir=run_dir,
            make_writers=functools.partial(
                writers.make_writers, writer_names, run_dir, settings.iterations
            ),
            guards=guards,
            options=options,
            layouts=layouts,
            seed=seed,
            text=text,
            evaluate=_evaluation(policy, actor, validation or {}),
            quality=quality,
        )
        run_folder.mark_done(f"{run_dir}/{ACTOR}", step=reached, **about)
        run_folder.mark_done(run_dir, step=reached, **about)


def _plain(objective: Any) -> dict[str, Any]:
    return {
        "class": type(objective).__name__,
        **{f.name: getattr(objective, f.name) for f in dataclasses.fields(objective)},
        "model": objective.model.to_dict(),
    }


def _training(job: Job) -> dict[str, Any]:
    schedule: Any = job.schedule
    return {
        "optimizer": dataclasses.asdict(job.optimizer),
        # How long it is may change: a finished run can be taken further.
        "schedule": dataclasses.asdict(schedule) | {"total_steps": None},
        "num_microbatches": job.settings.num_microbatches,
    }


def _reward_scorer(
    reward_run: str, chat: ChatFormat, critic: Job, layouts: Layouts
) -> RewardScorer:
    """Reads the reward model straight into its place: no device ever holds more than its part."""
    mesh, table = critic.device_mesh, critic.table(layouts.reward_rules)
    config = run_folder.read_model(reward_run)
    start = InitialRun(reward_run, mode="params")
    abstract = states.abstract_params(Reward(config), mesh, table)
    return RewardScorer(
        config, start.load_params(abstract), chat.reward_id, mesh=mesh, axis_rules=table
    )


def _pretrain_rows(policy: Policy, actor: Job, pretrain: Sequence[Component]) -> Batches | None:
    if bool(pretrain) != bool(policy.num_pretrain_rows):
        raise ValueError(
            f"ppo.ppo.pretrain has {len(pretrain)} token stores, and ppo.Policy asks for "
            f"{policy.num_pretrain_rows} rows of pre-training text (pretrain_rows, with a "
            "pretrain_coefficient above 0): give both or neither"
        )
    if not pretrain:
        return None
    return Batches(pretrain, policy.pretrain_length, policy.num_pretrain_rows, actor.seed)


def _evaluation(
    policy: Policy, actor: Job, validation: Mapping[str, str]
) -> Callable[[Any], dict[str, float]] | None:
    """Returns what measures the actor as a language model on held-out token stores."""
    if not validation:
        return None
    objective = CausalLM(policy.model, loss_chunk_tokens=policy.loss_chunk_tokens)
    num_rows = max(1, policy.num_pretrain_rows) if policy.num_pretrain_rows else 8
    length = policy.pretrain_length
    step = jax.jit(make_eval_step(objective))

    def measured(params: Any) -> dict[str, float]:
        values = {}
        with actor.in_place():
            shapes = abstract_batch(objective.batch_shapes(num_rows, length), actor.device_mesh)
            for name, store in validation.items():
                sums = PairSums()
                for rows in validation_batches(store, length, num_rows, rows=own_rows(shapes)):
                    sums.add(jax.device_get(step(params, place_batch(rows, shapes))))
                wanted = ("loss", "bits_per_byte")
                means = sums.means()
                values |= {f"eval/{name}/{metric}": means[metric] for metric in wanted}
        return values

    return measured


if __name__ == "__main__":
    cli.main("t5x_style.run.ppo.ppo")
