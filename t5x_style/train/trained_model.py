"""A trained model as a setting names it: its newest checkpoint, or the one of a step."""

from typing import Any

from t5x_style.models.config import TransformerConfig
from t5x_style.train import checkpoint, state
from t5x_style.train.fingerprint import digest

# A run folder, or a run folder and a step.
Named = str | tuple[str, int]


def load(value: Named, setting: str) -> tuple[TransformerConfig, Any]:
    """Returns a model's config and params.

    Args:
      value: where it is.
      setting: the setting that says so, for the error.

    Raises:
      ValueError: there is no such checkpoint, or it is damaged.
    """
    run_dir, step = (value, None) if isinstance(value, str) else value
    try:
        return checkpoint.load_model(run_dir, step)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from error


def identity(value: Named, setting: str) -> dict[str, Any]:
    """Returns what decides all that a model says: its config and a digest of its weights."""
    config, params = load(value, setting)
    return {"model": config, "fingerprint": digest(state.named_leaves({"params": params}))}
