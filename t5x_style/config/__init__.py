"""Configuration: finds and reads gin files, checks them, and starts a verb with them.

Only this room and `run/` know gin; what they configure is plain Python. `paths.py` alone stands
on the standard library, and any room may ask it where `gin/` and `data/` lie.
"""
