"""How the suite runs: what its tests cost, in which order and how many of them; no tests."""
