"""A trained model as a setting names it: a run's newest checkpoint, or the one of a step."""

from collections.abc import Mapping
from typing import Any

import jax

from t5x_style.models.config import TransformerConfig
from t5x_style.train import checkpoint, run_folder, state
from t5x_style.train.fingerprint import digest

# A run folder, or a run folder and a step.
Named = str | tuple[str, int]


class TrainedModel:
    """One checkpoint: where it lies, and what it is.

    Attributes:
      name: what the setting calls it.
      step: of the checkpoint.
      config: of the model.
    """

    def __init__(self, name: str, value: Named, setting: str):
        """Finds the checkpoint.

        Args:
          name: see above.
          value: where it is.
          setting: the gin name of the setting that names it, for errors.

        Raises:
          ValueError: there is no such checkpoint.
        """
        self.name = name
        self._setting = setting
        self._run_dir, step = (value, None) if isinstance(value, str) else value
        try:
            self.step = checkpoint.chosen_step(f"{self._run_dir}/{run_folder.CHECKPOINTS}", step)
            self.config: TransformerConfig = run_folder.read_model(self._run_dir)
        except ValueError as error:
            raise ValueError(f"{self._setting}: {error}") from error
        self._fingerprint, self._num_parameters = "", 0

    def check_vocabulary(self, vocab_size: int, source: str, setting: str) -> None:
        """Compares the model's vocabulary with another's size.

        Args:
          vocab_size: of the other.
          source: where the other is.
          setting: the gin name of the setting that says so.

        Raises:
          ValueError: the sizes differ.
        """
        if self.config.vocab_size != vocab_size:
            raise ValueError(
                f"checkpoint {self.name} ({self._run_dir}) has a vocabulary of "
                f"{self.config.vocab_size}, {source} one of {vocab_size}: set {setting} to what "
                "belongs to the run"
            )

    def load(self, sharding: Any = None) -> Any:
        """Returns the params.

        Args:
          sharding: one sharding for all leaves; None for the first local device.

        Raises:
          ValueError: the checkpoint is damaged, or is of no language model.
        """
        try:
            _, params = checkpoint.load_model(self._run_dir, self.step, sharding=sharding)
        except ValueError as error:
            raise ValueError(f"{self._setting}: {error}") from error
        if "head" in params:
            raise ValueError(
                f"{self._setting}: the run {self._run_dir} is of a model with a head that scores "
                "(a reward model, a critic or a classifier) and predicts no tokens: name the run "
                "of a language model"
            )
        return params

    def identity(self, sharding: Any = None) -> dict[str, Any]:
        """Returns what decides all that it says: its config and a digest of its weights."""
        params = self.load(sharding)
        self._num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        self._fingerprint = digest(state.named_leaves({"params": params}))
        return {"step": self.step, "model": self.config, "fingerprint": self._fingerprint}

    @property
    def trained_length(self) -> int:
        """The context that the run trained with; for imported weights, the model's own."""
        run = run_folder.read_json(f"{self._run_dir}/{run_folder.RUN}")
        return run["identity"]["data"]["length"] if run else self.config.trained_length

    def about(self) -> dict[str, Any]:
        """Returns, as JSON values, what a result says of it; `identity` has been asked before."""
        return {
            "name": self.name,
            "run_dir": self._run_dir,
            "step": self.step,
            "fingerprint": self._fingerprint,
            "num_parameters": self._num_parameters,
            "trained_length": self.trained_length,
            "rope_base": self.config.rope_base,
        }


def trained_models(checkpoints: Mapping[str, Named], setting: str) -> list[TrainedModel]:
    """Returns the models that a setting names.

    Raises:
      ValueError: there are none, or one is not there.
    """
    if not checkpoints:
        raise ValueError(f"{setting} = {checkpoints} must name at least one checkpoint")
    return [
        TrainedModel(name, value, f"{setting}[{name!r}]") for name, value in checkpoints.items()
    ]
