"""Readers of conversations: OpenAI messages, ShareGPT and Alpaca, as JSON lines or a JSON list.

Which form a record has is seen from its keys. A record that is none, or that says what the chat
format cannot, is left out and counted under a reason, with the place of the first such record.
Ids, splits and token stores are made elsewhere.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5x_style.data.chat import TOOLS, Call, Conversation, Turn
from t5x_style.data.text_files import kind_of, open_bytes

KINDS = (".jsonl", ".ndjson", ".json")

_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), "assistant"),
    "system": "system",
    "function_call": "call",
    **dict.fromkeys(("observation", "function_response", "tool"), "environment"),
}


class NoConversationError(ValueError):
    """A record that is no conversation; its text is the reason, the same for all of its kind."""


class Dropped:
    """Records that were left out.

    Attributes:
      counts: how many for each reason.
      places: where the first of each reason is, such as "chat.jsonl, line 3".
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.places: dict[str, str] = {}

    def add(self, reason: str, place: str) -> None:
        """Counts a record."""
        self.counts[reason] += 1
        self.places.setdefault(reason, place)

    def lines(self) -> list[str]:
        """Returns a line for each reason, the most frequent first."""
        return [
            f"{reason}: {count} (first: {self.places[reason]})"
            for reason, count in self.counts.most_common()
        ]


def read_conversations(
    files: Iterable[Path], dropped: Dropped
) -> Iterator[tuple[Conversation, Mapping[str, Any], str]]:
    """Yields the conversations of files in order.

    Args:
      files: of the kinds in `KINDS`, compressed by gzip or not.
      dropped: counts each record that is not yielded; written in place.

    Yields:
      The conversation, its record and its place, for further counts.
    """
    for path in files:
        for number, record in _records(path):
            place = f"{path}, {'record' if kind_of(path) == '.json' else 'line'} {number}"
            try:
                if isinstance(record, str):
                    raise NoConversationError(record)
                yield conversation_of(record), record, place
            except NoConversationError as error:
                dropped.add(str(error), place)


def conversation_of(record: Mapping[str, Any]) -> Conversation:
    """Returns the turns of a record in any of the three forms.

    OpenAI: {"messages": [{"role": ..., "content": ...}, ...], "tools"?: [...]}.
    ShareGPT: {"conversations": [{"from": "human", "value": ...}, ...], "system"?, "tools"?}.
    Alpaca: {"instruction", "output", "input"?, "system"?, "history"?: [[query, answer], ...]}.

    Raises:
      NoConversationError: it has none of the forms, or says what the chat format cannot.
    """
    if "messages" in record:
        return _with_tools(record.get("tools"), turns_of_messages(record["messages"]))
    if "conversations" in record:
        turns = _sharegpt(record["conversations"])
        return _with_system(record, _with_tools(record.get("tools"), turns))
    if "instruction" in record:
        return _with_system(record, _alpaca(record))
    raise NoConversationError("neither messages, nor conversations, nor instruction")


