"""The Safe stage of WanJuan-CC (arXiv 2402.19282): unsafe pages out, personal data masked.

Lists first, as in the technical report of the same authors (arXiv 2403.17297, section 3.1.1), where
words are matched conservatively because they say little by themselves; masking last, so that what
judges a text sees it as it was. Between the two come scores by models, which users train on labels
of their own and which are given as a function that loads them, linear or encoder.
"""

import dataclasses
from collections import Counter
from typing import Any

import pyarrow as pa

from t5x_style.corpus.documents import SAFETY_SCORES, document_id
from t5x_style.corpus.linear_scorer import LinearScorer
from t5x_style.corpus.scorer import LoadScorer, with_scores
from t5x_style.corpus.stages import Outcome, keep_rows
from t5x_style.corpus.wanjuan_cc.blocklists import Domains, Words, read_list, words_of
from t5x_style.corpus.wanjuan_cc.pii import Masked, MaskSettings, mask


@dataclasses.dataclass(frozen=True)
class Cut:
    """A score, and what is too much of it.

    Attributes:
      scorer: folder of a trained scorer.
      limit: texts that score this or more go. The paper's are not known; the scorer's measures by
        threshold are beside it.
    """

    scorer: str
    limit: float = 0.5


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
      toxicity, pornography: by models; None for no such score.
      mask: personal data.
    """

    domain_lists: tuple[str, ...] = ("unsafe/domains.txt",)
    word_lists: tuple[str, ...] = ("unsafe/words.txt",)
    min_word_hits: int = 3
    min_word_share: float = 0.005
    toxicity: Cut | None = None
    pornography: Cut | None = None
    mask: MaskSettings = dataclasses.field(default_factory=MaskSettings)


class Safe:
    """The stage, with its lists and models read once.

    Args:
      settings: what is unsafe.
      load_scorer: gives the scorer of a folder.

    Attributes:
      masked: personal data masked so far, by kind.

    Raises:
      ValueError: a list is not there or no text, or a scorer is not there.
    """

    def __init__(self, settings: SafeSettings, load_scorer: LoadScorer = LinearScorer.load):
        self._settings = settings
        self._domains = Domains(name for path in settings.domain_lists for name in read_list(path))
        self._words = Words(name for path in settings.word_lists for name in read_list(path))
        self._cuts = {"toxic": settings.toxicity, "porn": settings.pornography}
        self._scorers = [cut and load_scorer(cut.scorer) for cut in self._cuts.values()]
        self.masked: Counter[str] = Counter()

    def __call__(self, table: pa.Table) -> Outcome:
        """Stage "safe".

        Args:
          table: documents (`documents.TEXT_SCHEMA`).

        Returns:
          The safe documents, masked (`documents.SAFE_SCHEMA`), and the others counted under
          "unsafe_domain", "unsafe_words", "toxic" and "porn".
        """
        urls, texts = table["url"].to_pylist(), table["text"].to_pylist()
        reasons = [self._reason(url, text) for url, text in zip(urls, texts, strict=True)]
        kept, dropped = keep_rows(table, reasons)
        kept, too_much = self._scored(kept)
        return self._masked(kept), {**dropped, **too_much}

    def _scored(self, table: pa.Table) -> Outcome:
        """Adds the scores, and drops what one of them is too high of."""
        reasons: list[str | None] = [None] * table.num_rows
        rows = zip(SAFETY_SCORES, self._cuts.items(), self._scorers, strict=True)
        for field, (name, cut), scorer in rows:
            table, scores = with_scores(table, field, scorer)
            if cut is not None:
                too_much = (scores >= cut.limit).tolist()
                reasons = [
                    reason or (name if is_over else None)
                    for reason, is_over in zip(reasons, too_much, strict=True)
                ]
        return keep_rows(table, reasons)

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
