"""Checkpoints: saved in the background, verified when restored; the only place that knows orbax.

A step's folder appears whole, by a rename. It holds the state's leaves by name in two parts
(`params`, and `rest` for what only training needs), the fingerprint that the devices computed
before the save, and a record: names, shapes and dtypes of the leaves and the caller's own JSON (the
data iterator's state), under a digest. A step that does not read back as it was saved is renamed
out of the way, and the next older one is used. A checkpoint of another model is a user's error and
is left alone.
"""

import dataclasses
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from t5x_style.models import lora
from t5x_style.models.config import TransformerConfig
from t5x_style.train import run_folder
from t5x_style.train import state as states
from t5x_style.train.fingerprint import compile_fingerprint, differing_leaves, fingerprint

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

_FORMAT = 1
_ITEMS = ("params", "rest")
_UNFINISHED_MARK = ".orbax-checkpoint-tmp"
_DAMAGED_MARK = ".damaged"
_SAVE_TIMEOUT_SECS = 3600


class DamagedCheckpointError(Exception):
    """A checkpoint that does not read back as it was saved."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """A verified checkpoint.

    Attributes:
      step: the step it was saved at.
      tree: the leaves, in the structure and on the devices of the abstract tree asked for.
      extra: the JSON that was saved with it.
    """

    step: int
    tree: Any
    extra: dict[str, Any]


def committed_steps(folder: str | Path) -> list[int]:
    """Returns the steps whose saves into a folder came to their end, in ascending order."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