def turns_of_messages(messages: Any) -> Conversation:
    """Returns the turns of messages in the OpenAI form.

    The role "tool" (or "function") is the environment; its answer is the interpreter's where the
    call was, and else a plugin's. Besides the roles of that form "environment" may stand, and
    "name" may be that of a turn. A tool call is of a function, {"type": "function", "function":
    {"name": ..., "arguments": "{...}"}}, or of the interpreter, {"type": "code_interpreter",
    "code_interpreter": {"input": "..."}}.

    Args:
      messages: a list of {"role", "content", "name"?, "tool_calls"?, "tool_call_id"?}.

    Raises:
      NoConversationError: they are none, or say what the chat format cannot.
    """
    turns: list[Turn] = []
    tool_of_id: dict[Any, str] = {}
    for message in _listed(messages, "messages"):
        role, content = message.get("role"), _text(message.get("content"))
        if role in ("tool", "function"):
            tool = tool_of_id.get(_key(message.get("tool_call_id")), "plugin")
            turns.append(_turn("environment", content, tool))
            continue
        if role == "developer":
            role = "system"
        calls = []
        for call in _calls(message):
            calls.append(_call(call))
            tool_of_id[_key(call.get("id"))] = calls[-1].tool
        turns.append(_turn(role, content, message.get("name"), tuple(calls)))
    return tuple(turns)


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Yields number and record, or for one that cannot be read the reason why."""
    with open_bytes(path) as file:
        if kind_of(path) == ".json":
            try:
                records = json.load(file)
            except (ValueError, RecursionError):
                yield 1, "not JSON"
                return
            for number, record in enumerate(records if isinstance(records, list) else [records], 1):
                yield number, record if isinstance(record, dict) else "not a JSON object"
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                yield number, "not JSON"
                continue
            yield number, record if isinstance(record, dict) else "not a JSON object"


def _turn(role: Any, content: str, name: Any = None, calls: tuple[Call, ...] = ()) -> Turn:
    try:
        return Turn(role, content, name or None, calls)
    except (ValueError, TypeError) as error:
        known = f"role {role!r}" if not isinstance(role, str) or len(role) < 32 else "role"
        raise NoConversationError(f"{known} or its name is not of the chat format") from error


def _listed(value: Any, name: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
        raise NoConversationError(f"{name} is no list of objects")
    return value


def _text(content: Any) -> str:
    """Returns a message's content, which may be a list of parts or, beside calls, nothing."""
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        return "".join(_text(part.get("text")) for part in content)
    if content is None:
        return ""
    if not isinstance(content, str):
        raise NoConversationError("content is no text")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise NoConversationError("lone surrogate") from error
    return content


def _key(value: Any) -> Any:
    return value if isinstance(value, str | int) else None


def _calls(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if message.get("tool_calls"):
        return _listed(message["tool_calls"], "tool_calls")
    if message.get("function_call"):
        return [{"type": "function", "function": message["function_call"]}]
    return []


def _call(call: Mapping[str, Any]) -> Call:
    if call.get("type", "function") == "code_interpreter":
        about = call.get("code_interpreter")
        code = _text(about.get("input")) if isinstance(about, dict) else ""
        return Call("interpreter", f"```python\n{code}\n```")
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise NoConversationError("a tool call names no function")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise NoConversationError("a tool call's arguments are no JSON") from error
    return Call("plugin", _json({"name": function["name"], "parameters": arguments}))


def _json(value: Any) -> str:
    return _text(json.dumps(value, ensure_ascii=False))


def _with_tools(tools: Any, turns: Conversation) -> Conversation:
    """Returns turns with a list of functions as the plugins' system turn, after other such."""
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise NoConversationError("tools are no JSON") from error
    if not tools or any(turn.role == "system" and turn.name == "plugin" for turn in turns):
        return turns
    schemas = [tool.get("function", tool) for tool in _listed(tools, "tools")]
    at = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    return (*turns[:at], Turn("system", _json(schemas), "plugin"), *turns[at:])


def _with_system(record: Mapping[str, Any], turns: Conversation) -> Conversation:
    text = _text(record.get("system"))
    return (Turn("system", text), *turns) if text else turns


def _sharegpt(conversations: Any) -> Conversation:
    turns: list[Turn] = []
    tool = "plugin"
    for message in _listed(conversations, "conversations"):
        said = message.get("from", message.get("role"))
        role = _SHAREGPT_ROLES.get(said) if isinstance(said, str) else None
        if role is None:
            raise NoConversationError("from is none of the known speakers")
        text = _text(message.get("value", message.get("content")))
        if role == "call":
            # Beside the answer that it ends, where there is one.
            name = message.get("name")
            tool = str(name) if name in TOOLS else "plugin"
            before = turns.pop() if turns and turns[-1].role == "assistant" else None
            content, calls = (before.content, before.calls) if before else ("", ())
            turns.append(Turn("assistant", content, calls=(*calls, Call(tool, text))))
        else:
            turns.append(_turn(role, text, tool if role == "environment" else None))
    return tuple(turns)


def _alpaca(record: Mapping[str, Any]) -> Conversation:
    history = record.get("history") or []
    turns: list[Turn] = []
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise NoConversationError("history is no list of [query, answer]")
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2:
            raise NoConversationError("history is no list of [query, answer]")
        turns += [Turn("user", _text(pair[0])), Turn("assistant", _text(pair[1]))]
    query = "\n".join(filter(None, (_text(record["instruction"]), _text(record.get("input")))))
    return (*turns, Turn("user", query), Turn("assistant", _text(record.get("output"))))
