"""Conversations and their ids: ChatML as the published InternLM2 chat models read and write it.

    <s><|im_start|>system\n{text}<|im_end|>\n
    <|im_start|>user\n{text}<|im_end|>\n
    <|im_start|>assistant\n{text}<|action_start|><|plugin|>\n{body}<|action_end|><|im_end|>\n
    <|im_start|>environment name=<|plugin|>\n{text}<|im_end|>\n

(arXiv 2403.17297, section 4.1, and the format's published description.) Each text is encoded
by itself, and control ids are put between texts by number, so no text can become one. Files of
conversations are read elsewhere, and so is what becomes of ids.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from t5x_style.data.vocabulary import Vocabulary

ROLES = ("system", "user", "assistant", "environment")
TOOLS = ("plugin", "interpreter")
# Names that a turn's header may give, by role.
_NAMES: dict[str, tuple[str, ...]] = {
    "system": TOOLS,
    "user": ("file",),
    "assistant": (),
    "environment": TOOLS,
}


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a tool by the assistant.

    Attributes:
      tool: one of `TOOLS`.
      body: what the tool gets: for a plugin a JSON object with "name" and "parameters", for the
        interpreter a block of Markdown with the code.
    """

    tool: str
    body: str

    def __post_init__(self) -> None:
        if self.tool not in TOOLS:
            raise ValueError(f"Call.tool = {self.tool!r} is none of {', '.join(TOOLS)}")


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of a conversation; a conversation is a tuple of turns.

    Attributes:
      role: one of `ROLES`. The environment says what tools answer.
      content: its text; an assistant's before its calls.
      name: what the turn is about: "plugin" or "interpreter" of a system or environment turn,
        "file" of a user turn; None for plain turns.
      calls: the tools that an assistant calls at the end of its turn.
    """

    role: str
    content: str
    name: str | None = None
    calls: tuple[Call, ...] = ()

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"Turn.role = {self.role!r} is none of {', '.join(ROLES)}")
        if self.name is not None and self.name not in _NAMES[self.role]:
            raise ValueError(
                f"Turn.name = {self.name!r}: a turn of the {self.role} has "
                f"{' or '.join(_NAMES[self.role]) or 'no name'}"
            )
        if self.calls and self.role != "assistant":
            raise ValueError(f"Turn.calls: only the assistant calls tools, not the {self.role}")


Conversation = tuple[Turn, ...]


@dataclasses.dataclass(frozen=True)
class Rendered:
    """The ids of a conversation.

    Attributes:
      ids: int32[T], bos first, no eos.
      is_target: bool[T], ids that the assistant writes: its text, its calls and the <|im_end|>
        that closes its turn.
      turn_ends: int64[turns]; the first n turns are ids[:turn_ends[n - 1]].
    """

    ids: np.ndarray
    is_target: np.ndarray
    turn_ends: np.ndarray


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a sampled answer says.

    Attributes:
      turn: its text and calls, as a turn of the assistant.
      is_ended: whether it came to its end, rather than to that of the room for it.
      problem: what is wrong with it where it is not as the format has it, else None.
    """

    turn: Turn
    is_ended: bool
    problem: str | None = None


