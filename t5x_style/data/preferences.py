"""Preferences between responses to one prompt: from JSON lines to the ids that a reward model reads.

A line is `{"domain": "helpful", "messages": [...], "responses": [{"content": "...", "rank": 0},
...]}` with messages in the form {"role", "content", "name"?} up to the turn that is answered. Rank
0 is best; equal ranks are not compared. How a conversation becomes ids is handed in (`data.chat`
has it); batches are made in `preference_batches`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_style.data.domain_prompts import DomainPrompts

Message = Mapping[str, str]
# From a conversation to its ids.
Render = Callable[[Sequence[Message]], Sequence[int]]

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
      messages: the conversation up to the turn that is answered.
      responses: at least two.
      id: of the record; None if it has none.
    """

    domain: str
    messages: tuple[Message, ...]
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
    domain, messages = record["domain"], record["messages"]
    responses = tuple(Response(one["content"], one["rank"]) for one in record["responses"])
    if not isinstance(domain, str) or not domain:
        raise ValueError(f"domain = {domain!r} is no name")
    if not messages or messages[-1]["role"] not in _ANSWERED:
        raise ValueError(f"messages must end with a turn of one of {_ANSWERED}")
    for message in messages:
        names = {"role", "content", *({"name"} & set(message))}
        if set(message) != names or not all(isinstance(message[name], str) for name in names):
            raise ValueError("a message has a role, a content, perhaps a name, all of them text")
    if len(responses) < 2:
        raise ValueError("there must be at least two responses")
    for one in responses:
        if not isinstance(one.content, str) or type(one.rank) is not int or one.rank < 0:
            raise ValueError("a response has a content that is text and a rank of 0, 1, 2, ...")
    return Preference(domain, tuple(messages), responses, record.get("id"))


def divided(
    preferences: Sequence[Preference], share: float
) -> tuple[list[Preference], list[Preference]]:
    """Divides preferences in two by hash of the messages, so that a prompt is on one side only.

    Returns:
      Those to train on, and about `share` of them to measure on.
    """
    parts: tuple[list[Preference], list[Preference]] = ([], [])
    for preference in preferences:
        text = json.dumps(preference.messages, sort_keys=True)
        draw = hashlib.blake2b(f"held out {text}".encode(), digest_size=8).digest()
        parts[int.from_bytes(draw, "little") < share * 2.0**64].append(preference)
    return parts


def scored_ids(
    messages: Sequence[Message], render: Render, reward_id: int, system: str | None = None
) -> list[int]:
    """Returns the ids of a conversation as a reward model reads them.

    Args:
      messages: the conversation, the answer to be judged last.
      render: from a conversation to its ids.
      reward_id: stands at the end, once; the score is read there.
      system: the domain's prompt, a system turn before all others; None for none.
    """
    if system is not None:
        messages = ({"role": "system", "content": system}, *messages)
    ids = list(render(messages))
    return ids if ids[-1:] == [reward_id] else [*ids, reward_id]


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
    render: Render,
    reward_id: int,
    *,
    prompts: Mapping[str, str] | None = None,
    max_tokens: int | None = None,
) -> EncodedPreferences:
    """Returns preferences as ids.

    Args:
      preferences: what was read.
      render: from a conversation to its ids.
      reward_id: what ends each.
      prompts: system prompt by domain; None leaves them all without.
      max_tokens: longer responses are left out and counted; None for no limit.
    """
    pieces: list[list[int]] = []
    ranks: list[int] = []
    bounds, domains, dropped = [0], [], {"too_long": 0, "not_compared": 0}
    for preference in preferences:
        system = None if prompts is None else prompts[preference.domain]
        kept = []
        for response in preference.responses:
            answer = {"role": "assistant", "content": response.content}
            ids = scored_ids((*preference.messages, answer), render, reward_id, system)
            if max_tokens is None or len(ids) <= max_tokens:
                kept.append((ids, response.rank))
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
        tokens=np.fromiter((i for ids in pieces for i in ids), np.int32, int(splits[-1])),
        bounds=splits,
        ranks=np.array(ranks, np.int32),
        prompts=np.array(bounds, np.int64),
        domains=tuple(domains),
        dropped=dropped,
    )
