"""The peer of ppo_iteration.py: the same steps on torch and `transformers`, as a plain quick loop.

Run by path, as its environment need hold torch and transformers alone. Sampling is `generate` with
its cache; no gradient is kept where none is needed; the actor's and the reference's output matrix
is applied to answers alone; attention is SDPA, and AdamW fused. No entropy is reported.
"""

import itertools
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.bench.alternating import serve

_REWARD_ID = 8191
_KL_COEFFICIENT, _TRACE_DECAY, _CLIP_RATIO = 0.01, 0.99, 0.2


class Scalar(torch.nn.Module):
    """A transformer with a number at each token."""

    def __init__(self, folder: str):
        super().__init__()
        self.backbone = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
        self.head = torch.nn.Parameter(torch.full((self.backbone.config.hidden_size,), 0.02))

    def forward(self, ids: torch.Tensor, is_real: torch.Tensor) -> torch.Tensor:
        """Returns [B, T]."""
        found = self.backbone(input_ids=ids, attention_mask=is_real, use_cache=False)
        return found.last_hidden_state @ self.head


def log_probs(model, ids, is_real, num_prompt: int) -> torch.Tensor:
    """Returns log p of the tokens behind the prompt, [B, N]."""
    num_new = ids.shape[1] - num_prompt
    logits = model(
        input_ids=ids, attention_mask=is_real, use_cache=False, logits_to_keep=num_new + 1
    ).logits[:, :-1]
    targets = ids[:, num_prompt:]
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return -nll.view(targets.shape)


def advantages_of(rewards, values, mask) -> torch.Tensor:
    """Returns generalised advantages at discount 1, [B, N]."""
    found = torch.zeros_like(rewards)
    later = torch.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        after = values[:, t + 1] * mask[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        later = rewards[:, t] + after - values[:, t] + _TRACE_DECAY * later
        later = later * mask[:, t]
        found[:, t] = later
    return found


def main(folder: str, num_threads: int) -> None:
    """Serves requests for iterations."""
    torch.set_num_threads(num_threads)

    def language_model():
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    actor, reference = language_model(), language_model().requires_grad_(False)
    critic, judge = Scalar(folder).eval(), Scalar(folder).eval().requires_grad_(False)
    # Answers are as long as is asked: no id ends one.
    actor.generation_config.eos_token_id = None
    optimizers = [
        torch.optim.AdamW(
            model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )
        for model, rate in ((actor, 1e-6), (critic, 5e-6))
    ]

    def step(model, optimizer, loss) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def answer(request: dict) -> dict:
        torch.manual_seed(request["seed"])
        prompts, limits = torch.tensor(request["prompts"]), torch.tensor(request["limits"])
        num_prompt, num_new = prompts.shape[1], int(limits.max())
        times = [time.perf_counter()]
        with torch.inference_mode():
            ids = actor.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=num_new,
                do_sample=True,
                top_p=request["top_p"],
                top_k=0,
                pad_token_id=0,
            )
        ids = ids.clone()
        mask = (torch.arange(num_new) < limits[:, None]).float()
        times.append(time.perf_counter())
        ends = num_prompt + limits
        rows = torch.arange(len(ids))
        with torch.no_grad():
            scored = F.pad(ids, (0, 1))
            scored[rows, ends] = _REWARD_ID
            is_real = (torch.arange(scored.shape[1]) <= ends[:, None]).long()
            scores = judge(scored, is_real)[rows, ends]
        times.append(time.perf_counter())
        is_real = (torch.arange(ids.shape[1]) < ends[:, None]).long()
        with torch.no_grad():
            old = log_probs(actor, ids, is_real, num_prompt) * mask
            frozen = log_probs(reference, ids, is_real, num_prompt) * mask
            values = critic(ids, is_real)[:, num_prompt - 1 : -1] * mask
            rewards = -_KL_COEFFICIENT * (old - frozen)
            rewards[rows, limits - 1] += scores
            advantages = advantages_of(rewards, values, mask)
            returns = advantages + values
        found = critic(ids, is_real)[:, num_prompt - 1 : -1]
        step(critic, optimizers[1], ((found - returns).square() * mask).sum() / 2 / mask.sum())
        ratio = (log_probs(actor, ids, is_real, num_prompt) - old).exp()
        clipped = ratio.clamp(1 - _CLIP_RATIO, 1 + _CLIP_RATIO)
        surrogate = torch.maximum(-advantages * ratio, -advantages * clipped)
        step(actor, optimizers[0], (surrogate * mask).sum() / mask.sum())
        times.append(time.perf_counter())
        return {
            "parts": [later - earlier for earlier, later in itertools.pairwise(times)],
            "num_tokens": int(limits.sum()),
        }

    serve(answer)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
