"""The peer of tests/bench/moe_peer.py: Hugging Face's Mixtral block on torch, in its environment.

Run by path, as its environment need hold torch and transformers alone.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.alternating import serve


def main(settings: dict, implementation: str) -> None:
    """Serves requests for forward and backward passes."""
    torch.set_num_threads(settings["num_threads"])
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        hidden_size=settings["dim"],
        intermediate_size=settings["inner"],
        num_local_experts=settings["num_experts"],
        num_experts_per_tok=settings["k"],
        experts_implementation=implementation,
    )
    block = MixtralSparseMoeBlock(config).train()
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    shape = (1, settings["tokens"], settings["dim"])
    x, d_y = torch.randn(shape, requires_grad=True), torch.randn(shape)

    def answer(request: dict) -> dict:
        for _ in range(request["steps"]):
            block(x).backward(d_y)
            block.zero_grad(set_to_none=True)
            x.grad = None
        return {}

    serve(answer)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
