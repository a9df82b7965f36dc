"""Blockwise attention by length and block against the whole score matrix: time and memory.

    python -m tests.bench.attention [--lengths=2048,8192,32768] [--blocks=0,128,512] [--rounds=3]

One row, two query heads, one key and value head of dim 64, causal, fp32. Block 0 is the length's
own choice. `jax.nn.dot_product_attention`, which holds the score matrix, is left out above 8,192
tokens, where it would take 16 GB. `packed` is the same row as documents of an eighth of it. Target:
forward and backward at 32,768 tokens in less than 100 MB of temporary memory.
"""

import argparse
import functools
import os

import jax
import jax.numpy as jnp

from t5x_style.ops.attention import attend
from t5x_style.parallel.ring_attention import Marks
from tests.bench.timing import measure

NUM_HEADS, KV_HEADS, HEAD_DIM = 2, 1, 64
LARGEST_WHOLE = 8192


def _functions(length: int, blocks: list[int]) -> dict:
    marks = Marks(segments_BT=(jnp.arange(length) // (length // 8))[None])
    blockwise = functools.partial(attend, implementation="blockwise")
    found = {}
    for block in blocks:
        name = f"blockwise {block or 'auto'}"
        found[name] = functools.partial(blockwise, block_tokens=block or None)
    found["blockwise auto, packed"] = functools.partial(blockwise, q_marks=marks, k_marks=marks)
    if length <= LARGEST_WHOLE:
        found["jax.nn"] = functools.partial(jax.nn.dot_product_attention, is_causal=True)
    return found


def main() -> None:
    """Prints one row for each length and implementation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default="2048,8192,32768")
    parser.add_argument("--blocks", default="0,128,512")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    print(
        f"load {os.getloadavg()[0]:.1f}\n{'length':>6} {'':24} {'forward ms':>10} {'cpu':>8} "
        f"{'MB':>6}   {'both ms':>8} {'cpu':>8} {'MB':>6}"
    )
    for length in map(int, flags.lengths.split(",")):
        keys = jax.random.split(jax.random.key(0), 4)
        heads = (NUM_HEADS, KV_HEADS, KV_HEADS, NUM_HEADS)
        q, k, v, d_out = (
            jax.random.normal(key, (1, length, n, HEAD_DIM))
            for key, n in zip(keys, heads, strict=True)
        )
        for name, function in _functions(length, [*map(int, flags.blocks.split(","))]).items():

            def both(q, k, v, d_out, function=function):
                out, pull = jax.vjp(function, q, k, v)
                return out, pull(d_out)

            cells = []
            for run, args in ((function, (q, k, v)), (both, (q, k, v, d_out))):
                found = measure(run, args, rounds=flags.rounds)
                cells += [1e3 * found.secs, 1e3 * found.cpu_secs, found.temp_bytes / 1e6]
            print(
                f"{length:6} {name:24} {cells[0]:10.1f} {cells[1]:8.1f} {cells[2]:6.1f}   "
                f"{cells[3]:8.1f} {cells[4]:8.1f} {cells[5]:6.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
