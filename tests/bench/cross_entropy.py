"""Cross-entropy of the head at the published vocabulary, in chunks and whole: time and memory.

    python -m tests.bench.cross_entropy [--tokens=2048] [--dim=384] [--chunks=256,512,1024]

Loss and gradients of hidden states and head, fp32. `whole` forms the logits of all tokens, as
`optax.softmax_cross_entropy_with_integer_labels` wants them.
"""

import argparse
import functools
import os

import jax
import jax.numpy as jnp
import optax

from t5x_style.ops.losses import linear_cross_entropy
from tests.bench.timing import measure

VOCAB = 92544


def _whole(hidden, kernel, targets, weights):
    logits = hidden @ kernel
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(losses * weights)


def _chunked(hidden, kernel, targets, weights, *, chunk_tokens):
    return linear_cross_entropy(
        hidden, kernel, targets, weights, vocab_size=VOCAB, chunk_tokens=chunk_tokens
    )[0]


def main() -> None:
    """Prints one row for each size of chunk, and one for all tokens at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--chunks", default="256,512,1024")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    keys = jax.random.split(jax.random.key(0), 3)
    args = (
        jax.random.normal(keys[0], (1, flags.tokens, flags.dim)),
        0.02 * jax.random.normal(keys[1], (flags.dim, VOCAB)),
        jax.random.randint(keys[2], (1, flags.tokens), 0, VOCAB),
        jnp.ones((1, flags.tokens)),
    )
    functions = {"whole": _whole}
    for chunk in map(int, flags.chunks.split(",")):
        functions[f"chunks of {chunk}"] = functools.partial(_chunked, chunk_tokens=chunk)
    print(f"load {os.getloadavg()[0]:.1f}\n{'':16} {'ms':>9} {'cpu ms':>9} {'MB':>8} {'loss':>10}")
    for name, function in functions.items():
        both = jax.value_and_grad(function, argnums=(0, 1))
        found = measure(both, args, rounds=flags.rounds)
        loss = float(jax.jit(function)(*args)) / flags.tokens
        print(
            f"{name:16} {1e3 * found.secs:9.1f} {1e3 * found.cpu_secs:9.1f} "
            f"{found.temp_bytes / 1e6:8.1f} {loss:10.6f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
