"""Sampling, KV-cache decoding and scoring."""
