"""Measures over checkpoints, and the report page."""
