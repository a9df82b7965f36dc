"""Meshes, logical axis rules and rematerialisation policies."""
