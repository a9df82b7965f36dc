"""The page's frame: order of sections and table of contents.

One HTML file with nothing outside it: no script, no font, no image that is fetched. Light or dark
follows the reader's setting; print is light (style.py). What the sections say is in sections/.
"""

import dataclasses
from collections.abc import Callable, Sequence

from t5x_style.evals.report.inputs import Inputs
from t5x_style.evals.report.markup import Html, join, note, tag
from t5x_style.evals.report.style import STYLE


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
      key: its anchor, unique on the page.
      title: its heading.
      inputs: the report's arguments it reads; without any of them it is marked as not run.
      render: makes its contents.
      is_shown: whether there is anything to show or to miss; if not it is left out.
    """

    key: str
    title: str
    inputs: tuple[str, ...]
    render: Callable[[Inputs], Html]
    is_shown: Callable[[Inputs], bool] = lambda inputs: True


def _contents(section: Section, inputs: Inputs) -> tuple[Html, bool]:
    """Returns a section's contents and whether there were any."""
    if section.inputs and not any(inputs.has(name) for name in section.inputs):
        reasons = "; ".join(inputs.missing(name) for name in section.inputs)
        return note(tag("strong", "Not run."), f" {reasons}."), False
    given = [name for name in section.inputs if inputs.folders.get(name)]
    lacking = [inputs.missing(name) for name in given if not inputs.complete(name)]
    contents = section.render(inputs)
    if lacking:
        remark = note(tag("strong", "Incomplete."), f" {'; '.join(lacking)}.")
        contents = join([remark, contents])
    return contents, True


def render_page(title: str, sections: Sequence[Section], inputs: Inputs) -> str:
    """Returns the whole page as HTML text; the same inputs give the same text.

    Args:
      title: heading of the page.
      sections: in order of appearance.
      inputs: the stages' folders.
    """
    entries, parts = [], []
    for section in sections:
        if not section.is_shown(inputs):
            continue
        contents, present = _contents(section, inputs)
        link = tag("a", section.title, href=f"#{section.key}")
        entries.append(tag("li", link, class_=None if present else "absent"))
        heading = tag("h2", section.title, id=f"{section.key}-title")
        labelled = f"{section.key}-title"
        parts.append(tag("section", heading, contents, id=section.key, aria_labelledby=labelled))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        # Were anything to slip through the escaping, it could neither run nor fetch.
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'",
        ),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        Html(f"<style>{STYLE}</style>"),
    )
    contents_list = tag("nav", tag("ol", *entries), aria_label="Sections")
    body = tag(
        "body",
        tag("header", tag("h1", title)),
        tag("div", contents_list, tag("main", join(parts, Html("\n"))), class_="columns"),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{head}\n{body}</html>\n'
