"""The peer of tests/bench/train_step.py: Hugging Face Llama on torch, in its own environment.

Run by path, as its environment need hold torch and transformers alone.
"""

import json
import resource
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.alternating import serve


def main(settings: dict, batch_size: int, length: int) -> None:
    """Serves requests for train steps."""
    torch.set_num_threads(settings["num_threads"])
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=settings["vocab_size"],
        hidden_size=settings["embed_dim"],
        intermediate_size=settings["mlp_dim"],
        num_hidden_layers=settings["num_layers"],
        num_attention_heads=settings["num_query_heads"],
        num_key_value_heads=settings["num_kv_heads"],
        head_dim=settings["head_dim"],
        rope_theta=settings["rope_base"],
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        max_position_embeddings=length,
        attn_implementation="sdpa",
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    tokens = np.random.default_rng(0).integers(
        settings["vocab_size"], size=(batch_size, length + 1), dtype=np.int32
    )
    inputs, targets = (torch.tensor(x, dtype=torch.long) for x in (tokens[:, :-1], tokens[:, 1:]))

    def answer(request: dict) -> dict:
        for _ in range(request["steps"]):
            logits = model(input_ids=inputs).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {"loss": loss.item(), "peak_bytes": peak}

    serve(answer)


if __name__ == "__main__":
    sizes = dict(argument.removeprefix("--").split("=") for argument in sys.argv[2:])
    main(json.loads(sys.argv[1]), int(sizes["batch"]), int(sizes["length"]))
