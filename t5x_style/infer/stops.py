"""Stop strings: where a text that is being sampled comes to one of them."""

import dataclasses
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class StopStrings:
    """Looks for strings in the text of tokens, whatever tokens they are spelled with.

    Attributes:
      strings: what to look for; may be none.
      to_text: from ids to text; None where there is nothing to look for.
    """

    strings: tuple[str, ...] = ()
    to_text: Callable[[Sequence[int]], str] | None = None

    def __post_init__(self) -> None:
        if self.strings and self.to_text is None:
            raise ValueError(
                f"stop_strings = {list(self.strings)}: give to_text, which decodes ids, too"
            )
        if "" in self.strings:
            raise ValueError("stop_strings holds an empty string, which every text begins with")

    def find(self, tokens: Sequence[int], num_known: int) -> tuple[int, str] | None:
        """Returns how many tokens it takes until the text holds a string, and that string.

        Args:
          tokens: ids of the text so far.
          num_known: how many of them were looked through before.
        """
        if not self.strings or self._first(tokens) is None:
            return None
        for length in range(num_known + 1, len(tokens) + 1):
            found = self._first(tokens[:length])
            if found is not None:
                return length, found
        return None

    def text(self, tokens: Sequence[int], stop: int | str | None) -> str | None:
        """Returns the text of a sample's tokens, which nothing follows its stop string in."""
        if self.to_text is None:
            return None
        text = self.to_text(tokens)
        return text if not isinstance(stop, str) else text[: text.index(stop) + len(stop)]

    def _first(self, tokens: Sequence[int]) -> str | None:
        """Returns the string that is complete first in the text."""
        assert self.to_text is not None
        text = self.to_text(tokens)
        found = [string for string in self.strings if string in text]
        ends = {text.index(string) + len(string): string for string in found}
        return ends[min(ends)] if ends else None
