"""PPO's loop: sample, score, learn, measure, guard, save; stopped anywhere it goes on bit for bit.

Actor and critic have a folder of checkpoints each, in run folders of their own, so that whatever
reads a trained model reads the actor. Every iteration's answers are kept; one that was sampled and
not yet learnt from when the process ended is not sampled again.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import jax
import numpy as np

from t5x_style.align import rollouts as rollouts_of
from t5x_style.align.guards import Guards
from t5x_style.align.layouts import Layouts
from t5x_style.align.ppo import PPO, Models
from t5x_style.align.prompts import Prompt, drawn
from t5x_style.align.rollouts import RewardJudge, Rollout
from t5x_style.align.signs import answer_signs
from t5x_style.data.chat import ChatFormat
from t5x_style.infer.sampler import Sampler
from t5x_style.objectives.ppo import unexplained_variance
from t5x_style.train import checkpoint, faults, run_folder
from t5x_style.train.batch import BatchSource
from t5x_style.train.writers import Writer

ACTOR, CRITIC, SAMPLES = "actor", "critic", "samples"
GUARD_LOG = "guards.jsonl"

# Measures an actor, given its params, on held-out text.
Evaluation = Callable[[Any], Mapping[str, float]]
# From domain, conversation and answer to how good it truly is; measured, never learnt from.
Quality = Callable[[str, Any, str], float]


@dataclasses.dataclass(frozen=True)
class LoopOptions:
    """How the loop is carried out.

    Attributes:
      checkpoint_every: iterations between two checkpoints; there is one after the last.
      keep_checkpoints: how many of the newest are kept; rounds compare early with late ones.
      eval_every: iterations between two evaluations on held-out text.
    """

    checkpoint_every: int = 20
    keep_checkpoints: int = 100
    eval_every: int = 20


@dataclasses.dataclass
class _Progress:
    """What the loop remembers beside the models; goes into the checkpoints as JSON.

    Attributes:
      iteration: finished ones.
      kl_coefficient: for the next one.
      attempt: roll-backs so far.
      first: metrics of the first iteration.
      num_broken: last iterations in a row that broke a bound.
      is_stopped: whether a guard has ended the run.
      text: state of the stream of pre-training text.
    """

    iteration: int = 0
    kl_coefficient: float = 0.0
    attempt: int = 0
    first: dict[str, float] | None = None
    num_broken: int = 0
    is_stopped: bool = False
    text: dict[str, Any] | None = None


def fit(
    ppo: PPO,
    models: Callable[[], Models],
    prompts: Sequence[Prompt],
    judge: RewardJudge,
    chat: ChatFormat,
    *,
    run_dir: str | Path,
    make_writers: Callable[[int], Sequence[Writer]],
    guards: Guards = Guards(),  # noqa: B008 (frozen)
    options: LoopOptions = LoopOptions(),
    layouts: Layouts = Layouts(),  # noqa: B008 (frozen)
    seed: int = 0,
    text: BatchSource | None = None,
    evaluate: Evaluation | None = None,
    quality: Quality | None = None,
) -> tuple[Models, int]:
    """Runs PPO to its last iteration, from the newest checkpoints if there are some.

    Args:
      ppo: the iteration.
      models: makes the models to begin with.
      prompts: what is asked.
      judge: the reward model.
      chat: how conversations become ids.
      run_dir: the run folder, which this process has locked.
      make_writers: from the iterations done to the writers of metrics, one line an iteration.
      guards: bounds on the metrics.
      options: see there.
      layouts: of the sampling copy.
      seed: of prompts' order and answers' draws.
      text: rows of pre-training text, if the actor's loss has a share of it.
      evaluate: measures the actor on held-out text.
      quality: what answers are truly worth, where a program can say.

    Returns:
      The models after the last iteration, or where a guard has stopped the run, and how many
      iterations that were.

    Raises:
      ValueError: every checkpoint is damaged.
      faults.Stopped: the process was asked to stop; the state is saved.
    """
    settings = ppo.settings
    with contextlib.ExitStack() as stack:
        savers = {}
        for name in (ACTOR, CRITIC):
            folder = Path(run_dir) / name / run_folder.CHECKPOINTS
            savers[name] = checkpoint.Checkpointer(folder, keep=options.keep_checkpoints)
            stack.enter_context(contextlib.closing(savers[name]))
            savers[name].remove_unfinished()
        begun = models()
        if _iterations(run_dir):
            _give_up(begun.actor, begun.critic)
        begun, progress = _restored(ppo, begun, run_dir)
        if text is not None and progress.text is not None:
            text.restore(progress.text)
        progress.kl_coefficient = progress.kl_coefficient or settings.kl_coefficient
        signals = stack.enter_context(faults.StopSignals())
        injector = faults.FaultInjector()
        writers = stack.enter_context(_Lines(make_writers, progress.iteration))

        def save() -> None:
            progress.text = None if text is None else text.state()
            extra = dataclasses.asdict(progress)
            # The actor's is the last: a step is whole once it is there.
            savers[CRITIC].save(progress.iteration, begun.critic, extra)
            savers[CRITIC].wait()
            savers[ACTOR].save(progress.iteration, begun.actor, extra)

        if progress.iteration == 0:
            save()
        sampler = None
        while progress.iteration < settings.iterations and not progress.is_stopped:
            number = progress.iteration
            injector.at("iteration", number + 1)
            started = perf_counter()
            path = _samples_path(run_dir, progress)
            if path.is_file():
                found = rollouts_of.load(path, chat)
            else:
                if sampler is None:
                    sampler = _sampler(ppo, begun, layouts)
                else:
                    sampler.update(begun.actor.params)
                found = _rollouts(ppo, sampler, prompts, judge, chat, progress, seed)
                rollouts_of.save(path, found)
            sampled_secs = perf_counter() - started
            injector.at("sampled", number + 1)
            longest = max(
                len(chat.prompt(rollout.prompt.turns)) + len(rollout.tokens) for rollout in found
            )
            rows = rollouts_of.rows(found, chat, ppo.row_length(longest))
            scores = _scores(found, settings.unfinished_score)
            minibatches, sums = ppo.assess(begun, rows, scores, progress.kl_coefficient)
            trains_actor = number >= settings.critic_warmup_iterations
            begun, of_actor, of_critic = ppo.update(
                begun,
                minibatches,
                train_actor=trains_actor,
                next_text=None if text is None or not trains_actor else lambda: next(text),
            )
            values = {
                "score": float(np.mean([rollout.score for rollout in found])),
                **sums.means(),
                **answer_signs(found),
            }
            if quality is not None:
                values["quality"] = float(
                    np.mean([quality(r.prompt.domain, r.prompt.turns, r.text) for r in found])
                )
            progress.iteration += 1
            progress.first = progress.first or values
            line = {f"ppo/{name}": value for name, value in values.items()}
            line |= {f"actor/{name}": value for name, value in of_actor.means().items()}
            line |= {f"critic/{name}": value for name, value in of_critic.means().items()}
            line |= {
                "critic/unexplained_variance": unexplained_variance(of_critic.means()),
                "ppo/kl_coefficient": progress.kl_coefficient,
                "ppo/attempt": progress.attempt,
                "ppo/compilations": ppo.num_compilations
                + judge.num_compilations
                + (0 if sampler is None else sampler.num_compilations),
                "timing/sample_and_score_secs": sampled_secs,
                "timing/iteration_secs": perf_counter() - started,
            }
            progress.kl_coefficient = settings.adapted(progress.kl_coefficient, values["answer_kl"])
            is_last = progress.iteration == settings.iterations
            if evaluate is not None and (is_last or progress.iteration % options.eval_every == 0):
                line |= evaluate(begun.actor.params)
            writers.write(progress.iteration, line)
            broken = guards.broken(progress.first, values) if trains_actor else []
            progress.num_broken = progress.num_broken + 1 if broken else 0
            if progress.num_broken >= guards.patience:
                for saver in savers.values():
                    saver.wait()
                good = _before(run_dir, progress.iteration - progress.num_broken)
                goes_back = (
                    guards.action == "roll_back" and progress.attempt < guards.max_roll_backs
                )
                if not goes_back or good is None:
                    _note(run_dir, progress, broken, "stop")
                    progress.is_stopped = True
                    save()
                    break
                _note(run_dir, progress, broken, "roll_back", to=good)
                begun, progress = _rolled_back(ppo, begun, run_dir, progress, good, guards)
                writers.go_back(progress.iteration)
                if text is not None and progress.text is not None:
                    text.restore(progress.text)
                continue
            is_stopping = signals.requested(progress.iteration)
            if is_last or is_stopping or progress.iteration % options.checkpoint_every == 0:
                save()
                injector.at("save", progress.iteration)
            if is_stopping:
                for saver in savers.values():
                    saver.close()
                print(f"saved iteration {progress.iteration}: the same command goes on from there")
                raise faults.Stopped(progress.iteration)
        return begun, progress.iteration


class _Lines:
    """The writers of metrics, which begin again where the loop goes back to.

    Args:
      make_writers: from the iterations done to the writers, which drop lines of later ones.
      iteration: finished ones.
    """

    def __init__(self, make_writers: Callable[[int], Sequence[Writer]], iteration: int):
        self._make = make_writers
        self._writers = make_writers(iteration)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for writer in self._writers:
            writer.close()

    def write(self, iteration: int, line: Mapping[str, float]) -> None:
        """Hands the metrics of an iteration to all."""
        for writer in self._writers:
            writer.write(iteration, line)
            writer.progress(iteration)

    def go_back(self, iteration: int) -> None:
        """Drops what was written after an iteration."""
        self.__exit__()
        self._writers = self._make(iteration)


def _sampler(ppo: PPO, models: Models, layouts: Layouts) -> Sampler:
    policy: Any = ppo.actor.objective
    return Sampler(
        policy.model,
        models.actor.params,
        max_batch_rows=min(ppo.settings.num_rollouts, layouts.sampled_rows),
        mesh=ppo.actor.device_mesh,
        axis_rules=ppo.actor.table(layouts.sampling_rules),
    )


def _rollouts(
    ppo: PPO,
    sampler: Sampler,
    prompts: Sequence[Prompt],
    judge: RewardJudge,
    chat: ChatFormat,
    progress: _Progress,
    seed: int,
) -> list[Rollout]:
    """Returns an iteration's scored answers."""
    settings = ppo.settings
    asked = drawn(prompts, settings.prompts_per_iteration, progress.iteration, seed)
    asked = [prompt for prompt in asked for _ in range(settings.samples_per_prompt)]
    found = rollouts_of.sample(
        sampler,
        chat,
        asked,
        max_new_tokens=settings.max_new_tokens,
        sampling=settings.sampling,
        seed=_seed(seed, progress.attempt, progress.iteration),
    )
    scores = judge.scores((rollout.prompt, rollout.answer) for rollout in found)
    return [
        dataclasses.replace(rollout, score=float(score))
        for rollout, score in zip(found, scores, strict=True)
    ]


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)


