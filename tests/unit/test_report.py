"""The report page: what it says, what it refuses to run, and what it does without its inputs."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from t5x_style.evals.report import plots
from t5x_style.evals.report.inputs import Inputs, read_json, read_metrics
from t5x_style.evals.report.markup import Html, duration, escape, join, share, size, table, tag
from t5x_style.evals.report.page import Section, render_page
from t5x_style.evals.report.sections import SECTIONS
from t5x_style.evals.report.sections.statistics import _series
from t5x_style.evals.report.sections.training import phases, running_mean
from t5x_style.run.report import report
from tests.unit import report_files

_VOID = {"meta", "br"}


class _Page(HTMLParser):
    """Collects elements and text, and fails on a tag that is not closed where it should be."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name not in _VOID:
            self._open.append(name)

    def handle_endtag(self, name):
        assert self._open.pop() == name

    def handle_data(self, data):
        self.text.append(data)

    def all(self, name):
        return [attributes for found, attributes in self.elements if found == name]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    return report_files.make(folder, num_documents=80)


@pytest.fixture(scope="module")
def text(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    report(str(folder / "out"), "A <run>", **made)
    return (folder / "out" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return _Page(text)


def test_every_section_is_there_and_linked(page):
    keys = [section.key for section in SECTIONS]
    assert len(set(keys)) == len(keys)
    assert [s["id"] for s in page.all("section")] == keys
    assert [a["href"] for a in page.all("a")] == [f"#{key}" for key in keys]
    assert "Not run." not in "".join(page.text)


def test_nothing_is_fetched_and_nothing_runs(page, text):
    names = {name for name, _ in page.elements}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert not set(attributes) & {"src", "srcset", "action"}
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in text
    assert "@import" not in text


def test_hostile_text_is_shown_and_not_obeyed(page, text):
    words = "".join(page.text)
    # It comes from a dropped record's reason, what was masked, two samples, three configs, a
    # stage's setting, a domain of preferences and three answers of a policy.
    assert words.count(report_files.HOSTILE) == 12
    assert "<script" not in text
    assert "<b " not in text
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text
    )


def test_a_slip_in_the_escaping_could_neither_run_nor_fetch(page):
    policies = [m["content"] for m in page.all("meta") if m.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_what_each_checkpoint_finds_stands_side_by_side(page, text):
    needle = text[text.index('id="needle"') :]
    assert needle.count('class="cell tone0"') == 2 * 4 * 3
    words = " ".join(page.text)
    assert "512, 50: 12" in words
    assert "trained at 256" in words
    assert "short 1 to 256" in words and "short 257 to 1,024" in words
    assert words.index("RoPE base 50,000") < words.index("RoPE base 1,000,000")


def test_where_tokens_go_is_told_of_mixtures_alone(page, text):
    words = " ".join(page.text)
    for expected in (
        "tokens that an expert of their own rank took (intra-rank)",
        "11.3%",  # of the last line, not the mean
        "held-out loss (docs)",
        "the share of tokens that choose each expert first",
        "the share of tokens that each expert got a slot for",
    ):
        assert expected in words, expected
    experts = text[text.index('id="experts"') : text.index('id="routers"')]
    assert experts.count('class="cell tone0"') == 2 * 2 * 4


def test_routers_are_compared_with_what_they_rectify(page, text):
    words = " ".join(page.text)
    for expected in ("2.9500 ± 0.0100", "−0.0100 ± 0.0020", "less that of top-1 for the same seed"):
        assert expected in words, expected
    study = text[text.index('id="routers"') :]
    assert study[: study.index("</section>")].count('class="cell tone0"') == 4 * 4


def test_what_stages_keep_stands_beside_the_paper(page, text):
    section = text[text.index('id="retention"') : text.index('id="statistics"')]
    rows = re.findall(r"<tr>(.*?)</tr>", section)
    cells = [re.sub("<[^>]*>", " ", row).split() for row in rows]
    # Half of what came before is left at each stage: 160 pages, 80, 40, 20, 10, 5.
    assert ["Dedup", "20", "12.5%", "3.2%", "50.0%", "90.2%"] in cells
    assert ["High-Quality", "5", "3.1%", "1.4%", "50.0%", "50.1%"] in cells
    assert ["email", "7"] in cells
    statistics = text[text.index('id="statistics"') : text.index('id="vocabulary"')]
    assert statistics.count('class="line tone4"') == 8 + 1  # histograms, and the legend
    assert "Token length was not measured." in statistics
    assert "Unigram entropy" in statistics


def test_a_histogram_is_of_all_documents_but_the_outermost():
    measure = {"edges": [0.0, 1e-6, *(i / 100 for i in range(1, 101))], "is_log": False}
    counts = [30, 10, *[0] * 49, 59, *[0] * 48, 1]  # at 0, below 0.01, at 0.5, at 0.99
    sketch = {"count": 100, "histogram": {"first": 0, "counts": counts}}
    stages = [{"title": "Raw", "measures": {"x": sketch}}, {"title": "Clean", "measures": {}}]
    (series,) = _series(stages, "x", measure)
    assert len(series.x) == len(series.y) + 1 <= 41
    assert (series.x[0], series.x[-1]) == (0.0, 1.0)
    assert sum(series.y) == pytest.approx(100)
    assert series.y[0] == pytest.approx(40)
    stages[0]["measures"]["x"] = {"count": 10_000, "histogram": {"first": 9, "counts": [9999, 1]}}
    (series,) = _series(stages, "x", measure)
    assert series.x.tolist() == [0.08, 0.09]


def test_texts_are_compared_by_the_models_trained_on_them(page, text):
    words = " ".join(page.text)
    for expected in (
        "2.4800 ± 0.0200",
        "−0.0200 ± 0.0004",
        "−0.0100 ± 0.0002",
        "2 of 3 seeds",
        "614,400 tokens",
        "0.12%",
        "0.1000 ± 0.0100",
        "0.8 or more",
    ):
        assert expected in words, expected
    study = text[text.index('id="data-study"') :]
    assert study[: study.index("</section>")].count('class="chart"') == 1


def test_a_reward_model_is_shown_with_and_without_prompts(page, text):
    words = " ".join(page.text)
    for expected in (
        "240 responses to 120 prompts",
        "Left out: 3 too long (in training).",
        "With the domain's prompt",
        "Without",
        "Expected calibration error: 0.",
    ):
        assert expected in words, expected
    section = text[text.index('id="reward"') :]
    assert section[: section.index("</section>")].count("<tr>") == 4


def test_what_a_policy_says_stands_beside_its_curves(page, text):
    words = " ".join(page.text)
    section = text[text.index('id="policy"') :]
    section = section[: section.index("</section>")]
    assert section.count('class="chart"') == 4
    for expected in ("question 8", "question 4", "question 0", "ppo/kl 9 is above 8", "roll back"):
        assert expected in words, expected
    assert "an early answer" not in words


def test_rounds_are_told_with_their_spread(page, text):
    words = " ".join(page.text)
    section = text[text.index('id="alignment-study"') :]
    section = section[: section.index("</section>")]
    assert section.count('class="chart"') == 3
    for expected in ("91.0 ± 1.4", "0.510 ± 0.014", "a great question", "critic from sft"):
        assert expected in words, expected


def test_a_title_is_text(page):
    assert "A <run>" in page.text


def test_figures_of_the_stages_are_on_the_page(page):
    words = " ".join(page.text)
    for expected in (
        "near duplicate",
        "docs.python.org",
        "4,096",
        "3.4312",
        "at least 256",
        "270 to 330",
        "1.3946 ± 0.0121",
        "−0.0311 ± 0.0021",
        "64 tokens · ended by itself · temperature 0.8 · top-p 0.95 · seed 0",
        "512 to 1,023",
        "1,935,424",
        "trained at 256: short",
    ):
        assert expected in words, expected


def test_tables_and_charts_can_be_read_aloud(page):
    assert len(page.all("caption")) == len(page.all("table")) >= 12
    assert {th["scope"] for th in page.all("th")} == {"col", "row"}
    charts = [svg for svg in page.all("svg") if svg["class"] == "chart"]
    # Lengths, statistics without tokens, training curves, experts, routers, texts, positions,
    # needles, scores, policies, rounds.
    assert len(charts) == 2 + 8 + 4 + 3 + 5 + 1 + 2 + 2 + 2 + 4 + 3
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in charts)
    assert page.all("html") == [{"lang": "en"}]


def test_the_same_files_give_the_same_page(made, text, tmp_path):
    report(str(tmp_path / "again"), "A <run>", **made)
    assert (tmp_path / "again" / "report.html").read_text(encoding="utf-8") == text


def test_without_inputs_every_section_says_so(tmp_path):
    report(str(tmp_path / "out"))
    page = _Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    words = "".join(page.text)
    shown = [section for section in SECTIONS if section.is_shown(Inputs.from_arguments({}))]
    hidden = {"retention", "statistics", "experts", "routers", "data-study", "needle", "reward"}
    hidden |= {"policy", "alignment-study"}
    assert {s.key for s in SECTIONS} - {s.key for s in shown} == hidden
    marked = [section for section in shown if section.inputs]
    assert all(f"report.{section.inputs[0]} is not set" in words for section in marked)
    assert words.count("Not run.") == len(marked)


@pytest.mark.parametrize(
    "name",
    ["crawl", "curate", "statistics", "vocabulary", "tasks", "runs", "evaluation", "samples"],
)
def test_any_one_input_may_be_absent_or_alone(made, tmp_path, name):
    gone = str(tmp_path / "gone")
    report(str(tmp_path / "without"), **{**made, name: gone})
    words = "".join(_Page((tmp_path / "without" / "report.html").read_text("utf-8")).text)
    if any(name in section.inputs for section in SECTIONS):
        assert f"report.{name} names {gone}, which is not there or is empty" in words
    report(str(tmp_path / "alone"), **{name: made[name]})
    _Page((tmp_path / "alone" / "report.html").read_text("utf-8"))


def test_a_run_that_lacks_is_noted_beside_those_that_are_there(made, tmp_path):
    runs = {**made["runs"], "extra": str(tmp_path / "extra")}
    report(str(tmp_path / "out"), **{**made, "runs": runs})
    words = "".join(_Page((tmp_path / "out" / "report.html").read_text("utf-8")).text)
    assert "Incomplete. report.runs names" in words
    assert "270 to 330" in words


def test_what_is_required_and_missing_is_an_error_that_names_the_setting(made, tmp_path):
    with pytest.raises(ValueError, match=r"report\.runs is not set"):
        report(str(tmp_path / "out"), curate=made["curate"], required=["curate", "runs"])
    with pytest.raises(ValueError, match=r"report\.samples names .*nowhere"):
        report(str(tmp_path / "out"), samples=str(tmp_path / "nowhere"), required=["samples"])
    with pytest.raises(ValueError, match=r"report\.required names \['sample'\]"):
        report(str(tmp_path / "out"), required=["sample"])
    assert not (tmp_path / "out").exists()


def test_a_section_of_a_later_stage_needs_no_more_than_a_list_entry(tmp_path):
    (tmp_path / "needle.json").write_text('{"score": 97}')
    inputs = Inputs.from_arguments({"needle": str(tmp_path)})

    def render(inputs: Inputs) -> Html:
        return tag("p", inputs.json("needle", "needle.json")["needle"]["score"])

    section = Section("needle", "Needle", ("needle",), render)
    assert "<p>97</p>" in render_page("t", [section], inputs)


def test_folders_of_one_name_are_told_apart(tmp_path):
    found = Inputs.from_arguments({"evaluation": ["a/bits", "b/bits", "c/other"]})
    assert list(found.folders["evaluation"]) == ["a/bits", "b/bits", "other"]


def test_stages_that_made_nothing_are_no_crash(made, tmp_path):
    empty = {
        "curate": ("funnel.json", {"steps": []}),
        "samples": ("samples.json", []),
        "evaluation": ("evaluation.json", {"checkpoints": []}),
    }
    for name, (file, contents) in empty.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps(contents))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 0, "time_secs": 3.0}\n')
    folders = {name: str(tmp_path / name) for name in empty}
    report(str(tmp_path / "out"), **{**made, **folders, "runs": {"short": str(tmp_path / "run")}})
    words = "".join(_Page((tmp_path / "out" / "report.html").read_text("utf-8")).text)
    for expected in ("no steps", "no samples", "no checkpoint", "0 to 0"):
        assert expected in words, expected


