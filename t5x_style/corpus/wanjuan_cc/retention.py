"""What each stage keeps, beside what WanJuan-CC (arXiv 2402.19282) published."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5x_style.config.paths import find_data
from t5x_style.corpus.documents import FUNNEL_NAME, Funnel

# Steps of a funnel behind which the stages of the paper stand.
STAGES = ("raw", "clean", "dedup", "safe", "high_quality")
PUBLISHED = "cards/wanjuan_cc_published.json"


def published() -> dict[str, Any]:
    """Returns the paper's numbers: shares kept, of documents by year, and modes of measures."""
    return json.loads(find_data(PUBLISHED).read_text(encoding="utf-8"))


def whole_funnel(folders: Mapping[str, Path]) -> Funnel:
    """Returns the funnel of a run from what its stages left.

    A stage's funnel may hold its own step or all up to it.

    Args:
      folders: stage to its folder, in order.

    Raises:
      ValueError: two stages tell different counts of one step, so they are not of one run.
    """
    funnel = Funnel()
    owners: dict[str, Path] = {}
    for folder in folders.values():
        if not (folder / FUNNEL_NAME).is_file():
            continue
        for name, step in Funnel.read(folder).steps.items():
            known = funnel.steps.setdefault(name, step)
            owner = owners.setdefault(name, folder)
            if known != step:
                raise ValueError(
                    f"{owner} and {folder} count the step {name!r} differently "
                    f"({known.num_in} -> {known.num_out}, {step.num_in} -> {step.num_out}): give "
                    "stages of one run in statistics.statistics.stages"
                )
    return funnel


def retention(funnel: Funnel) -> list[dict[str, Any]]:
    """Returns a row for each stage of the paper, of documents.

    "kept" is the share of Common Crawl's pages that are left, "removed" the share of the documents
    before; both are None where the funnel does not tell, as are those of the paper for its start.
    """
    rows: list[dict[str, Any]] = []
    pages = documents_before = None
    for paper in published()["retention"]:
        name = paper["name"]
        if name == "common_crawl":
            # What the first stage of the paper is given.
            first = funnel.steps.get(STAGES[0])
            documents = pages = first.num_in if first else None
        else:
            documents = funnel.steps[name].num_out if name in funnel.steps else None
        rows.append(
            {
                "name": name,
                "title": paper["title"],
                "documents": documents,
                "kept": documents / pages if pages and documents is not None else None,
                "removed": 1 - documents / documents_before
                if documents_before and documents is not None
                else None,
                "published_kept": paper["kept"],
                "published_removed": paper["removed"],
            }
        )
        documents_before = documents
    return rows
