"""A JAX/Flax codebase from raw web pages to aligned, long-context InternLM2-class models."""

__version__ = "0.1.0"
