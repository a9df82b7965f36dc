"""Preferences between responses to one prompt: JSON lines to the ids that a reward model reads.

A line is `{"domain": "helpful", "messages": [...], "responses": [{"content": "...", "rank": 0},
...]}` with messages in the OpenAI form (`chat_readers.turns_of_messages`) up to the turn that is
answered. Rank 0 is best; equal ranks are not compared. Batches are made in `preference_batches`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_style.data.chat import ChatFormat, Conversation, Turn
from t5x_style.data.chat_readers import turns_of_messages
from t5x_style.data.domain_prompts import DomainPrompts

_LIKE = (
    '{"domain": "helpful", "messages": [{"role": "user", "content": "..."}], "responses": '
    '[{"content": "...", "rank": 0}, {"content": "...", "rank": 1}]}'
)
_ANSWERED = ("user", "environment")


@dataclasses.dataclass(frozen=True)
class Response:
    """An answer and its rank among those to the same prompt, 0 for the best."""

    content: str
    rank: int


@dataclasses.dataclass(frozen=True)
class Preference:
    """A prompt and several responses to it.

    Attributes:
      domain: which of the prompts in `data.domain_prompts` says what is preferred.
      turns: the conversation up to the turn that is answered.
      responses: at least two.
      id: of the record; None if it has none.
    """

    domain: str
    turns: Conversation
    responses: tuple[Response, ...]
    id: str | None = None


def read_preferences(
    paths: Iterable[str | os.PathLike[str]],
    *,
    setting: str,
    prompts: DomainPrompts | None = None,
) -> list[Preference]:
    """Reads preferences.

    Args:
      paths: files of JSON lines.
      setting: the gin name of what names them, for errors.
      prompts: every record must be of one of their domains. None: domains may have any name.

    Raises:
      ValueError: a file is not there, or a line is no such record; names file and line.
    """
    found = []
    for path in map(Path, paths):
        if not path.is_file():
            raise ValueError(f"{setting}: there is no file {path}")
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{setting}: {path}, line {number}"
                try:
                    preference = _preference(json.loads(line))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    reason = f"it lacks {error}" if isinstance(error, KeyError) else error
                    raise ValueError(f"{where}, is no preference ({reason}) such as {_LIKE}") from (
                        error
                    )
                if prompts is not None and preference.domain not in prompts:
                    raise ValueError(
                        f"{where}: domain {preference.domain!r} has no prompt in {prompts.source}, "
                        f"which knows {', '.join(prompts)}: add {preference.domain}.txt there"
                    )
                found.append(preference)
    return found


def _preference(record: Mapping[str, Any]) -> Preference:
    """Raises ValueError or what wrong types raise."""
    domain, turns = record["domain"], turns_of_messages(record["messages"])
    responses = tuple(Response(one["content"], one["rank"]) for one in record["responses"])
    if not isinstance(domain, str) or not domain:
        raise ValueError(f"domain = {domain!r} is no name")
    if turns[-1].role not in _ANSWERED:
        raise ValueError(f"messages must end with a turn of one of {_ANSWERED}")
    if len(responses) < 2:
        raise ValueError("there must be at least two responses")
    for one in responses:
        if not isinstance(one.content, str) or type(one.rank) is not int or one.rank < 0:
            raise ValueError("a response has a content that is text and a rank of 0, 1, 2, ...")
    return Preference(domain, turns, responses, record.get("id"))


def divided(
    preferences: Sequence[Preference], share: float
) -> tuple[list[Preference], list[Preference]]:
    """Divides preferences in two by hash of the prompt, so that a prompt is on one side only.

    Returns:
      Those to train on, and about `share` of them to measure on.
    """
    parts: tuple[list[Preference], list[Preference]] = ([], [])
    for preference in preferences:
        draw = hashlib.blake2b(f"held out {preference.turns}".encode(), digest_size=8).digest()
        parts[int.from_bytes(draw, "little") < share * 2.0**64].append(preference)
    return parts


def scored_ids(
    turns: Sequence[Turn], chat_format: ChatFormat, system: str | None = None
) -> list[int]:
    """Returns the ids of a conversation as a reward model reads them, its reward id at the end.

    Args:
      turns: the conversation, the answer to be judged last.
      chat_format: how it becomes ids.
      system: the domain's prompt, a system turn before all others; None for none.
    """
    before = () if system is None else (Turn("system", system),)
    return [*chat_format.render((*before, *turns)).ids.tolist(), chat_format.reward_id]


@dataclasses.dataclass(frozen=True)
class EncodedPreferences:
    """Responses as ids, prompt by prompt. N prompts, R responses.

    Attributes:
      tokens: int32, the ids of all responses with their prompts, one after another.
      bounds: int64[R + 1]; response r is tokens[bounds[r] : bounds[r + 1]].
      ranks: int32[R].
      prompts: int64[N + 1]; those to prompt n are responses prompts[n] to prompts[n + 1].
      domains: of each prompt.
      dropped: what was left out, by reason: responses "too_long", prompts "not_compared" (fewer
        than two ranks are left).
    """

    tokens: np.ndarray
    bounds: np.ndarray
    ranks: np.ndarray
    prompts: np.ndarray
    domains: tuple[str, ...]
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.domains)

    def ids(self, response: int) -> np.ndarray:
        """Returns the ids of a response, int32."""
        return self.tokens[self.bounds[response] : self.bounds[response + 1]]

    def pairs(self, prompt: int) -> np.ndarray:
        """Returns int64[P, 2]: better and worse response of each comparison that a prompt gives."""
        first, stop = self.prompts[prompt : prompt + 2]
        ranks = self.ranks[first:stop]
        return first + np.argwhere(ranks[:, None] < ranks[None])

    @property
    def content(self) -> str:
        """Hex digest of what is learnt from."""
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.tokens, self.bounds, self.ranks, self.prompts):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def encoded(
    preferences: Sequence[Preference],
    chat_format: ChatFormat,
    *,
    prompts: Mapping[str, str] | None = None,
    max_tokens: int | None = None,
) -> EncodedPreferences:
    """Returns preferences as ids.

    Args:
      preferences: what was read.
      chat_format: how a conversation becomes ids.
      prompts: system prompt by domain; None leaves them all without.
      max_tokens: longer responses are left out and counted; None for no limit.
    """
    pieces: list[np.ndarray] = []
    ranks: list[int] = []
    bounds, domains, dropped = [0], [], {"too_long": 0, "not_compared": 0}
    for preference in preferences:
        system = None if prompts is None else prompts[preference.domain]
        kept = []
        for response in preference.responses:
            answer = Turn("assistant", response.content)
            ids = scored_ids((*preference.turns, answer), chat_format, system)
            if max_tokens is None or len(ids) <= max_tokens:
                kept.append((np.array(ids, np.int32), response.rank))
        dropped["too_long"] += len(preference.responses) - len(kept)
        if len({rank for _, rank in kept}) < 2:
            dropped["not_compared"] += 1
            continue
        pieces += [ids for ids, _ in kept]
        ranks += [rank for _, rank in kept]
        bounds.append(len(pieces))
        domains.append(preference.domain)
    splits = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum([len(ids) for ids in pieces], out=splits[1:])
    return EncodedPreferences(
        tokens=np.concatenate([np.zeros(0, np.int32), *pieces]),
        bounds=splits,
        ranks=np.array(ranks, np.int32),
        prompts=np.array(bounds, np.int64),
        domains=tuple(domains),
        dropped=dropped,
    )
