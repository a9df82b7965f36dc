"""Offline production of documents: web archives in, clean deduplicated text out."""
