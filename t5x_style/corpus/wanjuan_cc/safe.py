"""The Safe stage of WanJuan-CC (arXiv 2402.19282): unsafe pages out, personal data masked.

Lists first, as in the technical report of the same authors (arXiv 2403.17297, section 3.1.1), where
words are matched conservatively because they say little by themselves; masking last, so that what
judges a text sees it as it was. Scores by models are to come between the two.
"""

import dataclasses
from collections import Counter
from typing import Any

import pyarrow as pa

from t5x_style.corpus.documents import document_id
from t5x_style.corpus.stages import Outcome, keep_rows
from t5x_style.corpus.wanjuan_cc.blocklists import Domains, Words, read_list, words_of
from t5x_style.corpus.wanjuan_cc.pii import Masked, MaskSettings, mask


@dataclasses.dataclass(frozen=True)
class SafeSettings:
    """What is unsafe.

    Attributes:
      domain_lists: files of domains, as paths or names under `data/`; a page of one, or of a host
        under one, goes. The authors had 13 million; the list of the University of Toulouse is a
        public one.
      word_lists: files of words and phrases. The authors had 36,289; LDNOOBW is a public list.
      min_word_hits: so many words of the lists in a text are too many, if they are also
      min_word_share: this share of its words or more. Neither is known of the paper.
      mask: personal data.
    """

    domain_lists: tuple[str, ...] = ("unsafe/domains.txt",)
    word_lists: tuple[str, ...] = ("unsafe/words.txt",)
    min_word_hits: int = 3
    min_word_share: float = 0.005
    mask: MaskSettings = dataclasses.field(default_factory=MaskSettings)


class Safe:
    """The stage, with its lists read once.

    Attributes:
      masked: personal data masked so far, by kind.

    Raises:
      ValueError: a list is not there or no text.
    """

    def __init__(self, settings: SafeSettings):
        self._settings = settings
        self._domains = Domains(name for path in settings.domain_lists for name in read_list(path))
        self._words = Words(name for path in settings.word_lists for name in read_list(path))
        self.masked: Counter[str] = Counter()

    def __call__(self, table: pa.Table) -> Outcome:
        """Stage "safe".

        Args:
          table: documents (`documents.TEXT_SCHEMA`).

        Returns:
          The safe documents, masked, and the others counted under "unsafe_domain" and
          "unsafe_words".
        """
        urls, texts = table["url"].to_pylist(), table["text"].to_pylist()
        reasons = [self._reason(url, text) for url, text in zip(urls, texts, strict=True)]
        kept, dropped = keep_rows(table, reasons)
        return self._masked(kept), dropped

    def _reason(self, url: str, text: str) -> str | None:
        if self._domains.has_host_of(url):
            return "unsafe_domain"
        words = words_of(text)
        hits = self._words.count(words)
        least = max(self._settings.min_word_hits, self._settings.min_word_share * len(words))
        return "unsafe_words" if hits and hits >= least else None

    def _masked(self, table: pa.Table) -> pa.Table:
        rows = table.to_pylist()
        for row in rows:
            masked = mask(row["text"], self._settings.mask)
            row["links"] = [self._masked_link(link, masked) for link in row["links"]]
            if masked.spans:
                self.masked.update(kind for _, _, kind in masked.spans)
                row["text"] = masked.text
                row["num_bytes"] = len(masked.text.encode("utf-8"))
                row["id"] = document_id(row["url"], masked.text)
        return pa.Table.from_pylist(rows, table.schema)

    def _masked_link(self, link: dict[str, Any], masked: Masked) -> dict[str, Any]:
        """A link that starts or ends in what was masked loses its place (-1), not its address."""
        places = [masked.place(link[name]) for name in ("start", "end")]
        start, end = places if link["start"] >= 0 and None not in places else (-1, -1)
        anchor = mask(link["anchor"], self._settings.mask).text
        return {**link, "anchor": anchor, "start": start, "end": end}
