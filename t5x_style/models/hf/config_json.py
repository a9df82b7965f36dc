"""config.json, written with every field explicit and read without running anything.

The published configuration classes' own defaults are not the published models' values, so a field
that shapes the model is never left out on writing and never guessed on reading. A field that asks
for something this decoder does not do is refused by name.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from t5x_style.models.config import TransformerConfig
from t5x_style.models.hf.shards import read_json

CONFIG_NAME = "config.json"

_ARCHITECTURES = {"internlm2": "InternLM2ForCausalLM", "llama": "LlamaForCausalLM"}
_REWARD_ARCHITECTURES = {
    "internlm2": "InternLM2ForRewardModel",
    "llama": "LlamaForSequenceClassification",
}
# What the released reward models' config.json says of the code that lies beside them there.
_REWARD_CODE = {
    "AutoConfig": "configuration_internlm2.InternLM2Config",
    "AutoModel": "modeling_internlm2.InternLM2ForRewardModel",
}
_SIZES = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "num_query_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "trained_length": "max_position_embeddings",
}
# Fields that must have this value where they are given.
_FIXED = {
    "hidden_act": ("silu",),
    "bias": (False,),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "quantization_config": (None,),
    "partial_rotary_factor": (1, None),
}
_REAL = ("norm_eps", "rope_base")  # the other fields are whole numbers
_PLAIN_ROPE = (None, "default")
_DYNAMIC_ROPE = "dynamic"


def config_dict(
    config: TransformerConfig,
    layout: str,
    *,
    dtype: str,
    bos_id: int = 1,
    eos_id: int = 2,
    pad_id: int = 2,
    reward_id: int | None = None,
) -> dict[str, Any]:
    """Returns the content of config.json for a model.

    Args:
      config: the model.
      layout: one of `layouts.LAYOUTS`; also the published model_type.
      dtype: name of the dtype of the tensors.
      bos_id, eos_id, pad_id: control ids of the vocabulary.
      reward_id: of a reward model, the id at which its score is read; None for a language model.

    Raises:
      ValueError: the model is one that neither layout can express.
    """
    if not config.causal:
        raise ValueError(
            "the published layouts hold decoders; a model with TransformerConfig.causal = False "
            "cannot be exported"
        )
    scaling = None
    if config.dynamic_ntk_factor is not None:
        scaling = {"type": _DYNAMIC_ROPE, "factor": float(config.dynamic_ntk_factor)}
    content = {
        "architectures": [_ARCHITECTURES[layout]],
        "model_type": layout,
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": float(config.rope_base),
        "rope_scaling": scaling,
        "hidden_act": "silu",
        "initializer_range": config.init_std,
        "tie_word_embeddings": False,
        "use_cache": True,
        "pretraining_tp": 1,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "pad_token_id": pad_id,
        "torch_dtype": dtype,
    }
    if layout == "internlm2":
        content |= {"bias": False, "attn_implementation": "eager"}
    else:
        content |= {"attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False}
    if reward_id is not None:
        content |= {
            "architectures": [_REWARD_ARCHITECTURES[layout]],
            "reward_token_id": reward_id,
            "use_cache": False,
        }
        one_number = {"id2label": {"0": "score"}, "label2id": {"score": 0}}
        content |= {"auto_map": _REWARD_CODE} if layout == "internlm2" else one_number
    return content


def write_config(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes config.json."""
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (folder / CONFIG_NAME).write_text(text)


def read_config(folder: Path, **choices: Any) -> tuple[TransformerConfig, str, bool, bool]:
    """Returns the model that a folder's config.json describes.

    Args:
      folder: a Hugging Face repository on disk.
      **choices: fields of TransformerConfig that config.json does not say: precision, scan_layers,
        normalized_head and so on.

    Returns:
      The config, the layout of the tensors, whether the head shares the embedding table, and
      whether it is a reward model, with a row that scores for a head.

    Raises:
      ValueError: fields are missing, or ask for what this decoder does not do; all are named.
    """
    path = folder / CONFIG_NAME
    content = read_json(path)
    layout = content.get("model_type")
    if layout not in _ARCHITECTURES:
        raise ValueError(
            f"{path} has model_type {layout!r}; what can be read is {sorted(_ARCHITECTURES)}"
        )
    problems = [
        f"{name} = {content[name]!r} (must be {' or '.join(map(repr, allowed))})"
        for name, allowed in _FIXED.items()
        if name in content and content[name] not in allowed
    ]
    values: dict[str, Any] = {ours: content.get(theirs) for ours, theirs in _SIZES.items()}
    values["num_kv_heads"] = content.get("num_key_value_heads", values["num_query_heads"])
    values["rope_base"], values["dynamic_ntk_factor"], rope_problems = _rope(content)
    problems += rope_problems
    published = _SIZES | {"rope_base": "rope_theta", "num_kv_heads": "num_key_value_heads"}
    if content.get("head_dim") is not None:
        values["head_dim"], published["head_dim"] = content["head_dim"], "head_dim"
    for ours, theirs in published.items():
        value = values[ours]
        if value is None:
            problems.append(f"{theirs} is missing")
        elif not _is_number(value, whole=ours not in _REAL) or value <= 0:
            problems.append(f"{theirs} = {value!r} (must be a positive number)")
    if not problems and "head_dim" not in values:
        values["head_dim"], rest = divmod(values["embed_dim"], values["num_query_heads"])
        if rest:
            problems.append("head_dim is missing and hidden_size / num_attention_heads is uneven")
    if problems:
        raise ValueError(f"{path} describes a model that cannot be read: {'; '.join(problems)}")
    tied = bool(content.get("tie_word_embeddings", False))
    is_reward = content.get("architectures") == [_REWARD_ARCHITECTURES[layout]]
    return TransformerConfig(**(values | choices)), layout, tied and not is_reward, is_reward


def _is_number(value: Any, *, whole: bool = False) -> TypeGuard[float]:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return False
    return math.isfinite(value)


def _rope(content: Mapping[str, Any]) -> tuple[Any, Any, list[str]]:
    """Returns base, dynamic-NTK factor and problems, from the older or the newer fields."""
    base = content.get("rope_theta")
    name = "rope_parameters" if content.get("rope_parameters") else "rope_scaling"
    scaling = content.get(name) or {}
    if not isinstance(scaling, Mapping):
        return base, None, [f"{name} = {scaling!r} (must be an object)"]
    base = scaling.get("rope_theta", base)
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in _PLAIN_ROPE:
        return base, None, []
    if kind != _DYNAMIC_ROPE:
        return base, None, [f"rope scaling of type {kind!r} (must be none or {_DYNAMIC_ROPE!r})"]
    factor = scaling.get("factor")
    if not _is_number(factor) or factor < 1:
        return base, None, [f"rope scaling factor {factor!r} (must be a number of at least 1)"]
    return base, float(factor), []
