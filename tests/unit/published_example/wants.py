"""Needs what a crawl may declare absent."""

import colorsys  # noqa: F401
