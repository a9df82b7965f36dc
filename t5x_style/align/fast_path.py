"""The fast path: what a policy has found to please its reward model with, and pairs against it.

After a round of PPO the answers of an early and of a late policy are compared (arXiv 2403.17297,
section 4.2.2). If the score rose while answers drifted in a way that no prompt asks for, 20 to 100
pairs of an answer with the flaw and one without it are enough to take the pleasure away.

How the paper finds a pattern is not stated: people looked. Here it is looked for in two ways: signs
that answers show by themselves (`signs`), those that a domain may ask for only if scores rose under
the prompts of other domains as well; and phrases said ever more often, for which the reward model
pays in every domain when they are put before answers that lack them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5x_style.align import phrases
from t5x_style.align.prompts import messages_of
from t5x_style.align.rollouts import RewardJudge, Rollout
from t5x_style.align.signs import answer_signs, repetition
from t5x_style.data.chat import Turn


@dataclasses.dataclass(frozen=True)
class FastPathSettings:
    """What counts as a flaw, and how many pairs are made against one.

    Attributes:
      min_pairs, max_pairs: 20 to 100 in the paper: no more than the most in all, in equal parts
        against each flaw; none against a flaw with fewer examples than the least.
      score_rise: least rise of the mean score for which anything is suspected.
      length_factor: words of an answer may change by this factor.
      share_rise: shares refused, repeated, unended or malformed may rise by so much.
      phrase_rise: a phrase is looked at if the share of answers that have it rose by so much.
      phrase_gain: mean score that a phrase must add to answers of every domain to be a flaw.
      others_share: scores under other domains' prompts may rise by this share of the rise under
        the own one.
      probes: answers of each domain that a phrase is tried on.
    """

    min_pairs: int = 20
    max_pairs: int = 100
    score_rise: float = 0.1
    length_factor: float = 1.5
    share_rise: float = 0.1
    phrase_rise: float = 0.2
    phrase_gain: float = 0.1
    others_share: float = 0.75
    probes: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.min_pairs <= self.max_pairs:
            raise ValueError(
                f"fast_path.FastPathSettings.min_pairs = {self.min_pairs}, max_pairs = "
                f"{self.max_pairs}: must be 1 or more, in this order"
            )


# Signs by the change of a mean; the first may be what a domain asks for.
_OF_DOMAINS = (("refused", "refused", 1),)
_OF_NONE = (
    ("repetition", "repetition", 1),
    ("unended", "ended", -1),
    ("malformed", "well_formed", -1),
)


@dataclasses.dataclass(frozen=True)
class Flaw:
    """A way in which late answers drifted.

    Attributes:
      kind: "phrase", or the name of the sign.
      phrase: its words, for a phrase.
      evidence: numbers that speak for it, by name.
    """

    kind: str
    phrase: tuple[str, ...] = ()
    evidence: dict[str, float] = dataclasses.field(default_factory=dict)

    def shows(self, rollout: Rollout, of_early: Rollout, factor: float) -> bool:
        """Whether a late answer shows the flaw, next to the early answer to the same prompt."""
        words = len(phrases.words(rollout.text))
        early_words = len(phrases.words(of_early.text))
        return {
            "phrase": phrases.says(rollout.text, self.phrase) if self.phrase else False,
            "longer": words > factor * early_words,
            "shorter": words * factor < early_words,
            "repetition": repetition(rollout.text) > repetition(of_early.text),
            "refused": _refuses(rollout) and not _refuses(of_early),
            "unended": not rollout.is_ended,
            "malformed": not rollout.is_well_formed,
        }[self.kind]


@dataclasses.dataclass(frozen=True)
class Findings:
    """What was found.

    Attributes:
      flaws: each with its evidence.
      notes: means of early and late answers, by name.
    """

    flaws: tuple[Flaw, ...]
    notes: dict[str, float]


def find_flaws(
    early: Sequence[Rollout],
    late: Sequence[Rollout],
    judge: RewardJudge,
    settings: FastPathSettings,
) -> Findings:
    """Compares answers of an early and a late policy to the same prompts.

    Args:
      early, late: scored by `judge`.
      judge: the reward model that the late policy learnt from.
      settings: see there.
    """
    signs = [answer_signs(answers) for answers in (early, late)]
    means = [float(np.mean([rollout.score for rollout in answers])) for answers in (early, late)]
    others = [_score_of_others(answers, judge) for answers in (early, late)]
    notes = {"score_early": means[0], "score_late": means[1]}
    notes |= {
        f"{name}_{which}": s[name]
        for which, s in zip(("early", "late"), signs, strict=True)
        for name in s
    }
    rise = means[1] - means[0]
    if rise < settings.score_rise:
        return Findings((), notes)
    others_rise_too = True
    if others[0] is not None and others[1] is not None:
        others_rise_too = others[1] - others[0] >= settings.others_share * rise
        notes |= {"score_of_others_early": others[0], "score_of_others_late": others[1]}
        notes["others_rise_too"] = float(others_rise_too)
    # A phrase tells most, and often brings the signs with it.
    flaws = _paid_phrases(early, late, judge, settings)
    ratio = signs[1]["words"] / max(signs[0]["words"], 1e-9)
    if others_rise_too and ratio > settings.length_factor:
        flaws.append(Flaw("longer", evidence={"times_as_long": ratio}))
    if others_rise_too and ratio < 1 / settings.length_factor:
        flaws.append(Flaw("shorter", evidence={"times_as_long": ratio}))
    for kind, name, way in (*(_OF_DOMAINS if others_rise_too else ()), *_OF_NONE):
        change = way * (signs[1][name] - signs[0][name])
        if change >= settings.share_rise:
            flaws.append(Flaw(kind, evidence={"rise": change}))
    return Findings(tuple(flaws), notes)


def contrasting_pairs(
    flaws: Sequence[Flaw],
    early: Sequence[Rollout],
    late: Sequence[Rollout],
    settings: FastPathSettings,
) -> list[list[dict[str, Any]]]:
    """Returns preferences against each flaw, as records of `data.preferences`.

    A late answer with the flaw loses against the early answer to the same prompt if that is free of
    it; with a phrase, it loses against itself without the sentence as well.

    Args:
      flaws: of `find_flaws`.
      early, late: answers to the same prompts, in the same order.
      settings: how many pairs there may be.
    """
    found = [_pairs(flaw, early, late, settings.length_factor) for flaw in flaws]
    told = [i for i, pairs in enumerate(found) if len(pairs) >= settings.min_pairs]
    told = told[: settings.max_pairs // settings.min_pairs]
    share = settings.max_pairs // max(1, len(told))
    return [pairs[:share] if i in told else [] for i, pairs in enumerate(found)]


def _pairs(
    flaw: Flaw, early: Sequence[Rollout], late: Sequence[Rollout], length_factor: float
) -> list[dict[str, Any]]:
    pairs = []
    for before, after in zip(early, late, strict=True):
        if not flaw.shows(after, before, length_factor):
            continue
        better = []
        if flaw.kind == "phrase":
            better.append(phrases.without(after.text, flaw.phrase))
        is_free = flaw.kind != "phrase" or not phrases.says(before.text, flaw.phrase)
        if is_free and before.is_ended and before.is_well_formed:
            better.append(before.text)
        for text in better:
            if text.strip() and text != after.text:
                pairs.append(preference(after, (text, after.text)))
    return pairs


def preference(rollout: Rollout, texts: Sequence[str]) -> dict[str, Any]:
    """Returns a record of `data.preferences`: answers to the rollout's prompt, the best first."""
    prompt = rollout.prompt
    return {
        "id": prompt.name,
        "domain": prompt.domain,
        "messages": messages_of(prompt.turns),
        "responses": [{"content": text, "rank": rank} for rank, text in enumerate(texts)],
    }


