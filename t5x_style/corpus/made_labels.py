"""Labelled texts made from good documents: for fluency, for not_ad, and for pornography.

People's labels (those of WanJuan-CC, arXiv 2402.19282, are theirs) are not to be had offline. What
is made here stands in for them: passages of documents as good texts; the same kind of passages,
broken in one of several ways, as texts that are not fluent; advertisements put together from
lists, alone or within a good passage; and pages of adult sites made in the same way, set against
good passages and ordinary advertisements. A model trained on these knows these faults and no
others.

A label is 1 where the score of that name is to be high: fluent, no advertisement, pornographic. All
of it follows from the seed.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from t5x_style.config.paths import find_data

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z])")
_WORD = re.compile(r"[A-Za-z][A-Za-z'’-]*[.,;:!?]?")
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_SLOT = re.compile(r"\{(\w+)\}")
_NAME = re.compile(r"\[(\w+)\]")
# A tenth of the ways to say a thing are kept for texts that models are measured on.
_KEPT_APART = 10
_FEWEST_TO_KEEP_APART = 6
# Sets of labelled texts that can be made.
KINDS = ("fluency", "not_ad", "porn")


@dataclasses.dataclass(frozen=True)
class MadeLabelsSettings:
    """What is made.

    Attributes:
      num_texts: most texts of each set, held-out ones included, half of them good.
      min_words, max_words: of a passage; short ones are as frequent as twice as long ones.
      passages_per_document: most that are taken of one.
      max_documents: most that are read, chosen by a hash of their id.
      held_out_share: of the documents, whose texts are for measuring.
      min_prose_words: share of a paragraph's words that consist of letters, at least.
      min_function_words: share of a paragraph's words that are function words, at least.
      insertions: share of the advertisements that stand within a good passage.
      seed: of all that is drawn.
      kinds: the sets to make, of KINDS.
      function_words, advertisements, adult: files, as paths or names under `data/`.
    """

    num_texts: int = 16_000
    min_words: int = 8
    max_words: int = 160
    passages_per_document: int = 32
    max_documents: int = 20_000
    held_out_share: float = 0.15
    min_prose_words: float = 0.8
    min_function_words: float = 0.2
    insertions: float = 0.4
    seed: int = 0
    kinds: tuple[str, ...] = ("fluency", "not_ad")
    function_words: str = "made_labels/function_words.txt"
    advertisements: str = "made_labels/advertisements.txt"
    adult: str = "made_labels/adult.txt"

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.max_words or not 0 < self.held_out_share < 1:
            raise ValueError(
                f"made_labels.MadeLabelsSettings.min_words = {self.min_words}, max_words = "
                f"{self.max_words}, held_out_share = {self.held_out_share}: take 1 <= min_words <= "
                "max_words, and a share between 0 and 1"
            )
        if not self.kinds or set(self.kinds) - set(KINDS):
            raise ValueError(
                f"made_labels.MadeLabelsSettings.kinds = {self.kinds!r}: take some of {KINDS}"
            )


# Sentences of each paragraph of a passage.
Passage = list[list[str]]
Examples = list[tuple[str, int]]


def text_of(passage: Passage) -> str:
    """Returns a passage as text, with an empty line between paragraphs."""
    return "\n\n".join(" ".join(sentences) for sentences in passage)


class Passages:
    """Cuts good documents into passages of prose.

    Args:
      settings: what a passage is.
    """

    def __init__(self, settings: MadeLabelsSettings):
        self._settings = settings
        self._function_words = frozenset(read_words(settings.function_words))

    def of(self, text: str, rng: np.random.Generator) -> list[Passage]:
        """Returns some passages of a document, each of its own length, none overlapping."""
        settings = self._settings
        passages: list[Passage] = []
        passage: Passage = []
        num_words, wanted = 0, self._wanted(rng)
        for sentences in self._paragraphs(text):
            kept: list[str] = []
            for sentence in sentences:
                kept.append(sentence)
                num_words += len(sentence.split())
                if num_words < wanted:
                    continue
                passages.append([*passage, kept])
                passage, kept, num_words, wanted = [], [], 0, self._wanted(rng)
            if kept:
                passage.append(kept)
        if num_words >= settings.min_words:
            passages.append(passage)
        passages = [p for p in passages if len(text_of(p).split()) <= 2 * settings.max_words]
        chosen = rng.permutation(len(passages))[: settings.passages_per_document]
        return [passages[place] for place in sorted(chosen)]

    def _wanted(self, rng: np.random.Generator) -> int:
        least, most = np.log(self._settings.min_words), np.log(self._settings.max_words)
        return round(float(np.exp(rng.uniform(least, most))))

    def _paragraphs(self, text: str) -> Iterator[list[str]]:
        """Yields the sentences of each paragraph that is prose."""
        for paragraph in _PARAGRAPH_END.split(text):
            words = paragraph.split()
            num_prose = sum(_WORD.fullmatch(word) is not None for word in words)
            num_function = sum(word.lower() in self._function_words for word in words)
            if (
                len(words) >= self._settings.min_words
                and num_prose >= self._settings.min_prose_words * len(words)
                and num_function >= self._settings.min_function_words * len(words)
                and words[-1][-1] in ".!?\"')"
            ):
                yield _SENTENCE_END.split(" ".join(words))


class Breaker:
    """Makes text that is not fluent out of passages.

    Args:
      passages: material: words and pieces that are put in the wrong places are from these.
      function_words: the words that sentences lose.
    """

    def __init__(self, passages: Sequence[Passage], function_words: Iterable[str]):
        self._passages = passages
        self._function_words = sorted(function_words)
        self._is_function_word = frozenset(self._function_words)
        self._words = [word for passage in passages for s in _sentences(passage) for word in s]
        self._places: dict[str, list[int]] = {}
        for place, word in enumerate(self._words[:-1]):
            self._places.setdefault(word, []).append(place)
        self.ways: dict[str, Callable[[Passage, np.random.Generator], str]] = {
            "shuffled": self._shuffled,
            "dropped": self._dropped,
            "repeated": self._repeated,
            "misspoken": self._misspoken,
            "cut": self._cut,
            "listing": self._listing,
            "babble": self._babble,
        }

    def broken(self, passage: Passage, rng: np.random.Generator) -> str:
        """Returns the passage broken in a way that is drawn."""
        whole = made = text_of(passage)
        while made == whole:  # a short sentence may come out as it was
            name = list(self.ways)[rng.integers(len(self.ways))]
            made = self.ways[name](passage, rng)
        return made

    def _each(
        self,
        passage: Passage,
        rng: np.random.Generator,
        change: Callable[[list[str]], list[str]],
    ) -> str:
        """Changes the words of most sentences, and gives them the looks of sentences again."""
        share = rng.uniform(0.5, 1)
        num = sum(len(sentences) for sentences in passage)
        is_changed = rng.random(num) < share
        is_changed[rng.integers(num)] = True
        looks, changes = rng.random() < 0.7, iter(is_changed)
        return text_of(
            [
                [_rewritten(s, change, looks) if next(changes) else s for s in sentences]
                for sentences in passage
            ]
        )

    def _shuffled(self, passage: Passage, rng: np.random.Generator) -> str:
        reach = rng.choice([1.5, 3, 8, 100])

        def change(words: list[str]) -> list[str]:
            order = np.argsort(np.arange(len(words)) + rng.uniform(0, reach + 1, len(words)))
            return [words[place] for place in order]

        return self._each(passage, rng, change)

    def _dropped(self, passage: Passage, rng: np.random.Generator) -> str:
        rate = rng.uniform(0.5, 1)

        def change(words: list[str]) -> list[str]:
            gone = rng.random(len(words)) < rate
            return [
                word
                for word, is_gone in zip(words, gone, strict=True)
                if not (is_gone and word.lower() in self._is_function_word)
            ]

        return self._each(passage, rng, change)

    def _repeated(self, passage: Passage, rng: np.random.Generator) -> str:
        def change(words: list[str]) -> list[str]:
            start = int(rng.integers(len(words)))
            stop = start + int(rng.integers(1, 7))
            again = words[start:stop] * int(rng.integers(1, 5))
            return [*words[:stop], *again, *words[stop:]]

        return self._each(passage, rng, change)

    def _misspoken(self, passage: Passage, rng: np.random.Generator) -> str:
        rate = rng.uniform(0.25, 0.6)

        def changed(word: str) -> str:
            if rng.random() >= rate:
                return word
            if word.lower() in self._is_function_word:
                return self._function_words[rng.integers(len(self._function_words))]
            if rng.random() < 0.3:
                return self._words[rng.integers(len(self._words))]
            return _inflected(word, rng)

        return self._each(passage, rng, lambda words: [changed(word) for word in words])

    def _cut(self, passage: Passage, rng: np.random.Generator) -> str:
        num_lines = int(rng.integers(3, 12))
        joint = ["\n", " ", " ... ", " | ", "\n\n"][rng.integers(5)]
        own = [word for sentence in _sentences(passage) for word in sentence]
        lines = []
        for number in range(num_lines):
            words = own if number % 2 else self._words
            start = int(rng.integers(len(words)))
            lines.append(" ".join(words[start : start + int(rng.integers(2, 12))]))
        return joint.join(lines)

    def _listing(self, passage: Passage, rng: np.random.Generator) -> str:
        num_titles = int(rng.integers(3, 15))
        joint = ["\n", " - ", " | ", ", ", " > "][rng.integers(5)]
        is_capital = rng.random() < 0.5
        first = rng.integers(len(self._passages), size=num_titles)
        titles = []
        for sentences in [passage[0], *(self._passages[place][0] for place in first)]:
            words = sentences[0].split()[: int(rng.integers(2, 8))]
            words[-1] = words[-1].rstrip(".,;:!?")
            titles.append(" ".join(word.capitalize() if is_capital else word for word in words))
        return joint.join(titles)

    def _babble(self, passage: Passage, rng: np.random.Generator) -> str:
        """Words each of which has been seen after the one before it."""
        wanted = max(8, len(text_of(passage).split()))
        words: list[str] = []
        place = int(rng.integers(len(self._words)))
        while len(words) < wanted:
            words.append(self._words[place])
            places = self._places.get(self._words[place])
            jumps = places and rng.random() < 0.7
            place = places[rng.integers(len(places))] + 1 if places and jumps else place + 1
            place %= len(self._words)
        return _as_sentence(words)


class Advertiser:
    """Makes advertisements from lists of ways to say things.

    Args:
      path: the file of lists, which says how it is to be read.
      is_held_out: whether the ways that are kept for measuring may be used.

    Raises:
      ValueError: the file is not there, or names a list that it does not have.
    """

    def __init__(self, path: str, *, is_held_out: bool = False):
        self._lists = _read_lists(path)
        if not is_held_out:
            self._lists = {name: _kept(ways) for name, ways in self._lists.items()}
        self._made: dict[str, Callable[[np.random.Generator], str]] = {
            "brand": _brand,
            "price": _price,
            "percent": lambda rng: f"{5 * rng.integers(1, 19)}%",
            "number": lambda rng: str(rng.choice([3, 5, 7, 10, 12, 15, 21, 24, 30, 50, 100])),
            "phone": lambda rng: f"0800 {rng.integers(100, 1000)} {rng.integers(100, 1000)}",
            "site": lambda rng: f"www.{_brand(rng).lower().replace(' ', '')}.example",
            "code": lambda rng: f"{_brand(rng)[:4].upper()}{5 * rng.integers(1, 10)}",
            "year": lambda rng: str(rng.integers(1950, 2023)),
        }
        for ways in self._lists.values():
            for slot in _SLOT.findall(" ".join(ways)):
                if slot not in self._lists and slot not in self._made:
                    raise ValueError(f"{path} uses {{{slot}}} and has no list [{slot}]")

    def page(self, rng: np.random.Generator) -> str:
        """Returns a whole page, or a single line, that advertises."""
        return self._styled(self._say("headline" if rng.random() < 0.3 else "page", rng), rng)

    def within(self, passage: Passage, rng: np.random.Generator) -> str:
        """Returns a passage with an advertisement somewhere in it."""
        inserted = self._styled(self._say("paragraph", rng), rng)
        if rng.random() < 0.5:
            sentences = [" ".join(sentences) for sentences in passage]
            sentences.insert(int(rng.integers(len(sentences) + 1)), inserted)
            return "\n\n".join(sentences)
        sentences = [sentence for sentences in passage for sentence in sentences]
        sentences.insert(int(rng.integers(len(sentences) + 1)), inserted)
        return " ".join(sentences)

    def _say(self, name: str, rng: np.random.Generator) -> str:
        if name in self._made:
            return self._made[name](rng)
        ways = self._lists[name]
        way = ways[rng.integers(len(ways))].replace("\\n", "\n")
        said = _SLOT.sub(lambda found: self._say(found[1], rng), way)
        return said[:1].upper() + said[1:] if way[:1] == "{" and "." in way else said

    def _styled(self, text: str, rng: np.random.Generator) -> str:
        draw = rng.random()
        if draw < 0.12:
            return text.title()
        if draw < 0.2:
            return text.upper()
        if draw < 0.35:
            return text.replace("!", ".")
        return text


def fluency_examples(
    passages: Sequence[Passage], function_words: Iterable[str], rng: np.random.Generator
) -> Examples:
    """Returns each passage twice: as it is (1) and broken (0), so that no topic tells."""
    breaker = Breaker(passages, function_words)
    return [(text_of(passage), 1) for passage in passages] + [
        (breaker.broken(passage, rng), 0) for passage in passages
    ]


def not_ad_examples(
    passages: Sequence[Passage],
    advertiser: Advertiser,
    insertions: float,
    rng: np.random.Generator,
) -> Examples:
    """Returns the passages (1), and advertisements alone and within them (0), as many of both."""
    examples = [(text_of(passage), 1) for passage in passages]
    for passage in passages:
        is_inserted = rng.random() < insertions
        made = advertiser.within(passage, rng) if is_inserted else advertiser.page(rng)
        examples.append((made, 0))
    return examples


def porn_examples(
    passages: Sequence[Passage],
    adult: Advertiser,
    advertiser: Advertiser,
    insertions: float,
    rng: np.random.Generator,
) -> Examples:
    """Returns pages of adult sites, alone and within passages (1), and as many others (0).

    Half of the others are passages, half advertisements: selling alone is no sign.
    """
    examples: Examples = []
    for number, passage in enumerate(passages):
        is_inserted = rng.random() < insertions
        examples.append((adult.within(passage, rng) if is_inserted else adult.page(rng), 1))
        if number % 2:
            examples.append((text_of(passage), 0))
        else:
            is_inserted = rng.random() < insertions
            made = advertiser.within(passage, rng) if is_inserted else advertiser.page(rng)
            examples.append((made, 0))
    return examples


def read_words(path: str) -> list[str]:
    """Returns the lines of a file of words, as a path or a name under `data/`."""
    return [line for line in find_data(path).read_text(encoding="utf-8").split("\n") if line]


def _read_lists(path: str) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    ways: list[str] = []
    for number, line in enumerate(read_words(path), start=1):
        if line.startswith("#"):
            continue
        if found := _NAME.fullmatch(line):
            ways = lists.setdefault(found[1], [])
        elif lists:
            ways.append(line)
        else:
            raise ValueError(f"{path}, entry {number}: {line!r} stands before the first [list]")
    if empty := [name for name in ("page", "paragraph", "headline") if not lists.get(name)]:
        raise ValueError(f"{path} has no list {empty}")
    return lists


def _kept(ways: list[str]) -> list[str]:
    if len(ways) < _FEWEST_TO_KEEP_APART:
        return ways
    return [way for place, way in enumerate(ways) if place % _KEPT_APART != 2]


def _sentences(passage: Passage) -> Iterator[list[str]]:
    for sentences in passage:
        for sentence in sentences:
            yield sentence.split()


def _rewritten(sentence: str, change: Callable[[list[str]], list[str]], looks: bool) -> str:
    words = sentence.split()
    if not looks:
        return " ".join(change(words))
    end = words[-1][-1] if words[-1][-1] in ".!?" else ""
    words[-1] = words[-1].rstrip(".!?") or words[-1]
    if not words[0].isupper():
        words[0] = words[0].lower()
    return _as_sentence(change(words), end)


def _as_sentence(words: Sequence[str], end: str = ".") -> str:
    text = " ".join(words)
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else end)


def _inflected(word: str, rng: np.random.Generator) -> str:
    """Gives a word an ending that it should not have, or takes one away."""
    for ending in ("ing", "ed", "es", "s", "ly"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return word[: -len(ending)]
    stem = word.rstrip(".,;:!?")
    return stem + str(rng.choice(["s", "ing", "ed"])) + word[len(stem) :]


def _brand(rng: np.random.Generator) -> str:
    starts, ends = ("Zan", "Vel", "Lumi", "Cor", "Bri", "Nova", "Sun", "Pure", "Eco"), (
        "tex", "via", "ora", "co", "lux", "max", "ly", "fit", "nest",
    )  # fmt: skip
    brand = str(rng.choice(starts)) + str(rng.choice(ends))
    return (
        f"{brand} {rng.choice(['Plus', 'Store', 'Direct', 'Pro'])}" if rng.random() < 0.3 else brand
    )


def _price(rng: np.random.Generator) -> str:
    sign, amount = rng.choice(["$", "£", "€", "US$ "]), int(rng.integers(1, 100))
    cents = str(rng.choice(["", ".99", ".95", ".50", "0", "9", "00"]))
    return f"{sign}{amount}{cents}"
