"""The slow path: pairs of answers by different policies, and judges who say which is better.

Labels of people come late, so a round takes what is there when it begins (arXiv 2403.17297,
section 4.2.2). A judge is any callable; `FileJudge` is a person with an editor.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

from t5x_style.align.fast_path import preference
from t5x_style.align.prompts import Prompt, messages_of, prompt_of
from t5x_style.align.rollouts import Rollout
from t5x_style.train import run_folder

TO_LABEL, LABELLED = "to_label.jsonl", "labelled.jsonl"


class Judge(Protocol):
    """Compares two answers to a prompt."""

    def __call__(self, prompt: Prompt, first: str, second: str) -> int | None:
        """Returns 1 if the first is better, -1 if the second is, 0 if neither, None if unknown."""
        ...


@dataclasses.dataclass(frozen=True)
class QualityJudge:
    """A judge who measures.

    Attributes:
      quality: from domain, conversation and answer to a number, greater is better.
      margin: differences up to it make neither better.
    """

    quality: Any
    margin: float = 0.05

    def __call__(self, prompt: Prompt, first: str, second: str) -> int:
        one, other = (self.quality(prompt.domain, prompt.turns, text) for text in (first, second))
        if abs(one - other) <= self.margin:
            return 0
        return 1 if one > other else -1


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two answers to one prompt.

    Attributes:
      first, second: by different policies.
      policies: what they are called.
    """

    first: Rollout
    second: Rollout
    policies: tuple[str, str]

    @property
    def name(self) -> str:
        """Of the comparison; says which prompt, and not which policies."""
        return f"{self.first.prompt.name}-{_digest(self.first.prompt, *sorted(self.policies))[:8]}"


def _digest(prompt: Prompt, *words: str) -> str:
    text = json.dumps([prompt.name, prompt.domain, messages_of(prompt.turns), *words])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def comparisons(answers: Mapping[str, Sequence[Rollout]], max_pairs: int) -> list[Comparison]:
    """Returns pairs of different answers by different policies, as evenly as they come.

    Which of the two is the first is drawn by the prompt: a judge who leans to the first is not to
    lean to a policy.

    Args:
      answers: of each policy, to the same prompts in the same order.
      max_pairs: most of them.
    """
    found = []
    names = list(answers)
    for of_prompt in zip(*answers.values(), strict=True):
        for one, other in combinations(range(len(names)), 2):
            if of_prompt[one].text != of_prompt[other].text:
                sides = (one, other)
                if int(_digest(of_prompt[one].prompt, names[one], names[other]), 16) % 2:
                    sides = (other, one)
                pair = [of_prompt[side] for side in sides]
                policies = (names[sides[0]], names[sides[1]])
                found.append(Comparison(pair[0], pair[1], policies))
    step = max(1, len(found) // max_pairs)
    return found[::step][:max_pairs]


def judged(found: Sequence[Comparison], judge: Judge) -> list[dict[str, Any]]:
    """Returns preferences, as records of `data.preferences`, of the pairs that a judge decides."""
    records = []
    for pair in found:
        verdict = judge(pair.first.prompt, pair.first.text, pair.second.text)
        if verdict:
            texts = (pair.first.text, pair.second.text)
            records.append(preference(pair.first, texts if verdict > 0 else texts[::-1]))
    return records


def write_for_people(path: Path, found: Sequence[Comparison]) -> None:
    """Writes pairs for a person, who adds `"better": 1` or `2`, or `0` for neither, to each line.

    Which policy an answer is of is not told.
    """
    lines = [
        json.dumps(
            {
                "name": pair.name,
                "domain": pair.first.prompt.domain,
                "messages": preference(pair.first, ())["messages"],
                "1": pair.first.text,
                "2": pair.second.text,
            },
            ensure_ascii=False,
        )
        for pair in found
    ]
    run_folder.write_text(path, "\n".join(lines) + "\n")


class FileJudge:
    """The verdicts that people have written into a file so far.

    Args:
      path: of JSON lines as `write_for_people` began them, with "better"; need not be there yet.

    Raises:
      ValueError: a line is not as it should be.
    """

    def __init__(self, path: str | Path):
        self._verdicts: dict[tuple[str, ...], int] = {}
        if not Path(path).is_file():
            return
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    record = json.loads(line)
                    verdict = {0: 0, 1: 1, 2: -1}[record["better"]]
                    prompt = prompt_of(record, "")
                    self._verdicts[_key(prompt, record["1"], record["2"])] = verdict
                except (ValueError, KeyError, TypeError, IndexError) as error:
                    raise ValueError(
                        f"{path}, line {number}: a verdict is a line of {TO_LABEL} with "
                        f'"better": 0, 1 or 2 ({type(error).__name__}: {error})'
                    ) from error

    def __call__(self, prompt: Prompt, first: str, second: str) -> int | None:
        return self._verdicts.get(_key(prompt, first, second))


def _key(prompt: Prompt, first: str, second: str) -> tuple[str, ...]:
    """Returns what a verdict is about: the same answers may be right to one prompt alone."""
    return prompt.domain, json.dumps(messages_of(prompt.turns)), first, second