def _scores(found: Sequence[Rollout], unfinished_score: float | None) -> np.ndarray:
    return np.array(
        [
            rollout.score if rollout.is_ended or unfinished_score is None else unfinished_score
            for rollout in found
        ],
        np.float32,
    )


def _samples_path(run_dir: str | Path, progress: _Progress) -> Path:
    folder = Path(run_dir) / SAMPLES
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{progress.attempt}-{progress.iteration + 1:06d}.jsonl"


def _iterations(run_dir: str | Path) -> list[int]:
    """Returns the iterations after which both models were saved."""
    both = (
        checkpoint.committed_steps(Path(run_dir) / name / run_folder.CHECKPOINTS)
        for name in (ACTOR, CRITIC)
    )
    return sorted(set.intersection(*map(set, both)))


def _give_up(*states: Any) -> None:
    """Frees what others will take the place of: two pairs of train states need not fit."""
    for leaf in jax.tree.leaves(states):
        leaf.delete()


def _before(run_dir: str | Path, iteration: int) -> int | None:
    """Returns the newest saved iteration up to one, None if there is none any more."""
    return max((n for n in _iterations(run_dir) if n <= iteration), default=None)


def _restored(ppo: PPO, fresh: Models, run_dir: str | Path) -> tuple[Models, _Progress]:
    """Returns the newest saved models and progress, the fresh ones if nothing was saved.

    Raises:
      ValueError: something was saved, and all of it is damaged.
    """
    steps = _iterations(run_dir)
    damaged: dict[int, checkpoint.DamagedCheckpointError] = {}
    for step in reversed(steps):
        try:
            found = _at(ppo, fresh, run_dir, step)
        except checkpoint.DamagedCheckpointError as error:
            damaged[step] = error
            continue
        for bad, error in damaged.items():
            # Removed, for this run makes the same step again, and none is saved twice.
            print(f"iteration {bad} is made again: {error}", flush=True)
            _remove(run_dir, bad)
        return found
    if damaged:
        raise ValueError(
            f"every checkpoint of {run_dir} is damaged: {'; '.join(map(str, damaged.values()))}. "
            "Put one back from a copy, or set ppo.ppo.run_dir to a new folder"
        )
    return fresh, _Progress()


