"""Sections about where the numbers come from: wall times, machine, configuration, checkpoints."""

from collections.abc import Mapping
from typing import Any

from t5x_style.evals.report.inputs import Inputs, read_metrics
from t5x_style.evals.report.markup import (
    Html,
    bar,
    details,
    duration,
    join,
    number,
    table,
    tag,
)
from t5x_style.evals.report.page import Section


def stage_secs(inputs: Inputs) -> dict[str, float]:
    """Returns the wall time of each finished stage and training run, in seconds."""
    secs = {
        name: float(manifest["wall_secs"])
        for name, manifest in inputs.manifests().items()
        if "wall_secs" in manifest
    }
    runs: dict[str, float] = {}
    for label, path in inputs.files("runs", "metrics.jsonl").items():
        _, times = read_metrics(path).column("time_secs")
        if times.size:
            runs[f"train: {label}"] = float(times[-1])
    # In the order of the pipeline: training stands between the data and what is made of models.
    before = {k: v for k, v in secs.items() if k.split(":")[0] not in ("evaluation", "samples")}
    return before | runs | {k: v for k, v in secs.items() if k not in before}


def _wall_time(inputs: Inputs) -> Html:
    secs = stage_secs(inputs)
    most, total = max(secs.values(), default=0.0), sum(secs.values())
    rows = [(name, bar(value, most, duration(value))) for name, value in secs.items()]
    rows.append((tag("strong", "total"), tag("strong", duration(total))))
    return table(
        ("Stage", "Wall time"),
        rows,
        caption="Wall time of the run that made each output; starting Python and skipped stages "
        "are not counted.",
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        elif isinstance(value, list):
            flat[name] = " ".join(str(item) for item in value)
        else:
            flat[name] = str(value)
    return flat


def _environment(inputs: Inputs) -> Html:
    runs = {label: _flat(env) for label, env in inputs.json("runs", "environment.json").items()}
    names = list(dict.fromkeys(name for env in runs.values() for name in env))
    shared = {
        name: env[name]
        for name in names
        for env in [next(iter(runs.values()))]
        if all(other.get(name) == env.get(name) for other in runs.values()) and name in env
    }
    rows = [(name, tag("code", value)) for name, value in shared.items()]
    parts = [table(("Item", "Value"), rows, caption="The same in all runs.", text_columns=2)]
    if differing := [name for name in names if name not in shared]:
        cells = [
            (name, *(tag("code", env.get(name, "–")) for env in runs.values()))
            for name in differing
        ]
        columns = ("Item", *runs)
        caption = "Different between the runs."
        parts.append(table(columns, cells, caption=caption, text_columns=len(columns)))
    return join(parts)


def _checkpoints(inputs: Inputs) -> Html:
    rows, seen = [], set()
    for contents in inputs.json("evaluation", "evaluation.json").values():
        for row in contents["checkpoints"]:
            key = (row["name"], row["run_dir"], row["step"])
            if key in seen:
                continue
            seen.add(key)
            rows.append(
                (
                    row["name"],
                    tag("code", row["run_dir"]),
                    tag("code", row.get("fingerprint", "–")),
                    number(row["step"]),
                )
            )
    manifests = [
        (name, tag("code", manifest["content"]), tag("code", manifest["key"]))
        for name, manifest in inputs.manifests().items()
    ]
    parts = []
    if rows:
        parts.append(
            table(
                ("Checkpoint", "Run folder", "Fingerprint of the weights", "Step"),
                rows,
                caption="The checkpoints that were evaluated.",
                text_columns=3,
            )
        )
    if manifests:
        parts.append(
            table(
                ("Stage", "Digest of the output", "Key of settings and inputs"),
                manifests,
                caption="Finished stages: the same digest means the same bytes.",
                text_columns=3,
            )
        )
    return join(parts)


def _configuration(inputs: Inputs) -> Html:
    parts = []
    for label, path in inputs.files("runs", "config.gin").items():
        text = path.read_text(encoding="utf-8", errors="replace")
        summary = f"{label}: resolved configuration ({number(len(text.splitlines()))} lines)"
        parts.append(details(summary, tag("pre", text, tabindex="0")))
    for label, path in inputs.files("runs", "model-info.txt").items():
        text = path.read_text(encoding="utf-8", errors="replace")
        parts.append(details(f"{label}: parameters", tag("pre", text, tabindex="0")))
    for name, manifest in inputs.manifests().items():
        settings = _flat(manifest.get("settings", {}))
        if settings:
            rows = [(key, tag("code", value)) for key, value in settings.items()]
            caption = f"Settings of the stage {name}."
            parts.append(
                details(
                    f"{name}: settings ({number(len(rows))})",
                    table(("Setting", "Value"), rows, caption=caption, text_columns=2),
                )
            )
    return join(parts)


SECTIONS = (
    Section("wall-time", "Wall time", (), _wall_time),
    Section("environment", "Machine and software", ("runs",), _environment),
    Section("fingerprints", "Checkpoints and digests", (), _checkpoints),
    Section("configuration", "Configuration", (), _configuration),
)
