"""The evaluate verb: bits per byte of checkpoints on held-out text, whole and by position.

Every checkpoint reads the same documents at the same context lengths, also lengths it was not
trained for, so that phases of training can be compared at each position.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from t5x_style.artifacts import Artifact
from t5x_style.config import cli
from t5x_style.data.batches import validation_batches
from t5x_style.data.token_store import TokenStore
from t5x_style.evals import perplexity
from t5x_style.models.transformer import init_params
from t5x_style.parallel import rules
from t5x_style.parallel.mesh import MeshConfig
from t5x_style.progress import progress
from t5x_style.train.trained_model import Named, trained_models

EVALUATION_NAME = "evaluation.json"


def evaluate(
    checkpoints: Mapping[str, Named],
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
    if not lengths:
        raise ValueError(f"evaluate.evaluate.length = {length} must name at least one")
    models = trained_models(checkpoints, "evaluate.evaluate.checkpoints")
    devices = mesh.build()
    whole = NamedSharding(devices, PartitionSpec())
    vocab_size = TokenStore.open(store).vocab_size
    for model in models:
        model.check_vocabulary(vocab_size, f"the token store {store}", "evaluate.evaluate.store")
    settings = {
        "checkpoints": {model.name: model.identity(whole) for model in models},
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
        for model in models:
            config = model.config
            boxed = jax.eval_shape(lambda config=config: init_params(config, jax.random.key(0)))
            params = jax.device_put(model.load(whole), rules.param_shardings(boxed, devices))
            nll = jax.jit(
                perplexity.token_nll(config, loss_chunk_tokens),
                out_shardings=whole,
            )
            for tokens in lengths:
                totals = perplexity.LengthTotals(tokens, position_edges, long_tokens)
                num_rows = max(1, batch_size * lengths[-1] // tokens)
                batches = progress(
                    itertools.islice(validation_batches(store, tokens, num_rows), max_batches),
                    description=f"evaluate {model.name} at {tokens:,} tokens",
                    unit="batches",
                )
                with jax.set_mesh(devices):
                    totals.measure(nll, params, batches)
                baseline = baselines.get(tokens)
                named = {"baseline": models[0].name if baseline else None}
                rows.append(model.about() | named | totals.to_dict(baseline))
                baselines.setdefault(tokens, totals)
                print(_line(rows[-1]), flush=True)
            del params
        text = json.dumps({"checkpoints": rows}, indent=1, allow_nan=False) + "\n"
        (writer.folder / EVALUATION_NAME).write_text(text)
        writer.counts.update(checkpoints=len(models), tokens=sum(row["num_tokens"] for row in rows))


def _line(row: dict[str, Any]) -> str:
    bits = row["bits_per_byte"]
    shown = "no text" if bits is None else f"{bits:.4f} bits per byte"
    return (
        f"evaluate: {row['name']} at {row['length']:,} tokens: {shown} on "
        f"{row['num_bytes']:,} bytes"
    )


if __name__ == "__main__":
    cli.main("t5x_style.run.evaluate.evaluate")
