"""Model configs: what they refuse, how they are written, and the frozen tables of the four sizes.

After a change that is meant: `pytest tests/unit/test_models_config.py --update-golden`.
"""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

import gin
from t5x_style.config import gin_files
from t5x_style.models import config
from t5x_style.models.manifest import Parameter, manifest, parameters_of, table
from t5x_style.objectives.classification import Classification
from t5x_style.objectives.reward import Reward

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "manifests"
TOTALS = {
    "internlm2_tiny": 3_147_456,
    "internlm2_1_8b": 1_889_110_016,
    "internlm2_7b": 7_737_708_544,
    "internlm2_20b": 19_861_149_696,
}


ENCODERS = {"encoder_tiny": 1_164_289, "encoder_base": 109_530_625}


def config_of(name: str) -> config.TransformerConfig:
    gin_files.apply(gin_files.load([ROOT / "gin" / "models" / f"{name}.gin"]))
    return gin.get_configurable(config.TransformerConfig)()


@pytest.mark.parametrize("name", TOTALS)
def test_manifest_is_the_frozen_one(name, request):
    text = manifest(config_of(name))
    path = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert text == path.read_text()
    assert text.endswith(f"\n{TOTALS[name]:,} parameters\n")


@pytest.mark.parametrize("name", ENCODERS)
def test_manifest_of_a_classifier_is_the_frozen_one(name, request):
    boxed = jax.eval_shape(Classification(config_of(name)).init, jax.random.key(0))
    text = table(parameters_of(boxed))
    path = GOLDEN / f"{name}.txt"
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert text == path.read_text()
    assert text.endswith(f"\n{ENCODERS[name]:,} parameters\n")


def test_manifest_of_a_reward_model_is_the_frozen_one(request):
    boxed = jax.eval_shape(Reward(config_of("internlm2_1_8b")).init, jax.random.key(0))
    text = table(parameters_of(boxed))
    path = GOLDEN / "reward_1_8b.txt"
    if request.config.getoption("--update-golden"):
        path.write_text(text)
    assert text == path.read_text()
    # A row that scores in place of the output matrix.
    assert text.endswith(f"\n{TOTALS['internlm2_1_8b'] - (92544 - 1) * 2048:,} parameters\n")


@pytest.mark.parametrize("name", [*TOTALS, *ENCODERS])
def test_model_files_bind_every_field(name):
    text = (ROOT / "gin" / "models" / f"{name}.gin").read_text()
    fields = {field.name for field in dataclasses.fields(config.TransformerConfig)}
    assert {name for name in fields if f"\nconfig.TransformerConfig.{name} = " not in text} == set()


def test_only_the_smallest_published_size_has_a_normalised_head():
    assert [config_of(name).normalized_head for name in TOTALS] == [False, True, False, False]


def test_unrolled_layers_have_manifests_of_the_same_size():
    tiny = config_of("internlm2_tiny")
    scanned, unrolled = (
        manifest(dataclasses.replace(tiny, scan_layers=scan)) for scan in (True, False)
    )
    assert scanned.splitlines()[-1] == unrolled.splitlines()[-1]
    assert "layers_3/attention/wqkv" in unrolled


def test_a_table_takes_more_columns():
    parameters = [Parameter("norm/scale", (8,), "float32", ("norm",))]
    text = table(parameters, {"mesh axes": {"norm/scale": "fsdp"}})
    assert text.splitlines()[1].split() == ["norm/scale", "8", "float32", "norm", "fsdp", "8"]


def test_a_config_survives_json():
    original = config.TransformerConfig(vocab_size=100, dynamic_ntk_factor=2.0, attention="splash")
    text = json.dumps(original.to_dict())
    assert config.TransformerConfig.from_dict(json.loads(text)) == original


def test_an_unknown_field_is_named():
    with pytest.raises(ValueError, match=r"\['num_experts'\] are not fields"):
        config.TransformerConfig.from_dict({"num_experts": 8})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("num_layers", 0, "at least 1"),
        ("num_query_heads", 12, "multiple of num_kv_heads = 8"),
        ("head_dim", 63, "even"),
        ("dtype", "float8", "one of"),
        ("remat", "some", "'full'"),
    ],
)
def test_a_wrong_value_names_the_setting_to_change(name, value, reason):
    with pytest.raises(ValueError, match=f"{name} = {value!r}.*{reason}.*TransformerConfig.{name}"):
        config.TransformerConfig(**{name: value})


def test_the_vocabulary_is_padded_to_a_multiple():
    assert config.TransformerConfig(vocab_size=4097, vocab_multiple=128).padded_vocab_size == 4224
    assert config.TransformerConfig(vocab_size=92544, vocab_multiple=128).padded_vocab_size == 92544
