"""The tokenizer's files in a published folder: the SentencePiece model and what readers add to it.

The settings are those of the released tokenizer: bos before a text, no eos after it, padding with
the end-of-text id on the left, no space put before a text, chat tokens under their own names.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as model_pb2

MODEL_NAME = "tokenizer.model"
CONFIG_NAME = "tokenizer_config.json"

_CONTROL_IDS = {"<unk>": 0, "<s>": 1, "</s>": 2}


def write_tokenizer(
    folder: Path, model_path: Path, *, special_ids: Mapping[str, int], max_length_tokens: int
) -> None:
    """Writes the SentencePiece model and tokenizer_config.json.

    The spare pieces that stand for chat tokens get the chat tokens' names: readers that look a name
    up would else give it a new id behind the vocabulary, where the model has no row.

    Args:
      folder: the published folder.
      model_path: a `tokenizer.model`.
      special_ids: name of each chat token to its id, such as {"<|im_start|>": 92543}.
      max_length_tokens: context length of the model.
    """
    model = model_pb2.ModelProto.FromString(model_path.read_bytes())
    for name, token_id in special_ids.items():
        model.pieces[token_id].piece = name
    (folder / MODEL_NAME).write_bytes(model.SerializeToString(deterministic=True))
    content = _tokenizer_config(special_ids, max_length_tokens)
    (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _tokenizer_config(special_ids: Mapping[str, int], max_length_tokens: int) -> dict[str, Any]:
    added = {
        str(token_id): {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for name, token_id in sorted({**_CONTROL_IDS, **special_ids}.items(), key=lambda x: x[1])
    }
    return {
        "tokenizer_class": "LlamaTokenizer",
        "legacy": False,
        "add_prefix_space": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "padding_side": "left",
        "additional_special_tokens": [
            name for name, _ in sorted(special_ids.items(), key=lambda item: item[1])
        ],
        "added_tokens_decoder": added,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length_tokens,
        "sp_model_kwargs": {},
    }
