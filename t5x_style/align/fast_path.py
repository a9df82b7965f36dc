"""The fast path: what a policy has found to please its reward model with, and pairs against it.

After a round of PPO the answers of an early and of a late policy are compared (arXiv 2403.17297,
section 4.2.2). If the score rose while answers drifted in a way that no prompt asks for, 20 to 100
pairs of an answer with the flaw and one without it are enough to take the pleasure away.

How the paper finds a pattern is not stated: people looked. Here it is looked for in three ways:
signs that answers show by themselves (`signs`); scores that rise under the prompts of other domains
as much as under their own; and phrases said ever more often, for which the reward model pays in
every domain when they are put before answers that lack them.
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
      min_pairs, max_pairs: against one flaw; 20 to 100 in the paper. With fewer examples than the
        least, none are made.
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
    flaws = []
    ratio = signs[1]["words"] / max(signs[0]["words"], 1e-9)
    if ratio > settings.length_factor:
        flaws.append(Flaw("longer", evidence={"times_as_long": ratio}))
    if ratio < 1 / settings.length_factor:
        flaws.append(Flaw("shorter", evidence={"times_as_long": ratio}))
    for kind, name, way in (
        ("repetition", "repetition", 1),
        ("refused", "refused", 1),
        ("unended", "ended", -1),
        ("malformed", "well_formed", -1),
    ):
        change = way * (signs[1][name] - signs[0][name])
        if change >= settings.share_rise:
            flaws.append(Flaw(kind, evidence={"rise": change}))
    if others[0] is not None and others[1] is not None:
        notes |= {"score_of_others_early": others[0], "score_of_others_late": others[1]}
        notes["others_rise_too"] = float(others[1] - others[0] >= settings.others_share * rise)
    flaws += _paid_phrases(early, late, judge, settings)
    return Findings(tuple(flaws), notes)


def contrasting_pairs(
    flaw: Flaw, early: Sequence[Rollout], late: Sequence[Rollout], settings: FastPathSettings
) -> list[dict[str, Any]]:
    """Returns preferences against a flaw, as records of `data.preferences`; [] if too few show it.

    A late answer with the flaw loses against the early answer to the same prompt if that is free of
    it; with a phrase, it loses against itself without the sentence as well.

    Args:
      flaw: of `find_flaws`.
      early, late: answers to the same prompts, in the same order.
      settings: see there.
    """
    pairs = []
    for before, after in zip(early, late, strict=True):
        if not flaw.shows(after, before, settings.length_factor):
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
    kept = pairs[: settings.max_pairs]
    return kept if len(kept) >= settings.min_pairs else []


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
    """Returns the phrases that rose and for which the reward model pays in every domain."""
    texts = [[rollout.text for rollout in answers] for answers in (early, late)]
    flaws: list[Flaw] = []
    for phrase, before, after in phrases.risen_phrases(texts[0], texts[1], settings.phrase_rise):
        sentence = phrases.usual_sentence(texts[1], phrase)
        if any(phrases.says(sentence, flaw.phrase) for flaw in flaws):
            continue
        gains = {}
        for domain in sorted({rollout.prompt.domain for rollout in early}):
            probes = [
                r for r in early if r.prompt.domain == domain and not phrases.says(r.text, phrase)
            ][: settings.probes]
            if not probes:
                continue
            plain = judge.scores((r.prompt, r.answer) for r in probes)
            changed = judge.scores(
                (r.prompt, Turn("assistant", f"{sentence} {r.text}")) for r in probes
            )
            gains[domain] = float(np.mean(changed - plain))
        if gains and min(gains.values()) >= settings.phrase_gain:
            evidence = {"share_early": before, "share_late": after}
            evidence |= {f"gain_{domain}": gain for domain, gain in gains.items()}
            flaws.append(Flaw("phrase", phrase, evidence))
    return flaws