def test_metrics_survive_restarts_and_kills(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = ['{"step": 1, "a": 5.0}', '{"step": 2, "a": 4.0}', '{"step": 2, "a": 3.0, "b": 1}']
    path.write_text("\n".join([*lines, "[1, 2]", '{"step": 3, "a']))
    metrics = read_metrics(path)
    assert metrics.steps.tolist() == [1, 2]
    assert metrics.column("a")[1].tolist() == [5.0, 3.0]
    assert [c.tolist() for c in metrics.column("b")] == [[2], [1.0]]
    assert metrics.column("c")[0].size == 0
    assert metrics.num_unreadable == 2
    path.write_text("")
    assert read_metrics(path).steps.size == 0


def test_phases_follow_each_other_whether_their_steps_go_on_or_start_anew(tmp_path):
    spans = {"a": (0, 40), "b": (40, 60), "c": (0, 10), "d": (10, 15)}
    for label, (start, stop) in spans.items():
        (tmp_path / label).mkdir()
        lines = [json.dumps({"step": step, "x": 1}) for step in (start, stop)]
        (tmp_path / label / "metrics.jsonl").write_text("\n".join(lines))
    folders = {label: str(tmp_path / label) for label in spans}
    found = phases(Inputs.from_arguments({"runs": folders}))
    starts_and_stops = [(p.start_step, p.stop_step) for p in found]
    assert starts_and_stops == [(0, 40), (40, 60), (60, 70), (70, 75)]


def test_running_mean_is_centred_and_exact():
    values = np.array([1.0, 5.0, 3.0, 7.0, 4.0])
    assert running_mean(values, 3) == pytest.approx([3.0, 3.0, 5.0, 14 / 3, 5.5])
    assert running_mean(values, 1) == pytest.approx(values)


def test_a_damaged_json_is_named(tmp_path):
    (tmp_path / "funnel.json").write_text("{")
    with pytest.raises(ValueError, match=r"funnel\.json is no readable JSON"):
        read_json(tmp_path / "funnel.json")


def test_markup_escapes_text_and_attributes_but_not_itself():
    assert tag("p", "<a>", tag("b", "&"), class_='"x"') == (
        '<p class="&quot;x&quot;">&lt;a&gt;<b>&amp;</b></p>'
    )
    assert escape("a\x00b\u202ec\r\nd") == "a\ufffdb\ufffdc\nd"
    assert join([1, Html("<br>"), "<"], " ") == "1 <br> &lt;"
    assert "<td>&lt;i&gt;</td>" in table(("a", "b"), [("x", "<i>")], caption="", text_columns=2)


def test_numbers_for_people():
    assert [duration(s) for s in (0.123, 9.999, 31.04, 245.2, 7384)] == [
        "0.12 s", "10.00 s", "31.0 s", "4 min 05 s", "2 h 03 min",
    ]  # fmt: skip
    assert [size(n) for n in (7, 999, 1250, 999_600, 3.2e9)] == [
        "7 B", "999 B", "1.25 kB", "1 MB", "3.2 GB",
    ]  # fmt: skip
    assert [share(a, b) for a, b in ((1, 3), (0, 5), (1, 10_000), (2, 0))] == [
        "33.3%", "0.0%", "<0.1%", "–",
    ]  # fmt: skip
    assert [plots.tick_label(v) for v in (0, 0.25, 1500, 16384, 20000, 2.5e6, -40)] == [
        "0", "0.25", "1,500", "16,384", "20k", "2.5M", "−40",
    ]  # fmt: skip
    assert plots.tick_labels([0, 5e-4, 1.5e-3]) == ["0", "5e-4", "1.5e-3"]
    assert plots.tick_labels([0, 1e-3, 1.5e-3]) == ["0", "0.001", "0.0015"]


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 7), (2.87, 3.11), (-5, 12), (0, 3e-4), (1e6, 1.7e6), (0, 345)]
)
def test_linear_ticks_are_few_round_and_inside(low, high):
    ticks = plots.linear_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert low <= ticks[0]
    assert ticks[-1] <= high
    steps = np.diff(ticks)
    assert steps == pytest.approx(steps[0])
    mantissa = steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5)) < 1e-6


