"""Gin parsing with errors a person can act on, the command line, and the dry run."""
