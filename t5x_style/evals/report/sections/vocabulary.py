"""The section about the vocabulary and how densely it writes the text."""

from typing import Any

from t5x_style.evals.report.inputs import Inputs
from t5x_style.evals.report.markup import Html, details, join, number, size, table, tag
from t5x_style.evals.report.page import Section

_LABELS = {
    "vocab_size": "Pieces, control and spare pieces included",
    "train_texts": "Documents trained on",
    "train_bytes": "UTF-8 bytes trained on",
    "held_out_bytes_per_token": "Bytes per token on held-out documents",
    "fingerprint": "Fingerprint",
}


def _stores(inputs: Inputs) -> Html:
    """Returns a table of the token stores, from the counts of the tasks stage."""
    rows = []
    for name, manifest in inputs.manifests().items():
        if manifest.get("stage") != "tasks":
            continue
        for split, counts in manifest["counts"].items():
            tokens, num_bytes = counts["tokens"], counts["bytes"]
            # Every example starts and ends with a token that spells no text.
            rows.append(
                (
                    f"{name.split(': ')[-1]} / {split}",
                    number(counts["examples"]),
                    number(tokens),
                    size(num_bytes),
                    f"{num_bytes / (tokens - 2 * counts['examples']):.3f}"
                    if tokens > 2 * counts["examples"]
                    else "–",
                    ", ".join(f"{number(n)} {why}" for why, n in counts["dropped"].items()) or "–",
                )
            )
    if not rows:
        return Html("")
    columns = ("Task", "Documents", "Tokens", "Text", "Bytes per token", "Left out")
    caption = "Tokenised documents. Tokens count the begin and end tokens, bytes per token do not."
    return table(columns, rows, caption=caption)


def _vocabulary(inputs: Inputs) -> Html:
    parts: list[Html] = []
    for facts in inputs.json("vocabulary", "vocabulary.json").values():
        known: list[tuple[Any, Any]] = []
        for key, label in _LABELS.items():
            if key not in facts:
                continue
            value = facts[key]
            shown = tag("code", value) if isinstance(value, str) else number(value, 4)
            known.append((label, shown))
        parts.append(table(("Property", "Value"), known, caption="Size and density."))
        special = [
            (tag("code", name), number(token_id))
            for name, token_id in facts.get("special_ids", {}).items()
        ]
        if special:
            inner = table(("Token", "Id"), special, caption="Control tokens of the chat format.")
            parts.append(details(f"{number(len(special))} chat tokens", inner))
    return join([*parts, _stores(inputs)])


SECTIONS = (Section("vocabulary", "Vocabulary", ("vocabulary", "tasks"), _vocabulary),)