class Checkpointer:
    """Saves to and restores from one folder, which it must be the only one to write.

    Args:
      folder: where the step folders lie; made on the first save.
      keep: how many of the newest steps are kept.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3):
        if keep < 1:
            raise ValueError(f"job.LoopSettings.keep_checkpoints = {keep}: must be at least 1")
        self.folder = Path(folder).absolute()
        self._keep = keep
        self._orbax: Any = None
        self._saving_step: int | None = None
        self._fingerprint: Callable[[Any], jax.Array] = fingerprint
        self._copies: Callable[[Any], dict[str, jax.Array]] = _copies

    def prepare(self, abstract: Any) -> None:
        """Imports and compiles what the first save of a tree like `abstract` would wait for."""
        leaves = states.named_leaves(abstract)
        self._fingerprint = compile_fingerprint(leaves)
        if jax.default_backend() == "cpu":
            self._copies = _copies.lower(leaves).compile()
        self._checkpointer()

    def save(self, step: int, tree: Any, extra: Mapping[str, Any]) -> None:
        """Starts saving a tree of arrays, which may be donated as soon as this returns.

        Waits for an earlier save that is still under way, and raises what went wrong with it.

        Args:
          step: names the checkpoint; a step that is there already is not saved again.
          tree: arrays on devices; its leaves' names say to which part they belong.
          extra: JSON-able values kept in the same checkpoint.

        Raises:
          OSError: an earlier save failed, for want of space, say.
        """
        import orbax.checkpoint as ocp

        self.wait()
        if step in committed_steps(self.folder):
            return
        leaves = states.named_leaves(tree)
        sums = self._fingerprint(leaves)
        if jax.default_backend() == "cpu":
            # Orbax would write from the very buffers, and a step that is given them by donation
            # would wait for the whole save.
            leaves = self._copies(leaves)
        record = {"format": _FORMAT, "leaves": _description(leaves), "extra": dict(extra)}
        parts = {
            name: ocp.args.PyTreeSave(part)  # type: ignore[reportCallIssue]
            for name, part in _split(leaves).items()
            if part
        }
        self._saving_step = step
        self.folder.mkdir(parents=True, exist_ok=True)
        self._checkpointer().save(
            self.folder / str(step),
            args=ocp.args.Composite(
                **parts,
                fingerprint=ocp.args.PyTreeSave({"sums": sums}),  # type: ignore[reportCallIssue]
                record=ocp.args.JsonSave(_sealed(record)),  # type: ignore[reportCallIssue]
            ),
        )

    def wait(self) -> None:
        """Waits for a save under way, and removes steps beyond those to keep once it is there.

        Raises:
          OSError: it failed; the older checkpoints are as they were.
        """
        if self._saving_step is None:
            return
        step, self._saving_step = self._saving_step, None
        try:
            self._checkpointer().wait_until_finished()
        except Exception as error:
            self._orbax = None
            self.remove_unfinished()
            free_bytes = shutil.disk_usage(self.folder).free
            raise OSError(
                f"the checkpoint of step {step} could not be written to {self.folder}, where "
                f"{free_bytes:,} bytes are free; make room, or set train.train.run_dir to another "
                f"disk, and run the same command again ({error})"
            ) from error
        self._prune()

    def close(self) -> None:
        """Waits for a save under way and ends the threads that write."""
        self.wait()
        if self._orbax is not None:
            self._orbax.close()
            self._orbax = None

    def remove_unfinished(self) -> None:
        """Removes what saves that were killed left behind."""
        if jax.process_index() == 0 and self.folder.is_dir():
            for path in self.folder.iterdir():
                if _UNFINISHED_MARK in path.name:
                    shutil.rmtree(path, ignore_errors=True)

    def restore_newest(self, abstract: Any) -> Restored | None:
        """Returns the newest good checkpoint, or None where there is none at all.

        Damaged steps newer than it are renamed, with a warning for each.

        Args:
          abstract: tree of `jax.ShapeDtypeStruct` with shardings.

        Raises:
          ValueError: a checkpoint is of other shapes, dtypes or names; or none is good.
        """
        damaged: dict[int, DamagedCheckpointError] = {}
        for step in reversed(committed_steps(self.folder)):
            try:
                restored = restore(self.folder / str(step), abstract)
            except DamagedCheckpointError as error:
                damaged[step] = error
                continue
            for damaged_step, error in damaged.items():
                self._quarantine(damaged_step, error)
            return restored
        if damaged:
            # Rather than all files, what reads them may be at fault: nothing is touched.
            raise ValueError(
                f"every checkpoint of {self.folder} is damaged: "
                f"{'; '.join(map(str, damaged.values()))}. Put one back from a copy, or delete the "
                "folder to train from the start"
            )
        return None

    def _quarantine(self, step: int, error: Exception) -> None:
        name = f"{step}{_DAMAGED_MARK}"
        number = 1
        while (self.folder / name).exists():
            number += 1
            name = f"{step}{_DAMAGED_MARK}-{number}"
        if jax.process_index() == 0:
            (self.folder / str(step)).rename(self.folder / name)
        _barrier("quarantine")
        warnings.warn(
            f"{error}; renamed it to {name} and went on to the next older checkpoint", stacklevel=3
        )

    def _prune(self) -> None:
        if jax.process_index() == 0:
            for step in committed_steps(self.folder)[: -self._keep]:
                shutil.rmtree(self.folder / str(step), ignore_errors=True)

    def _checkpointer(self) -> "ocp.AsyncCheckpointer":
        if self._orbax is None:
            import orbax.checkpoint as ocp

            self._orbax = ocp.AsyncCheckpointer(_handler(), timeout_secs=_SAVE_TIMEOUT_SECS)
        return self._orbax


def restore(path: str | Path, abstract: Any) -> Restored:
    """Returns the checkpoint at `path` after comparing its fingerprint.

    Args:
      path: folder of one step.
      abstract: tree of `jax.ShapeDtypeStruct` with shardings; all of the saved leaves, or all of
        `params/` or of the rest.

    Raises:
      ValueError: the checkpoint's leaves have other names, shapes or dtypes.
      DamagedCheckpointError: it does not read back as it was saved.
    """
    path = Path(path).absolute()
    record = _intact(path, "its record is damaged", read_record, path)
    if record["format"] != _FORMAT:
        raise ValueError(
            f"checkpoint {path} has format {record['format']}, and this version reads {_FORMAT}"
        )
    leaves = states.named_leaves(abstract)
    saved = record["leaves"]
    parts = {name: part for name, part in _split(leaves).items() if part}
    wanted = {name: leaf for name, leaf in saved.items() if _part_of(name) in parts}
    _check_same_leaves(path, _description(leaves), wanted)
    found, sums = _intact(path, "its files are damaged", _read_arrays, path, parts)
    expected = np.asarray(sums)[[name in leaves for name in sorted(saved)]]
    if names := differing_leaves(list(leaves), expected, np.asarray(fingerprint(found))):
        raise DamagedCheckpointError(
            f"checkpoint {path} is damaged: the values of {_listed(names)} are not those saved"
        )
    return Restored(int(path.name), states.replace_leaves(abstract, found), record["extra"])


def load_model(
    run_dir: str | Path, step: int | None = None, *, sharding: Any = None
) -> tuple[TransformerConfig, Any]:
    """Returns the config and the verified params of a run, without its optimiser state.

    The params of a run with low-rank adapters come merged.

    Args:
      run_dir: a run folder.
      step: which checkpoint; None for the newest.
      sharding: one sharding for all leaves; None for the first local device.

    Raises:
      ValueError: there is no such checkpoint, or it is damaged.
    """
    config = run_folder.read_model(run_dir)
    folder = Path(run_dir) / run_folder.CHECKPOINTS
    step = chosen_step(folder, step)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    path = folder / str(step)
    try:
        record = _intact(path, "its record is damaged", read_record, path)
        params = restore(path, _abstract_params(record, sharding)).tree["params"]
        return config, lora.merged(params) if lora.is_adapted(params) else params
    except DamagedCheckpointError as error:
        raise ValueError(f"{error}; name another step, of {committed_steps(folder)}") from error


def restore_params(path: str | Path, abstract: Any) -> Any:
    """Returns the verified params of a checkpoint, without its optimiser state.

    Those of a model with low-rank adapters are merged where params without any are wanted.

    Args:
      path: folder of one step.
      abstract: params as `jax.ShapeDtypeStruct`s with shardings.

    Raises:
      ValueError: the checkpoint's params have other names, shapes or dtypes.
      DamagedCheckpointError: it does not read back as it was saved.
    """
    path = Path(path).absolute()
    record = _intact(path, "its record is damaged", read_record, path)
    mesh = jax.tree.leaves(abstract)[0].sharding.mesh
    saved = _abstract_params(record, NamedSharding(mesh, PartitionSpec()))["params"]
    if lora.is_adapted(abstract) or not lora.is_adapted(saved):
        return restore(path, {"params": abstract}).tree["params"]
    adapted = restore(path, {"params": {**saved, lora.BASE: abstract}}).tree["params"]
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    return jax.jit(lora.merged, out_shardings=shardings)(adapted)


def save_model(run_dir: str | Path, config: TransformerConfig, params: Any) -> None:
    """Makes a run folder of params that came from elsewhere, at step 0, for `load_model`."""
    run_folder.write_model(run_dir, config)
    checkpointer = Checkpointer(Path(run_dir) / run_folder.CHECKPOINTS)
    checkpointer.save(0, {"params": params}, {})
    checkpointer.close()


def chosen_step(folder: str | Path, step: int | None) -> int:
    """Returns `step`, or the newest of a checkpoint folder if it is None.

    Raises:
      ValueError: the folder has no checkpoint of that step, or none at all.
    """
    steps = committed_steps(folder)
    if not steps or (step is not None and step not in steps):
        wanted = "any step" if step is None else f"step {step}"
        raise ValueError(f"{folder} holds no checkpoint of {wanted}; it has: {steps}")
    return steps[-1] if step is None else step


def _abstract_params(record: Mapping[str, Any], sharding: Any) -> dict[str, Any]:
    """Returns {"params": ...} of a record as shapes, all leaves with one sharding."""
    abstract: dict[str, Any] = {}
    for name, (shape, dtype) in record["leaves"].items():
        if _part_of(name) == "params":
            *parents, last = name.split("/")
            node = abstract
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=sharding)
    return abstract


def _part_of(name: str) -> str:
    return "params" if name.startswith("params/") else "rest"


def _split(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {item: {} for item in _ITEMS}
    for name, leaf in leaves.items():
        parts[_part_of(name)][name] = leaf
    return parts


@jax.jit
def _copies(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(jnp.copy, leaves)


def _handler() -> Any:
    import orbax.checkpoint as ocp

    def arrays() -> Any:
        # Trained fp32 weights do not compress, and compression takes the cores that train.
        return ocp.PyTreeCheckpointHandler(use_compression=False)

    return ocp.CompositeCheckpointHandler(
        params=arrays(),
        rest=arrays(),
        fingerprint=arrays(),
        record=ocp.JsonCheckpointHandler(),
    )


def _description(leaves: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [list(leaf.shape), jnp.dtype(leaf.dtype).name] for name, leaf in leaves.items()}


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _sealed(content: Any) -> dict[str, Any]:
    return {"content": content, "digest": _digest(content)}


def read_record(path: Path) -> dict[str, Any]:
    """Returns what was recorded of a step: format, leaves (name to shape and dtype) and extra.

    Raises:
      ValueError: the record is not as it was written; other errors where it cannot be read.
    """
    import orbax.checkpoint as ocp

    args = ocp.args.Composite(record=ocp.args.JsonRestore())  # type: ignore[reportCallIssue]
    with ocp.Checkpointer(_handler()) as reader:
        sealed = reader.restore(path, args=args)["record"]
    if _digest(sealed["content"]) != sealed["digest"]:
        raise ValueError("digest mismatch")
    return sealed["content"]


def _read_arrays(path: Path, parts: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    import orbax.checkpoint as ocp

    args: dict[str, Any] = {
        name: ocp.args.PyTreeRestore(  # type: ignore[reportCallIssue]
            item=part,
            restore_args=ocp.checkpoint_utils.construct_restore_args(part),
        )
        for name, part in parts.items()
    }
    args["fingerprint"] = ocp.args.PyTreeRestore(  # type: ignore[reportCallIssue]
        restore_args={"sums": ocp.RestoreArgs(restore_type=np.ndarray)}
    )
    with ocp.Checkpointer(_handler()) as reader:
        items = reader.restore(path, args=ocp.args.Composite(**args))
    leaves = {name: leaf for part in parts for name, leaf in items[part].items()}
    return jax.block_until_ready(leaves), items["fingerprint"]["sums"]


def _intact(path: Path, complaint: str, read: Any, *args: Any) -> Any:
    """Calls `read`; what it raises means damage, unless the machine is to blame for it."""
    error: Exception | None = None
    result = None
    try:
        result = read(*args)
    except (MemoryError, PermissionError):
        raise
    except Exception as caught:
        if "RESOURCE_EXHAUSTED" in str(caught):
            raise
        error = caught
    if not _everywhere(error is None):
        reason = "another process could not read it" if error is None else str(error)
        raise DamagedCheckpointError(f"checkpoint {path}: {complaint} ({reason})") from error
    return result


def _everywhere(good: bool) -> bool:
    if jax.process_count() == 1:
        return good
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array([good]))))


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _check_same_leaves(path: Path, wanted: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    problems = []
    for name in sorted(set(wanted) | set(saved)):
        if name not in saved:
            problems.append(f"{name} is not in the checkpoint")
        elif name not in wanted:
            problems.append(f"{name} is in the checkpoint and not in this run")
        elif list(wanted[name][0]) != list(saved[name][0]):
            problems.append(f"{name} has shape {saved[name][0]} there and {wanted[name][0]} here")
        elif wanted[name][1] != saved[name][1]:
            problems.append(f"{name} is {saved[name][1]} there and {wanted[name][1]} here")
    if problems:
        raise ValueError(
            f"checkpoint {path} is of another model or optimiser: {_listed(problems)}. Make "
            "config.TransformerConfig (shapes; param_dtype) and optimizers.AdamW (mu_dtype) what "
            f"they were when it was saved, see {path.parents[1] / run_folder.MODEL}; or set "
            "train.train.run_dir to a new folder; or, to start from an earlier run's params alone, "
            'job.InitialRun.mode = "params"'
        )


def _listed(items: list[str], most: int = 5) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
