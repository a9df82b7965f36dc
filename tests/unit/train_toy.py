"""A model small enough to compile in a moment, with the contract of a real objective; its run."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from t5x_style.parallel.mesh import MeshConfig
from t5x_style.train import loop
from t5x_style.train.job import Job, LoopSettings
from t5x_style.train.optimizers import AdamW
from t5x_style.train.schedules import WarmupCosine

VOCAB_SIZE = 48
EMBED_DIM = 16


class Bigram:
    """Predicts the next token from the last one alone: log softmax(embedding[x] @ kernel)."""

    def __init__(self, param_dtype="float32"):
        self.param_dtype = param_dtype

    def init(self, rng):
        """Returns boxed params."""
        rngs = jax.random.split(rng)
        shapes = {"embedding": (VOCAB_SIZE, EMBED_DIM), "kernel": (EMBED_DIM, VOCAB_SIZE)}
        axes = {"embedding": ("vocab", "embed"), "kernel": ("embed", "vocab")}
        return {
            room: {
                name: nn.LogicallyPartitioned(
                    jax.random.normal(key, shapes[name], self.param_dtype), axes[name]
                )
            }
            for room, name, key in zip(
                ("tok_embeddings", "output"), ("embedding", "kernel"), rngs, strict=True
            )
        }

    def batch_shapes(self, batch_size, length):
        """Returns the shapes of a batch."""
        ints = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
        floats = jax.ShapeDtypeStruct((batch_size, length), jnp.float32)
        return {"inputs": ints, "targets": ints, "loss_weights": floats}

    def loss(self, params, batch, rng):
        """Returns (loss sum, weight sum, metrics)."""
        del rng
        hidden = params["tok_embeddings"]["embedding"][batch["inputs"]]
        logits = (hidden @ params["output"]["kernel"]).astype(jnp.float32)
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)
        weights = batch["loss_weights"]
        loss_sum, weight_sum = -jnp.sum(picked[..., 0] * weights), jnp.sum(weights)
        num_tokens = jnp.sum(weights > 0).astype(jnp.float32)
        return (
            loss_sum,
            weight_sum,
            {
                "loss": (loss_sum, weight_sum),
                "filled_slots": (num_tokens, jnp.float32(weights.size)),
            },
        )

    def flops_per_token(self, length, keys_per_token=None):
        """Returns the operations of a token."""
        del length, keys_per_token
        return 6.0 * EMBED_DIM * VOCAB_SIZE


def make_batch(rows=8, length=16, seed=0):
    """Returns a batch whose weights differ from row to row, its last two positions padding."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, VOCAB_SIZE, (rows, length + 1)).astype(np.int32)
    is_real = np.arange(length) < length - 2
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "loss_weights": (is_real * rng.uniform(0, 2, (rows, 1))).astype(np.float32),
    }


class Source:
    """An endless stream of batches, with the state that a checkpoint keeps."""

    def __init__(self, rows=8, length=16):
        self._sizes = (rows, length)
        self._next = 0

    def __next__(self):
        self._next += 1
        return make_batch(*self._sizes, seed=self._next)

    def state(self):
        """Returns where the stream stands."""
        return {"next": self._next}

    def restore(self, state):
        """Goes to where a stream stood."""
        self._next = state["next"]


def fit_toy(
    run_dir, total_steps, *, mesh=None, devices=None, initial_run=None, lines=None, **settings
):
    """Trains the toy model in `run_dir` and returns the last state.

    Args:
      run_dir: the run folder.
      total_steps: step to end at.
      mesh: how the devices are laid out; fsdp 4 x tensor 2 if None.
      devices: all there are if None.
      initial_run: where to start.
      lines: a list that gets (step, values) of each line of metrics, times left out.
      **settings: of the loop.
    """
    job = Job(
        objective=Bigram(),
        optimizer=AdamW(),
        schedule=WarmupCosine(peak=1e-2, total_steps=100, warmup_steps=3),
        mesh=mesh or MeshConfig(fsdp=4, tensor=2),
        total_steps=total_steps,
        batch_size=8,
        length=16,
        seed=0,
        settings=LoopSettings(log_every_steps=1, **settings),
        devices=devices,
    )
    kept = [] if lines is None else lines

    class Writer:
        def write(self, step, values):
            kept.append((step, {k: v for k, v in values.items() if not k.startswith("ti")}))

        def progress(self, step):
            pass

        def close(self):
            pass

    return loop.fit(
        job,
        Source(),
        {},
        run_dir=run_dir,
        make_writers=lambda first_step: [Writer()],
        initial_run=initial_run,
    )
