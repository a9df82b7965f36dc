"""Answers that a policy was sampled for, their scores, and the arrays that a policy learns from.

Legend: B batch, T length.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_style.align.prompts import Prompt
from t5x_style.data.chat import ChatFormat, Turn
from t5x_style.infer.reward import RewardScorer
from t5x_style.infer.sampler import Sampler
from t5x_style.infer.sampling import Sampling
from t5x_style.train import run_folder


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One sampled answer.

    Attributes:
      prompt: what was asked.
      tokens: ids of the answer, its stop id included.
      text: what they say.
      is_ended: whether the policy ended it, and not the room for it.
      score: of the reward model under its domain's prompt, once it is known.
    """

    prompt: Prompt
    tokens: tuple[int, ...]
    text: str
    is_ended: bool
    score: float = 0.0


class RewardJudge:
    """The conditional reward model: scores answers under the prompts of domains.

    Args:
      scorer: the model.
      chat: how conversations become ids.
      domain_prompts: the system prompt of each domain, which only the reward model sees; None for
        a model without conditions.
    """

    def __init__(
        self, scorer: RewardScorer, chat: ChatFormat, domain_prompts: dict[str, str] | None
    ):
        self._scorer, self._chat, self._domain_prompts = scorer, chat, domain_prompts

    def scores(self, rollouts: Sequence[Rollout], domain: str | None = None) -> np.ndarray:
        """Returns fp32 [B], of each answer under its own domain's prompt or under that of `domain`.

        Raises:
          ValueError: a domain has no prompt.
        """
        rows = []
        for rollout in rollouts:
            turns = (*self._condition(domain or rollout.prompt.domain), *rollout.prompt.turns)
            rows.append(self._chat.with_reward(self._chat.prompt(turns), rollout.tokens))
        return self._scorer.scores(rows)

    def scores_of_texts(self, pairs: Sequence[tuple[Prompt, str]]) -> np.ndarray:
        """Returns fp32 [B], of answers given as texts, each under its own domain's prompt."""
        vocabulary = self._chat.vocabulary
        return self.scores(
            [
                Rollout(prompt, (*vocabulary.encode(text), self._chat.stop_ids[-1]), text, True)
                for prompt, text in pairs
            ]
        )

    def _condition(self, domain: str) -> tuple[Turn, ...]:
        if self._domain_prompts is None:
            return ()
        if domain not in self._domain_prompts:
            raise ValueError(
                f"domain {domain!r} has no prompt for the reward model; there are some for "
                f"{sorted(self._domain_prompts)}: add {domain}.txt to the folder of prompts"
            )
        return (Turn("system", self._domain_prompts[domain]),)


def sample(
    sampler: Sampler,
    chat: ChatFormat,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int,
) -> list[Rollout]:
    """Returns one answer for each prompt, not yet scored.

    Args:
      sampler: the policy.
      chat: how conversations become ids.
      prompts: what is asked; a prompt may stand there several times.
      max_new_tokens: room for an answer.
      sampling: how tokens are drawn.
      seed: of the draws.
    """
    samples = sampler.generate(
        [chat.prompt(prompt.turns) for prompt in prompts],
        max_new_tokens,
        sampling=sampling,
        stop_ids=chat.stop_ids,
        seed=seed,
    )
    return [
        Rollout(
            prompt,
            tuple(found.tokens),
            chat.parse(found.tokens).turn.content,
            found.is_stopped,
        )
        for prompt, found in zip(prompts, samples, strict=True)
    ]


def rows(rollouts: Sequence[Rollout], chat: ChatFormat, length: int) -> dict[str, np.ndarray]:
    """Returns what an actor and a critic read: inputs, targets, positions, segment_ids, mask.

    Each row [T] is one prompt with its answer; the mask is 1 where the target is of the answer.

    Args:
      rollouts: the answers.
      chat: how conversations become ids.
      length: T.

    Raises:
      ValueError: a prompt and its answer do not fit into a row.
    """
    shape = (len(rollouts), length)
    batch: dict[str, np.ndarray] = {
        name: np.zeros(shape, np.int32)
        for name in ("inputs", "targets", "positions", "segment_ids")
    }
    batch["mask"] = np.zeros(shape, np.float32)
    for row, rollout in enumerate(rollouts):
        prompt_ids = chat.prompt(rollout.prompt.turns)
        ids = np.asarray([*prompt_ids, *rollout.tokens], np.int32)
        num = len(ids) - 1
        if num > length:
            raise ValueError(
                f"prompt {rollout.prompt.name} and its answer have {num + 1} tokens, and a row has "
                f"room for {length + 1}: raise job.Job.length of the actor and the critic"
            )
        batch["inputs"][row, :num] = ids[:-1]
        batch["targets"][row, :num] = ids[1:]
        batch["positions"][row, :num] = np.arange(num)
        batch["segment_ids"][row, :num] = 1
        batch["mask"][row, len(prompt_ids) - 1 : num] = 1
    return batch


def save(path: str | Path, rollouts: Iterable[Rollout]) -> None:
    """Writes answers as JSON lines, whole or not at all."""
    lines = []
    for rollout in rollouts:
        record: dict[str, Any] = {
            "id": rollout.prompt.name,
            "domain": rollout.prompt.domain,
            "messages": [
                {"role": turn.role, "content": turn.content} for turn in rollout.prompt.turns
            ],
            "response": rollout.text,
            "tokens": list(rollout.tokens),
            "is_ended": rollout.is_ended,
            "score": rollout.score,
        }
        lines.append(json.dumps(record, ensure_ascii=False))
    run_folder.write_text(path, "\n".join(lines) + "\n")


def load(path: str | Path, prompt_of: Callable[[str], Prompt]) -> list[Rollout]:
    """Reads what `save` has written.

    Args:
      path: the file.
      prompt_of: from a prompt's name to the prompt.
    """
    with open(path, encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [
        Rollout(
            prompt_of(record["id"]),
            tuple(record["tokens"]),
            record["response"],
            record["is_ended"],
            record["score"],
        )
        for record in records
    ]
