"""One iteration of proximal policy optimisation: answers in, a better actor and critic out.

Four models take part. Actor and critic are training jobs, each with its mesh rules; the reference
is the actor as it was at first, and the reward model has had its say before an iteration comes
here. Sampling and the order of iterations are `loop`'s affair.

Legend: B batch, T length.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5x_style.align.layouts import Layouts
from t5x_style.infer.sampler import bucket
from t5x_style.infer.sampling import Sampling
from t5x_style.models.reward import RewardModel
from t5x_style.objectives.ppo import PRETRAIN, Policy, Value, pretrain_part, token_scores
from t5x_style.ops.advantages import (
    KL_ESTIMATORS,
    generalized_advantages,
    token_kl,
    token_rewards,
    whiten,
)
from t5x_style.train import state as states
from t5x_style.train.batch import AbstractBatch, place_batch
from t5x_style.train.job import Job
from t5x_style.train.metrics import PairSums
from t5x_style.train.state import TrainState
from t5x_style.train.step import in_microbatches

_ASSESSED = ("log_probs", "advantages", "values", "returns")


@dataclasses.dataclass(frozen=True)
class PPOSettings:
    """How a policy is sampled and what its answers are worth (arXiv 2403.17297, section 4.2).

    Attributes:
      iterations: in all, those of the critic's warm-up included; about 400 in the paper.
      critic_warmup_iterations: first iterations, in which only the critic learns; 50.
      prompts_per_iteration: about 500 in the paper.
      samples_per_prompt: answers to each; not stated, 1.
      max_new_tokens: room for an answer; not stated.
      sampling: how tokens are drawn: top-p 0.9. Temperature must be `ppo.Policy.temperature`.
      kl_coefficient: 0.01.
      kl_estimator: of `ops.advantages.KL_ESTIMATORS`; not stated, k1.
      kl_target: mean KL of a whole answer that the coefficient is adapted to (arXiv 1909.08593,
        section 2.2); None, as in the paper, for a constant coefficient.
      kl_horizon: answers over which it is adapted.
      discount: of rewards; not stated, 1.
      trace_decay: GAE lambda, 0.99.
      normalise_advantages: whether those of a minibatch get mean 0 and variance 1; off.
      unfinished_score: takes the place of the score of an answer that ran out of room; None for
        the reward model's own.
      num_epochs: times that an iteration's answers are learnt from; not stated, 1.
      num_minibatches: updates that they are cut into; not stated, 1.
    """

    iterations: int = 400
    critic_warmup_iterations: int = 50
    prompts_per_iteration: int = 512
    samples_per_prompt: int = 1
    max_new_tokens: int = 512
    sampling: Sampling = Sampling(top_p=0.9)  # noqa: RUF009 (frozen)
    kl_coefficient: float = 0.01
    kl_estimator: str = "k1"
    kl_target: float | None = None
    kl_horizon: int = 10_000
    discount: float = 1.0
    trace_decay: float = 0.99
    normalise_advantages: bool = False
    unfinished_score: float | None = None
    num_epochs: int = 1
    num_minibatches: int = 1

    def __post_init__(self) -> None:
        counts = ("iterations", "prompts_per_iteration", "samples_per_prompt", "max_new_tokens")
        for name in (*counts, "num_epochs", "num_minibatches"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"ppo.PPOSettings.{name} = {getattr(self, name)}: must be at least 1"
                )
        if self.kl_estimator not in KL_ESTIMATORS:
            raise ValueError(
                f"ppo.PPOSettings.kl_estimator = {self.kl_estimator!r}: one of {KL_ESTIMATORS}"
            )
        if self.num_rollouts % self.num_minibatches:
            raise ValueError(
                f"ppo.PPOSettings.num_minibatches = {self.num_minibatches} does not divide the "
                f"{self.num_rollouts} answers of an iteration"
            )

    @property
    def num_rollouts(self) -> int:
        """Answers of an iteration."""
        return self.prompts_per_iteration * self.samples_per_prompt

    def adapted(self, coefficient: float, answer_kl: float) -> float:
        """Returns the KL coefficient after an iteration whose answers had this mean KL."""
        if self.kl_target is None:
            return coefficient
        error = min(max(answer_kl / self.kl_target - 1, -0.2), 0.2)
        return coefficient * (1 + error * self.num_rollouts / self.kl_horizon)


def make_assess(
    policy: Policy,
    value: Value,
    settings: PPOSettings,
    reference: Any = None,
    *,
    actor_microbatches: int = 1,
    critic_microbatches: int = 1,
) -> Callable[..., tuple[dict[str, jax.Array], Any]]:
    """Returns the pass over sampled answers that says what each token was worth.

    It takes (actor params, reference params, critic params, rows, scores [B], KL coefficient) and
    returns log_probs, advantages, values and returns [B, T] in fp32, and metrics as pairs of sums.

    Each model reads the rows in as many parts, one after another, as in its training step: a matrix
    product of another number of rows may round otherwise, and the first step's ratio would not be 1
    to the last bit.

    Args:
      policy, value: the objectives whose batches these will be part of.
      settings: see above.
      reference: config of the reference; None for the actor's.
      actor_microbatches: parts for the actor and the reference.
      critic_microbatches: parts for the critic.
    """

    def read(actor, frozen, batch):
        score = functools.partial(
            token_scores,
            temperature=policy.temperature,
            loss_chunk_tokens=policy.loss_chunk_tokens,
        )
        of_actor = score(actor, batch, policy.model)[1]
        of_reference = score(frozen, batch, reference or policy.model)[1]
        return of_actor["nll_BT"], of_reference["nll_BT"], of_actor["entropy_BT"]

    def expected(critic, batch):
        return RewardModel(value.model).apply(
            {"params": critic},
            batch["inputs"],
            positions_BT=batch["positions"],
            segment_ids_BT=batch["segment_ids"],
        )

    def assess(actor, frozen, critic, batch, scores_B, kl_coefficient):
        nll_BT, reference_nll_BT, entropy_BT = in_microbatches(
            functools.partial(read, actor, frozen), batch, actor_microbatches
        )
        values_BT: Any = in_microbatches(
            functools.partial(expected, critic), batch, critic_microbatches
        )
        mask_BT = batch["mask"]
        # Chosen, not multiplied: what padding came to, be it infinite, is not to matter.
        values_BT, log_probs_BT, reference_BT = (
            jnp.where(mask_BT > 0, x, 0) for x in (values_BT, -nll_BT, -reference_nll_BT)
        )
        kl_BT = token_kl(log_probs_BT, reference_BT, settings.kl_estimator)
        rewards_BT = token_rewards(kl_BT, scores_B, mask_BT, kl_coefficient)
        advantages_BT = generalized_advantages(
            rewards_BT,
            values_BT,
            mask_BT,
            discount=settings.discount,
            trace_decay=settings.trace_decay,
        )
        returns_BT = advantages_BT + values_BT
        num_tokens, num_rows = jnp.sum(mask_BT), jnp.float32(len(mask_BT))
        metrics = {
            "kl": (jnp.sum(kl_BT * mask_BT), num_tokens),
            "answer_kl": (jnp.sum(kl_BT * mask_BT), num_rows),
            "entropy": (jnp.sum(entropy_BT * mask_BT), num_tokens),
            "reward": (jnp.sum(rewards_BT), num_rows),
            "length": (num_tokens, num_rows),
        }
        if settings.normalise_advantages:
            advantages_BT = whiten(advantages_BT, mask_BT)
        arrays = (log_probs_BT, advantages_BT, values_BT, returns_BT)
        found: dict[str, Any] = dict(zip(_ASSESSED, arrays, strict=True))
        return found, metrics

    return assess


@dataclasses.dataclass
class Models:
    """What an iteration changes, and the reference, which it does not."""

    actor: TrainState
    critic: TrainState
    reference: Any


class PPO:
    """The compiled parts of an iteration.

    Rows are as long as the longest answer of an iteration needs, in the steps of
    `infer.sampler.bucket`, so that compilations are few.

    Args:
      settings: see there.
      actor: the job of the actor, its objective an `objectives.ppo.Policy`.
      critic: the job of the critic, its objective an `objectives.ppo.Value`.
      reference: config of the reference; None for the actor's.

    Raises:
      ValueError: the jobs do not fit each other or the settings.
    """

    def __init__(self, settings: PPOSettings, actor: Job, critic: Job, reference: Any = None):
        rows = settings.num_rollouts // settings.num_minibatches
        for name, job in (("actor", actor), ("critic", critic)):
            if job.batch_size != rows:
                raise ValueError(
                    f"the {name}'s job.Job.batch_size = {job.batch_size}, and a minibatch has "
                    f"{rows} answers (ppo.PPOSettings.prompts_per_iteration * samples_per_prompt / "
                    "num_minibatches)"
                )
        if actor.length != critic.length:
            raise ValueError(
                f"job.Job.length of the actor is {actor.length}, of the critic {critic.length}: "
                "both read the same rows"
            )
        policy: Any = actor.objective
        if not settings.sampling.temperature == policy.temperature:
            raise ValueError(
                f"answers are drawn at sampling.Sampling.temperature = "
                f"{settings.sampling.temperature} and learnt from at ppo.Policy.temperature = "
                f"{policy.temperature}: set both alike"
            )
        self.settings, self.actor, self.critic = settings, actor, critic
        self._reference = reference
        self._programs: dict[tuple[str, int], Any] = {}

    @property
    def num_compilations(self) -> int:
        """How many programs have been compiled so far: up to three for each length of rows."""
        return len(self._programs)

    def abstract_reference(self, layouts: Layouts) -> Any:
        """Returns shapes, dtypes and shardings of the reference: the actor in compute dtype."""
        policy: Any = self.actor.objective
        shardings = states.param_shardings(
            policy, self.actor.device_mesh, self.actor.table(layouts.reference_rules)
        )
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(
                leaf.shape, policy.model.dtype, sharding=sharding
            ),
            self.actor.abstract_state.params,
            shardings,
        )

    def row_length(self, num_tokens: int) -> int:
        """Returns the length of the rows for a longest prompt with answer of `num_tokens`."""
        return min(bucket(num_tokens - 1), self.actor.length)

    def assess(
        self,
        models: Models,
        rows: Mapping[str, np.ndarray],
        scores: np.ndarray,
        kl_coefficient: float,
    ) -> tuple[list[dict[str, jax.Array]], PairSums]:
        """Returns the minibatches, each with what its tokens were worth, and sums of metrics.

        Args:
          models: as they are before the iteration's updates.
          rows: arrays [B, T] of all answers.
          scores: fp32 [B].
          kl_coefficient: weight of the KL penalty.
        """
        length = rows["inputs"].shape[1]
        assess = self._program(
            "assess", length, lambda: _in_place(self.assess_program(length), self.actor)
        )
        given = self.abstract_rows(length)
        minibatches, sums = [], PairSums()
        per_minibatch = len(scores) // self.settings.num_minibatches
        for start in range(0, len(scores), per_minibatch):
            here = slice(start, start + per_minibatch)
            batch = place_batch({name: x[here] for name, x in rows.items()}, given)
            found, metrics = assess(
                models.actor.params,
                models.reference,
                models.critic.params,
                batch,
                jnp.asarray(scores[here], jnp.float32),
                jnp.float32(kl_coefficient),
            )
            sums.add(jax.device_get(metrics))
            minibatches.append(batch | found)
        return minibatches, sums

    def update(
        self,
        models: Models,
        minibatches: Sequence[dict[str, jax.Array]],
        *,
        train_actor: bool,
        next_text: Callable[[], Mapping[str, np.ndarray]] | None = None,
    ) -> tuple[Models, PairSums, PairSums]:
        """Returns the models after the iteration's updates, and sums of the metrics of both.

        Args:
          models: their states are given up.
          minibatches: of `assess`.
          train_actor: whether the actor learns too, and not only the critic.
          next_text: gives the next rows of pre-training text, if the actor's loss has a share of
            it.
        """
        length = minibatches[0]["inputs"].shape[1]
        of_actor, of_critic = (self._job(job, length) for job in (self.actor, self.critic))
        critic_step = self._program("critic", length, of_critic.compile_train_step)
        actor_step: Any = None
        if train_actor:
            actor_step = self._program("actor", length, of_actor.compile_train_step)
        actor_sums, critic_sums = PairSums(), PairSums()
        actor, critic = models.actor, models.critic
        for _ in range(self.settings.num_epochs):
            for batch in minibatches:
                critic, pairs = critic_step(critic, _moved(batch, of_critic.train_batch))
                critic_sums.add(jax.device_get(pairs))
                if not train_actor:
                    continue
                if next_text is not None:
                    text = pretrain_part(next_text(), float(jnp.sum(batch["mask"])))
                    wanted = {n: x for n, x in of_actor.train_batch.items() if n in text}
                    batch = batch | place_batch(text, wanted)
                actor, pairs = actor_step(actor, _moved(batch, of_actor.train_batch))
                actor_sums.add(jax.device_get(pairs))
        return Models(actor, critic, models.reference), actor_sums, critic_sums

    def _job(self, job: Job, length: int) -> Job:
        return dataclasses.replace(job, length=length)

    def abstract_rows(self, length: int) -> AbstractBatch:
        """Returns shapes, dtypes and shardings of a minibatch as it is assessed."""
        batch = self._job(self.actor, length).train_batch
        return {
            name: x
            for name, x in batch.items()
            if name not in _ASSESSED and not name.startswith(PRETRAIN)
        }

    def assess_program(self, length: int) -> Any:
        """Returns the jitted pass of `make_assess` over a minibatch of rows of this length.

        It is to be traced under the mesh and the rules of the actor's job.
        """
        actor, critic = self._job(self.actor, length), self._job(self.critic, length)
        policy: Any = actor.objective
        value: Any = critic.objective
        assess = make_assess(
            policy,
            value,
            self.settings,
            self._reference,
            actor_microbatches=actor.settings.num_microbatches,
            critic_microbatches=critic.settings.num_microbatches,
        )
        place = actor.train_batch["log_probs"].sharding
        return jax.jit(assess, out_shardings=(dict.fromkeys(_ASSESSED, place), None))

    def _program(self, name: str, length: int, make: Callable[[], Any]) -> Any:
        """Returns a program for rows of this length, made when it is first wanted."""
        if (name, length) not in self._programs:
            self._programs[name, length] = make()
        return self._programs[name, length]


def _in_place(function: Callable[..., Any], job: Job) -> Callable[..., Any]:
    """Returns the function, traced under the mesh and the rules of a job."""

    def call(*args: Any) -> Any:
        with job.in_place():
            return function(*args)

    return call


def _moved(batch: Mapping[str, jax.Array], wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns what a step reads of a batch, where the step wants it."""
    return {name: jax.device_put(batch[name], x.sharding) for name, x in wanted.items()}