def test_log_ticks():
    assert plots.log_ticks(4, 100, "log2") == [4, 8, 16, 32, 64]
    assert plots.log_ticks(0.1, 30, "log10") == pytest.approx([0.1, 0.2, 0.5, 1, 2, 5, 10, 20])
    assert plots.log_ticks(1, 1e9, "log10") == pytest.approx([10.0**e for e in range(10)])
    assert len(plots.log_ticks(1, 2**20, "log2")) <= 11


def _chart(series, **changes):
    axes = {"x": plots.Axis("x"), "y": plots.Axis("y"), "description": "d", **changes}
    return plots.chart(series, **axes)


def _points(svg, style="line"):
    found = re.search(rf'<path d="([^"]*)" class="{style} ', svg)
    assert found
    path = found[1]
    return path, np.array(
        [[float(v) for v in p.split(",")] for p in re.findall(r"[\d.-]+,[\d.-]+", path)]
    )


def test_a_line_goes_where_its_axes_say():
    svg = _chart(
        [plots.Series("s", [0, 50, 100], [0, 10, 5])],
        x=plots.Axis("x", low=0, high=100),
        y=plots.Axis("y", low=0, high=10),
    )
    _, points = _points(svg)
    left, bottom, top = points[0][0], points[0][1], points[1][1]
    assert points[1][0] == pytest.approx((left + points[2][0]) / 2, abs=0.1)
    assert points[2][1] == pytest.approx((bottom + top) / 2, abs=0.1)
    # The tick of y = 10 stands at the height of the point of value 10.
    assert f'y="{top + 4:.2f}" class="tick end">10<' in svg


