"""Prompts to sample answers for, each with the domain whose preferences judge the answer."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from t5x_style.data.chat import Conversation
from t5x_style.data.chat_readers import conversation_of
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
                record = json.loads(line)
                turns = conversation_of(record["messages"])
                if turns[-1].role == "assistant":
                    raise ValueError("the last message is the assistant's, so nothing is asked")
                prompt = Prompt(str(record.get("id", number)), str(record["domain"]), turns)
            except (KeyError, TypeError, IndexError, ValueError) as error:
                raise ValueError(
                    f"{path}:{number} is no prompt ({type(error).__name__}: {error}): a line is "
                    '{"domain": "...", "messages": [...]}'
                ) from error
            prompts.append(prompt)
    if not prompts:
        raise ValueError(f"{path} holds no prompts")
    return prompts


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
