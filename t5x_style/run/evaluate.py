"""The evaluate verb: bits per byte of checkpoints on held-out text, whole and by position.

Every checkpoint reads the same documents at the same context lengths, also lengths it was not
trained for, so that phases of training can be compared at each position.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import NamedSharding, PartitionSpec

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.data.batches import validation_batches
from t5x_style.data.token_store import TokenStore
from t5x_style.evals import perplexity
from t5x_style.models import transformer
from t5x_style.models.config import TransformerConfig
from t5x_style.parallel import rules
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.progress import progress
from t5x_style.train import checkpoint, run_folder, state
from t5x_style.train.fingerprint import digest

EVALUATION_NAME = "evaluation.json"


def evaluate(
    checkpoints: Mapping[str, str | tuple[str, int]],
    store: str,
    output_dir: str,
    length: int | Sequence[int],
    batch_size: int,
    *,
    position_edges: Sequence[int] | None = None,
    long_tokens: int | None = None,
    max_batches: int | None = None,
    loss_chunk_tokens: int = 512,
    mesh: MeshConfig = MeshConfig(),  # noqa: B008 (frozen)
) -> None:
    """Writes evaluation.json: one row for each checkpoint and context length.

    Args:
      checkpoints: name to run folder (its newest step), or to (run folder, step); the others are
        compared with the first.
      store: token store of held-out documents.
      output_dir: folder to write.
      length: context length or lengths in tokens, beyond the trained length too.
      batch_size: rows of a batch at the longest context; shorter ones get as many tokens.
      position_edges: edges of the position buckets in tokens, rising from 0 to the longest
        context; by default 0, 16 and its doublings.
      long_tokens: documents, or pieces of them, of at least this many tokens are also counted
        apart, as the set whose positions compare; by default the context length.
      max_batches: stop after this many batches of each length, which are then not of the same
        text; None reads the whole store.
      loss_chunk_tokens: tokens whose logits exist at once.
      mesh: devices to use; parameters and rows are cut as in training.

    Raises:
      ValueError: there is no such checkpoint or store, or the two are of other vocabularies.
    """
    lengths = sorted({length} if isinstance(length, int) else set(length))
    if not checkpoints or not lengths:
        raise ValueError(
            f"evaluate.checkpoints = {checkpoints} and evaluate.length = {length} must each name "
            "at least one"
        )
    devices = mesh.build()
    sources = {name: _Source(name, value, devices) for name, value in checkpoints.items()}
    vocab_size = TokenStore.open(store).vocab_size
    for source in sources.values():
        source.check_vocabulary(vocab_size, store)
    settings = {
        "checkpoints": {name: source.identity() for name, source in sources.items()},
        "length": lengths,
        "batch_size": batch_size,
        "position_edges": position_edges,
        "long_tokens": long_tokens,
        "max_batches": max_batches,
        "loss_chunk_tokens": loss_chunk_tokens,
        "mesh": mesh,
    }
    inputs = {"store": f"{store}/store.json"}
    artifact = Artifact(output_dir, stage="evaluate", settings=settings, inputs=inputs)
    if artifact.is_current():
        print(f"evaluate: {output_dir} is there already")
        return
    with artifact.write() as writer:
        rows = []
        baselines: dict[int, perplexity.LengthTotals] = {}  # of the first checkpoint
        for source in sources.values():
            config, params = source.load()
            nll = jax.jit(
                perplexity.token_nll(config, loss_chunk_tokens),
                out_shardings=NamedSharding(devices, PartitionSpec()),
            )
            for tokens in lengths:
                totals = perplexity.LengthTotals(tokens, position_edges, long_tokens)
                num_rows = max(1, batch_size * lengths[-1] // tokens)
                batches = progress(
                    itertools.islice(validation_batches(store, tokens, num_rows), max_batches),
                    description=f"evaluate {source.name} at {tokens:,} tokens",
                    unit="batches",
                )
                with jax.set_mesh(devices):
                    totals.measure(nll, params, batches)
                baseline = baselines.get(tokens)
                named = {"baseline": next(iter(sources)) if baseline else None}
                rows.append(source.about(config) | named | totals.to_dict(baseline))
                baselines.setdefault(tokens, totals)
                print(_line(rows[-1]), flush=True)
            del params
        text = json.dumps({"checkpoints": rows}, indent=1, allow_nan=False) + "\n"
        (writer.folder / EVALUATION_NAME).write_text(text)
        writer.counts.update(
            checkpoints=len(sources), tokens=sum(row["num_tokens"] for row in rows)
        )


def _line(row: dict[str, Any]) -> str:
    bits = row["bits_per_byte"]
    shown = "no text" if bits is None else f"{bits:.4f} bits per byte"
    return (
        f"evaluate: {row['name']} at {row['length']:,} tokens: {shown} on "
        f"{row['num_bytes']:,} bytes"
    )


class _Source:
    """One checkpoint: where it lies, and what it is."""

    def __init__(self, name: str, value: str | tuple[str, int], devices: jax.sharding.Mesh):
        self.name = name
        self._devices = devices
        self._run_dir, step = (value, None) if isinstance(value, str) else value
        try:
            self._step = checkpoint.chosen_step(f"{self._run_dir}/{run_folder.CHECKPOINTS}", step)
            self._config = run_folder.read_model(self._run_dir)
        except ValueError as error:
            raise ValueError(f"evaluate.checkpoints[{name!r}]: {error}") from error
        self._fingerprint, self._num_parameters = "", 0

    def check_vocabulary(self, vocab_size: int, store: str) -> None:
        if self._config.vocab_size != vocab_size:
            raise ValueError(
                f"checkpoint {self.name} ({self._run_dir}) has a vocabulary of "
                f"{self._config.vocab_size}, the token store {store} one of {vocab_size}: set "
                "evaluate.store to a store made with the run's vocabulary"
            )

    def load(self) -> tuple[TransformerConfig, Any]:
        """Returns the config and the params, laid over the mesh."""
        whole = NamedSharding(self._devices, PartitionSpec())
        config, params = checkpoint.load_model(self._run_dir, self._step, sharding=whole)
        boxed = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
        shardings = rules.param_shardings(boxed, self._devices)
        return config, jax.device_put(nn.unbox(params), shardings)

    def identity(self) -> dict[str, Any]:
        """Returns what decides the results: the model, the step, and a digest of the weights."""
        config, params = self.load()
        self._num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        self._fingerprint = digest(state.named_leaves({"params": params}))
        return {"step": self._step, "model": config, "fingerprint": self._fingerprint}

    def _trained_length(self, config: TransformerConfig) -> int:
        """Returns the context that the run trained with; for imported weights, the model's own."""
        run = run_folder.read_json(f"{self._run_dir}/{run_folder.RUN}")
        return run["identity"]["data"]["length"] if run else config.trained_length

    def about(self, config: TransformerConfig) -> dict[str, Any]:
        """Returns what evaluation.json says of the checkpoint itself."""
        return {
            "name": self.name,
            "run_dir": self._run_dir,
            "step": self._step,
            "fingerprint": self._fingerprint,
            "num_parameters": self._num_parameters,
            "trained_length": self._trained_length(config),
            "rope_base": config.rope_base,
        }


if __name__ == "__main__":
    cli.main("t5x_style.run.evaluate.evaluate")
