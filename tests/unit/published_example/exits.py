"""Ends the process in an orderly way when imported."""

raise SystemExit("a module may try to end the process")