def _at(ppo: PPO, fresh: Models, run_dir: str | Path, step: int) -> tuple[Models, _Progress]:
    """Returns models and progress of a saved iteration; the reference is that of `fresh`."""
    states = {}
    for name, job in ((ACTOR, ppo.actor), (CRITIC, ppo.critic)):
        path = Path(run_dir) / name / run_folder.CHECKPOINTS / str(step)
        states[name] = checkpoint.restore(path, job.abstract_state)
    progress = _Progress(**states[ACTOR].extra)
    return Models(states[ACTOR].tree, states[CRITIC].tree, fresh.reference), progress


def _remove(run_dir: str | Path, step: int) -> None:
    # A step is whole while the actor's is there, so that goes first.
    for name in (ACTOR, CRITIC):
        shutil.rmtree(Path(run_dir) / name / run_folder.CHECKPOINTS / str(step), ignore_errors=True)


def _rolled_back(
    ppo: PPO, models: Models, run_dir: str | Path, progress: _Progress, good: int, guards: Guards
) -> tuple[Models, _Progress]:
    """Returns models and progress of a saved iteration; later ones are removed.

    Only this process knows of the new attempt until the next save. One that is killed before it
    comes to the same point again by the same answers, which are kept.
    """
    _give_up(models.actor, models.critic)
    back, old = _at(ppo, models, run_dir, good)
    for name in (ACTOR, CRITIC):
        for step in checkpoint.committed_steps(Path(run_dir) / name / run_folder.CHECKPOINTS):
            if step > good:
                _remove(run_dir, step)
    old.kl_coefficient = progress.kl_coefficient * guards.kl_factor
    old.attempt, old.num_broken, old.first = progress.attempt + 1, 0, progress.first
    return back, old