class ChatFormat:
    """Conversations to ids and sampled ids back to turns.

    Attributes:
      vocabulary: what encodes the texts.
      stop_ids: ids that end an answer: end of text and <|im_end|>.
      reward_id: the id at which a reward model reads its score.
    """

    def __init__(self, vocabulary: Vocabulary):
        """Takes a vocabulary.

        Raises:
          ValueError: it lacks one of the chat tokens.
        """
        self.vocabulary = vocabulary
        special = vocabulary.special_ids
        names = ("im_start", "im_end", "action_start", "action_end", *TOOLS, "reward")
        if missing := [f"<|{name}|>" for name in names if f"<|{name}|>" not in special]:
            raise ValueError(
                f"the vocabulary has no {', '.join(missing)} and no spare pieces in their place: "
                "train one with the vocabulary stage, or give an InternLM2 tokenizer.model"
            )
        self._im_start, self._im_end = special["<|im_start|>"], special["<|im_end|>"]
        self._action_start = special["<|action_start|>"]
        self._action_end = special["<|action_end|>"]
        self._tools = {name: special[f"<|{name}|>"] for name in TOOLS}
        self._tool_of_id = {token_id: name for name, token_id in self._tools.items()}
        self.stop_ids = [vocabulary.eos_id, self._im_end]
        self.reward_id = special["<|reward|>"]
        self._newline = vocabulary.encode("\n")
        self._spelled = {vocabulary.bos_id: "<s>", vocabulary.eos_id: "</s>"} | {
            token_id: name for name, token_id in special.items()
        }

    def render(self, turns: Sequence[Turn]) -> Rendered:
        """Returns the ids of a conversation, from <s> to the newline after the last turn.

        A plain system turn without text is left out, as published.
        """
        ids, is_target, turn_ends = [self.vocabulary.bos_id], [False], []
        for turn in turns:
            if turn.role != "system" or turn.name or turn.content:
                header, written = self._header(turn.role, turn.name), self._written(turn)
                ids += [*header, *written, *self._newline]
                is_target += [False] * len(header)
                is_target += [turn.role == "assistant"] * len(written)
                is_target += [False] * len(self._newline)
            turn_ends.append(len(ids))
        return Rendered(
            np.array(ids, np.int32), np.array(is_target, bool), np.array(turn_ends, np.int64)
        )

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Returns the ids after which the assistant answers a conversation."""
        return [*self.render(turns).ids.tolist(), *self._header("assistant", None)]

    def parse(self, ids: Sequence[int]) -> Answer:
        """Returns what a sampled answer says; ids from the first stop id on count for nothing.

        Newlines between the text and a call and after a call are no part of either: published
        examples have none, one or two.
        """
        ids = list(ids)
        end = next((at for at, token_id in enumerate(ids) if token_id in self.stop_ids), None)
        texts: list[str] = []
        calls: list[Call] = []
        problem: str | None = None
        for is_call, part in self._parts(ids[:end]):
            if not is_call:
                text = self.vocabulary.decode(part)
                if calls and text.strip():
                    problem = problem or "there is text after a call"
                texts.append(text)
                problem = problem or self._control_in(part)
                continue
            tool = self._tool_of_id.get(part[0]) if part else None
            if tool is None:
                problem = problem or "a call names no tool"
                continue
            is_closed = part[-1] == self._action_end
            body = part[1:-1] if is_closed else part[1:]
            if not is_closed:
                problem = problem or "a call does not end"
            problem = problem or self._control_in(body)
            calls.append(Call(tool, self.vocabulary.decode(body).removeprefix("\n")))
        text = texts[0].rstrip("\n") if calls else "".join(texts)
        if calls:
            text += "".join(part for part in texts[1:] if part.strip())
        return Answer(Turn("assistant", text, calls=tuple(calls)), end is not None, problem)

    def spelled(self, ids: Sequence[int]) -> str:
        """Returns ids as a person reads them, control ids by their names: for reports only.

        The text is not to be encoded again: what spells a control token may have been text.
        """
        parts, texts = [], []
        for token_id in ids:
            if token_id in self._spelled:
                parts += [self.vocabulary.decode(texts), self._spelled[token_id]]
                texts = []
            else:
                texts.append(token_id)
        return "".join([*parts, self.vocabulary.decode(texts)])

    def _header(self, role: str, name: str | None) -> list[int]:
        encode = self.vocabulary.encode
        if name is None or name not in self._tools:
            title = role if name is None else f"{role} name={name}"
            return [self._im_start, *encode(title), *self._newline]
        return [self._im_start, *encode(f"{role} name="), self._tools[name], *self._newline]

    def _written(self, turn: Turn) -> list[int]:
        ids = self.vocabulary.encode(turn.content)
        for call in turn.calls:
            ids += [self._action_start, self._tools[call.tool], *self._newline]
            ids += [*self.vocabulary.encode(call.body), self._action_end]
        return [*ids, self._im_end]

    def _parts(self, ids: list[int]) -> list[tuple[bool, list[int]]]:
        """Returns stretches (is it a call, its ids), a call with its end and without its start."""
        parts: list[tuple[bool, list[int]]] = [(False, [])]
        for token_id in ids:
            if token_id == self._action_start:
                parts.append((True, []))
                continue
            parts[-1][1].append(token_id)
            if token_id == self._action_end and parts[-1][0]:
                parts.append((False, []))
        return parts

    def _control_in(self, ids: list[int]) -> str | None:
        names = [self._spelled[token_id] for token_id in ids if token_id in self._spelled]
        return f"{names[0]} stands where text is meant" if names else None
