"""The section about a study of routers: one table, gains by capacity, and where tokens went."""

from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.evals.report.heat_map import heat_map
from t5x_style.evals.report.inputs import Inputs
from t5x_style.evals.report.markup import Html, details, figure, join, note, number, table, tag
from t5x_style.evals.report.page import Section
from t5x_style.evals.report.plots import Axis, Series, chart, legend
from t5x_style.evals.studies import STUDY, plus_minus

_RATES = {
    "unrouted": "No slot",
    "fill_in_served": "Filled in",
    "intra_rank_served": "By own rank",
    "served": "Served",
    "slots_filled": "Slots filled",
    "dead_experts": "Dead experts",
    "busiest_share": "Busiest fifth",
}


def _study(inputs: Inputs) -> Html:
    rows = [
        row for contents in inputs.json("router_study", STUDY).values() for row in contents["arms"]
    ]
    if not rows:
        return note("The study has no arms yet.")
    seeds = max(row["num_seeds"] for row in rows)
    explanation = tag(
        "p",
        "One dense model was made a mixture of experts and trained on with each router, for each "
        f"of {number(seeds)} seeds, on the same batches. Losses are held-out, in nats per token, "
        "mean and standard deviation over seeds. A difference is to the router without "
        "rectification at the same capacity, seed by seed.",
    )
    parts = [explanation, _table(rows)]
    for plain in sorted({row["plain"] for row in rows if row["plain"]}):
        parts.append(_differences(plain, [row for row in rows if row["plain"] == plain]))
    maps = [_heat_map(row) for row in rows if row["load"]]
    parts.append(details("Load by mixture and expert", tag("div", *maps, class_="pair")))
    return join(parts)


def _capacity(row: Mapping[str, Any]) -> str:
    return "–" if row["capacity_factor"] is None else f"{row['capacity_factor']:g}"


def _table(rows: Sequence[Mapping[str, Any]]) -> Html:
    headings = ("Router", "Capacity", "Loss", "Difference", *_RATES.values(), "Step, ms")
    cells = [
        (
            row["router"],
            _capacity(row),
            tag("strong", plus_minus(row, "loss")),
            plus_minus(row, "difference", signed=True),
            *(f"{100 * row[name]:.1f}%" if name in row else "–" for name in _RATES),
            f"{1e3 * row['step_secs']:.0f}",
        )
        for row in rows
    ]
    caption = (
        "Shares are of held-out tokens, of slots and of experts, means over seeds and mixtures; "
        "served is by a choice, a fill-in or the own rank. Step times are medians over seeds, on a "
        "machine that does other things too."
    )
    return table(headings, cells, caption=caption)


def _differences(plain: str, rows: Sequence[Mapping[str, Any]]) -> Html:
    """What rectifications of a router gain, by capacity factor."""
    series = []
    for name in dict.fromkeys(row["router"] for row in rows):
        of_arm = [row for row in rows if row["router"] == name]
        gains = [row["difference"] for row in of_arm]
        spread = [row["difference_deviation"] or 0.0 for row in of_arm]
        series.append(
            Series(
                name,
                [row["capacity_factor"] for row in of_arm],
                gains,
                len(series),
                "marks",
                low=[gain - s for gain, s in zip(gains, spread, strict=True)],
                high=[gain + s for gain, s in zip(gains, spread, strict=True)],
            )
        )
    caption = (
        f"Held-out loss by capacity factor, less that of {plain} for the same seed: below 0 is "
        "better. Bands are one standard deviation over seeds to each side."
    )
    drawing = chart(
        series,
        x=Axis("capacity factor"),
        y=Axis("difference (nats per token)"),
        description=caption,
    )
    return figure(drawing, caption, legend(series))


def _heat_map(row: Mapping[str, Any]) -> Html:
    values = {
        (expert, mixture): 100 * share
        for mixture, shares in enumerate(row["load"])
        for expert, share in enumerate(shares)
    }
    caption = (
        f"{row['router']}, capacity {_capacity(row)}: tokens with a slot on each expert, per cent."
    )
    drawing = heat_map(
        values,
        [str(expert) for expert in range(len(row["load"][0]))],
        [str(mixture + 1) for mixture in range(len(row["load"]))],
        column_label="expert",
        row_label="mixture",
        description=caption,
        darkest_at=max(values.values()),
    )
    return figure(drawing, caption)


SECTIONS = (
    Section(
        "routers",
        "The study of routers",
        ("router_study",),
        _study,
        is_shown=lambda inputs: inputs.is_given("router_study"),
    ),
)
