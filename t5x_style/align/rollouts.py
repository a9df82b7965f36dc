"""Answers that a policy was sampled for, their scores, and the arrays that a policy learns from.

Legend: B batch, T length.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_style.align.prompts import Prompt, messages_of, prompt_of
from t5x_style.data.chat import ChatFormat, Turn
from t5x_style.data.preferences import scored_ids
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
      answer: what they say.
      is_ended: whether the policy ended it, and not the room for it.
      is_well_formed: whether its control tokens stand where the chat format has them.
      score: of the reward model under its domain's prompt, once it is known.
    """

    prompt: Prompt
    tokens: tuple[int, ...]
    answer: Turn
    is_ended: bool
    is_well_formed: bool
    score: float = 0.0

    @property
    def text(self) -> str:
        """What a reader sees of it."""
        return self.answer.content


class RewardJudge:
    """The conditional reward model: scores answers under the prompts of domains.

    Args:
      scorer: the model.
      chat: how conversations become ids.
      domain_prompts: the system prompt of each domain, which only the reward model sees; None for
        a model without conditions.
    """

    def __init__(
        self, scorer: RewardScorer, chat: ChatFormat, domain_prompts: Mapping[str, str] | None
    ):
        self._scorer, self._chat, self.domain_prompts = scorer, chat, domain_prompts

    @property
    def num_compilations(self) -> int:
        """How many programs the scorer had to have compiled so far."""
        return self._scorer.num_compilations

    def scores(
        self, answers: Iterable[tuple[Prompt, Turn]], domain: str | None = None
    ) -> np.ndarray:
        """Returns fp32 [B], of each answer under its own domain's prompt or under that of `domain`.

        Raises:
          ValueError: a domain has no prompt.
        """
        rows = [
            scored_ids((*prompt.turns, turn), self._chat, self._system(domain or prompt.domain))
            for prompt, turn in answers
        ]
        return self._scorer.scores(rows)

    def _system(self, domain: str) -> str | None:
        if self.domain_prompts is None:
            return None
        if domain not in self.domain_prompts:
            raise ValueError(
                f"domain {domain!r} has no prompt for the reward model; there are some for "
                f"{sorted(self.domain_prompts)}: add {domain}.txt to the folder of prompts"
            )
        return self.domain_prompts[domain]


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
        _rollout(prompt, found.tokens, chat) for prompt, found in zip(prompts, samples, strict=True)
    ]


def rows(rollouts: Sequence[Rollout], chat: ChatFormat, length: int) -> dict[str, np.ndarray]:
    """Returns what an actor and a critic read of answers, see `rows_of_ids`.

    Args:
      rollouts: the answers.
      chat: how conversations become ids.
      length: T.

    Raises:
      ValueError: a prompt and its answer do not fit into a row.
    """
    pairs = [(chat.prompt(rollout.prompt.turns), rollout.tokens) for rollout in rollouts]
    for rollout, (prompt_ids, tokens) in zip(rollouts, pairs, strict=True):
        num_tokens = len(prompt_ids) + len(tokens)
        if num_tokens > length + 1:
            raise ValueError(
                f"prompt {rollout.prompt.name} and its answer have {num_tokens} tokens, and a row "
                f"has room for {length + 1}: raise job.Job.length of the actor and the critic"
            )
    return rows_of_ids(pairs, length)


def rows_of_ids(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], length: int
) -> dict[str, np.ndarray]:
    """Returns what an actor and a critic read: inputs, targets, positions, segment_ids, mask.

    Each row [T] is one prompt with its answer; the mask is 1 where the target is of the answer.

    Args:
      pairs: ids of a prompt and of its answer, which together fit into a row.
      length: T.
    """
    shape = (len(pairs), length)
    batch: dict[str, np.ndarray] = {
        name: np.zeros(shape, np.int32)
        for name in ("inputs", "targets", "positions", "segment_ids")
    }
    batch["mask"] = np.zeros(shape, np.float32)
    for row, (prompt_ids, tokens) in enumerate(pairs):
        ids = np.asarray([*prompt_ids, *tokens], np.int32)
        num = len(ids) - 1
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
            "messages": messages_of(rollout.prompt.turns),
            "response": rollout.text,
            "tokens": list(rollout.tokens),
            "score": rollout.score,
        }
        lines.append(json.dumps(record, ensure_ascii=False))
    run_folder.write_text(path, "\n".join(lines) + "\n")


def load(path: str | Path, chat: ChatFormat) -> list[Rollout]:
    """Reads what `save` has written.

    Args:
      path: the file.
      chat: how ids become answers.
    """
    with open(path, encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [
        dataclasses.replace(
            _rollout(prompt_of(record, record["id"]), record["tokens"], chat),
            score=record["score"],
        )
        for record in records
    ]


def _rollout(prompt: Prompt, tokens: Sequence[int], chat: ChatFormat) -> Rollout:
    found = chat.parse(tokens)
    return Rollout(prompt, tuple(tokens), found.turn, found.is_ended, found.problem is None)
