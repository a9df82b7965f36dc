"""The folder of one training run: who writes it, what it was made from, whether it is finished.

run.lock          host and process of the writer, held as long as that lives
run.json          identity (what must not change) and settings of the run
config.gin        the resolved configuration
model.json        the model's config, for whoever loads its checkpoints
model-info.txt    path, shape, dtype, logical axes, mesh axes and count of each parameter
environment.json  versions, devices and host of the last start
metrics.jsonl     one line for each logged step
tensorboard/      the same for TensorBoard, and profiles
checkpoints/      one folder for each step, see `train.checkpoint`
done.json         written last: the step that was reached
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from t5x_style.models.config import TransformerConfig

CHECKPOINTS = "checkpoints"
CONFIG = "config.gin"
DONE = "done.json"
ENVIRONMENT = "environment.json"
LOCK = "run.lock"
METRICS = "metrics.jsonl"
MODEL = "model.json"
MODEL_INFO = "model-info.txt"
RUN = "run.json"
TENSORBOARD = "tensorboard"

_PACKAGES = ("t5x_style", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file that appears whole or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: str | Path, content: Any) -> None:
    """Writes a JSON file that appears whole or not at all."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: str | Path) -> Any:
    """Returns the content of a JSON file, or None where there is none.

    Raises:
      ValueError: the file is no JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to have it made anew") from error


def write_model(run_dir: str | Path, config: TransformerConfig) -> None:
    """Writes the model's config into a run folder, which is made if it is not there."""
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    write_json(Path(run_dir) / MODEL, config.to_dict())


def read_model(run_dir: str | Path) -> TransformerConfig:
    """Returns the config of the model that a run folder's checkpoints hold.

    Raises:
      ValueError: the folder has none, so it is no run folder.
    """
    values = read_json(Path(run_dir) / MODEL)
    if values is None:
        raise ValueError(
            f"{run_dir} is no run folder: it has no {MODEL}. Name a folder that train or "
            "hf_import wrote"
        )
    return TransformerConfig.from_dict(values)


# What changes the function that the same weights stand for.
_OF_FUNCTION = ("rope_base", "dynamic_ntk_factor", "norm_eps", "normalized_head", "causal", "moe")


def check_same_model(run_dir: str | Path, config: TransformerConfig) -> None:
    """Raises a ValueError where a model is to go on as what a run's was, and is another function.

    Args:
      run_dir: a run folder, whose weights the model is to begin with.
      config: the model's.
    """
    of_run = read_model(run_dir)
    for name in _OF_FUNCTION:
        there, here = getattr(of_run, name), getattr(config, name)
        if there != here:
            raise ValueError(
                f"config.TransformerConfig.{name} = {here}, and the run in {run_dir} was trained "
                f"with {there}: bind it alike"
            )


@contextlib.contextmanager
def locked(run_dir: str | Path) -> Iterator[None]:
    """Makes the folder and holds its lock; only the first process of a job takes it.

    The operating system gives the lock up with its process, however that ends, so a lock file left
    by a dead one is taken over.

    Raises:
      ValueError: another process holds it, or the folder cannot be written.
    """
    path = Path(run_dir) / LOCK
    if jax.process_index() != 0:
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+")  # noqa: SIM115
    except OSError as error:
        raise ValueError(
            f"run folder {run_dir} cannot be written ({error.strerror}): set train.train.run_dir "
            "to a folder that can"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(_refusal(path)) from error
        file.seek(0)
        if before := file.read().strip():
            warnings.warn(f"took over the lock {path} of a dead writer: {before}", stacklevel=3)
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _refusal(lock: Path) -> str:
    try:
        owner = json.loads(lock.read_text())
        who = f"process {owner['pid']} on host {owner['host']}"
    except (OSError, ValueError, KeyError):
        who = "another process"
    return (
        f"run folder {lock.parent} is being written by {who}: wait for it or end it, or set "
        "train.train.run_dir to another folder"
    )


def settings_key(identity: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Returns the hex digest that names a run by everything that decides its result."""
    text = json.dumps([identity, settings], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def differences(there: Any, here: Any, prefix: str = "") -> list[str]:
    """Returns a line "name: value there, value here" for each value in which two JSONs differ."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        names = sorted(set(there) | set(here))
        return [
            line
            for name in names
            for line in differences(there.get(name), here.get(name), f"{prefix}{name}.")
        ]
    if there == here:
        return []
    return [f"{prefix.rstrip('.')}: {there!r} there, {here!r} here"]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def is_done(run_dir: str | Path, identity: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a run of this identity and these settings has come to its end in the folder.

    Raises:
      ValueError: the folder holds a run of another identity, or a finished one of other settings
        that these would not take further.
    """
    before = read_json(Path(run_dir) / RUN)
    if before is None:
        return False
    if lines := differences(before["identity"], _plain(identity)):
        raise ValueError(
            f"run folder {run_dir} holds a run of another model or other data "
            f"({'; '.join(lines[:8])}): set train.train.run_dir to a new folder, or delete this "
            "one to train anew"
        )
    done = read_json(Path(run_dir) / DONE)
    if done is None:
        return False
    if done["key"] == settings_key(identity, settings):
        return True
    if settings["total_steps"] > done["step"]:
        return False
    lines = differences(before["settings"], _plain(settings))
    raise ValueError(
        f"run folder {run_dir} holds a run finished at step {done['step']} with other settings "
        f"({'; '.join(lines[:8])}): raise job.Job.total_steps to take it further, set "
        "train.train.run_dir to a new folder, or delete this one to train anew"
    )


def describe(
    run_dir: str | Path,
    *,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any],
    model: TransformerConfig,
    model_info: str,
    config_text: str,
) -> None:
    """Writes what the run is made from; a finished mark of an earlier, shorter run goes."""
    if jax.process_index() != 0:
        return
    folder = Path(run_dir)
    (folder / DONE).unlink(missing_ok=True)
    write_json(folder / RUN, {"identity": identity, "settings": settings})
    write_model(folder, model)
    write_text(folder / MODEL_INFO, model_info)
    write_text(folder / CONFIG, config_text)
    write_json(folder / ENVIRONMENT, environment())


def mark_done(
    run_dir: str | Path, identity: Mapping[str, Any], settings: Mapping[str, Any], step: int
) -> None:
    """Writes the mark of a finished run."""
    if jax.process_index() == 0:
        key = settings_key(identity, settings)
        write_json(Path(run_dir) / DONE, {"key": key, "step": step})


def environment() -> dict[str, Any]:
    """Returns versions, devices and host of this process as JSON values."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "packages": versions,
        "device_kind": devices[0].device_kind,
        "num_devices": len(devices),
        "num_processes": jax.process_count(),
        "command": sys.argv,
        "flags": {
            name: os.environ[name]
            for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
            if name in os.environ
        },
    }
