"""The system prompts of the conditional reward model: what is preferred in each domain.

One model holds preferences that contradict each other because each text that it judges begins with
the prompt of its domain (arXiv 2403.17297, section 4.2.1). The published prompts are not known;
`data/prompts/reward` has our own. A model must be asked with the prompts that it was trained with,
so their fingerprint goes with a run.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from t5x_style.config.paths import find_data, shown

DEFAULT = "prompts/reward"


class DomainPrompts(Mapping[str, str]):
    """Text of the system turn by domain.

    Args:
      texts: by domain.
      source: where they came from, for errors.
    """

    def __init__(self, texts: Mapping[str, str], source: str = "the prompts given"):
        self._texts, self.source = dict(sorted(texts.items())), source

    @classmethod
    def load(cls, folder: str | Path = DEFAULT) -> "DomainPrompts":
        """Reads DOMAIN.txt of each domain from a folder, or from one of that name in `data/`.

        Raises:
          ValueError: there is no such folder, or it holds no prompt, or an empty one.
        """
        path = find_data(folder)
        texts = {p.stem: p.read_text(encoding="utf-8").strip() for p in path.glob("*.txt")}
        if not texts or not all(texts.values()):
            empty = sorted(name for name, text in texts.items() if not text)
            raise ValueError(
                f"{shown(path)} must hold the prompt of each domain in DOMAIN.txt; it has "
                + (f"nothing in {empty}" if empty else "no such file")
            )
        return cls(texts, shown(path))

    def __getitem__(self, domain: str) -> str:
        return self._texts[domain]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def fingerprint(self) -> str:
        """Hex digest of domains and texts."""
        text = json.dumps(self._texts, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
