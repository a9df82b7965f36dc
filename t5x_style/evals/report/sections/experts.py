"""The section about mixtures of experts: where tokens go, what is left out, and what is rescued."""

import dataclasses

import numpy as np

from t5x_style.evals.report.heat_map import heat_map
from t5x_style.evals.report.inputs import Inputs, Metrics, read_metrics
from t5x_style.evals.report.markup import Html, figure, join, number, table, tag
from t5x_style.evals.report.page import Section
from t5x_style.evals.report.plots import Axis, Series, chart, legend

_PREFIX = "train/moe/"
# What the shares are of, by the name of the metric.
_SHARES = {
    "overflow_choice_1": "first choices that found no slot",
    "overflow_choice_2": "second choices that found no slot",
    "unrouted": "tokens that no expert of their choice took",
    "fill_in_served": "tokens in a slot that would have been empty (fill-in)",
    "intra_rank_served": "tokens that an expert of their own rank took (intra-rank)",
    "intra_rank_overflow": "tokens for which their rank had no room either",
    "served": "tokens that any expert took",
    "slots_filled": "slots with a token",
    "aligned": "tokens whose best experts are all in their group",
    "dead_experts": "experts that no token chose first",
    "busiest_share": "tokens whose first choice is in the busiest fifth of the experts",
    "idlest_share": "tokens whose first choice is in the idlest fifth of the experts",
}
_DRAWN = ("unrouted", "slots_filled", "fill_in_served", "intra_rank_served")


@dataclasses.dataclass(frozen=True)
class _Run:
    """A run whose model has mixtures of experts."""

    label: str
    metrics: Metrics

    def last(self, name: str) -> float | None:
        """Returns a metric's value of the last line that has it."""
        _, values = self.metrics.column(name)
        return float(values[-1]) if values.size else None

    def by_layer_and_expert(self, name: str) -> dict[tuple[int, int], float]:
        """Returns a metric's last values, in per cent, by (expert, layer)."""
        found = {}
        for column in self.metrics.columns:
            metric, _, index = column.removeprefix(_PREFIX).partition("/")
            if column.startswith(_PREFIX) and metric == name and index:
                layer, expert = map(int, index.split("/"))
                found[expert, layer] = 100 * (self.last(column) or 0.0)
        return found


def _runs(inputs: Inputs) -> list[_Run]:
    files = inputs.files("runs", "metrics.jsonl") | inputs.files("mixtures", "metrics.jsonl")
    runs = [_Run(label, read_metrics(path)) for label, path in files.items()]
    return [run for run in runs if any(n.startswith(_PREFIX) for n in run.metrics.columns)]


def _experts(inputs: Inputs) -> Html:
    runs = _runs(inputs)
    parts = [_table(runs)]
    for run in runs:
        parts.append(_shares_by_step(run))
        parts.append(tag("div", *_heat_maps(run), class_="pair"))
    return join(parts)


def _table(runs: list[_Run]) -> Html:
    rows = [
        (words, *("–" if value is None else f"{100 * value:.1f}%" for value in values))
        for name, words in _SHARES.items()
        for values in [[run.last(_PREFIX + name) for run in runs]]
        if any(value is not None for value in values)
    ]
    steps = [number(int(run.metrics.steps[-1])) for run in runs]
    losses = {"training loss, nats per token": [run.last("train/loss") for run in runs]}
    for name in sorted({n for run in runs for n in run.metrics.columns if _is_held_out(n)}):
        words = f"held-out loss ({name.split('/')[1]})"
        losses[words] = [run.last(name) for run in runs]
    loss_rows = [
        (words, *("–" if value is None else f"{value:.4f}" for value in values))
        for words, values in losses.items()
    ]
    caption = (
        "What the routers did, over the steps of the last logged line, as means over the layers "
        "that are mixtures. Shares are of the tokens that are no padding, of slots, or of experts."
    )
    return table(
        ("", *(run.label for run in runs)),
        [("steps", *steps), *loss_rows, *rows],
        caption=caption,
    )


def _is_held_out(name: str) -> bool:
    return name.startswith("eval/") and name.endswith("/loss") and name.count("/") == 2


def _shares_by_step(run: _Run) -> Html:
    series = []
    for tone, name in enumerate(_DRAWN):
        steps, values = run.metrics.column(_PREFIX + name)
        if values.any():
            series.append(Series(_SHARES[name], steps, 100 * values, tone))
    caption = f"{run.label}: what became of tokens and slots, by step."
    drawing = chart(
        series,
        x=Axis("step"),
        y=Axis("per cent", low=0.0, high=100.0),
        description=caption,
        height=210.0,
    )
    return figure(drawing, caption, legend(series))


def _heat_maps(run: _Run) -> list[Html]:
    drawn = []
    for name, words in (
        ("chosen", "the share of tokens that choose each expert first"),
        ("load", "the share of tokens that each expert got a slot for"),
    ):
        values = run.by_layer_and_expert(name)
        if not values:
            continue
        experts, layers = (1 + int(np.max([key[i] for key in values])) for i in (0, 1))
        caption = f"{run.label}: {words}, in per cent, by mixture and expert."
        drawing = heat_map(
            values,
            [str(expert) for expert in range(experts)],
            [str(layer + 1) for layer in range(layers)],
            column_label="expert",
            row_label="mixture",
            description=caption,
            darkest_at=max(values.values()),
        )
        drawn.append(figure(drawing, caption))
    return drawn


SECTIONS = (
    Section(
        "experts",
        "Mixtures of experts",
        ("runs", "mixtures"),
        _experts,
        is_shown=lambda inputs: bool(_runs(inputs)),
    ),
)
