"""The evaluate verb on made run folders and a made token store."""

import dataclasses
import json
import types
from typing import Any

import numpy as np
import pytest

from t5x_style.data.token_store import TokenStoreWriter
from t5x_style.models.config import TransformerConfig
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.run.evaluate import evaluate
from t5x_style.train.checkpoint import save_model
from tests.fresh import fresh_params

_CONFIG = TransformerConfig(
    vocab_size=60,
    num_layers=1,
    embed_dim=16,
    num_query_heads=2,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=16,
    rope_base=50_000.0,
    trained_length=16,
    vocab_multiple=4,
    init_std=0.4,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store of held-out documents and two runs, the second with a larger rotary base."""
    folder = tmp_path_factory.mktemp("made")
    vocabulary: Any = types.SimpleNamespace(
        vocab_size=60,
        token_bytes=np.where(np.arange(60) < 3, 0, 2).astype(np.int32),
        fingerprint="f",
    )
    rng = np.random.default_rng(0)
    with TokenStoreWriter(folder / "store", vocabulary, task="t", split="validation") as writer:
        for size in (6, 70, 20, 100, 30):
            writer.add(np.concatenate([[1], rng.integers(3, 60, size - 2), [2]]))
    for i, base in enumerate((50_000.0, 1e6)):
        config = dataclasses.replace(_CONFIG, rope_base=base, trained_length=16 * 4**i)
        params = fresh_params(config, i)
        save_model(folder / f"run{i}", config, params)
    return folder


def _evaluate(made, output, **changes):
    arguments = {
        "checkpoints": {"short": str(made / "run0"), "long": (str(made / "run1"), 0)},
        "store": str(made / "store"),
        "output_dir": str(output),
        "length": [16, 64],
        "batch_size": 2,
        "loss_chunk_tokens": 16,
        "mesh": MeshConfig(data=2, fsdp=2, tensor=2) if changes.pop("cut", False) else MeshConfig(),
    }
    evaluate(**{**arguments, **changes})
    return json.loads((output / "evaluation.json").read_text())["checkpoints"]


@pytest.mark.slow
def test_every_checkpoint_is_measured_on_the_same_text_at_every_length(made, tmp_path):
    rows = _evaluate(made, tmp_path / "out")
    assert [(r["name"], r["length"]) for r in rows] == [
        ("short", 16), ("short", 64), ("long", 16), ("long", 64),
    ]  # fmt: skip
    assert {(r["num_tokens"], r["num_bytes"]) for r in rows} == {(226 - 5, 2 * (226 - 10))}
    assert [r["rope_base"] for r in rows] == [50_000.0, 50_000.0, 1e6, 1e6]
    assert rows[0]["fingerprint"] == rows[1]["fingerprint"] != rows[2]["fingerprint"]
    assert [r["baseline"] for r in rows] == [None, None, "short", "short"]
    for short, long in zip(rows[:2], rows[2:], strict=True):
        difference = long["bits_per_byte"] - short["bits_per_byte"]
        assert long["difference"] == pytest.approx(difference, rel=1e-6)
    for row in rows:
        assert sum(b["num_bytes"] for b in row["by_position"]) == row["num_bytes"]
        bits = sum(b["bits_per_byte"] * b["num_bytes"] for b in row["by_position"])
        assert bits / row["num_bytes"] == pytest.approx(row["bits_per_byte"], rel=1e-12)
        # At 64 only the first pieces of the two long documents fill the context.
        pieces = {b["num_pieces"] for b in row["by_position_long"]}
        assert pieces == ({2} if row["length"] == 64 else {4 + 6 + 1 + 1})


@pytest.mark.slow
def test_a_finished_evaluation_is_left_alone_and_other_weights_are_measured_anew(made, tmp_path):
    output = tmp_path / "out"
    first = _evaluate(made, output, length=16)
    before = (output / "manifest.json").stat().st_mtime_ns
    assert _evaluate(made, output, length=16) == first
    assert (output / "manifest.json").stat().st_mtime_ns == before
    again = _evaluate(made, tmp_path / "again", length=16)
    assert again == first
    swapped = {"short": str(made / "run1"), "long": str(made / "run0")}
    other = _evaluate(made, output, length=16, checkpoints=swapped)
    assert [r["bits_per_byte"] for r in other] == [r["bits_per_byte"] for r in first[::-1]]


@pytest.mark.slow
def test_devices_do_not_change_the_result(made, tmp_path):
    one = _evaluate(made, tmp_path / "one", length=64, mesh=MeshConfig())
    cut = _evaluate(made, tmp_path / "cut", length=64, cut=True)
    for a, b in zip(one, cut, strict=True):
        assert a["bits_per_byte"] == pytest.approx(b["bits_per_byte"], rel=1e-6)


def test_mistakes_name_the_setting(made, tmp_path):
    with pytest.raises(ValueError, match=r"checkpoints\['short'\].* no checkpoint of step 7"):
        _evaluate(made, tmp_path / "o", checkpoints={"short": (str(made / "run0"), 7)})
    with pytest.raises(ValueError, match=r"evaluate\.checkpoints"):
        _evaluate(made, tmp_path / "o", checkpoints={})
    other = dataclasses.replace(_CONFIG, vocab_size=61)
    save_model(tmp_path / "run", other, fresh_params(other))
    with pytest.raises(ValueError, match=r"evaluate\.store"):
        _evaluate(made, tmp_path / "o", checkpoints={"x": str(tmp_path / "run")})
