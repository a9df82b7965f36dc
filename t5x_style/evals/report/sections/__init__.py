"""The sections of the report, in order of appearance.

A stage adds its own in a file of this folder: a `Section` that names the inputs it reads, listed
here, and an argument of run/report.py for each new input.
"""

from t5x_style.evals.report.page import Section
from t5x_style.evals.report.sections import (
    alignment_study,
    corpus,
    data_study,
    evaluation,
    experts,
    needle,
    overview,
    policy,
    preferences,
    provenance,
    router_study,
    statistics,
    training,
    vocabulary,
)

SECTIONS: tuple[Section, ...] = (
    *overview.SECTIONS,
    *corpus.SECTIONS,
    *statistics.SECTIONS,
    *vocabulary.SECTIONS,
    *training.SECTIONS,
    *experts.SECTIONS,
    *router_study.SECTIONS,
    *data_study.SECTIONS,
    *evaluation.SECTIONS,
    *needle.SECTIONS,
    *preferences.SECTIONS,
    *policy.SECTIONS,
    *alignment_study.SECTIONS,
    *provenance.SECTIONS,
)