def _refuses(rollout: Rollout) -> bool:
    return answer_signs([rollout])["refused"] > 0


def _score_of_others(answers: Sequence[Rollout], judge: RewardJudge) -> float | None:
    """Returns the mean score under the prompts of all domains but the answer's own."""
    domains = sorted({rollout.prompt.domain for rollout in answers})
    if judge.domain_prompts is None or len(domains) < 2:
        return None
    found: list[float] = []
    for domain in domains:
        of_others = [r for r in answers if r.prompt.domain != domain]
        found += judge.scores(((r.prompt, r.answer) for r in of_others), domain).tolist()
    return float(np.mean(found))


def _paid_phrases(
    early: Sequence[Rollout],
    late: Sequence[Rollout],
    judge: RewardJudge,
    settings: FastPathSettings,
) -> list[Flaw]:
    """Returns the phrases that rose and for which the reward model pays in every domain.

    The most frequent come first, and answers that say one of them do not count for the next, which
    may be the same in other words.
    """
    texts = [[rollout.text for rollout in answers] for answers in (early, late)]
    flaws: list[Flaw] = []
    for phrase, before, after in phrases.risen_phrases(texts[0], texts[1], settings.phrase_rise):
        rest = [t for t in texts[1] if not any(phrases.says(t, flaw.phrase) for flaw in flaws)]
        share = sum(phrases.says(text, phrase) for text in rest) / len(texts[1])
        if share - before < settings.phrase_rise:
            continue
        sentence = phrases.usual_sentence(rest, phrase)
        gains = _gains(
            sentence, [r for r in early if not phrases.says(r.text, phrase)], judge, settings
        )
        if gains and min(gains.values()) >= settings.phrase_gain:
            evidence = {"share_early": before, "share_late": after}
            evidence |= {f"gain_{domain}": gain for domain, gain in gains.items()}
            flaws.append(Flaw("phrase", phrase, evidence))
    return flaws


def _gains(
    sentence: str, answers: Sequence[Rollout], judge: RewardJudge, settings: FastPathSettings
) -> dict[str, float]:
    """Returns, for each domain, what the sentence adds to the scores of answers."""
    gains = {}
    for domain in sorted({rollout.prompt.domain for rollout in answers}):
        probes = [r for r in answers if r.prompt.domain == domain][: settings.probes]
        plain = judge.scores((r.prompt, r.answer) for r in probes)
        changed = judge.scores(
            (r.prompt, Turn("assistant", f"{sentence} {r.text}")) for r in probes
        )
        gains[domain] = float(np.mean(changed - plain))
    return gains
