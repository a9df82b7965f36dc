"""Export of params to a published folder, and import of a published folder to params.

Both stream. Export takes one layer's leaf at a time and writes it before the next; import reads one
published tensor at a time into its place. Beside the params, memory holds one tensor on the way
out, and one leaf and one file on the way in. Where params come from and go to is the business of
`run/hf_export.py` and `run/hf_import.py`.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from t5x_style.models.config import TransformerConfig
from t5x_style.models.hf import config_json
from t5x_style.models.hf.layouts import LeafPath, Rule, rules
from t5x_style.models.hf.shards import ShardReader, ShardWriter, numpy_dtype

_DEFAULT_SHARD_BYTES = 5 * 10**9
_READABLE_CODES = ("F64", "F32", "F16", "BF16")
# Buffers that older writers saved beside the weights; the model computes them itself.
_IGNORED = re.compile(r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$")


def export_params(
    config: TransformerConfig,
    params: Mapping[str, Any],
    folder: str | Path,
    *,
    layout: str = "internlm2",
    dtype: str = "float32",
    max_shard_bytes: int = _DEFAULT_SHARD_BYTES,
    adjacent_rope: bool = False,
    reward_id: int | None = None,
) -> None:
    """Writes config.json and the weights of a model; the tokenizer is `tokenizer_files`' part.

    A normalised head is written normalised, so readers need know nothing of it. Padding rows of
    the vocabulary are left out.

    Args:
      config: the model.
      params: its params, unboxed, scanned or unrolled; arrays of NumPy or JAX.
      folder: where to write; made if it is not there.
      layout: one of `layouts.LAYOUTS`.
      dtype: dtype of the written tensors.
      max_shard_bytes: size at which a file ends and the next begins.
      adjacent_rope: see `layouts.rules`.
      reward_id: see `config_json.config_dict`; the params are then those of a reward model.

    Raises:
      ValueError: the layout or dtype is unknown, or a leaf is missing or of another shape.
    """
    folder = Path(folder)
    is_reward = reward_id is not None
    plan = rules(config, layout, adjacent_rope=adjacent_rope, is_reward=is_reward)
    content = config_json.config_dict(config, layout, dtype=dtype, reward_id=reward_id)
    _check_leaves(config, params, plan)
    folder.mkdir(parents=True, exist_ok=True)
    announced = [tensor for rule in plan for tensor in rule.tensors]
    with ShardWriter(folder, announced, dtype=dtype, max_shard_bytes=max_shard_bytes) as writer:
        for rule in plan:
            tensors = rule.to_tensors(_leaf(config, params, rule))
            for (name, _), tensor in zip(rule.tensors, tensors, strict=True):
                writer.write(name, tensor)
    config_json.write_config(folder, content)


class PublishedCheckpoint:
    """A folder with config.json and safetensors, checked as a whole before any weight is read.

    Args:
      folder: a Hugging Face repository on disk, in the InternLM2 or Llama layout.
      adjacent_rope: see `layouts.rules`.
      **choices: fields of TransformerConfig that config.json does not say, such as scan_layers,
        param_dtype, and normalized_head (published heads are normalised already; continued
        training of a model that had it must go on normalising).

    Attributes:
      config: the model.
      layout: the layout of the folder.
      is_reward: whether it is a reward model; its params are then those of `models.reward`.

    Raises:
      ValueError: the folder cannot be read; missing, superfluous and misshapen tensors are all
        listed.
    """

    def __init__(self, folder: str | Path, *, adjacent_rope: bool = False, **choices: Any):
        self.folder = Path(folder)
        self.config, self.layout, tied, self.is_reward = config_json.read_config(
            self.folder, **choices
        )
        self._reader = ShardReader(self.folder)
        if self.config.num_layers > len(self._reader.shapes):
            raise ValueError(
                f"{self.folder} has {len(self._reader.shapes)} tensors, fewer than the "
                f"{self.config.num_layers} layers of its config.json"
            )
        plan = rules(
            self.config, self.layout, adjacent_rope=adjacent_rope, is_reward=self.is_reward
        )
        if tied:
            plan = _with_tied_head(plan, self._reader)
        _check_tensors(self.folder, plan, self._reader)
        self._rules: dict[LeafPath, list[Rule]] = {}
        for rule in plan:
            self._rules.setdefault(_params_path(self.config, rule), []).append(rule)
        self._dtype = numpy_dtype(self.config.param_dtype)

    def files(self) -> list[Path]:
        """Returns the files that the model is read from."""
        return [self.folder / config_json.CONFIG_NAME, *self._reader.files()]

    def leaves(self) -> Iterator[tuple[LeafPath, np.ndarray]]:
        """Yields the path and value of each leaf of the params, one at a time."""
        for path in self._rules:
            yield path, self._read(path)

    def params(
        self,
        sharding_of: Callable[[LeafPath, tuple[int, ...]], jax.sharding.Sharding] | None = None,
    ) -> dict[str, Any]:
        """Returns the params as JAX arrays.

        Args:
          sharding_of: sharding of a leaf by its path and shape; each process then reads what its
            own devices hold. None puts every leaf whole on the first local device.

        Returns:
          Nested dicts, unboxed, in param_dtype; rows of the padded vocabulary are zero.
        """
        local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        tree: dict[str, Any] = {}
        for path in self._rules:
            shape = self._shape(path)
            sharding = sharding_of(path, shape) if sharding_of else local
            node = tree
            for name in path[:-1]:
                node = node.setdefault(name, {})
            node[path[-1]] = jax.make_array_from_callback(
                shape,
                sharding,
                lambda index, path=path: self._read(path, index),  # type: ignore[reportArgumentType]
            )
        return tree

    def _is_stacked(self, path: LeafPath) -> bool:
        return "layers" in path

    def _shape(self, path: LeafPath) -> tuple[int, ...]:
        shape = self._rules[path][0].shape
        return (len(self._rules[path]), *shape) if self._is_stacked(path) else shape

    def _read(self, path: LeafPath, index: tuple[slice, ...] | None = None) -> np.ndarray:
        found = self._rules[path]
        shape = self._shape(path)
        index = index or tuple(slice(None) for _ in shape)
        lengths = [len(range(*part.indices(dim))) for part, dim in zip(index, shape, strict=True)]
        out = np.empty(lengths, self._dtype)
        if not self._is_stacked(path):
            out[...] = self._read_one(found[0])[index]
            return out
        for i, rule in enumerate(found[index[0]]):
            out[i] = self._read_one(rule)[index[1:]]
        return out

    def _read_one(self, rule: Rule) -> np.ndarray:
        return rule.to_leaf(*(self._reader.read(name) for name, _ in rule.tensors))


def _params_path(config: TransformerConfig, rule: Rule) -> LeafPath:
    if rule.layer is None:
        return (*rule.root, *rule.path)
    layer = "layers" if config.scan_layers else f"layers_{rule.layer}"
    return (*rule.root, layer, *rule.path)


def _leaf(config: TransformerConfig, params: Mapping[str, Any], rule: Rule) -> np.ndarray:
    """Returns a leaf, or its slice of one layer, without copying the other layers off a device."""
    leaf: Any = params
    for name in _params_path(config, rule):
        leaf = leaf[name]
    if rule.layer is None or not config.scan_layers:
        return np.asarray(leaf)
    if isinstance(leaf, jax.Array) and any(device.platform != "cpu" for device in leaf.devices()):
        return np.asarray(jax.lax.dynamic_index_in_dim(leaf, rule.layer, keepdims=False))
    return np.asarray(leaf)[rule.layer]


def _check_leaves(config: TransformerConfig, params: Mapping[str, Any], plan: list[Rule]) -> None:
    problems = []
    for rule in plan:
        stacked = rule.layer is not None and config.scan_layers
        if stacked and rule.layer:
            continue
        path = _params_path(config, rule)
        expected = (config.num_layers, *rule.shape) if stacked else rule.shape
        try:
            leaf: Any = params
            for name in path:
                leaf = leaf[name]
        except KeyError:
            problems.append(f"{'/'.join(path)} is missing")
            continue
        if tuple(leaf.shape) != expected:
            problems.append(f"{'/'.join(path)} is {tuple(leaf.shape)}, not {expected}")
    if problems:
        raise ValueError(f"params are not those of the model's config: {'; '.join(problems)}")


def _with_tied_head(plan: list[Rule], reader: ShardReader) -> list[Rule]:
    *others, head = plan
    if head.tensors[0][0] in reader.shapes:
        return plan
    (name, _), (_, shape) = others[0].tensors[0], head.tensors[0]
    return [*others, dataclasses.replace(head, tensors=((name, shape),))]


def _check_tensors(folder: Path, plan: list[Rule], reader: ShardReader) -> None:
    expected = {name: shape for rule in plan for name, shape in rule.tensors}
    found = {name: shape for name, shape in reader.shapes.items() if not _IGNORED.search(name)}
    problems = [f"missing: {name} {shape}" for name, shape in expected.items() if name not in found]
    problems += [
        f"not part of the model: {name} {shape}"
        for name, shape in found.items()
        if name not in expected
    ]
    for name in expected.keys() & found.keys():
        if found[name] != expected[name]:
            problems.append(f"{name} is {found[name]}, config.json says {expected[name]}")
        if reader.dtypes[name] not in _READABLE_CODES:
            problems.append(f"{name} has dtype {reader.dtypes[name]}, not one of {_READABLE_CODES}")
    if problems:
        raise ValueError(
            f"{folder} does not hold the weights of its config.json: " + "; ".join(sorted(problems))
        )
