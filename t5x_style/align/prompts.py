"""Prompts to sample answers for, each with the domain whose preferences judge the answer."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5x_style.data.chat import Call, Conversation
from t5x_style.data.chat_readers import turns_of_messages
from t5x_style.data.order import ShuffledOrder


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A conversation that waits for the assistant's answer.

    Attributes:
      name: its id in the file, or its place there.
      domain: names the preferences by which the answer is judged.
      turns: up to the last turn of the user.
    """

    name: str
    domain: str
    turns: Conversation


def read_prompts(path: str) -> list[Prompt]:
    """Reads JSON lines `{"domain": "...", "messages": [...], "id"?: "..."}`.

    Raises:
      ValueError: the file is not there, is empty or has a line that is not as above.
    """
    if not Path(path).is_file():
        raise ValueError(f"there are no prompts at {path}: point the setting at a JSON lines file")
    prompts = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                prompt = prompt_of(json.loads(line), str(number))
            except (KeyError, TypeError, IndexError, ValueError) as error:
                raise ValueError(
                    f"{path}:{number} is no prompt ({type(error).__name__}: {error}): a line is "
                    '{"domain": "...", "messages": [...]}'
                ) from error
            prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    return prompts


def prompt_of(record: Mapping[str, Any], name: str) -> Prompt:
    """Returns the prompt that a record gives, called `name` if it has no id.

    Raises:
      ValueError, KeyError, TypeError: it gives none.
    """
    turns = turns_of_messages(record["messages"])
    if turns[-1].role == "assistant":
        raise ValueError("the last message is the assistant's, so nothing is asked")
    return Prompt(str(record.get("id", name)), str(record["domain"]), turns)


def messages_of(turns: Conversation) -> list[dict[str, Any]]:
    """Returns turns as OpenAI messages, which `prompt_of` reads back to the same turns."""
    messages = []
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.name:
            message["name"] = turn.name
        if turn.calls:
            message["tool_calls"] = [_call(call) for call in turn.calls]
        messages.append(message)
    return messages


def _call(call: Call) -> dict[str, Any]:
    if call.tool == "interpreter":
        code = call.body.removeprefix("```python\n").removesuffix("\n```")
        return {"type": "code_interpreter", "code_interpreter": {"input": code}}
    body = json.loads(call.body)
    function = {"name": body["name"], "arguments": json.dumps(body["parameters"])}
    return {"type": "function", "function": function}


def drawn(prompts: Sequence[Prompt], num: int, iteration: int, seed: int) -> list[Prompt]:
    """Returns the prompts of an iteration: each once before any comes again, in an order by seed.

    Args:
      prompts: all of them.
      num: wanted.
      iteration: counted from 0.
      seed: of the order.
    """
    places = np.arange(iteration * num, (iteration + 1) * num)
    order = ShuffledOrder(np.arange(len(prompts)), seed)
    return [prompts[place] for place in order.at(places)]
