"""Published folders that are hostile, damaged or incomplete are refused; big ones are streamed."""

import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from t5x_style.models.hf.checkpoint import PublishedCheckpoint, export_params
from tests.golden import hf_models

_CONFIG = hf_models.MODELS["plain"]
_INDEX = "model.safetensors.index.json"


def _export(folder: Path, **options) -> Path:
    export_params(_CONFIG, hf_models.seeded_params(_CONFIG), folder, **options)
    return folder


def _edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:
        PublishedCheckpoint(folder)
    return str(caught.value)


class _Bomb:
    """Leaves a mark on the disk if it is ever unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "sub/../../outside.safetensors", "..", "C:x"]
)
def test_index_paths_that_leave_the_folder_are_refused(name, tmp_path):
    folder = _export(tmp_path / "export", max_shard_bytes=20_000)
    (tmp_path / "outside.safetensors").write_bytes(next(folder.glob("model-*")).read_bytes())
    _edit_json(folder / _INDEX, weight_map={"model.norm.weight": name})
    message = _refusal(folder)
    assert name in message
    assert "refused" in message


def test_links_are_followed_into_the_hub_cache_only(tmp_path):
    repository = tmp_path / "models--a--b"
    folder = _export(repository / "snapshots" / "0123")
    weights = folder / "model.safetensors"
    (repository / "blobs").mkdir()
    weights.rename(repository / "blobs" / "abcd")
    weights.symlink_to("../../blobs/abcd")
    assert PublishedCheckpoint(folder).layout == "internlm2"
    (repository / "blobs" / "abcd").rename(tmp_path / "elsewhere")
    weights.unlink()
    weights.symlink_to("../../../elsewhere")
    assert "outside the folder" in _refusal(folder)


@pytest.mark.parametrize("indexed", [True, False])
def test_pickles_are_refused_with_a_hint_and_never_opened(indexed, tmp_path):
    folder, mark = _export(tmp_path / "export"), tmp_path / "mark"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(mark)))
    if indexed:
        weight_map = {"model.norm.weight": "pytorch_model.bin"}
        (folder / _INDEX).write_text(json.dumps({"weight_map": weight_map}))
    message = _refusal(folder)
    assert "pytorch_model.bin" in message
    assert "safetensors.torch.save_file" in message
    assert not mark.exists()


def test_code_that_comes_with_a_checkpoint_is_not_run(tmp_path):
    folder, mark = _export(tmp_path / "export"), tmp_path / "mark"
    for name in ("modeling_internlm2.py", "configuration_internlm2.py", "__init__.py"):
        (folder / name).write_text(f"open({str(mark)!r}, 'w')")
    auto_map = {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"}
    _edit_json(folder / "config.json", auto_map=auto_map)
    assert PublishedCheckpoint(folder).config.num_layers == 2
    assert not mark.exists()


def test_exports_name_no_code_and_leave_no_field_to_defaults(tmp_path):
    wanted = {"vocab_size", "hidden_size", "intermediate_size", "rms_norm_eps", "rope_theta"}
    wanted |= {"num_key_value_heads", "max_position_embeddings", "rope_scaling", "bos_token_id"}
    for layout in ("internlm2", "llama"):
        content = json.loads(
            (_export(tmp_path / layout, layout=layout) / "config.json").read_text()
        )
        assert "auto_map" not in content
        assert content["model_type"] == layout
        assert wanted < set(content)


def test_all_wrong_tensors_are_reported_at_once(tmp_path):
    folder = _export(tmp_path, layout="llama")
    weights = {
        "model.norm.weight": np.ones(7, np.float32),
        "model.layers.0.mlp.up_proj.bias": np.ones(40, np.float32),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        "lm_head.weight": np.ones((90, 24), np.int8),
    }
    save_file(weights, folder / "model.safetensors")
    message = _refusal(folder)
    for part in (
        "missing: model.embed_tokens.weight (90, 24)",
        "missing: model.layers.1.self_attn.q_proj.weight (48, 24)",
        "not part of the model: model.layers.0.mlp.up_proj.bias (40,)",
        "model.norm.weight is (7,), config.json says (24,)",
        "lm_head.weight has dtype I8",
    ):
        assert part in message
    assert "inv_freq" not in message


def test_damaged_and_mixed_files_are_named(tmp_path):
    folder = _export(tmp_path, max_shard_bytes=20_000)
    first, second = sorted(folder.glob("model-*"))[:2]
    whole = first.read_bytes()
    first.write_bytes(whole[:-4])
    assert str(first) in _refusal(folder)
    first.write_bytes(second.read_bytes())
    assert "is both in" in _refusal(folder)
    first.write_bytes(whole)
    weight_map = json.loads((folder / _INDEX).read_text())["weight_map"]
    _edit_json(folder / _INDEX, weight_map=weight_map | {"ghost.weight": second.name})
    assert "ghost.weight" in _refusal(folder)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"bias": True}, "bias = True"),
        ({"rope_theta": None}, "rope_theta is missing"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers = '2'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "type 'yarn'"),
        ({"rope_scaling": {"type": "dynamic"}}, "factor None"),
        ({"rope_parameters": [1]}, "rope_parameters = [1]"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
        ({"head_dim": "8"}, "head_dim = '8'"),
        ({"num_hidden_layers": 10**12}, "fewer than the 1000000000000 layers"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_models_that_are_not_this_decoder_are_refused_by_field(changes, part, tmp_path):
    _edit_json(_export(tmp_path) / "config.json", **changes)
    assert part in _refusal(tmp_path)


def test_newer_rope_fields_and_tied_heads_are_read(tmp_path):
    _export(tmp_path, layout="llama")
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    del content["rope_theta"], content["rope_scaling"], content["head_dim"]
    content |= {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 777.0, "factor": 3.0}}
    content |= {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 1}
    path.write_text(json.dumps(content))
    random = np.random.default_rng(0)
    shapes = {"mlp.gate_proj": (40, 24), "mlp.up_proj": (40, 24), "mlp.down_proj": (24, 40)}
    shapes |= {"self_attn.q_proj": (24, 24), "self_attn.k_proj": (8, 24)}
    shapes |= {"self_attn.v_proj": (8, 24), "self_attn.o_proj": (24, 24)}
    shapes |= {"input_layernorm": (24,), "post_attention_layernorm": (24,)}
    weights = {
        f"model.layers.{layer}.{name}.weight": random.random(shape, np.float32)
        for layer in range(2)
        for name, shape in shapes.items()
    }
    weights["model.embed_tokens.weight"] = random.random((90, 24), np.float32)
    weights["model.norm.weight"] = np.ones(24, np.float32)
    save_file(weights, tmp_path / "model.safetensors")
    published = PublishedCheckpoint(tmp_path)
    config, params = published.config, published.params()
    assert (config.rope_base, config.dynamic_ntk_factor, config.head_dim) == (777.0, 3.0, 8)
    np.testing.assert_array_equal(
        params["output"]["kernel"].T, params["tok_embeddings"]["embedding"]
    )


def test_params_of_another_model_are_not_exported(tmp_path):
    config = dataclasses.replace(_CONFIG, mlp_dim=48)
    with pytest.raises(ValueError, match=r"feed_forward/w1 is \(2, 24, 40\), not \(2, 24, 48\)"):
        export_params(config, hf_models.seeded_params(_CONFIG), tmp_path)


_MEASURE_MEMORY = """
import sys
from t5x_style.models.config import TransformerConfig
from t5x_style.models.hf.checkpoint import PublishedCheckpoint, export_params
from tests.golden.hf_models import seeded_params

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024

config = TransformerConfig(vocab_size=1024, num_layers=8, embed_dim=512, num_query_heads=8,
                           num_kv_heads=2, head_dim=64, mlp_dim=2048)
params = seeded_params(config) if sys.argv[2] == "export" else None
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # sets the peak to what is resident now
before = resident("VmRSS")
if params is not None:
    export_params(config, params, sys.argv[1], layout="llama", max_shard_bytes=16 << 20)
else:
    for _ in PublishedCheckpoint(sys.argv[1], scan_layers=False).leaves():
        pass
print(resident("VmHWM") - before)
"""


@pytest.mark.slow
def test_export_and_import_stream(tmp_path):
    """The weights are 133 MB; what is needed beside them stays near one file of 16 MB."""
    extra_bytes = {}
    for direction in ("export", "import"):
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE_MEMORY, str(tmp_path), direction],
            check=True,
            capture_output=True,
            text=True,
        )
        extra_bytes[direction] = int(done.stdout)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) > 120 << 20
    assert max(extra_bytes.values()) < 3 * (16 << 20), extra_bytes
