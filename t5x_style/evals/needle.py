"""The needle in a haystack: does a model find one sentence in a long text?

A statement is put into real text at a chosen depth and asked for at the end (arXiv 2403.17297,
section 5.1.4, and OpenCompass's task of that time). Lengths are counted in the model's own tokens,
where the published figures count those of another model's tokenizer.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Sequence

Encode = Callable[[str], list[int]]
SCORES = ("edit", "trimmed", "keyword", "needlebench")


@dataclasses.dataclass(frozen=True)
class Needle:
    """What is hidden, and how it is asked for.

    Texts may hold `{key}` and `{value}`, which are drawn for each case.

    Attributes:
      statement: the sentence, with the line breaks around it.
      before: what precedes the text: an instruction.
      after: what follows the text: the question, and the beginning of the answer.
      reference: the answer wanted.
      keyword: what an answer must hold to be right.
      keys: what is asked about, one for each case.
      values: what the statement says of it, one for each case.
    """

    statement: str
    after: str
    reference: str
    keyword: str
    before: str = ""
    keys: Sequence[str] = ("",)
    values: Sequence[str] = ("",)

    def filled(self, draw: random.Random) -> "Needle":
        """Returns the needle of one case."""
        fields = {"key": draw.choice(self.keys), "value": draw.choice(self.values)}

        def fill(text: str) -> str:
            # No `format`: texts may hold braces of their own.
            for name, value in fields.items():
                text = text.replace(f"{{{name}}}", value)
            return text

        names = ("statement", "before", "after", "reference", "keyword")
        return dataclasses.replace(self, **{name: fill(getattr(self, name)) for name in names})


@dataclasses.dataclass(frozen=True)
class Case:
    """One question.

    Attributes:
      length: tokens of the prompt and the room for its answer.
      depth: where the needle lies, in per cent of the text.
      repeat: number of the text and of the key and value among those of this length and depth.
    """

    length: int
    depth: float
    repeat: int


@dataclasses.dataclass(frozen=True)
class Question:
    """What a model is given for a case, and what is known of it.

    Attributes:
      prompt: token ids.
      needle: what is hidden there, key and value filled in.
      distance: tokens from the end of the needle to the end of the prompt: how far a model must
        look back for the answer.
    """

    prompt: list[int]
    needle: Needle
    distance: int


def cases(lengths: Sequence[int], depths: Sequence[float], num_repeats: int) -> Iterator[Case]:
    """Yields all cases, the shortest first."""
    for length, depth, repeat in itertools.product(sorted(lengths), depths, range(num_repeats)):
        yield Case(length, depth, repeat)


def build(
    case: Case,
    needle: Needle,
    texts: Sequence[Sequence[int]],
    encode: Encode,
    *,
    answer_tokens: int,
    seed: int = 0,
) -> Question:
    """Returns the question of a case.

    Texts are shuffled by the number of the repeat and joined until there is enough; the needle is
    put before the token `int(len * depth / 100)`.

    Args:
      case: the case.
      needle: what is hidden.
      texts: tokens of each haystack text.
      encode: from text to tokens, none added.
      answer_tokens: room that the prompt leaves for the answer.
      seed: of key, value and order of the texts, with the case's own numbers.

    Raises:
      ValueError: the length leaves no room for a text, or the texts are too short.
    """
    needle = needle.filled(random.Random(f"{seed} {case}"))
    hidden, before, after = (encode(x) for x in (needle.statement, needle.before, needle.after))
    num_tokens = case.length - answer_tokens - len(hidden) - len(before) - len(after)
    if num_tokens < 1:
        raise ValueError(
            f"needle.needle.lengths: {case.length} tokens leave no room for a text beside needle, "
            f"question and {answer_tokens} tokens of answer; the least is "
            f"{case.length - num_tokens + 1}"
        )
    order = list(range(len(texts)))
    random.Random(f"{seed} {case.repeat}").shuffle(order)
    hay: list[int] = []
    for number in order:
        hay += texts[number]
        if len(hay) >= num_tokens:
            break
    else:
        raise ValueError(
            f"needle.needle.haystack: the texts have {len(hay):,} tokens together and a prompt of "
            f"{case.length:,} needs {num_tokens:,}: give more, or shorter lengths"
        )
    hay = hay[:num_tokens]
    place = int(len(hay) * case.depth / 100)
    behind = [*hay[place:], *after]
    return Question([*before, *hay[:place], *hidden, *behind], needle, len(behind))


def answered(text: str, needle: Needle, depth: float) -> str:
    """Returns a text as it is asked about, its answer at the end: something to learn from.

    Args:
      text: the text.
      needle: what is hidden, key and value filled in.
      depth: where, in per cent of the text's characters.
    """
    place = int(len(text) * depth / 100)
    parts = (needle.before, text[:place], needle.statement, text[place:], needle.after)
    return "".join((*parts, needle.reference))


def stretches(text: str, least: int, most: int, draw: random.Random) -> Iterator[str]:
    """Yields a text in stretches of many lengths, as much of it for each doubling of the length.

    Args:
      text: the text; what is left at its end and shorter than `least` is left out.
      least, most: bounds of the length in characters.
      draw: the random numbers.
    """
    at = 0
    while len(text) - at >= least:
        # The number of stretches falls as the square of their length.
        length = int(1 / (1 / least - draw.random() * (1 / least - 1 / most)))
        yield text[at : at + length]
        at += length


def scores(prediction: str, needle: Needle) -> dict[str, float]:
    """Returns what an answer is worth, each from 0 to 100.

    Returns:
      "edit", the similarity by edit distance to the reference, white space left out; "trimmed",
      the same of the answer cut off as `trimmed` does; "keyword", 100 where the keyword is in it;
      "needlebench", 100 for the keyword, otherwise a fifth of "edit" (arXiv 2407.11963).
    """
    edit = similarity(prediction, needle.reference)
    hit = 100.0 if needle.keyword in prediction else 0.0
    return {
        "edit": edit,
        "trimmed": similarity(trimmed(prediction, needle.reference), needle.reference),
        "keyword": hit,
        "needlebench": hit or 0.2 * edit,
    }


def trimmed(prediction: str, reference: str) -> str:
    """Returns an answer up to the reference's last character, where it comes about in its place.

    Looked for between 0.8 and 1.2 times the reference's length; an answer that does not have it
    there is left whole.
    """
    prediction, reference = _without_space(prediction), _without_space(reference)
    first, stop = int(0.8 * len(reference)), int(1.2 * len(reference))
    place = prediction.find(reference[-1:], max(first - 1, 0), stop) if reference else -1
    return prediction if place < 0 else prediction[: place + 1]


def similarity(one: str, other: str) -> float:
    """Returns `100 (1 - edit distance / longer length)`, white space left out."""
    one, other = _without_space(one), _without_space(other)
    longer = max(len(one), len(other))
    return 100.0 if not longer else 100.0 * (1 - _edit_distance(one, other) / longer)


def _without_space(text: str) -> str:
    return "".join(text.split())


def _edit_distance(one: str, other: str) -> int:
    """Least number of insertions, deletions and replacements between two texts (Levenshtein)."""
    previous = list(range(len(other) + 1))
    for i, character in enumerate(one, start=1):
        current = [i]
        for j, wanted in enumerate(other, start=1):
            replaced = previous[j - 1] + (character != wanted)
            current.append(min(previous[j] + 1, current[-1] + 1, replaced))
        previous = current
    return previous[-1]
