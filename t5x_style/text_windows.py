"""Which stretches of a text a model of bounded length reads: the first, and others evenly spaced.

Training and scoring cut texts alike, so this lies in no room.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class WindowSettings:
    """How a text is cut.

    Attributes:
      length_tokens: most tokens of a window, the beginning-of-text id before each included.
      max_windows: most windows of a text. Of a longer one they lie evenly from its beginning to its
        end, and what is between them is not read.
    """

    length_tokens: int = 512
    max_windows: int = 4

    def __post_init__(self) -> None:
        if self.length_tokens < 2 or self.max_windows < 1:
            raise ValueError(
                f"text_windows.WindowSettings.length_tokens = {self.length_tokens}, max_windows = "
                f"{self.max_windows}: take at least 2 tokens and 1 window"
            )

    def cut(self, ids: Sequence[int], bos_id: int) -> list[list[int]]:
        """Returns the windows of a text, at least one, each `bos_id` and then some of its ids."""
        size = self.length_tokens - 1
        num_windows = min(self.max_windows, max(1, -(-len(ids) // size)))
        room = max(0, len(ids) - size)
        starts = [room * i // max(1, num_windows - 1) for i in range(num_windows)]
        return [[bos_id, *ids[start : start + size]] for start in starts]
