"""The first section: the whole run in a handful of numbers."""

from t5x_style.evals.report.inputs import Inputs
from t5x_style.evals.report.markup import Html, duration, number, size, tag
from t5x_style.evals.report.page import Section
from t5x_style.evals.report.sections.evaluation import evaluated
from t5x_style.evals.report.sections.provenance import stage_secs
from t5x_style.evals.report.sections.training import phases


def _tile(label: str, value: str, remark: str) -> Html:
    return tag("div", tag("dt", label), tag("dd", value, tag("small", remark)))


def _overview(inputs: Inputs) -> Html:
    tiles: list[Html] = []
    for funnel in inputs.json("curate", "funnel.json").values():
        if not funnel["steps"]:
            continue
        first, last = funnel["steps"][0], funnel["steps"][-1]
        remark = f"of {number(first['in'])} records; {size(last['bytes_out'])} of text"
        tiles.append(_tile("Documents", number(last["out"]), remark))
    for facts in inputs.json("vocabulary", "vocabulary.json").values():
        density = facts.get("held_out_bytes_per_token")
        remark = f"{density:.2f} bytes per token held out" if density else "pieces"
        tiles.append(_tile("Vocabulary", number(facts["vocab_size"]), remark))
    rows = evaluated(inputs)
    if counts := sorted({row["num_parameters"] for row in rows if row.get("num_parameters")}):
        tiles.append(_tile("Parameters", " / ".join(map(number, counts)), "embedding included"))
    found = phases(inputs)
    tokens = [phase.column("train/tokens")[1] for phase in found]
    if total := sum(int(values[-1]) for values in tokens if values.size):
        steps = f"in {number(found[-1].stop_step - found[0].start_step)} steps"
        tiles.append(_tile("Tokens trained on", number(total), f"{steps}, {len(found)} phases"))
    if rows and rows[-1]["bits_per_byte"] is not None:
        last = rows[-1]
        remark = f"held out; {last['name']}, context {number(last['length'])}"
        tiles.append(_tile("Bits per byte", f"{last['bits_per_byte']:.3f}", remark))
    secs = stage_secs(inputs)
    if secs:
        tiles.append(_tile("Wall time", duration(sum(secs.values())), f"{len(secs)} stages"))
    return tag("dl", *tiles, class_="tiles")


SECTIONS = (Section("overview", "At a glance", (), _overview),)