def test_values_that_are_not_finite_break_the_line_and_nothing_else():
    svg = _chart([plots.Series("s", range(5), [1, 2, np.nan, 4, np.inf])])
    path, points = _points(svg)
    assert path.count("M") == 2
    assert len(points) == 3
    assert "nan" not in svg
    assert "inf" not in svg
    log = _chart([plots.Series("s", [0, 1, 10], [1, 0, 2])], x=plots.Axis("x", "log10"))
    assert "nan" not in log
    assert "inf" not in log


def test_a_chart_of_nothing_or_of_one_value_is_still_a_chart():
    for series in ([], [plots.Series("s", [3], [2])], [plots.Series("s", [1, 2], [np.nan] * 2)]):
        assert _chart(series).startswith("<svg ")


def test_long_lines_are_thinned_and_keep_their_spikes():
    y = np.zeros(100_000)
    y[12_345], y[77_777] = 9.0, -9.0
    svg = _chart([plots.Series("s", np.arange(len(y)), y)])
    _, points = _points(svg)
    assert len(points) <= 1600
    assert points[:, 1].min() < 60
    assert points[:, 1].max() > 200


def test_labels_above_a_plot_do_not_overlap():
    bands = [plots.Band(i, i + 1, f"a long label {i}") for i in range(20)]
    svg = _chart([plots.Series("s", [0, 20], [0, 1])], bands=bands)
    boxes: dict[str, list[tuple[float, float]]] = {}
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="note-label (\w+)">([^<]*)<', svg)
    assert 4 <= len(found) < 20
    for x, y, side, label in found:
        width = 6.0 * len(label)
        left = float(x) - (width if side == "end" else 0)
        boxes.setdefault(y, []).append((left, left + width))
    for row in boxes.values():
        assert all(a[1] <= b[0] for a, b in zip(sorted(row), sorted(row)[1:], strict=False))
    assert all(f"<title>{band.label}</title>" in svg for band in bands)


def test_a_committed_report_folder_says_what_it_holds(made, tmp_path):
    report(str(tmp_path / "out"), **made)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["stage"] == "report"
    assert Path(manifest["settings"]["folders"]["runs"]["short"]).name == "short"
