"""A ring of eight devices against one device, for the same rows: work, sends, memory and time.

    python -m tests.bench.ring [--lengths=4096,16384,65536] [--rounds=3]

One causal row, two query heads, one key and value head of dim 64, fp32, forward and backward. The
eight devices are fakes that share this machine's processors, so that wall time shows what the ring
adds to the work and not what it saves: `blocks` is that work, counted as pairs of blocks (of the
ring's own size) that are computed; `busiest` is the device with most of them, against the mean;
`sent` is what one device sends, from the compiled program; `MB` is the temporary memory of one.
"""

import argparse
import os

import jax
import jax.numpy as jnp
import numpy as np

from t5x_style.ops.attention import attend
from t5x_style.ops.blockwise import Blockwise, num_pairs
from t5x_style.parallel import hlo
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.parallel.ring_attention import Marks
from t5x_style.parallel.sequence import SequenceSharding
from tests.bench.timing import measure

RANKS = 8
Q_HEADS, KV_HEADS, HEAD_DIM = 2, 1, 64


def _gradients(q, k, v, d_out, marks):
    out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, marks, marks, head_exchange=1), q, k, v)
    return out, pull(d_out)


def _work(length: int) -> tuple[list[int], int]:
    """Returns how many pairs of blocks each device computes, and how many one alone would."""
    mine = length // RANKS
    queries = jnp.zeros((1, KV_HEADS, Q_HEADS // KV_HEADS, mine, HEAD_DIM))
    cut = Blockwise.of(queries, mine, causal=True, num_runs=2)
    order_T = SequenceSharding(RANKS).order(length)
    assert order_T is not None
    pieces = [Marks(jnp.asarray(piece[None])) for piece in np.split(order_T, RANKS)]
    ring = [sum(int(num_pairs(cut, own, other, mine, mine)) for other in pieces) for own in pieces]
    return ring, int(num_pairs(cut, Marks(), Marks(), length, length))


def main() -> None:
    """Prints one line for each length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default="4096,16384,65536")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", RANKS)
    mesh = MeshConfig(data=1, seq=RANKS).build()
    print(
        f"load {os.getloadavg()[0]:.1f}\n{'length':>6} {'blocks':>15} {'busiest':>8} "
        f"{'sent MB':>8} {'MB':>12} {'wall s':>15} {'cpu s':>15}     (ring, one device)"
    )
    for length in map(int, flags.lengths.split(",")):
        work, alone_work = _work(length)
        keys = jax.random.split(jax.random.key(0), 4)
        heads = (Q_HEADS, KV_HEADS, KV_HEADS, Q_HEADS)
        arrays = [
            jax.random.normal(key, (1, length, n, HEAD_DIM))
            for key, n in zip(keys, heads, strict=True)
        ]
        alone = measure(_gradients, (*arrays, Marks()), rounds=flags.rounds)
        order_T = SequenceSharding(RANKS).order(length)
        cut = jax.NamedSharding(mesh, jax.P(None, "seq"))
        with jax.set_mesh(mesh):
            placed = [jax.device_put(x[:, order_T], cut) for x in arrays]
            marks = Marks(jax.device_put(jnp.asarray(order_T)[None], cut))
            ring = measure(_gradients, (*placed, marks), rounds=flags.rounds)
            compiled = jax.jit(_gradients).lower(*placed, marks).compile()
        sent = sum(hlo.Program(compiled.as_text(), mesh).sent_bytes().values())
        print(
            f"{length:6} {sum(work):7} {alone_work:7} {max(work) / np.mean(work):7.2f}x "
            f"{sent / 1e6:8.2f} {ring.temp_bytes / 1e6:6.1f}{alone.temp_bytes / 1e6:6.1f} "
            f"{ring.secs:7.2f} {alone.secs:7.2f} {ring.cpu_secs:7.2f} {alone.cpu_secs:7.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