def _note(
    run_dir: str | Path,
    progress: _Progress,
    broken: Sequence[str],
    action: str,
    to: int | None = None,
) -> None:
    """Adds a line to the log of guards, unless it is there from before the process was killed."""
    said = {"attempt": progress.attempt, "iteration": progress.iteration, "broken": list(broken)}
    line = json.dumps({**said, "action": action} | ({} if to is None else {"to": to}))
    path = Path(run_dir) / GUARD_LOG
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    if line not in before.splitlines():
        run_folder.write_text(path, f"{before}{line}\n")
    print(f"iteration {progress.iteration}: {'; '.join(broken)}: {action}", flush=True)


def first_models(
    ppo: PPO,
    load_actor: Callable[[], Any],
    load_critic: Callable[[], Any],
    layouts: Layouts = Layouts(),  # noqa: B008 (frozen)
) -> Models:
    """Returns the models that a run begins with: the reference is the actor, in compute dtype.

    Args:
      ppo: the iteration.
      load_actor, load_critic: return the train states to start from.
      layouts: of the reference.
    """
    actor = load_actor()
    like = ppo.abstract_reference(layouts)
    copied = jax.jit(
        lambda params: jax.tree.map(lambda leaf, to: leaf.astype(to.dtype) + 0, params, like),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, like),
    )
    with ppo.actor.in_place():
        reference = copied(actor.params)
    return Models(actor, load_critic(), reference)
