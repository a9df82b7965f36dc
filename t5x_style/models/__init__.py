"""Modules that own names, shapes and logical axes; the maths lives in `ops`."""
