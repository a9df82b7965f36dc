"""The peer of decode.py and rollout.py: `transformers.generate` on torch, in its own environment.

Run by path, as its environment need hold torch and transformers alone.
"""

import sys
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.alternating import serve


def main(folder: str, num_threads: int) -> None:
    """Serves requests with the model in `folder`."""
    torch.set_num_threads(num_threads)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(request: dict) -> dict:
        prompts = torch.tensor(request["prompts"])
        with torch.inference_mode():
            found = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=request["num_new"],
                min_new_tokens=request["num_new"],
                **request.get("sampling", {"do_sample": False}),
            )
        return {"tokens": found[:, prompts.shape[1] :].tolist()}

    serve(answer)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
