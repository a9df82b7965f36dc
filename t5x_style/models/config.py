"""The one description of a model: sizes, precision and the choices made at compile time.

Everything that makes two models different is a field here; `model.json` in a run folder is this
class written out. How the model is trained, on what and on which mesh is described elsewhere.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from t5x_style.ops.routers import Dropless, ExpertChoice, Rectify, TopK
from t5x_style.ops.routing import Router
from t5x_style.ops.sam_router import Sam
from t5x_style.parallel import remat as remat_policies

_ROUTERS = {router.__name__: router for router in (TopK, Rectify, Sam, Dropless, ExpertChoice)}
_DISPATCHES = ("shard_map", "ragged", "pjit")
_DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclasses.dataclass(frozen=True)
class MoEConfig:
    """Which layers are mixtures of experts, and how tokens come to them.

    Attributes:
      num_experts: experts E of a layer.
      router: which of them a token goes to, one of `ops.routers`.
      every: each so many-th layer is a mixture, the first of them layer `every - 1`.
      expert_dim: inner width of one expert; None for that of the dense layers.
      num_shared_experts: experts that every token goes through besides.
      dispatch: "shard_map", where devices of the mesh's `expert` axis send tokens themselves,
        "ragged", where they send filled places only (not on CPUs; for routers that drop nothing),
        or "pjit", where the compiler does.
      num_ranks: ranks that tokens and experts are shared out to: the devices of the mesh's `expert`
        axis, or all played by one. Capacities, and what Intra-GPU Rectification picks, are decided
        rank by rank, so this is kept with the model.
    """

    num_experts: int
    router: Router
    every: int = 2
    expert_dim: int | None = None
    num_shared_experts: int = 0
    dispatch: str = "shard_map"
    num_ranks: int = 1

    @property
    def num_logits(self) -> int:
        """Columns of the router's matrix."""
        return self.router.num_logits(self.num_experts, num_ranks=self.num_ranks)

    def __post_init__(self):
        for name in ("num_experts", "every", "num_ranks"):
            if getattr(self, name) < 1:
                raise _setting_error(name, getattr(self, name), "must be at least 1", "MoEConfig")
        if self.dispatch not in _DISPATCHES:
            raise _setting_error(
                "dispatch", self.dispatch, f"must be one of {_DISPATCHES}", "MoEConfig"
            )
        if self.num_experts % self.num_ranks:
            raise _setting_error(
                "num_ranks",
                self.num_ranks,
                f"must divide num_experts = {self.num_experts}",
                "MoEConfig",
            )


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and switches of an InternLM2 transformer (arXiv 2403.17297, section 2.2).

    Attributes:
      vocab_size: rows of the vocabulary in use; ids run from 0 to vocab_size - 1.
      num_layers: number of blocks.
      embed_dim: width D of the residual stream.
      num_query_heads: query heads N, a multiple of num_kv_heads.
      num_kv_heads: key and value heads K.
      head_dim: width H of one head, even.
      mlp_dim: inner width F of the SwiGLU feed-forward layer.
      rope_base: base of the rotary frequencies, `base ** (-2 i / head_dim)`.
      norm_eps: added to the mean square inside RMSNorm.
      normalized_head: whether the head's vectors are L2-normalised before the logits (1.8B).
      causal: whether a token sees only itself and what is before it; False makes an encoder.
      trained_length: context length in tokens that rope_base was trained for.
      dynamic_ntk_factor: scaling factor of the rotary base beyond trained_length; None for none.
      vocab_multiple: the tables are padded to a multiple of this many rows, for sharding.
      dtype: dtype of activations and of the weights as they are used.
      param_dtype: dtype in which the weights are kept.
      attention: implementation of `ops.attention.attend`; None chooses by platform.
      attention_block_tokens: block length of blockwise attention; None chooses by size.
      head_exchange: devices of the mesh's `seq` axis among which heads change places with
        positions; the rest of the axis is a ring, see `parallel.sequence`. 1 for a ring alone, None
        for as many as the axis and the heads allow.
      scan_layers: whether the layers are one scanned body over stacked weights (fast to compile)
        or unrolled bodies with weights of their own.
      remat: name of the rematerialisation policy, see `parallel.remat.POLICIES`.
      moe: which layers are mixtures of experts; None for none.
      init_std: standard deviation of the initial weights; the two matrices that write to the
        residual stream use `init_std / sqrt(2 (layer + 1))`.
    """

    vocab_size: int = 92544
    num_layers: int = 24
    embed_dim: int = 2048
    num_query_heads: int = 16
    num_kv_heads: int = 8
    head_dim: int = 128
    mlp_dim: int = 8192
    rope_base: float = 1_000_000.0
    norm_eps: float = 1e-5
    normalized_head: bool = False
    causal: bool = True
    trained_length: int = 32768
    dynamic_ntk_factor: float | None = None
    vocab_multiple: int = 128
    dtype: str = "float32"
    param_dtype: str = "float32"
    attention: str | None = None
    attention_block_tokens: int | None = None
    head_exchange: int | None = None
    scan_layers: bool = True
    remat: str = "none"
    moe: MoEConfig | None = None
    init_std: float = 0.02

    def __post_init__(self):
        for name in (
            "vocab_size",
            "num_layers",
            "embed_dim",
            "num_query_heads",
            "num_kv_heads",
            "head_dim",
            "mlp_dim",
            "trained_length",
            "vocab_multiple",
        ):
            if getattr(self, name) < 1:
                raise _setting_error(name, getattr(self, name), "must be at least 1")
        if self.num_query_heads % self.num_kv_heads:
            raise _setting_error(
                "num_query_heads",
                self.num_query_heads,
                f"must be a multiple of num_kv_heads = {self.num_kv_heads}",
            )
        if self.head_dim % 2:
            raise _setting_error("head_dim", self.head_dim, "must be even for rotary embedding")
        for name in ("dtype", "param_dtype"):
            if getattr(self, name) not in _DTYPES:
                raise _setting_error(name, getattr(self, name), f"must be one of {_DTYPES}")
        if self.remat not in remat_policies.POLICIES:
            raise _setting_error(
                "remat", self.remat, f"must be one of {tuple(remat_policies.POLICIES)}"
            )

        if self.moe is not None and self.num_layers % self.moe.every:
            raise _setting_error(
                "every",
                self.moe.every,
                f"must divide config.TransformerConfig.num_layers = {self.num_layers}",
                "MoEConfig",
            )

    def is_moe_layer(self, index: int) -> bool:
        """Whether layer `index`, counted from 0, is a mixture of experts."""
        return self.moe is not None and index % self.moe.every == self.moe.every - 1

    @property
    def queries_per_kv(self) -> int:
        """Query heads that share one key and value head (G)."""
        return self.num_query_heads // self.num_kv_heads

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table and the head: vocab_size rounded up to vocab_multiple."""
        return math.ceil(self.vocab_size / self.vocab_multiple) * self.vocab_multiple

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain JSON values."""
        values = dataclasses.asdict(self)
        if self.moe is not None:
            values["moe"]["router"]["class"] = type(self.moe.router).__name__
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TransformerConfig":
        """Returns the config that `to_dict` wrote.

        Raises:
          ValueError: a key is not a field of this class.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(
                f"{unknown} are not fields of TransformerConfig; a model.json of another version? "
                f"Known fields: {sorted(known)}"
            )
        values = dict(values)
        if values.get("moe") is not None:
            moe = dict(values["moe"])
            fields = dict(moe["router"])
            moe["router"] = _ROUTERS[fields.pop("class")](**fields)
            values["moe"] = MoEConfig(**moe)
        return cls(**values)


def _setting_error(name: str, value: Any, reason: str, of: str = "TransformerConfig") -> ValueError:
    return ValueError(
        f"{name} = {value!r}: {reason}; set config.{of}.{name} in the model's gin file"
    )
