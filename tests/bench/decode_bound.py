"""Rollouts on the device that is here, beside what its memory's bandwidth allows.

    python -m tests.bench.decode_bound [--shape=1_8b] [--rows=64] [--num_prompt=256] [--num_new=512]

The weights are random, in bfloat16 (fp32 on a CPU), and tokens are drawn with top-p 0.9. A token of
every row takes at least the time in which memory gives all weights but the embedding table once,
and the keys and values of all rows so far. Reading the prompts is timed apart, as an answer of one
token. The bandwidth is the maker's (`parallel.topology.CHIPS`); for a device that is not known
there, a CPU for one, give `--gb_per_sec`. Target on an H200, as the flags stand: 60% of the bound.
"""

import argparse
import statistics
import time

import jax
import numpy as np
from flax import linen as nn

from t5x_style.infer import decode
from t5x_style.infer.sampler import Sampler
from t5x_style.infer.sampling import Sampling
from t5x_style.models import transformer
from t5x_style.models.config import TransformerConfig
from t5x_style.parallel.topology import chip_of
from tests.bench.decode import SETTINGS

# What differs from TransformerConfig's defaults, which are those of InternLM2-1.8B.
SHAPES = {"1_8b": {"normalized_head": True}, "small": SETTINGS}


def main() -> None:
    """Prints the measured and the least time of a token, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="1_8b")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--num_prompt", type=int, default=256)
    parser.add_argument("--num_new", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gb_per_sec", type=float)
    flags = parser.parse_args()
    device = jax.devices()[0]
    chip = chip_of(device.device_kind)
    if chip is None and flags.gb_per_sec is None:
        parser.error(f"nothing is known of a {device.device_kind}: give --gb_per_sec")
    bytes_per_sec = 1e9 * flags.gb_per_sec if flags.gb_per_sec else chip.memory_bytes_per_sec
    dtype = "float32" if device.platform == "cpu" else "bfloat16"
    config = TransformerConfig(**SHAPES[flags.shape], dtype=dtype, param_dtype=dtype)
    params = jax.jit(lambda: nn.unbox(transformer.init_params(config, jax.random.key(0))))()
    sampler = Sampler(config, params, max_batch_rows=flags.rows)
    random = np.random.default_rng(0)
    prompts = random.integers(3, config.vocab_size, (flags.rows, flags.num_prompt)).tolist()

    def secs(num_new: int) -> float:
        start = time.perf_counter()
        samples = sampler.generate(prompts, num_new, sampling=Sampling(top_p=0.9))
        assert all(len(sample.tokens) == num_new for sample in samples)
        return time.perf_counter() - start

    for num_new in (flags.num_new, 1):
        secs(num_new)  # compiles
    rounds = [(secs(flags.num_new), secs(1)) for _ in range(flags.rounds)]
    all_secs = statistics.median(all_secs for all_secs, _ in rounds)
    prompt_secs = statistics.median(prompt_secs for _, prompt_secs in rounds)
    token_secs = (all_secs - prompt_secs) / (flags.num_new - 1)

    abstract = jax.eval_shape(
        lambda: nn.unbox(transformer.init_params(decode.decode_config(config), jax.random.key(0)))
    )
    read = {name: tree for name, tree in abstract.items() if name != "tok_embeddings"}
    weight_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(read))
    per_slot = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    slots = flags.num_prompt + (flags.num_new + 1) / 2  # seen by a token, on average
    cache_bytes = flags.rows * slots * per_slot * jax.numpy.dtype(dtype).itemsize
    least_secs = (weight_bytes + cache_bytes) / bytes_per_sec
    print(
        f"{flags.shape} on {device.device_kind}, {flags.rows} rows, {flags.num_prompt} + "
        f"{flags.num_new} tokens, {dtype}, {sampler.num_compilations} programs\n"
        f"all {1e3 * all_secs:.1f} ms, {flags.rows * flags.num_new / all_secs:,.0f} tokens/s; "
        f"prompts {1e3 * prompt_secs:.1f} ms\n"
        f"a token of every row {1e3 * token_secs:.3f} ms, {flags.rows / token_secs:,.0f} tokens/s\n"
        f"at least {1e3 * least_secs:.3f} ms for {weight_bytes / 1e9:.2f} GB of weights and "
        f"{cache_bytes / 1e9:.2f} GB of keys and values at {bytes_per_sec / 1e9:,.0f} GB/s: "
        f"{least_secs / token_secs:.0%} of the bound"
    )


if __name__ == "__main__":
    main()
