"""An iteration of PPO against a torch loop of the same steps on `transformers`.

    python -m tests.bench.ppo_iteration --torch_python=PYTHON [--batches=16,32] [--rounds=5]

PYTHON is the interpreter of an environment with torch and transformers. TRL of 1.0 and later has no
PPO trainer, so the peer is a plain loop, written to be quick: `ppo_iteration_torch.py`. Actor,
reference, critic and reward model have the sizes of `tests.bench.decode`, 19.3M parameters in fp32,
and the actor's are the same weights on both sides. An iteration samples an answer to each prompt at
top-p 0.9, scores it, assesses it by actor, reference and critic, and makes one AdamW step of the
critic and one of the actor. Every answer has `--num_new` tokens, or, in the rows named "mixed",
from 8 to that, evenly on a log scale: the same lengths on both sides. Target on two quiet
processors: 1.5 times the peer's iterations a second. "rollout" is sampling with the move of
weights to the sampler, "scoring" the reward model, "update" assessing and learning. Read the
processor seconds where other work shares the machine.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.bench.alternating import Worker, alternate, serve, summary
from tests.bench.decode import SETTINGS, export

PARTS = ("rollout", "scoring", "update")
REWARD_ID = SETTINGS["vocab_size"] - 1
_TOP_P = 0.9


def _serve(folder: str, num_rows: int, length: int) -> None:
    import jax

    from t5x_style.align import rollouts
    from t5x_style.align.ppo import PPO, Models, PPOSettings
    from t5x_style.infer.reward import RewardScorer
    from t5x_style.infer.sampler import Sampler
    from t5x_style.infer.sampling import Sampling
    from t5x_style.models.hf.checkpoint import PublishedCheckpoint
    from t5x_style.objectives.ppo import Policy, Value
    from t5x_style.train import state as states
    from t5x_style.train.job import Job
    from t5x_style.train.optimizers import AdamW
    from t5x_style.train.schedules import WarmupCosine

    published = PublishedCheckpoint(folder)
    model = published.config

    def job(objective: Any, peak: float) -> Job:
        return Job(
            objective,
            schedule=WarmupCosine(peak=peak, total_steps=1000, final_fraction=1.0),
            total_steps=1000,
            batch_size=num_rows,
            length=length,
            optimizer=AdamW(b2=0.95, weight_decay=0.01),
        )

    sampling = Sampling(top_p=_TOP_P)
    settings = PPOSettings(prompts_per_iteration=num_rows, sampling=sampling)
    actor, critic = job(Policy(model, pretrain_coefficient=0.0), 1e-6), job(Value(model), 5e-6)
    ppo = PPO(settings, actor, critic)
    params = published.params()
    scalar = {
        "backbone": {name: x for name, x in params.items() if name != "output"},
        "head": {"kernel": np.full(model.embed_dim, 0.02, np.float32)},
    }
    begun = [
        states.with_params(given, one.optimizer.transformation(), one.abstract_state)
        for one, given in ((actor, params), (critic, scalar))
    ]
    reference = jax.tree.map(lambda leaf: leaf + 0, begun[0].params)
    models = Models(*begun, reference)
    scorer = RewardScorer(model, scalar, REWARD_ID)
    sampler = Sampler(model, models.actor.params, max_batch_rows=num_rows)

    def answer(request: dict) -> dict:
        nonlocal models
        prompts, seed = request["prompts"], request["seed"]
        times = [time.perf_counter()]
        sampler.update(models.actor.params)
        samples = sampler.generate(prompts, request["limits"], sampling=sampling, seed=seed)
        pairs = [(p, sample.tokens) for p, sample in zip(prompts, samples, strict=True)]
        times.append(time.perf_counter())
        scores = scorer.scores([[*prompt, *tokens, REWARD_ID] for prompt, tokens in pairs])
        times.append(time.perf_counter())
        longest = max(len(prompt) + len(tokens) for prompt, tokens in pairs)
        rows = rollouts.rows_of_ids(pairs, ppo.row_length(longest))
        minibatches, _ = ppo.assess(models, rows, scores, settings.kl_coefficient)
        models, of_actor, _ = ppo.update(models, minibatches, train_actor=True)
        jax.block_until_ready((models.actor, models.critic))
        times.append(time.perf_counter())
        return {
            "parts": np.diff(times).tolist(),
            "num_tokens": sum(len(tokens) for _, tokens in pairs),
            "ratio": of_actor.means()["ratio"],
            "num_compilations": ppo.num_compilations + sampler.num_compilations,
        }

    serve(answer)


def _compare(title: str, workers: Mapping[str, Worker], request: dict, rounds: int) -> None:
    """Prints one row for each worker."""
    answers = alternate(workers, request, rounds=rounds)
    sums = {name: summary(found) for name, found in answers.items()}
    for name, found in answers.items():
        for i, part in enumerate(PARTS):
            sums[name][part] = statistics.median(one["parts"][i] for one in found)
    for name, found in sums.items():
        times = " ".join(f"{1e3 * value:8.0f}" for value in found.values())
        ratios = " ".join(f"{sums['torch'][key] / found[key]:8.2f}" for key in found)
        last = answers[name][-1]
        print(f"{title:>10} {name:6} {times}   {last['num_tokens']} tokens", flush=True)
        if name != "torch":
            load, programs = os.getloadavg()[0], last["num_compilations"]
            print(
                f"{'':10} {'ratio':6} {ratios}   load {load:.1f}, {programs} programs", flush=True
            )


def main() -> None:
    """Prints rows for each batch size, with answers of one length and of mixed lengths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch_python")
    parser.add_argument("--batches", default="16,32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--num_threads", type=int, default=2)
    parser.add_argument("--num_prompt", type=int, default=32)
    parser.add_argument("--num_new", type=int, default=96)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    length = flags.num_prompt + flags.num_new
    if flags.serve:
        _serve(flags.serve, flags.rows, length)
        return
    if not flags.torch_python:
        parser.error("--torch_python is needed")
    names = ("median", "least", "cpu", *PARTS)
    print(f"{'rows':>10} {'':6} {' '.join(f'{name:>8}' for name in names)}   ms; ratios to torch")
    with tempfile.TemporaryDirectory() as folder:
        export(folder)
        for num_rows in map(int, flags.batches.split(",")):
            ours = [sys.executable, "-m", "tests.bench.ppo_iteration", "--serve", folder]
            ours += [f"--{n}={getattr(flags, n)}" for n in ("num_prompt", "num_new")]
            torch = [flags.torch_python, "tests/bench/ppo_iteration_torch.py", folder]
            workers = {
                "ours": Worker(
                    [*ours, f"--rows={num_rows}"], flags.num_threads, {"JAX_PLATFORMS": "cpu"}
                ),
                "torch": Worker(
                    [*torch, str(flags.num_threads)], flags.num_threads, {"HF_HUB_OFFLINE": "1"}
                ),
            }
            random = np.random.default_rng(num_rows)
            prompts = random.integers(3, REWARD_ID, (num_rows, flags.num_prompt)).tolist()
            shares = random.permutation(np.linspace(0, 1, num_rows))
            mixed = np.rint(8 * (flags.num_new / 8) ** shares).astype(int).tolist()
            for title, limits in (("", [flags.num_new] * num_rows), (" mixed", mixed)):
                request = {"prompts": prompts, "limits": limits, "seed": num_rows, "top_p": _TOP_P}
                _compare(f"{num_rows}{title}", workers, request, flags.rounds)
            for worker in workers.values():
                worker.close()


if __name__ == "__main__":
    main()
